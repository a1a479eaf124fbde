"""How often each preservation prompt is used."""

from collections import Counter

import pytest
import torch

from gdzoo.method.randomness import StepRandom
from gdzoo.models.preservation import EMPTY, Preservation

EARLIER, GENERAL = ("a dog", "a cat"), tuple(f"caption {number}" for number in range(7))


def shares(preservation: Preservation, rows: torch.Tensor) -> list[float]:
    """The shares of the empty prompt and of each group."""
    starts = [1, 1 + len(preservation.groups[0]), len(preservation.prompts)]
    inside = [
        ((rows >= first) & (rows < end)).float().mean().item() for first, end in zip(starts, starts[1:], strict=False)
    ]
    return [(rows == EMPTY).float().mean().item(), *inside]


def test_groups_get_equal_shares_whatever_their_size_and_the_empty_prompt_its_own():
    preservation = Preservation((EARLIER, GENERAL), empty_share=0.2)
    rows = preservation.rows(0, 1000)
    assert rows.dtype == torch.int64
    assert shares(preservation, rows) == pytest.approx([0.2, 0.4, 0.4], abs=0.002)
    counts = Counter(rows.tolist())
    assert {counts[row] for row in (1, 2)} == {200}
    assert max(counts[row] for row in range(3, 10)) - min(counts[row] for row in range(3, 10)) <= 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.5])
def test_each_beginning_of_a_pool_has_the_shares(share):
    preservation = Preservation((EARLIER, GENERAL), empty_share=share)
    rows = preservation.rows(0, 100)
    for count in (1, 7, 20, 33, 100):
        empty = int((rows[:count] == EMPTY).sum())
        assert abs(empty - share * count) <= 1
        first = int(((rows[:count] >= 1) & (rows[:count] <= 2)).sum())
        assert abs(first - (count - empty) / 2) <= 1


def test_a_pool_smaller_than_the_prompts_repeats_none():
    preservation = Preservation((GENERAL,), seed=3)
    assert len(set(preservation.rows(0, 5).tolist())) == 5
    assert sorted(preservation.rows(0, 7).tolist()) == sorted(preservation.rows(7, 7).tolist()) == [*range(1, 8)]


def test_blocks_are_parts_of_one_pool_and_the_order_is_the_seeds():
    preservation = Preservation((EARLIER, GENERAL), empty_share=0.3, seed=1)
    blocks = torch.cat([preservation.rows(0, 5), preservation.rows(5, 11), preservation.rows(16, 4)])
    assert torch.equal(blocks, preservation.rows(0, 20))
    assert torch.equal(blocks, Preservation((EARLIER, GENERAL), 0.3, seed=1).rows(0, 20))
    assert not torch.equal(blocks, Preservation((EARLIER, GENERAL), 0.3, seed=2).rows(0, 20))


def test_random_rows_have_the_same_shares_and_reach_every_prompt():
    preservation = Preservation((EARLIER, GENERAL), empty_share=0.2)
    rows = preservation.random_rows(20_000, StepRandom((1, 2), "cpu"))
    assert shares(preservation, rows) == pytest.approx([0.2, 0.4, 0.4], abs=0.02)
    assert set(rows.tolist()) == set(range(10))


def test_random_rows_are_a_slice_of_the_whole_steps():
    preservation = Preservation((EARLIER, GENERAL), empty_share=0.2)
    parts = [preservation.random_rows(8, StepRandom((1, 2), "cpu", share, 2)) for share in (0, 1)]
    assert torch.equal(torch.cat(parts), preservation.random_rows(16, StepRandom((1, 2), "cpu")))


def test_empty_groups_are_left_out_and_the_empty_prompt_alone_is_refused():
    assert Preservation(((), EARLIER)).prompts == ["", *EARLIER]
    assert set(Preservation(((), EARLIER)).rows(0, 10).tolist()) == {1, 2}
    with pytest.raises(ValueError, match="the empty prompt alone keeps nothing"):
        Preservation(((),))
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="--preservation_empty_share"):
            Preservation((EARLIER,), share)
