"""The commands, examples and links of the Markdown pages."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from gdzoo import downstream, train
from gdzoo.arguments import parse_args
from gdzoo.evaluation import __main__ as evaluation
from gdzoo.report import __main__ as report
from tests.benchmarks import step
from tests.conftest import ROOT, SMALL

README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / ".github/CONTRIBUTING.md",
    ROOT / "gdzoo/hub/README.md",
    ROOT / "gdzoo/training/README.md",
    ROOT / "tests/benchmarks/RESULTS.md",
]
START = [
    "pip install -c constraints.txt -e . && accelerate launch gdzoo/train.py",
    'pip install -c constraints.txt -e ".[test]" && pytest',
]


def commands(page: Path) -> list[str]:
    """The indented lines and the code spans of a page; a line that ends with a backslash goes on."""
    text = page.read_text().replace("\\\n", "")
    return [line.strip() for line in re.findall(r"^    .+", text, re.MULTILINE)] + re.findall(r"`([^`\n]+)`", text)


def arguments_of(script: str) -> list[str]:
    """The arguments of every command of all pages that runs `script`."""
    found = {command.partition(script)[2] for page in PAGES for command in commands(page) if f"{script} " in command}
    return sorted(arguments.partition("#")[0].rstrip('"') for arguments in found)


@pytest.fixture
def halfway(tmp_path, monkeypatch):
    """The README's own strategy as a module."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Halfway" in block)
    (tmp_path / "my_strategies.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_readme_is_short_and_starts_with_two_commands():
    assert len(README.splitlines()) <= 200
    assert [command for command in commands(ROOT / "README.md") if "constraints.txt" in command][:2] == START


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


def test_the_flags_of_every_training_command_are_valid(halfway, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [arguments for arguments in arguments_of("gdzoo/train.py") if "--help" not in arguments]
    assert len(found) > 20
    for arguments in found:
        parse_args(shlex.split(arguments)).resolve()


def test_the_flags_of_every_step_command_are_valid():
    found = arguments_of("tests/benchmarks/step.py")
    assert len(found) > 3
    for arguments in found:
        step.parse_args(shlex.split(arguments))


def test_the_strategy_of_the_readme_trains(halfway, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = next(command for command in commands(ROOT / "README.md") if "my_strategies.Halfway" in command)
    flags = shlex.split(command.partition("gdzoo/train.py")[2])
    small = [*SMALL, "--max_train_steps", "2", "--tasks", "0;1", "--evaluator", "none"]
    assert train.main([*flags, *small]) == 0
    assert (tmp_path / "zoo/gdzoo/split-digits-halfway-task2/unet").is_dir()


def test_the_commands_on_a_zoo_run_in_order(tiny_zoo, cache, tmp_path, monkeypatch):
    """Its zoo has three tasks instead of five."""
    for name in ("split-digits-evaluator", *(f"split-digits-task{task}" for task in (1, 2, 3))):
        shutil.copytree(tiny_zoo.zoo / name, tmp_path / "zoo/gdzoo" / name)
    monkeypatch.chdir(tmp_path)
    shown = README.replace("task5", "task3").replace("--task 5", "--task 3")
    for module, main, fewer in [
        ("gdzoo.evaluation", evaluation.main, ["--eval_samples", "64"]),
        ("gdzoo.downstream", downstream.main, ["--max_train_steps", "2", "--replay_samples", "20"]),
        ("gdzoo.report", report.main, []),
    ]:
        arguments = re.search(rf"`python -m {module} ([^`]+)`", shown)[1]
        assert main([*shlex.split(arguments), *fewer]) == 0
    assert list(tmp_path.glob("*.json")) and (tmp_path / "report/report.md").exists()


def test_the_example_draws_images(tiny_zoo, monkeypatch):
    monkeypatch.chdir(tiny_zoo.cwd / "zoo")
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from_pretrained" in block)
    names = {}
    exec(code.replace("task5", "task3"), names)
    assert len(names["images"]) == 16
