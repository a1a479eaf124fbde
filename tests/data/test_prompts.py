"""The prompts that are preserved, and the captions that are shipped for it."""

import re

import pytest

from gdzoo.data.prompts import GENERAL, HELD_OUT, held_out, preservation_groups, read_prompts


def test_general_captions_are_many_plain_and_distinct():
    assert 190 <= len(GENERAL) <= 220 and len(HELD_OUT) == 20
    everything = [*GENERAL, *HELD_OUT]
    assert len({caption.casefold() for caption in everything}) == len(everything)
    for caption in everything:
        assert re.fullmatch(r"[A-Za-z0-9é' -]{8,60}", caption), caption
        assert len(caption.split()) <= 12  # far below CLIP's 77 tokens


@pytest.mark.parametrize(
    "words",
    [
        ("dog", "cat", "horse", "birds"),
        ("woman", "man", "child", "people"),
        ("chair", "table", "car", "clock"),
        ("street", "mountain", "beach", "kitchen"),
        ("soup", "cake", "apples"),
        ("oil painting", "watercolor", "pencil drawing", "cartoon"),
        ("red", "green", "blue", "yellow", "black", "white"),
        ("two", "three", "four", "six", "ten"),
        ("rain", "snow", "fog", "storm"),
    ],
)
def test_general_captions_are_broad(words):
    for word in words:
        assert any(re.search(rf"\b{word}\b", caption) for caption in GENERAL), word


def test_groups_without_duplicates():
    groups = preservation_groups(
        current=["a photo of zwx chair"],
        earlier=["a photo of sks dog", "A photo of SKS  dog", "a photo of zwx chair"],
        classes=["a photo of a dog", None, "a photo of a chair", ""],
        general=True,
    )
    assert list(groups) == ["earlier", "classes", "general"]
    earlier, classes, general = groups.values()
    assert earlier == ("a photo of sks dog",)
    assert classes == ("a photo of a dog", "a photo of a chair")
    assert set(general) == set(GENERAL) - {"a photo of a dog", "a photo of a chair"}


def test_given_prompts_replace_all_others():
    groups = preservation_groups(["x"], ["y"], ["z"], given=["a", "X", "b", "a"], general=True)
    assert groups == {"given": ("a", "b")}


def test_task_that_is_taught_is_never_preserved():
    groups = preservation_groups(["A tree"], ["a  tree", "a house"], ["a tree"], general=True)
    assert not any(prompt.casefold() == "a tree" for prompts in groups.values() for prompt in prompts)


def test_nothing_to_preserve():
    with pytest.raises(ValueError, match="--preservation_prompts holds only what is being taught"):
        preservation_groups(["x"], ["y"], [None], given=["X"])
    with pytest.raises(ValueError, match="give --class_prompt or --preservation_prompts"):
        preservation_groups(["x"], [], [None])


def test_file_of_prompts(tmp_path):
    file = tmp_path / "keep.txt"
    file.write_bytes(b"\xef\xbb\xbfa tree\r\n\r\n  a  house \r\na tree\r\n")
    assert read_prompts(str(file)) == ["a tree", "a house"]
    for content, said in ((b"\n  \n", "it holds no prompt"), (b"", "it holds no prompt"), (b"\xff", "cannot be read")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_prompts(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(str(tmp_path))


def test_held_out_captions_are_those_that_are_not_preserved():
    assert held_out(GENERAL) == [*HELD_OUT]
    assert held_out([HELD_OUT[0].upper(), "a tree"]) == [*HELD_OUT[1:]]
