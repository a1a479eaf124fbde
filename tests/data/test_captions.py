"""Captions of photos in text files and metadata files."""

import json

import pytest

from gdzoo.data.captions import read_captions
from gdzoo.data.concepts_list import Concept, captioned_photos

PHOTOS = ["1.jpg", "2.png", "3.webp"]


def lines(*rows) -> str:
    return "\n".join(map(json.dumps, rows))


def row(name: str, caption, column: str = "text") -> dict:
    return {"file_name": name, column: caption}


@pytest.fixture
def folder(tmp_path):
    for name in PHOTOS:
        (tmp_path / name).touch()
    return tmp_path


def test_texts_beside_photos(folder):
    (folder / "1.txt").write_bytes("\ufeffa  sks dog\non a Straße\n".encode())
    (folder / "2.caption").write_text("a wug")
    (folder / "3.txt").write_text(" \n")
    (folder / "other.txt").write_text("of no photo")
    found = read_captions(str(folder), PHOTOS)
    assert found.of == {"1.jpg": "a sks dog on a Straße", "2.png": "a wug"}
    assert found.files == {"1.txt", "2.caption", "3.txt"}


@pytest.mark.parametrize("column, given", [("text", None), ("caption", None), ("prompt", "prompt")])
def test_metadata(folder, column, given):
    (folder / "metadata.jsonl").write_text(lines(row("1.jpg", "a dog\u2028", column), row("./3.webp", None, column)))
    assert read_captions(str(folder), PHOTOS, given).of == {"1.jpg": "a dog"}
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(f'file_name,{column},seed\n1.jpg,"a dog, a ""cat""\nand a wug",7\n2.png,,8\n')
    assert read_captions(str(folder), PHOTOS, given).of == {"1.jpg": 'a dog, a "cat" and a wug'}
    (folder / "1.txt").write_text("its own")
    found = read_captions(str(folder), PHOTOS, given)
    assert found.of == {"1.jpg": "its own"} and found.files == {"1.txt", "metadata.csv"}


FILES = {
    "not UTF-8": ("1.txt", b"caf\xe9", "1.txt is no UTF-8 text: save it as UTF-8"),
    "no JSON": ("metadata.jsonl", lines(row("1.jpg", "a dog")) + "\n{", "metadata.jsonl, line 2: it is no JSON"),
    "deep": ("metadata.jsonl", "[" * 100_000, "metadata.jsonl, line 1: it is no JSON"),
    "half a character": ("metadata.jsonl", lines(row("1.jpg", "\ud800")), "metadata.jsonl, line 1: it is no JSON"),
    "no object": ("metadata.jsonl", "[1]", "metadata.jsonl, line 1: it is no object with file_name"),
    "no CSV": ("metadata.csv", 'file_name,text\n1.jpg,"a dog', "metadata.csv is no CSV"),
    "empty": ("metadata.csv", "", "metadata.csv has no column file_name, only empty lines"),
    "no file_name": ("metadata.csv", "file,text\n1.jpg,a dog", "no column file_name, only file, text"),
    "no captions": (
        "metadata.csv",
        "file_name,label,split\n1.jpg,a dog,train",
        "--caption_column: metadata.csv has no column text or caption, only label, split: name one",
    ),
    "a number": ("metadata.jsonl", lines(row("1.jpg", 3)), "metadata.jsonl, row 1: file_name and text are texts"),
    "twice": (
        "metadata.jsonl",
        lines(row("1.jpg", "a dog"), row("./1.jpg", "a cat")),
        "metadata.jsonl, row 2: 1.jpg has a row before",
    ),
    "missing photos": (
        "metadata.jsonl",
        lines(*(row(f"{n}.jpg", "a dog") for n in range(1, 6))),
        "metadata.jsonl names 4 files that are no photos of this folder: 2.jpg, 3.jpg, 4.jpg, ...",
    ),
}


@pytest.mark.parametrize("name, content, said", FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_in_one_line(folder, name, content, said):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as refused:
        read_captions(str(folder), PHOTOS)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_column_that_is_not_there_and_two_metadata_files(folder):
    (folder / "metadata.csv").write_text("file_name,text\n1.jpg,a dog")
    with pytest.raises(ValueError, match="metadata.csv has no column note, only text: name one"):
        read_captions(str(folder), PHOTOS, "note")
    (folder / "metadata.jsonl").write_text(lines(row("1.jpg", "a dog")))
    with pytest.raises(ValueError, match="metadata.jsonl and metadata.csv both have captions"):
        read_captions(str(folder), PHOTOS)


def test_photos_without_a_caption_have_the_instance_prompt_or_are_counted_and_named(folder):
    (folder / "2.txt").write_text("a wug on a mat")
    (folder / "3.txt").write_text("")
    prompts, captioned, others = captioned_photos(Concept("a wug", None, str(folder)), None)
    assert prompts == {"1.jpg": "a wug", "2.png": "a wug on a mat", "3.webp": "a wug"}
    assert captioned == {"2.png"} and others == []
    with pytest.raises(ValueError, match="^2 of 3 photos without a caption, 1.jpg, 3.webp: give --instance_prompt"):
        captioned_photos(Concept(None, "a thing", str(folder)), None)
