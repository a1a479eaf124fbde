"""The pages' commands and examples: run with tiny settings where that needs no network, else only parsed; links.

Stable Diffusion is a tiny one, which the test Hub has under the name that the pages give.
"""

import functools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers import DDIMPipeline
from huggingface_hub import HfApi, close_session
from PIL import Image

from gdzoo import downstream, train, train_text_to_image
from gdzoo.arguments import parse_args
from gdzoo.config import TrainConfig
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.data.concepts_list import read_concepts
from gdzoo.evaluation import __main__ as evaluation
from gdzoo.models.small_stable_diffusion import create_pipeline
from gdzoo.models.unet import create_scheduler, create_unet
from gdzoo.report import __main__ as report
from gdzoo.training import text_to_image
from tests.benchmarks import step
from tests.conftest import ROOT
from tests.hub.conftest import use
from tests.hub.server import FakeHub
from tests.models.loras import make_kohya, make_lora
from tests.models.tiny import make_tiny_stable_diffusion
from tests.readme import blocks, commands

TRAIN, TEXT = "gdzoo/train.py", "gdzoo/train_text_to_image.py"
CONFIGS = {TRAIN: TrainConfig, TEXT: TextToImageConfig}
CONCEPTS, OWN_LORA = "concepts.json", "sks_dog.safetensors"
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MAINS = {
    TRAIN: train.main,
    TEXT: train_text_to_image.main,
    "gdzoo.evaluation": evaluation.main,
    "gdzoo.report": report.main,
    "gdzoo.downstream": downstream.main,
}
# A flag that is given twice has its last value.
TINY = {
    TRAIN: "--max_train_steps 2 --train_batch_size 4 --evaluator_steps 2 --eval_samples 10 --eval_steps 1 --seeds 42",
    TEXT: "--max_train_steps 2 --train_batch_size 2 --num_class_images 4 --replay_pool_steps 2 --eval_samples 10"
    " --eval_steps 2 --evaluator_steps 2",
    "gdzoo.evaluation": "--eval_samples 10 --eval_steps 1",
    "gdzoo.report": "",
    "gdzoo.downstream": "--max_train_steps 2 --replay_samples 10",
}
SMALLER = {
    "--resolution": "--resolution 16 --model tiny",
    "--seeds": "--tasks 0-4;5-9 --output_dir other",
    "--instance_data_dir": "--resolution 16",
    "--concepts_list": "--resolution 16",
}
NOT_RUN = {
    "--benchmark split-cifar": "CIFAR-10 comes from the Hub; tests/training/test_train.py trains on a copy",
    "org/pets": "this data set would be on the Hub",
    "lambdalabs/": "downloads from the Hub; tests/training/test_captioned_digits.py teaches data sets on disk",
    "--push_to_hub": "pushes to the Hub; tests/hub does",
    "--resume_from_checkpoint ME/": "downloads from the Hub; tests/hub does",
    "gdzoo.hub": "pushes to the Hub; tests/hub does",
    "--use_fsdp": "needs two processes; tests/training/test_processes.py launches it",
    "spaces/compare/app.py": "serves until it is stopped; tests/spaces does",
    "--mixed_precision fp16": "needs a GPU",
    "zoo/gdzoo/dog-task": "test_a_chain_goes_on_as_they_say does",
    "--concepts_list": "test_a_chain_goes_on_as_they_say does",
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
    for script in CONFIGS:
        if script in words:
            return script, words[words.index(script) + 1 :]
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


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub
    close_session()


def use_stable_diffusion(server: FakeHub, patch: pytest.MonkeyPatch, cwd: Path):
    """A working directory with photos and lists, and a Hub with a tiny Stable Diffusion."""
    use(server, patch, cwd)
    server.add_user(STABLE_DIFFUSION.partition("/")[0], "hf_owner")
    api = HfApi(token="hf_owner")
    api.create_repo(STABLE_DIFFUSION)
    api.upload_folder(repo_id=STABLE_DIFFUSION, folder_path=make_tiny_stable_diffusion(cwd / "uploaded"))
    # Its VAE takes most of the embedded benchmark's time.
    patch.setattr(text_to_image, "create_pipeline", functools.partial(create_pipeline, vae_steps=2))
    write_examples(cwd)
    own_images(cwd / "DIR")


@pytest.fixture(scope="module")
def dog(once, server) -> Path:
    """The README's command that teaches one concept, tiny."""

    def make(cwd: Path):
        with pytest.MonkeyPatch.context() as patch:
            use_stable_diffusion(server, patch, cwd)
            command = next(each for each in COMMANDS if "DIR/dog" in each)
            assert train_text_to_image.main(smaller(TEXT, split(command)[1])) == 0

    return once("readme-dog", make)


@pytest.fixture
def taught(cwd, dog, server, monkeypatch) -> Path:
    """A working directory with the zoos of both kinds of models in it, and the Hub with Stable Diffusion."""
    shutil.copytree(dog / "zoo", cwd / "zoo", dirs_exist_ok=True)
    use_stable_diffusion(server, monkeypatch, cwd)
    return cwd


def own_images(root: Path):
    for split_name in ("train", "test"):
        for shade, name in enumerate(("cat", "dog", "bird", "eel")):
            folder = root / "pets" / split_name / name
            folder.mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (16, 16), (50 * shade + number, 90, 90)).save(folder / f"{number}.png")
    for shade, name in enumerate(("flowers", "birds", "dog", "chair", "zwx")):
        (root / name).mkdir()
        for number in range(10):
            Image.new("RGB", (16, 20), (90, 49 * shade + number, 90)).save(root / name / f"{number}.png")


def smaller(program: str, arguments: list[str]) -> list[str]:
    """Arguments that do the same in seconds."""
    flags = [flag for name, flags in SMALLER.items() if name in arguments for flag in flags.split()]
    if program == TEXT and not arguments:
        flags += ["--strategy", "generative_distillation"]
    return [*arguments, *TINY[program].split(), *flags]


def test_the_readmes_have_commands():
    programs = {split(command)[0] for command in COMMANDS}
    assert programs >= {*MAINS, "gdzoo.hub", "spaces/compare/app.py"}
    assert split(COMMANDS[0]) == (TRAIN, [])


@pytest.mark.parametrize("command", [each for each in COMMANDS if split(each)[0] in CONFIGS and "--help" not in each])
def test_their_settings_are_valid(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_examples(tmp_path)
    program, arguments = split(command)
    parse_args(arguments, CONFIGS[program]).resolve()


@pytest.mark.parametrize("command", COMMANDS)
def test_they_run(command, cwd, monkeypatch, request):
    for part, reason in NOT_RUN.items():
        if part in command:
            pytest.skip(reason)
    program, arguments = split(command)
    if program == TEXT:
        request.getfixturevalue("taught")
    elif any(argument.startswith("DIR") for argument in arguments):
        own_images(cwd / "DIR")
    if OWN_LORA in arguments:
        make_kohya(make_lora(cwd / "uploaded", cwd / "made"), cwd / OWN_LORA)
    if "ME/MODEL" in arguments:
        DDIMPipeline(create_unet("tiny", channels=3, resolution=8), create_scheduler()).save_pretrained("ME/MODEL")
    monkeypatch.syspath_prepend(cwd)
    write_examples(cwd)
    assert MAINS[program](smaller(program, arguments)) == 0


def write_examples(folder: Path):
    """The pages' strategies and lists, each in the file that a command names, and prompts."""
    for command in COMMANDS:
        for word in split(command)[1]:
            module, _, name = word.rpartition(".")
            for block in blocks("python"):
                if module and f"class {name}" in block:
                    (folder / f"{module}.py").write_text(block)
    (concepts,) = (block for block in blocks("json") if "instance_prompt" in block)
    (folder / CONCEPTS).write_text(concepts)
    (folder / "prompts.txt").write_text("a red car\na house\n")


def test_the_concepts_are_those_of_the_commands(taught):
    """Each line of the README that teaches one concept is an entry of the list, so that both give the same chain."""
    listed = {(each.prompt, each.class_prompt, each.folder) for each in read_concepts(CONCEPTS)}
    single = [
        parse_args(split(command)[1], TextToImageConfig)
        for command in COMMANDS
        if "DIR/" in command and TEXT in command
    ]
    assert len(single) > 1
    assert {(each.instance_prompt, each.class_prompt, each.instance_data_dir) for each in single} <= listed


@pytest.mark.parametrize("part", ["zoo/gdzoo/dog-task", CONCEPTS])
def test_a_chain_goes_on_as_they_say(part, taught):
    """From the last folder, twice, or with a longer list under the same name."""
    lines = [each for each in COMMANDS if part in each and "--preservation_prompts" not in each]
    before = (taught / "zoo/gdzoo/dog-task1/results.json").read_bytes()
    named = ["--benchmark", "dog"] if part == CONCEPTS else []
    for command in lines if part != CONCEPTS else lines[:1]:
        assert train_text_to_image.main(smaller(TEXT, [*split(command)[1], *named])) == 0
    assert (taught / "zoo/gdzoo/dog-task3/lora/pytorch_lora_weights.safetensors").exists()
    assert (taught / "zoo/gdzoo/dog-task1/results.json").read_bytes() == before


USED = [block for block in blocks("python") if "from_pretrained" in block]


@pytest.mark.parametrize("block", USED)
def test_the_models_are_used_as_they_say(block, taught, monkeypatch):
    monkeypatch.chdir(taught / "zoo")
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
    training = [(program, arguments) for program, arguments in map(split, found) if program in CONFIGS]
    steps = [arguments for program, arguments in map(split, found) if program.endswith("step.py")]
    assert len(training) > 10 and len(steps) > 2
    for program, arguments in training:
        parse_args(arguments, CONFIGS[program]).resolve()
    for arguments in steps:
        step.parse_args(arguments)
