"""Settings of text-to-image chains: defaults, what is refused or only noted, and what is published of them."""

import json
import shlex
import sys
from dataclasses import fields, replace

import pytest
from PIL import Image

from gdzoo import train_text_to_image
from gdzoo.arguments import make_parser, parse_args
from gdzoo.config_text_to_image import CAPTIONED_RECIPE, TextToImageConfig
from gdzoo.dreambooth_flags import OTHER_FLAGS
from gdzoo.settings import ConfigError
from tests.conftest import ROOT
from tests.test_command_line import SLOW, python

GROUPS = ("data", "method", "model", "training", "evaluation", "output", "Hub")
MODEL = "someone/model"
DOG = dict(instance_prompt="a photo of sks dog", class_prompt="a photo of a dog", instance_data_dir="dogs")
CHAIR = dict(instance_prompt="a photo of zwx chair", class_prompt="a photo of a chair", instance_data_dir="chairs")
ONE = dict(pretrained_model_name_or_path=MODEL, **DOG)
SETS = dict(pretrained_model_name_or_path=MODEL, task_datasets=["me/wugs", "dogs"])
DIGITS = dict(pretrained_model_name_or_path=MODEL, benchmark="split-digits")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A working folder with photos of two concepts; returns it."""
    folder = tmp_path / "private"
    for name in ("dogs", "chairs", "empty"):
        (folder / name).mkdir(parents=True)
    for name in ("dogs", "chairs"):
        Image.new("RGB", (9, 8)).save(folder / name / "1.PNG")
    monkeypatch.chdir(folder)
    return folder


def write_list(entries, name="concepts.json") -> str:
    with open(name, "w", encoding="utf-8") as file:
        file.write(entries if isinstance(entries, str) else json.dumps(entries))
    return name


def listed(*entries, **settings) -> TextToImageConfig:
    return TextToImageConfig(pretrained_model_name_or_path=MODEL, concepts_list=write_list([*entries]), **settings)


def refusal(**settings) -> str:
    """The one line in which settings are refused."""
    with pytest.raises(ConfigError) as refused:
        TextToImageConfig(**settings).resolve().check_paths()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- defaults ----


def test_no_setting_at_all_is_captioned_digits():
    config = TextToImageConfig().resolve()
    assert (config.benchmark, config.resolution, config.concepts) == ("captioned-digits", 8, [])
    assert config.strategy == ["generative_replay", "generative_distillation"]
    assert {name: getattr(config, name) for name in CAPTIONED_RECIPE} == CAPTIONED_RECIPE
    assert (config.tasks_known(1), config.trains_adapter(1)) == (1, False)
    assert (config.get_benchmark().channels, config.get_benchmark().resolution) == (3, 8)


def test_a_pretrained_model_counts_as_one_task():
    config = TextToImageConfig(**ONE).resolve()
    assert config.strategy == ["generative_distillation"]
    assert (config.benchmark, config.resolution, config.evaluator) == ("dogs", 512, "none")
    assert (config.tasks_known(1), config.tasks_known(2)) == (2, 3)
    assert (config.replay_weight, config.replay_pool, config.caption_dropout) == (1.0, 200, 0.0)
    assert (config.learning_rate, config.guidance_scale, config.snr_gamma) == (5e-6, 7.5, None)


def test_clip_and_dino_are_for_pretrained_models_by_default():
    papers = {"clip_model": "openai/clip-vit-base-patch32", "dino_model": "facebook/dino-vits16"}
    assert TextToImageConfig(**ONE).resolve().fidelity_models == papers
    assert TextToImageConfig(**ONE, clip_model="none").resolve().fidelity_models == papers | {"clip_model": None}
    assert TextToImageConfig().resolve().fidelity_models == dict.fromkeys(papers)
    assert TextToImageConfig(clip_model="me/clip").resolve().fidelity_models["clip_model"] == "me/clip"
    config = TextToImageConfig(**ONE).resolve()  # where they cannot be had, it is the same run
    assert not {"clip_model", "dino_model"} & {name for name, value in config.results_dict().items() if value}


def test_an_adapter_has_a_higher_rate_but_not_where_a_model_is_trained_from_scratch():
    assert TextToImageConfig(**ONE, rank=4).resolve().learning_rate == 1e-4
    digits = TextToImageConfig(rank=8).resolve()
    assert (digits.trains_adapter(1), digits.trains_adapter(2)) == (False, True)
    assert (digits.of_task(1).learning_rate, digits.of_task(2).learning_rate) == (2e-3, 6e-3)
    assert TextToImageConfig(**ONE, rank=4).resolve().trains_adapter(1)


def test_name_of_the_chain():
    assert listed(DOG).resolve().benchmark == "concepts"
    assert listed(DOG, benchmark="pets").resolve().benchmark == "pets"
    assert TextToImageConfig(**ONE | {"instance_data_dir": "dogs/"}).resolve().benchmark == "dogs"
    write_list([DOG], "My pets, 2.json")
    config = TextToImageConfig(pretrained_model_name_or_path=MODEL, concepts_list="My pets, 2.json")
    assert config.resolve().benchmark == "my-pets-2"
    assert TextToImageConfig(**SETS).resolve().benchmark == "wugs"
    write_list([DOG], "captioned-digits.json")
    assert replace(config, concepts_list="captioned-digits.json").resolve().benchmark == "own-captioned-digits"


def test_concepts_in_order():
    config = listed(CHAIR, DOG).resolve()
    assert [concept.prompt for concept in config.concept_list] == [CHAIR["instance_prompt"], DOG["instance_prompt"]]
    config.check_paths()
    assert [str(folder) for folder in config.data_folders] == ["chairs", "dogs"]
    given = TextToImageConfig(pretrained_model_name_or_path=MODEL, concepts=[CHAIR, DOG], benchmark="concepts")
    assert given.resolve().concepts == config.concepts


def test_a_labelled_benchmark_has_a_name_of_its_own():
    """The plain one is that of its unconditional models."""
    config = TextToImageConfig(**DIGITS).resolve()
    assert (config.benchmark, config.prompt_template) == ("split-digits-prompts", "a photo of a {}")
    assert (config.class_order, config.get_benchmark().tasks, config.get_benchmark().resolution) == ("dataset", 5, 512)
    cifar = TextToImageConfig(**{**DIGITS, "benchmark": "split-cifar"}, evaluator="train").resolve()
    assert (cifar.class_order, cifar.get_benchmark().image_column, cifar.get_benchmark().test_split) == (
        "seed",
        "img",
        None,
    )
    named = TextToImageConfig(**ONE, benchmark="split-digits-prompts").resolve()  # a chain that goes on with photos
    assert named.labelled is None and named.class_order == "dataset"


def test_all_photos_of_a_folder_may_have_captions(folders):
    (folders / "dogs/1.txt").write_text("a sks dog and a zwx chair")
    config = listed({"instance_data_dir": "dogs"}, CHAIR).resolve()
    config.check_paths()
    assert [concept.prompt for concept in config.concept_list] == [None, CHAIR["instance_prompt"]]
    [line] = config.warnings
    assert line.startswith("concept 'dogs' has no class prompt")


@pytest.mark.parametrize("settings", [{}, ONE, {**ONE, "rank": 4}, SETS, DIGITS])
def test_resolving_twice_changes_nothing(settings):
    config = TextToImageConfig(**settings).resolve()
    assert config.resolve() == config


def test_concepts_are_read_once():
    """The file may grow while a run is going on."""
    config = listed(DOG).resolve()
    write_list([DOG, CHAIR])
    assert config.resolve().concepts == config.concepts


# ---- refusals ----


@pytest.mark.parametrize(
    "settings, said",
    [
        ({**ONE, "instance_prompt": None}, "dogs: 1 of 1 photos without a caption, 1.PNG: give --instance_prompt"),
        ({**ONE, "instance_data_dir": None}, "--instance_data_dir is missing"),
        ({**ONE, "class_prompt": "a photo  of sks dog"}, "instance_prompt and class_prompt are the same"),
        ({**ONE, "instance_data_dir": "nowhere"}, "--instance_data_dir nowhere: there is no such folder"),
        ({**ONE, "instance_data_dir": "empty"}, "--instance_data_dir empty holds nothing"),
        ({**ONE, "instance_data_dir": "."}, "holds no photo, only chairs, dogs, empty"),
        ({**ONE, "concepts_list": "concepts.json"}, "--instance_data_dir does not go with --concepts_list"),
        (DOG, "--instance_data_dir goes with --pretrained_model_name_or_path"),
        ({"revision": "main"}, "--revision goes with --pretrained_model_name_or_path"),
        ({"benchmark": "split-digits"}, "--benchmark split-digits: without --pretrained_model_name_or_path"),
        ({**ONE, "benchmark": "captioned-digits"}, "--benchmark captioned-digits is the embedded one"),
        ({**ONE, "resolution": 500}, "--resolution 500: it is a multiple of 8"),
        ({"resolution": 16}, "--resolution 16: the images of captioned-digits have 8 pixels"),
        ({**ONE, "strategy": ["joint"]}, "--strategy joint needs the real images"),
        ({**ONE, "strategy": ["experience_replay"]}, "--strategy experience_replay needs the real images"),
        ({**ONE, "preservation_empty_share": 1.0}, "--preservation_empty_share 1.0: it is less than 1"),
        ({**ONE, "evaluator": "train"}, "--evaluator train: photos of a few concepts"),
        ({"replay_pool_steps": 3}, "--replay_pool_steps 3 does not divide"),
        ({**ONE, "preservation_prompts": "missing.txt"}, "--preservation_prompts missing.txt: it cannot be read"),
        ({**ONE, "pretrained_model_name_or_path": "../model"}, "--pretrained_model_name_or_path ../model: there is no"),
        ({**ONE, "rank": 0}, "--rank 0: it is at least 1"),
        ({"pretrained_model_name_or_path": MODEL}, "--instance_data_dir is missing"),
        ({"task_datasets": ["me/wugs"]}, "--task_datasets goes with --pretrained_model_name_or_path"),
        ({"prompt_template": "a {}"}, "--prompt_template goes with --pretrained_model_name_or_path"),
        ({**ONE, "task_datasets": ["me/wugs"]}, "--instance_data_dir does not go with --task_datasets"),
        ({**ONE, "benchmark": "split-digits"}, "--benchmark split-digits has its own data set: leave out --instance"),
        ({**SETS, "class_prompt": "a wug"}, "--class_prompt does not go with --task_datasets"),
        ({**SETS, "task_datasets": ["me/wugs", "me/wugs"]}, "me/wugs me/wugs: each needs a name of its own"),
        ({**SETS, "task_datasets": ["../wugs"]}, "--task_datasets ../wugs: there is no such folder"),
        ({**SETS, "dataset_root": "nowhere"}, "--dataset_root nowhere: there is no such folder"),
        ({**SETS, "prompt_template": "a photo"}, "--prompt_template 'a photo': write {} once"),
        ({**DIGITS, "prompt_template": "{} and {}"}, "--prompt_template '{} and {}': write {} once"),
        ({**ONE, "prompt_template": "a {}"}, "--prompt_template goes with --task_datasets"),
        ({**ONE, "image_column": "photo"}, "--image_column goes with --task_datasets"),
        ({**ONE, "image_bits": 12}, "--image_bits goes with --task_datasets"),
        ({**SETS, "label_column": "kind"}, "--label_column goes with --prompt_template"),
        ({**SETS, "prompt_template": "a {}", "caption_column": "text"}, "--caption_column: the class names are"),
        ({**DIGITS, "caption_column": "text"}, "--caption_column: the class names are the prompts"),
        ({**SETS, "evaluator": "train"}, "--evaluator train: photos of a few concepts"),
        ({**ONE, "lora_layers": "to_q"}, "--lora_layers goes with --rank"),
        ({**ONE, "rank": 2, "lora_layers": " , "}, "--lora_layers ' , ': name layers"),
        ({**ONE, "adapter_only": True}, "--adapter_only goes with --rank"),
        ({"pretrained_lora": "me/lora"}, "--pretrained_lora goes with --pretrained_model_name_or_path"),
        ({**ONE, "pretrained_lora": "lora"}, "--pretrained_lora lora: there is no such file or folder"),
        ({**ONE, "pretrained_lora": "me/lora", "lora_layers": "to_q"}, "--lora_layers does not go with --pretrained_l"),
        ({**ONE, "num_validation_images": 0}, "--num_validation_images 0: it is at least 1"),
        ({**ONE, "validation_steps": 0}, "--validation_steps 0: it is at least 1"),
        ({**ONE, "clip_model": "./clip"}, "--clip_model ./clip: there is no such folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(settings, said):
    assert said in refusal(**settings)


def test_8bit_adam_needs_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "--use_8bit_adam: bitsandbytes is not installed: pip install bitsandbytes" in refusal(use_8bit_adam=True)


@pytest.mark.parametrize(
    "entries, said",
    [
        ("[{", "concepts.json: it is no JSON"),
        ("{}", "concepts.json: write a list"),
        ("[]", "concepts.json: write a list"),
        ("[" * 100_000, "concepts.json: it is no JSON"),
        ([DOG, 3], "entry 2: it is no object"),
        ([DOG, {**CHAIR, "instance_prompt": " "}], "chairs: 1 of 1 photos without a caption, 1.PNG"),
        ([{**DOG, "class_prompt": 7}], "entry 1: class_prompt is no text"),
        ([{**DOG, "prompt": "a"}], "entry 1: there is no key 'prompt'"),
        ([DOG, {**CHAIR, "instance_prompt": DOG["instance_prompt"]}], "concepts 1 and 2 have the same instance prompt"),
        ([DOG, {**CHAIR, "instance_prompt": DOG["class_prompt"]}], "is the class prompt of concept 1"),
        (
            [DOG, {**CHAIR, "instance_data_dir": "empty"}],
            "--concepts_list concepts.json: instance_data_dir empty holds",
        ),
    ],
    ids=str,
)
def test_bad_list_is_refused_by_entry(entries, said):
    assert said in refusal(pretrained_model_name_or_path=MODEL, concepts_list=write_list(entries))


def test_preservation_file_without_a_prompt(folders):
    (folders / "keep.txt").write_text("\n \n")
    assert "it holds no prompt" in refusal(**ONE, preservation_prompts="keep.txt")


# ---- warnings ----


def test_warnings(folders):
    assert not TextToImageConfig(**ONE).resolve().warnings
    assert not TextToImageConfig().resolve().warnings
    (folders / "keep.txt").write_text(DOG["class_prompt"] + "\n\n")
    [line] = TextToImageConfig(**ONE, preservation_prompts="keep.txt").resolve().warnings
    assert "class prompts alone" in line
    (folders / "keep.txt").write_text(DOG["class_prompt"] + "\na tree\n")
    assert not TextToImageConfig(**ONE, preservation_prompts="keep.txt").resolve().warnings
    [line] = TextToImageConfig(**ONE | {"class_prompt": None}).resolve().warnings
    assert "has no class prompt" in line
    assert not TextToImageConfig(**ONE | {"class_prompt": None}, strategy=["finetune"]).resolve().warnings
    [line] = listed(DOG | {"class_data_dir": "classes"}).resolve().warnings
    assert "class_data_dir folder is not read" in line


# ---- the command line ----


def test_help_shows_every_flag_once_and_in_groups():
    lines = make_parser(TextToImageConfig).format_help().splitlines()
    assert lines[0].startswith("usage: accelerate launch gdzoo/train_text_to_image.py")
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        f"{name}:" for name in ("most used", *GROUPS)
    ]
    flags = [line.split()[0].strip(",") for line in lines if line.startswith("  -")]
    named = [f"--{spec.name}" for spec in fields(TextToImageConfig) if spec.metadata["flag"]]
    assert sorted(flags) == sorted([*named, "--config", "-h"])
    assert not set(OTHER_FLAGS) & {spec.name for spec in fields(TextToImageConfig)}


@pytest.mark.parametrize("name", OTHER_FLAGS)
def test_other_flags_of_diffusers_are_noted_or_refused_in_one_line(name, capsys, folders):
    other = OTHER_FLAGS[name]
    values = [] if other.values == 0 else ["1"]
    (folders / "run.yaml").write_text(f"seed: 7\n{name}: 1\n")
    for argv in ([f"--{name}", *values, "--seed", "7"], ["--config", "run.yaml"]):
        if other.refused:
            with pytest.raises(SystemExit) as ended:
                parse_args(argv, TextToImageConfig)
            assert ended.value.code == 2
        else:
            assert parse_args(argv, TextToImageConfig) == TextToImageConfig(seed=7)
        said = capsys.readouterr().err
        assert said.count("\n") == bool(other.text) and f"{name}: {other.text}" in (said or f"{name}: ")


def test_settings_of_flow_matching_are_for_pretrained_models_and_keep_old_run_ids():
    plain = TextToImageConfig(**ONE).resolve()
    config = TextToImageConfig(**ONE, weighting_scheme="mode", mode_scale=1).resolve()
    assert (plain.weighting, config.weighting) == ({}, {"weighting_scheme": "mode", "mode_scale": 1.0})
    assert config.run_id() != plain.run_id() and "--weighting_scheme mode --mode_scale 1.0" in config.command()
    there = {name: value for name, value in plain.to_dict().items() if name not in ("weighting_scheme", "mode_scale")}
    assert not plain.difference(there) and config.difference(there).startswith("--weighting_scheme None, not mode")
    assert "goes with --pretrained_model_name_or_path, a model of flow matching" in refusal(logit_std=1.0)
    assert "--weighting_scheme half: choose from sigma_sqrt, logit_normal" in refusal(**ONE, weighting_scheme="half")


def test_notes_are_printed_by_one_process(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    parse_args(["--with_prior_preservation"], TextToImageConfig)
    assert not capsys.readouterr().err


def test_settings_of_a_file_are_those_of_the_command_line(folders):
    (folders / "run.yaml").write_text("instance_prompt: a photo of sks dog\nstrategy: [lwf, finetune]\nrank: 4\n")
    config = parse_args(["--config", "run.yaml", "--rank", "8"], TextToImageConfig)
    assert (config.instance_prompt, config.strategy, config.rank) == ("a photo of sks dog", ["lwf", "finetune"], 8)


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--help"], 0, "usage: accelerate launch gdzoo/train_text_to_image.py"),
        (["--rank", "0"], 2, "gdzoo: --rank 0: it is at least 1"),
        (["--train_text_encoder"], 2, "gdzoo: --train_text_encoder: the text encoder is never trained"),
    ],
)
def test_help_and_refusals_come_before_slow_imports(tmp_path, arguments, code, said):
    slow = tmp_path / "slow"
    for name in SLOW:
        (slow / name).mkdir(parents=True)
        (slow / name / "__init__.py").write_text("raise SystemExit(f'{__name__} was imported')")
    run = python([str(ROOT / "gdzoo/train_text_to_image.py"), *arguments], tmp_path, slow)
    assert run.returncode == code and (run.stdout + run.stderr).startswith(said), run.stderr


def test_settings_need_no_slow_import(folders):
    config = f"TextToImageConfig(pretrained_model_name_or_path='me/model', **{DOG}).resolve()"
    check = (
        "import sys; from gdzoo.train_text_to_image import TextToImageConfig, main, train;"
        f" config = {config}; config.check_paths(); config.run_id(); config.command(); config.get_benchmark();"
        f" config.warnings; print({{*{SLOW}}} & sys.modules.keys())"
    )
    run = python(["-c", check], folders)
    assert run.stdout.strip() == "set()", run.stdout + run.stderr


def test_exit_code_of_bad_settings(capsys):
    assert train_text_to_image.main(["--resolution", "12"]) == 2
    assert capsys.readouterr().err == "gdzoo: --resolution 12: it is a multiple of 8, the factor of the VAE\n"


# ---- what is published, and when two runs are the same ----


def test_nothing_private_is_published(folders):
    (folders / "keep.txt").write_text("a tree\na house\n")
    prefix = str(folders)
    entries = [{**entry, "instance_data_dir": f"{prefix}/{entry['instance_data_dir']}"} for entry in (DOG, CHAIR)]
    models = dict.fromkeys(("evaluator", "features", "clip_model", "dino_model"), prefix)
    config = listed(*entries, preservation_prompts=f"{prefix}/keep.txt", **models).resolve()
    published = json.dumps(config.to_dict()) + config.command()
    assert prefix not in published and "/private/" not in published
    assert config.to_dict()["concepts"][1] == {**CHAIR, "instance_data_dir": "./chairs"}
    assert config.to_dict()["preservation_prompts"] == ["a tree", "a house"]
    assert config.to_dict()["concepts_list"] == "./concepts.json"
    one = TextToImageConfig(**ONE | {"instance_data_dir": f"{prefix}/dogs"}).resolve()
    assert prefix not in json.dumps(one.to_dict()) + one.command()


def test_folders_of_data_sets_are_published_by_name(folders):
    settings = {**SETS, "task_datasets": [f"{folders}/dogs", "me/wugs"], "dataset_root": str(folders)}
    config = TextToImageConfig(**settings).resolve()
    config.check_paths()
    assert config.to_dict()["task_datasets"] == ["./dogs", "me/wugs"] and config.benchmark == "dogs"
    assert str(folders) not in json.dumps(config.to_dict()) + config.command()
    assert {str(folder) for folder in config.data_folders} >= {f"{folders}/dogs", f"{folders}/me/wugs"}


def test_what_changes_no_weight_is_no_other_run(folders):
    plain = TextToImageConfig(**ONE, rank=4).resolve()
    shown = dict(adapter_only=True, validation_prompt=["a sks dog on Mars"], validation_steps=7)
    assert replace(plain, **shown).resolve().run_id() == plain.run_id()
    assert replace(plain, lora_layers="to_q").resolve().run_id() != plain.run_id()
    assert replace(plain, use_8bit_adam=True).run_id() != plain.run_id()
    older = {name: value for name, value in plain.to_dict().items() if name != "use_8bit_adam"}
    assert not plain.difference(older)
    (folders / "mine.safetensors").touch()
    own = TextToImageConfig(**ONE, pretrained_lora=f"{folders}/mine.safetensors").resolve()
    assert own.to_dict()["pretrained_lora"] == "mine.safetensors" and "--pretrained_lora mine.saf" in own.command()


def test_a_longer_list_is_the_same_run():
    short, long = listed(DOG).resolve(), listed(DOG, CHAIR).resolve()
    assert short.run_id() == long.run_id()
    assert not long.difference(short.to_dict())
    assert long.difference(listed(DOG, rank=4).resolve().to_dict()).startswith("--rank 4, not None")


def test_other_preservation_prompts_are_another_run(folders):
    (folders / "keep.txt").write_text("a tree\n")
    first = TextToImageConfig(**ONE, preservation_prompts="keep.txt").resolve()
    (folders / "keep.txt").write_text("a house\n")
    second = TextToImageConfig(**ONE, preservation_prompts="keep.txt").resolve()
    assert first.run_id() != second.run_id() != TextToImageConfig(**ONE).resolve().run_id()
    assert second.difference(first.to_dict()) == "--preservation_prompts ['a tree'], not ['a house']"


CASES = {
    "digits": {},
    "digits with an adapter": dict(rank=8, strategy=["lwf"], seed=69),
    "one": {**ONE, "rank": 4, "center_crop": True, "snr_gamma": 5.0},
    "no class": {**ONE, "class_prompt": None},
    "data sets": {**SETS, "caption_column": "prompt", "image_column": "photo", "image_bits": 12},
    "labels": {**SETS, "prompt_template": "a {}", "label_column": "kind"},
    "benchmark": {**DIGITS, "prompt_template": "a drawing of a {}"},
    "own LoRA": {**ONE, "pretrained_lora": "me/lora", "adapter_only": True, "validation_prompt": ["a sks dog"]},
    "layers": {**ONE, "rank": 4, "lora_layers": "to_q,to_k"},
    "other metrics": {**ONE, "clip_model": "me/clip", "dino_model": "none"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_command_and_published_settings_lead_back(settings):
    config = TextToImageConfig(**settings).resolve()
    command = shlex.split(config.command())
    assert command[:3] == ["accelerate", "launch", "gdzoo/train_text_to_image.py"]
    again = parse_args(command[3:], TextToImageConfig).resolve()
    assert again.results_dict() == config.results_dict()
    assert [(c.prompt, c.class_prompt) for c in again.concept_list] == [
        (c.prompt, c.class_prompt) for c in config.concept_list
    ]
    again.check_paths()  # ./dogs
    data = ("task_datasets", "prompt_template", "image_column", "caption_column", "label_column", "image_bits")
    assert [again._public()[name] for name in data] == [config._public()[name] for name in data]
    published = from_published(json.loads(json.dumps(config.chain("lwf").to_dict())))
    assert replace(published, strategy=config.strategy).run_id() == config.run_id()


def from_published(settings: dict) -> TextToImageConfig:
    """The config of a train_config.json, whose concepts and prompts need no files; without the strategy."""
    known = {spec.name for spec in fields(TextToImageConfig)} - {"strategy", "preservation_prompts", "preserved"}
    assert settings.keys() <= known | {"strategy", "preservation_prompts"}
    values = {name: settings[name] for name in settings if name in known}
    return TextToImageConfig(**values, preserved=settings["preservation_prompts"] or []).resolve()


def test_command_and_published_settings_of_a_list_lead_back(folders):
    (folders / "keep.txt").write_text("a tree\n")
    config = listed(DOG, CHAIR, preservation_prompts="keep.txt").resolve()
    again = parse_args(shlex.split(config.command())[3:], TextToImageConfig).resolve()
    assert again.run_id() == config.run_id() and again.concepts == config.concepts
    published = from_published(config.to_dict())
    assert published.run_id() == config.run_id()
    assert [concept.folder for concept in published.concept_list] == ["./dogs", "./chairs"]
