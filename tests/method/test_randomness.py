"""Random numbers of a step are the same however the step is cut up, and whatever ran before."""

import itertools

import pytest
import torch

from gdzoo.method.randomness import StepRandom, seed_from

KEY = (42, 1, 7)
DRAWS = {
    "randn": lambda random, count: random.randn(count, 3, 2),
    "rand": lambda random, count: random.rand(count),
    "randint": lambda random, count: random.randint(1000, count),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("shares", [1, 2, 4])
def test_shares_are_slices_of_the_global_draw(draw, shares):
    everything = draw(StepRandom(KEY, "cpu"), 8)
    # In any order: the processes do not wait for each other.
    parts = {share: draw(StepRandom(KEY, "cpu", share, shares), 8 // shares) for share in reversed(range(shares))}
    assert torch.equal(torch.cat([parts[share] for share in range(shares)]), everything)


def test_shares_agree_on_later_draws_too():
    def drawn(share, shares):
        random = StepRandom(KEY, "cpu", share, shares)
        return [draw(random, 8 // shares) for draw in DRAWS.values()]

    for whole, first, second in zip(drawn(0, 1), drawn(0, 2), drawn(1, 2), strict=True):
        assert torch.equal(torch.cat([first, second]), whole)


def test_nothing_depends_on_torchs_own_state():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = StepRandom(KEY, "cpu").randn(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(StepRandom(KEY, "cpu").randn(5), first)


def test_ranges():
    random = StepRandom(KEY, "cpu")
    integers, uniform = random.randint(10, 1000), random.rand(1000)
    assert set(integers.tolist()) == set(range(10)) and integers.dtype == torch.int64
    assert 0 <= uniform.min() < 0.05 and 0.95 < uniform.max() < 1
    assert random.randn(10_000).std() == pytest.approx(1, abs=0.05)


def test_neighbouring_keys_are_unrelated():
    keys = list(itertools.product((42, 69), (1, 2), range(50)))
    seeds = [seed_from(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = torch.stack([StepRandom(key, "cpu").randn(1000) for key in keys])
    off_diagonal = torch.corrcoef(draws) - torch.eye(len(keys))
    assert off_diagonal.abs().max() < 0.2  # six standard deviations of what chance gives


def test_seeds_are_the_same_for_ever():
    # Published results could not be had again if they changed.
    assert seed_from(42, 1, 7) == 8746174886438117604
