"""Evaluation by prompts, on drawings whose measures are known."""

import math

import pytest
import torch
from torch import Tensor

from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Extractor, Reference
from gdzoo.evaluation.fidelity import Features, Fidelity
from gdzoo.evaluation.metrics import paired_kernel_distance
from gdzoo.evaluation.prompts import (
    CLASS,
    HELD_OUT,
    MOST_CONFUSED,
    Compared,
    Judge,
    PromptGroup,
    evaluate_prompts,
    pixel_distances,
    pooled,
    rightness,
)
from gdzoo.zoo.metric_catalogue import PROMPT_METRICS, UNGUIDED, metric_info
from tests.evaluation.test_fidelity import Words

NAMES = ["a red one", "a red two", "a blue one", "a blue two"]
OLD = PromptGroup("task 1", 1, ("a red one", "a blue one"), True)
NEW = PromptGroup("task 2", 2, ("a red two", "a blue two"), True)
PRESERVED = PromptGroup("preserved", None, ("a house", "a tree", "a lake"), False)
OUT = PromptGroup(HELD_OUT, None, ("a boat",), False)
SWAPPED = {"a red one": "a blue one", "a blue one": "a red one"}
COUNT = 24


def flat(values: list[int]) -> Tensor:
    """Images of one gray level each."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).clone()


class Seen(Evaluator):
    """Reads the label, and features, from an image's gray level: 10 * label + noise."""

    def __init__(self):
        pass

    def __call__(self, images, among=None):
        level = images[:, 0, 0, 0].long()
        return torch.stack([level / 10.0, (level % 10).float()], 1), (level // 10).clamp(max=len(NAMES) - 1)


def draw(wrong: dict[str, str] | None = None, shift: int = 0):
    """A model that draws what is asked, but for `wrong`; prompts that are no names as white."""

    def images(prompts: list[str], seed: int, guidance: float) -> Tensor:
        noise = torch.randint(5, (len(prompts),), generator=torch.Generator().manual_seed(seed)).tolist()
        asked = [(wrong or {}).get(prompt, prompt) for prompt in prompts]
        return flat(
            [
                10 * NAMES.index(a) + n + shift if a in NAMES else 200 + n + shift
                for a, n in zip(asked, noise, strict=True)
            ]
        )

    return images


def judge(**changes) -> Judge:
    return Judge(**{"count": COUNT, "seed": 3, "guidance": 2.0, "evaluator": Seen(), "names": NAMES} | changes)


def reference() -> Reference:
    """What the right model draws for all names, from other noise."""
    labels = torch.arange(len(NAMES)).repeat(30)
    features, _ = Seen()(flat([10 * label + i % 5 for i, label in enumerate(labels.tolist())]))
    return Reference(features, labels, "test", NAMES, Extractor("me/eyes", "0123456789abcdef", lambda images: images))


def rows(found: dict, guidance: float = 2.0) -> dict[str, dict]:
    return {row["group"]: row for row in found["groups"] if row["guidance"] == guidance}


def evaluate(drawing=None, original=None, groups=(OLD, NEW), task=2, **changes):
    judged = judge(**changes)
    original = original and judged.source(original)
    return evaluate_prompts(judged.source(drawing or draw()), groups, judged, task=task, original=original, keep=3)


def test_a_model_that_has_not_changed_has_no_drift():
    found, _ = evaluate(original=draw(), groups=(PRESERVED, OLD, OUT), task=1)
    for row in found["groups"]:
        assert (row["drift"], row["drift_kid"]) == (0, 0) and row["drift_fid"] == pytest.approx(0, abs=1e-9)
    assert found["metrics"]["drift"] == found["metrics"]["held_out_drift"] == found["metrics"]["drift_guidance_1"] == 0
    assert not {"old_accuracy", "old_distance"} & found["metrics"].keys()  # a first task has no old prompts


def test_drift_is_the_distance_of_the_pixels():
    found, _ = evaluate(draw(shift=51), original=draw(), groups=(PRESERVED,), guidance=1.0)
    [row] = found["groups"]  # guidance 1 is the judged one: measured once
    assert row["drift"] == pytest.approx(51 / 255)
    assert row["drift_fid"] == pytest.approx(5.1**2 + 1, rel=0.2)
    black, half = flat([0, 0]), flat([0, 255])
    half[0, :, :2] = 255
    assert pixel_distances(black, half).tolist() == pytest.approx([math.sqrt(0.5), 1])


def test_swapped_colours_are_half_right():
    found, _ = evaluate(draw(SWAPPED))
    old, new = rows(found)["task 1"], rows(found)["task 2"]
    assert (old["accuracy"], old["attributes"]) == (0, 0.5)  # "a" does not count
    assert old["confusion"] == [
        {"asked": "a blue one", "predicted": "a red one", "count": COUNT // 2},
        {"asked": "a red one", "predicted": "a blue one", "count": COUNT // 2},
    ]
    assert (new["accuracy"], new["attributes"], new["confusion"]) == (1, 1, [])
    assert (found["metrics"]["old_accuracy"], found["metrics"]["new_accuracy"]) == (0, 1)


def test_confusion_counts_and_is_bounded():
    asked = ["a red one"] * 3 + ["a blue one"] * 2 + ["a house"]
    compared = Compared(asked, 3, None, None, None, torch.tensor([0, 2, 2, 3, 2, 0]))
    found = rightness(compared, NAMES)
    assert found["accuracy"] == 2 / 5  # the house is no name
    assert [[*each.values()] for each in found["confusion"]] == [
        ["a red one", "a blue one", 2],
        ["a blue one", "a blue two", 1],
    ]
    assert found["attributes"] == pytest.approx((1 + 0.5 + 0.5 + 0.5 + 1) / 5)
    many = [f"a {n}" for n in range(60)]
    wrong = Compared(many, 60, None, None, None, torch.arange(60).roll(1))
    assert len(rightness(wrong, many)["confusion"]) == MOST_CONFUSED


def test_distances_to_real_images_of_the_same_prompts():
    found, _ = evaluate(draw(SWAPPED), reference=reference(), count=240)
    right, _ = evaluate(draw(), reference=reference(), count=240)
    old, new = rows(found)["task 1"], rows(found)["task 2"]
    # Both colours are drawn as often as they should be: the swap changes no distribution, only the accuracy.
    assert 0 <= rows(right)["task 1"]["distance"] < 0.02
    assert 0 <= old["distance"] < 0.02 and old["real_images"] == 60
    broken, _ = evaluate(draw({"a red two": "a red one", "a blue two": "a red one"}), reference=reference(), count=240)
    assert rows(broken)["task 2"]["distance"] > 1 and rows(broken)["task 2"]["kid"] > new["kid"]
    assert broken["metrics"]["new_distance"] == rows(broken)["task 2"]["distance"]
    assert found["evaluation"]["features"] == "me/eyes" and found["evaluation"]["fingerprint"] == "01234567"


def test_what_cannot_be_measured_is_none():
    found, _ = evaluate(groups=(PRESERVED,), reference=reference())
    row = rows(found)["preserved"]
    assert [row[name] for name in ("accuracy", "attributes", "confusion", "distance", "kid")] == [None] * 5
    assert (row["drift"], row["drift_fid"], row["drift_kid"], row["real_images"]) == (None, None, None, 0)
    few, _ = evaluate(reference=reference(), count=2, original=draw())
    row = rows(few)["task 1"]
    assert row["distance"] is None and row["kid"] is None and row["drift"] == 0 and row["accuracy"] == 1
    assert few["evaluation"]["distance_samples_needed"] == 3
    blind, _ = evaluate(evaluator=None, names=(), original=draw())
    row = rows(blind)["task 1"]
    assert (row["accuracy"], row["drift"], row["drift_fid"]) == (None, 0, None)
    assert "feature_dim" not in blind["evaluation"] and blind["metrics"].keys() == set()  # no prompt is kept


def test_a_group_with_a_prompt_without_real_images_has_no_distance():
    mixed = PromptGroup("task 2", 2, ("a red two", "a house"), True)
    found, _ = evaluate(groups=(mixed,), reference=reference())
    assert rows(found)["task 2"]["distance"] is None and rows(found)["task 2"]["accuracy"] == 1


def test_drift_is_over_what_the_original_model_knew():
    judged = judge()

    def of_pretrained(shift: int, task: int):
        source = judged.source(draw(shift=shift))
        return evaluate_prompts(
            source, (OLD, NEW, PRESERVED, OUT), judged, task=2, original=judged.source(draw()), original_task=task
        )[0]

    for task in (0, 1):
        assert of_pretrained(51, task)["metrics"]["drift"] == pytest.approx(0.2)
    # A stranger's model was not asked to keep its drawings for prompts that were taught since.
    source = judged.source(lambda prompts, *rest: draw(shift=51 if prompts[0] == "a red one" else 0)(prompts, *rest))
    for task, drift in ((0, 0), (1, 0.1)):  # the mean of the groups that it knew
        found, _ = evaluate_prompts(
            source, (OLD, NEW, PRESERVED), judged, task=2, original=judged.source(draw()), original_task=task
        )
        assert found["metrics"]["drift"] == pytest.approx(drift, abs=1e-6)


def test_a_pool_has_equally_many_drawings_of_each_prompt():
    parts = [Compared(group.asked(COUNT), len(group.prompts), None, None, None, None) for group in (PRESERVED, OUT)]
    pool = pooled(parts)
    assert pool.asked == [*PRESERVED.prompts] * 8 + ["a boat"] * 8 and pool.prompts == 4
    assert pooled([]) is None


def test_other_processes_draw_too_and_get_nothing():
    calls = []
    judged = judge(guidance=4.0)

    def other(prompts, seed, guidance):
        calls.append((tuple(prompts), seed, guidance))

    source = judged.source(other)
    assert evaluate_prompts(source, (OLD, OUT), judged, task=1, original=source) is None
    asked = [(tuple(group.asked(COUNT)), 3, guidance) for group in (OLD, OUT) for guidance in (4.0, 1.0)]
    assert calls == [call for call in asked for _ in range(2)]


def test_drawings_of_another_number_are_refused():
    with pytest.raises(ValueError, match="group task 1: the original model's drawings have the shape") as caught:
        judged = judge()
        evaluate_prompts(judged.source(draw()), (OLD,), judged, task=1, original=judge(count=9).source(draw()))
    assert "\n" not in str(caught.value)


def test_the_first_drawings_are_kept_in_the_order_of_the_prompts():
    _, kept = evaluate()
    assert kept.keys() == {"task 1", "task 2"} and kept["task 1"].shape == (3, 3, 4, 4)
    assert [level // 10 for level in kept["task 1"][:, 0, 0, 0].tolist()] == [0, 2, 0]


def test_an_extractor_gives_the_features():
    eyes = Extractor("me/clip", "f" * 40, lambda images: images.float().flatten(1)[:, :2])
    found, _ = evaluate(extractor=eyes, original=draw(), evaluator=None, names=())
    assert rows(found)["task 1"]["drift_fid"] == pytest.approx(0, abs=1e-9)
    assert found["evaluation"]["features"] == "me/clip" and found["evaluation"]["feature_dim"] == 2


def test_paired_kernel_distance():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert paired_kernel_distance(x, x) == 0
    assert paired_kernel_distance(x, x + 1) > 0.5
    with pytest.raises(ValueError, match="of the same size"):
        paired_kernel_distance(x, x[:3])


def test_every_metric_is_in_the_catalogue():
    classes = PromptGroup(CLASS, None, ("a digit",), False)
    photos = {task: dict.fromkeys(NAMES, Features(*torch.ones(2, 1, 2))) for task in (1, 2)}
    fidelity = Fidelity(Words(), Words(), dict.fromkeys(NAMES, "a digit"), photos)
    groups = (OLD, NEW, classes, PRESERVED, OUT)
    found, _ = evaluate(groups=groups, original=draw(), reference=reference(), fidelity=fidelity)
    assert {name.removesuffix(UNGUIDED) for name in found["metrics"]} == PROMPT_METRICS.keys()
    for name in found["metrics"]:
        assert metric_info(name).direction and metric_info(name).explanation
    assert metric_info("drift_guidance_1").title == "drift, guidance 1"
    assert metric_info("fid_guidance_1") == ("fid_guidance_1", "", "")
