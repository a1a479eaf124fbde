"""The pages' commands and examples: run with tiny settings where that needs no network, else only parsed; links."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from diffusers import DDIMPipeline
from PIL import Image

from gdzoo import downstream, train
from gdzoo.arguments import parse_args
from gdzoo.evaluation import __main__ as evaluation
from gdzoo.models.unet import create_scheduler, create_unet
from gdzoo.report import __main__ as report
from tests.benchmarks import step
from tests.conftest import ROOT
from tests.readme import commands, python_blocks

TRAIN = "gdzoo/train.py"
MAINS = {
    TRAIN: train.main,
    "gdzoo.evaluation": evaluation.main,
    "gdzoo.report": report.main,
    "gdzoo.downstream": downstream.main,
}
# A flag that is given twice has its last value.
TINY = {
    TRAIN: "--max_train_steps 2 --train_batch_size 4 --evaluator_steps 2 --eval_samples 10 --eval_steps 1 --seeds 42",
    "gdzoo.evaluation": "--eval_samples 10 --eval_steps 1",
    "gdzoo.report": "",
    "gdzoo.downstream": "--max_train_steps 2 --replay_samples 10",
}
SMALLER = {
    "--resolution": "--resolution 16 --model tiny",
    "--seeds": "--tasks 0-4;5-9 --output_dir other",
}
NOT_RUN = {
    "--benchmark split-cifar": "CIFAR-10 comes from the Hub; tests/training/test_train.py trains on a copy",
    "org/pets": "this data set would be on the Hub",
    "--push_to_hub": "pushes to the Hub; tests/hub does",
    "--resume_from_checkpoint ME/": "downloads from the Hub; tests/hub does",
    "gdzoo.hub": "pushes to the Hub; tests/hub does",
    "--use_fsdp": "needs two processes; tests/training/test_processes.py launches it",
    "spaces/compare/app.py": "serves until it is stopped; tests/spaces does",
    "--help": "tests/test_config.py does",
    "tests/benchmarks/": "measures; tests/benchmarks has its tests",
}
COMMANDS = commands()
README = ROOT / "README.md"
PAGES = [README, *(ROOT / page for page in ("gdzoo/hub/README.md", "gdzoo/training/README.md"))]
PAGES += [ROOT / ".github/CONTRIBUTING.md", ROOT / "tests/benchmarks/RESULTS.md"]
START = [
    "pip install -c constraints.txt -e . && accelerate launch gdzoo/train.py",
    'pip install -c constraints.txt -e ".[test]" && pytest',
]


def split(command: str) -> tuple[str, list[str]]:
    """What a command runs, and the arguments of that."""
    words = shlex.split(command + '"' * (command.count('"') % 2))  # a part of `bash -c "..."`
    if TRAIN in words:
        return TRAIN, words[words.index(TRAIN) + 1 :]
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


@pytest.fixture(scope="module")
def digits(once) -> Path:
    """The README's first command, tiny."""

    def make(cwd: Path):
        assert train.main([*TINY[TRAIN].split(), "--output_dir", str(cwd / "zoo")]) == 0

    return once("readme", make)


@pytest.fixture
def cwd(digits, tmp_path, monkeypatch) -> Path:
    """A working directory with that zoo in it."""
    shutil.copytree(digits / "zoo", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_images(root: Path):
    for split_name in ("train", "test"):
        for shade, name in enumerate(("cat", "dog", "bird", "eel")):
            folder = root / "pets" / split_name / name
            folder.mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (16, 16), (50 * shade + number, 90, 90)).save(folder / f"{number}.png")
    for shade, name in enumerate(("flowers", "birds")):
        (root / name).mkdir()
        for number in range(10):
            Image.new("RGB", (16, 16), (90, 99 * shade + number, 90)).save(root / name / f"{number}.png")


def test_the_readmes_have_commands():
    programs = {split(command)[0] for command in COMMANDS}
    assert programs >= {*MAINS, "gdzoo.hub", "spaces/compare/app.py"}
    assert split(COMMANDS[0]) == (TRAIN, [])


@pytest.mark.parametrize("command", [each for each in COMMANDS if TRAIN in each and "--help" not in each])
def test_their_settings_are_valid(command, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_examples(tmp_path)
    parse_args(split(command)[1]).resolve()


@pytest.mark.parametrize("command", COMMANDS)
def test_they_run(command, cwd, monkeypatch):
    for part, reason in NOT_RUN.items():
        if part in command:
            pytest.skip(reason)
    program, arguments = split(command)
    smaller = [flag for name, flags in SMALLER.items() if name in arguments for flag in flags.split()]
    arguments = [*arguments, *TINY[program].split(), *smaller]
    if any(argument.startswith("DIR") for argument in arguments):
        own_images(cwd / "DIR")
    if "ME/MODEL" in arguments:
        DDIMPipeline(create_unet("tiny", channels=3, resolution=8), create_scheduler()).save_pretrained("ME/MODEL")
    monkeypatch.syspath_prepend(cwd)
    write_examples(cwd)
    assert MAINS[program](arguments) == 0


def write_examples(folder: Path):
    """The README's strategies, each in the module that its command names."""
    for command in COMMANDS:
        for word in split(command)[1]:
            module, _, name = word.rpartition(".")
            for block in python_blocks("README.md"):
                if module and f"class {name}" in block:
                    (folder / f"{module}.py").write_text(block)


def test_the_models_are_used_as_they_say(cwd, monkeypatch):
    monkeypatch.chdir(cwd / "zoo")
    used = [block for block in python_blocks("README.md") if "from_pretrained" in block]
    assert used
    for block in used:
        names = {}
        exec(block, names)
        assert any(isinstance(value, list) and isinstance(value[0], Image.Image) for value in names.values() if value)


def test_every_file_that_they_name_is_there():
    for command in COMMANDS:
        for word in split(command)[1]:
            if word.endswith((".yaml", ".py")):
                assert (ROOT / word).exists(), command


def test_the_readme_is_short_and_starts_with_two_commands():
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert [line.strip() for line in lines if line.startswith("    pip install")][:2] == START


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.+)", linked.read_text(), re.MULTILINE) if anchor else []
            slugs = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert not anchor or anchor in slugs, target


def test_the_commands_of_the_results_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands("tests/benchmarks/RESULTS.md")
    training = [arguments for program, arguments in map(split, found) if program == TRAIN]
    steps = [arguments for program, arguments in map(split, found) if program.endswith("step.py")]
    assert len(training) > 10 and len(steps) > 2
    for arguments in training:
        parse_args(arguments).resolve()
    for arguments in steps:
        step.parse_args(arguments)
