"""Bad input of text-to-image chains ends in one line before any work; a chain goes on with more concepts."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, StableDiffusionPipeline, UNet2DModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from gdzoo import train_text_to_image
from gdzoo.arguments import parse_args
from gdzoo.config import ConfigError
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.prompts import GENERAL
from gdzoo.training.run import task_checkpoints
from gdzoo.training.text_preparation import prepare_text_to_image
from gdzoo.zoo.folders import read_json, write_json
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG
from tests.hub.folders import content
from tests.models.tiny import make_tiny_stable_diffusion, make_tiny_stable_diffusion_xl
from tests.training.text_to_image import (
    ADAPTER,
    CLASSES,
    CONCEPTS,
    SHORT,
    of_one_concept,
    prepared,
    published,
    same,
    taught,
    write_list,
)

BASE, LIST = "--pretrained_model_name_or_path", "--concepts_list"


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


def refused(arguments: list[str], capsys, cwd: Path) -> str:
    """The line in which a command is refused, before anything is written."""
    before = content(cwd)
    assert train_text_to_image.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("gdzoo: ")]
    assert len(lines) == 1 and content(cwd) == before
    return lines[0]


# ---- concepts ----


def one(root: Path, **changes) -> list[str]:
    """The flags of one concept, with other values."""
    flags = {"instance_data_dir": root / "photos/dog", "instance_prompt": "a sks dog", "class_prompt": "a dog"}
    pairs = [(f"--{name}", str(value)) for name, value in (flags | changes).items()]
    return [*SHORT, BASE, str(root / "base"), *sum(pairs, ())]


def test_a_folder_without_photos(cwd, tmp_path, root, capsys):
    (tmp_path / "empty").mkdir()
    line = refused(one(root, instance_data_dir=tmp_path / "empty"), capsys, cwd)
    assert "--instance_data_dir" in line and "empty holds nothing" in line
    (tmp_path / "empty/captions.txt").write_text("no photo")
    assert "no photo, only captions.txt" in refused(one(root, instance_data_dir=tmp_path / "empty"), capsys, cwd)
    (tmp_path / "empty/broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    assert "broken.jpg" in refused(one(root, instance_data_dir=tmp_path / "empty"), capsys, cwd)
    assert "there is no such folder" in refused(one(root, instance_data_dir=tmp_path / "nowhere"), capsys, cwd)


def test_an_instance_prompt_that_is_its_class_prompt(cwd, root, capsys):
    """CLIP's tokenizer has no capitals."""
    for prompt in ("a sks dog", "A  sks dog"):
        line = refused(one(root, class_prompt=prompt), capsys, cwd)
        assert "instance_prompt and class_prompt are the same, 'a sks dog'" in line


def test_two_concepts_with_the_same_prompt(cwd, root, tmp_path, capsys):
    file = write_list(root, ["dog", "chair"])
    entries = json.loads(file.read_text())
    entries[1]["instance_prompt"] = entries[0]["instance_prompt"].upper()
    (tmp_path / "same.json").write_text(json.dumps(entries))
    line = refused([*SHORT, BASE, str(root / "base"), LIST, str(tmp_path / "same.json")], capsys, cwd)
    assert f"concepts 1 and 2 have the same instance prompt, {CONCEPTS['dog'].upper()!r}" in line


@pytest.mark.parametrize("resolution", ["12", "20"])
def test_a_resolution_that_is_no_multiple(cwd, root, capsys, resolution):
    line = refused([*one(root), "--resolution", resolution], capsys, cwd)
    assert f"--resolution {resolution}: it is a multiple of" in line


# ---- captions ----


def sets(root: Path, *folders: Path) -> list[str]:
    return [*SHORT, BASE, str(root / "base"), "--task_datasets", *map(str, folders)]


def write_set(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    for number in range(len(captions)):
        Image.new("RGB", (20 + number, 30), (9 * number, 90, 0)).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "note": caption} for number, caption in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_photo_without_a_caption_or_an_instance_prompt(cwd, root, tmp_path, capsys):
    photos = Path(shutil.copytree(root / "photos/dog", tmp_path / "dog"))
    flags = ["--instance_data_dir", str(photos), BASE, str(root / "base")]
    line = refused([*SHORT, *flags], capsys, cwd)
    assert "dog: 5 of 5 photos without a caption, 0.jpg, 1.png, 2.png, ...: give --instance_prompt" in line
    (photos / "0.txt").write_text("a sks dog")
    (photos / "1.txt").write_text("")
    assert "dog: 4 of 5 photos without a caption, 1.png, 2.png" in refused([*SHORT, *flags], capsys, cwd)
    (photos / "2.txt").write_bytes(b"\xff")
    assert "dog: 2.txt is no UTF-8 text" in refused([*SHORT, *flags, "--instance_prompt", "a dog"], capsys, cwd)


def test_a_data_set_without_the_column(cwd, root, tmp_path, capsys):
    wugs = write_set(tmp_path / "wugs", ["a wug", "two wugs"])
    line = refused(sets(root, wugs), capsys, cwd)
    assert "data set wugs has no column text or caption, only image, note: name one" in line
    line = refused([*sets(root, wugs), "--caption_column", "notes"], capsys, cwd)
    assert "--caption_column: data set wugs has no column notes, only image, note" in line


def test_captions_that_are_too_long_are_said_once(cwd, root, tmp_path):
    wugs = write_set(tmp_path / "wugs", ["a wug", *(f"{number} wugs " * 90 for number in range(3))])
    run = prepare_text_to_image(parse_args([*sets(root, wugs), "--caption_column", "note"], TextToImageConfig))
    [line] = [line for line in run.data.remarks if "longer than" in line]
    assert line.startswith("3 prompts are longer than the ")


def test_images_that_do_not_fit_in_memory_are_counted(cwd, root, tmp_path, capsys, monkeypatch):
    """They are kept as moments of latents: at 16 pixels, 2 x 4 x 8 x 8 numbers each."""
    wugs = write_set(tmp_path / "wugs", ["a wug", "two wugs"])
    monkeypatch.setattr(TextToImageConfig, "cache_limit_gb", 2 * 2 * 4 * 8 * 8 * 4 / 1e9)
    flags = [*sets(root, wugs), "--caption_column", "note"]
    prepare_text_to_image(parse_args(flags, TextToImageConfig))
    line = refused([*flags, "--random_flip"], capsys, cwd)
    assert "task 1: its 2 images need 0.0 GB of memory as latents, more than" in line


def test_captions_are_all_that_would_be_preserved(cwd, root, tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("two WUGS\n")
    folders = [write_set(tmp_path / name, [f"a {name}", "two wugs"]) for name in ("wug", "dax")]
    flags = ["--caption_column", "note", "--preservation_prompts", str(tmp_path / "keep.txt")]
    assert "task 1: --preservation_prompts holds only what is being taught" in refused(
        [*sets(root, *folders), *flags], capsys, cwd
    )


def test_a_validation_prompt_is_not_preserved(cwd, root, tmp_path, capsys):
    """But for one that is taught, a caption too: while it is taught it is not, and later tasks are there to keep it."""
    (tmp_path / "keep.txt").write_text("A  tree\na house\n")
    concepts, keep = taught(root, ["dog", "chair"]), ["--preservation_prompts", str(tmp_path / "keep.txt")]
    wugs, daxes = (write_set(tmp_path / name, [f"a {name}", "two wugs"]) for name in ("wug", "dax"))
    captions = [*sets(root, wugs, daxes), "--caption_column", "note"]
    general = GENERAL[7].upper()
    for flags, prompt in (
        (concepts, CLASSES["chair"]),
        (concepts, general),
        (captions, general),
        (captions + keep, "a tree"),
    ):
        line = refused([*flags, "--validation_prompt", "a sks dog in the snow", prompt], capsys, cwd)
        assert f"--validation_prompt {prompt!r} is preserved, as class prompts" in line

    def remarks(*flags: str) -> list[str]:
        run = prepare_text_to_image(parse_args([*flags], TextToImageConfig))
        return [line for line in run.data.remarks if "--validation_prompt" in line]

    for flags, prompt in ((concepts, CONCEPTS["dog"]), (captions, "a WUG")):
        assert remarks(*flags, "--validation_prompt", "a", prompt) == [
            f"--validation_prompt {prompt!r} is preserved once it has been taught"
        ]
    never = [*concepts, "--validation_prompt", CONCEPTS["chair"], general]  # the last prompt, and with these flags none
    assert not remarks(*never, *keep) and not remarks(*never, "--strategy", "finetune")


def test_classes_of_a_benchmark_are_taught_as_prompts(cwd, root, monkeypatch):
    """With an evaluator of its own, whose classes are the prompts."""
    monkeypatch.setitem(BENCHMARKS, "split-digits", dataclasses.replace(BENCHMARKS["split-digits"], tasks="8,9;3"))
    flags = ["--benchmark", "split-digits", "--evaluator", "train", "--evaluator_steps", "2", "--strategy", "finetune"]
    assert train_text_to_image.main([*SHORT, BASE, str(root / "base"), *flags, "--max_train_steps", "1"]) == 0
    results = read_json(cwd / "zoo/gdzoo/split-digits-prompts-finetune-task2" / RESULTS)
    prompts = ["a photo of a 8", "a photo of a 9", "a photo of a 3"]
    assert [(each["task"], each["prompt"]) for each in results["prompts"]] == [*zip((1, 1, 2), prompts, strict=True)]
    assert {"old_accuracy", "new_accuracy", "drift"} <= results["metrics"].keys()
    names = read_json(cwd / "zoo/gdzoo/split-digits-prompts-evaluator" / RESULTS)["names"]
    assert names == [f"a photo of a {digit}" for digit in range(10)]


def test_a_labelled_chain_does_not_go_on_from_a_task_of_its_own(cwd, root, once, tmp_path):
    model = Path(shutil.copytree(published(once) / "zoo/gdzoo/pets-task1", tmp_path / "model"))
    write_json(model / RESULTS, read_json(model / RESULTS) | {"benchmark": "split-digits-prompts"})
    with pytest.raises(ConfigError, match="is of split-digits-prompts, whose tasks are fixed"):
        prepare_text_to_image(TextToImageConfig(pretrained_model_name_or_path=str(model), benchmark="split-digits"))


# ---- models ----


def test_another_resolution_than_the_pipelines_own_is_told(root, cwd):
    """Such as SDXL at the default resolution."""
    model = str(root / "xl")
    config = TextToImageConfig(**of_one_concept(root, pretrained_model_name_or_path=model, resolution=32))
    remarks = prepare_text_to_image(config).data.remarks
    assert any(
        "draws 16 x 16 pixels by default and the photos have 32: give --resolution 16" in line for line in remarks
    )
    assert not prepare_text_to_image(dataclasses.replace(config, resolution=16)).data.remarks


@pytest.mark.parametrize("base", ["sd3", "flux"])
def test_settings_of_flow_matching_reach_the_models(root, cwd, base):
    """And what is assumed of a guidance-distilled one is told."""
    concept = dict(instance_data_dir=str(root / "photos/dog"), instance_prompt="a sks dog", class_prompt="a dog")
    model = dict(pretrained_model_name_or_path=str(root / base), clip_model="none", dino_model="none")
    steps = dict(eval_steps=28, replay_pool_steps=7)  # of any number
    config = TextToImageConfig(**concept, **model, **steps, resolution=16, rank=2, weighting_scheme="cosmap")
    run = prepare_text_to_image(config)
    (chain,) = run.chains
    assert run.job.space(run, chain, 1).weighting["weighting_scheme"] == "cosmap"
    assert any("guidance-distilled: " in line for line in run.data.remarks) == (base == "flux")
    assert chain.config.publishes_adapter(1)  # by default
    assert chain.config.guidance_scale == (3.5 if base == "flux" else 7.5)
    assert prepare_text_to_image(dataclasses.replace(config, guidance_scale=7.5)).config.guidance_scale == 7.5
    whole = prepare_text_to_image(dataclasses.replace(config, adapter_only=False))
    assert not whole.config.publishes_adapter(1) and whole.config.run_id() == run.config.run_id()


@pytest.mark.parametrize(
    ("base", "flags", "said"),
    [
        ("flux", ["--snr_gamma", "5"], "gdzoo: --snr_gamma 5 is for models with a schedule of betas"),
        ("xl", ["--weighting_scheme", "mode"], "gdzoo: --weighting_scheme is for models of flow matching"),
        ("xl", ["--eval_steps", "28"], "gdzoo: --eval_steps: 28 DDIM steps do not divide the 1000 training timesteps"),
    ],
)
def test_settings_of_another_kind_of_model(cwd, root, capsys, base, flags, said):
    assert refused([*one(root), BASE, str(root / base), *flags], capsys, cwd).startswith(said)


def another_kind(folder: Path):
    blocks = dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(8,))
    DDIMPipeline(UNet2DModel(8, norm_num_groups=4, **blocks), DDIMScheduler()).save_pretrained(folder)


def refiner(folder: Path):
    """SDXL's second model: of its text encoders it has one."""
    make_tiny_stable_diffusion_xl(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLImg2ImgPipeline"}))


def lora_attached(folder: Path):
    """As diffusers saves a pipeline after load_lora_weights."""
    make_tiny_stable_diffusion(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]))
    pipeline.unet.save_pretrained(folder / "unet")


def vae_of_nan(folder: Path):
    """Its weights are finite and its numbers are not."""
    make_tiny_stable_diffusion(folder)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.weight"] = torch.full_like(weights["encoder.conv_in.weight"], 3e38)
    save_file(weights, file, metadata={"format": "pt"})


MODELS = {
    another_kind: ("it is a DDIMPipeline, which gdzoo cannot train", "gdzoo takes a StableDiffusionPipeline"),
    refiner: ("it is a StableDiffusionXLImg2ImgPipeline", "or a StableDiffusionXLPipeline (SDXL"),
    lora_attached: ("its LoRA layers still attached", "pipe.fuse_lora() and pipe.unload_lora_weights()"),
}


@pytest.mark.parametrize("make", MODELS)
def test_a_model_that_cannot_be_taught(cwd, tmp_path, root, capsys, make):
    make(tmp_path / "model")
    line = refused([*one(root), BASE, str(tmp_path / "model")], capsys, cwd)
    assert line.startswith(f"gdzoo: {BASE}") and all(part in line for part in MODELS[make])


def test_a_vae_that_gives_nan(cwd, tmp_path, root, capsys):
    vae_of_nan(tmp_path / "model")
    assert train_text_to_image.main([*one(root), BASE, str(tmp_path / "model")]) != 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gdzoo: ")]
    assert line.startswith("gdzoo: the VAE (AutoencoderKL) gives numbers that are not finite, in torch.float32")
    assert not list(cwd.glob("zoo/gdzoo/*"))


def test_an_adapter_of_another_rank(cwd, once, root, capsys):
    """In the same zoo, or going on from its last model."""
    zoo = published(once, *ADAPTER) / "zoo"
    shutil.copytree(zoo, cwd / "zoo")
    line = refused([*taught(root), "--rank", "4"], capsys, cwd)
    assert "--output_dir zoo holds another run: pets-task1 was trained with --rank 2, not 4" in line
    last = cwd / "zoo/gdzoo/pets-task3"
    line = refused([*one(root), BASE, str(last), "--rank", "4"], capsys, cwd)
    assert line.startswith("gdzoo: --rank") and "rank 2: leave out --rank" in line


# ---- going on ----


@pytest.mark.parametrize("flags", [[], ADAPTER], ids=["full", "lora"])
def test_a_longer_list_teaches_what_is_new_alone(cwd, once, root, flags):
    """To the model after the last task of the zoo; the same bits as in one run."""
    zoo, once_ran = cwd / "zoo/gdzoo", published(once, *flags) / "zoo/gdzoo"
    assert train_text_to_image.main([*taught(root, ["dog"]), *flags]) == 0
    first = content(zoo / "pets-task1")
    assert train_text_to_image.main([*taught(root, ["dog", "chair"]), *flags]) == 0
    assert content(zoo / "pets-task1") == first
    assert sorted(folder.name for folder in zoo.iterdir()) == ["pets-task1", "pets-task2"]
    assert all(same(zoo / name, once_ran / name) for name in ("pets-task1", "pets-task2"))
    assert [entry["prompt"] for entry in read_json(zoo / "pets-task2" / RESULTS)["prompts"]] == [
        CONCEPTS["dog"],
        CONCEPTS["chair"],
    ]


def test_a_new_concept_goes_on_from_the_last_folder(cwd, once, root):
    """Without the earlier photos: the folder knows its prompts and its number."""
    shutil.copytree(published(once) / "zoo", cwd / "zoo")
    before = content(cwd / "zoo/gdzoo")
    assert train_text_to_image.main([*one(root), BASE, str(cwd / "zoo/gdzoo/pets-task3")]) == 0
    assert before.items() <= content(cwd / "zoo/gdzoo").items()
    results = read_json(cwd / "zoo/gdzoo/pets-task4" / RESULTS)
    assert [entry["prompt"] for entry in results["prompts"]] == [*CONCEPTS.values(), "a sks dog"]
    assert results["base_model"] == "gdzoo/pets-task3"
    assert [entry["task"] for entry in results["history"]] == [1, 2, 3, 4]


def new_concept(root: Path, model: Path) -> dict:
    """The settings that teach one more concept to a model of gdzoo; how it was trained is not said again."""
    folder = str(root / "photos" / "style")
    return dict(pretrained_model_name_or_path=str(model), instance_data_dir=folder, instance_prompt="a qvk thing")


def test_a_chain_that_goes_on_has_the_settings_that_it_had(cwd, once, root):
    shutil.copytree(published(once) / "zoo", cwd / "zoo")
    model = cwd / "zoo/gdzoo/pets-task3"
    before = read_json(model / TRAIN_CONFIG)
    run = prepare_text_to_image(TextToImageConfig(**new_concept(root, model), max_train_steps=7))
    kept = ("resolution", "train_batch_size", "learning_rate", "num_class_images", "eval_steps", "guidance_scale")
    assert {name: getattr(run.config, name) for name in kept} == {name: before[name] for name in kept}
    assert (run.config.benchmark, run.config.max_train_steps, run.config.tasks_known(4)) == ("pets", 7, 5)
    assert [*run.chains[0].task_numbers] == [4] and run.data.names == [*CONCEPTS.values(), "a qvk thing"]


def test_a_chain_of_its_own_keeps_what_its_first_model_was_taught(cwd, once, root):
    """Also when it goes on itself: w, the prompts, and the model that its adapter belongs to."""
    shutil.copytree(published(once) / "zoo", cwd / "zoo")
    first = new_concept(root, cwd / "zoo/gdzoo/pets-task3")
    arguments = [f"--{name}={value}" for name, value in first.items()]
    assert train_text_to_image.main([*SHORT, *arguments, "--benchmark", "own"]) == 0
    results = read_json(cwd / "zoo/gdzoo/own-task1" / RESULTS)
    assert results["pretrained_tasks"] == 4 and results["adapter_base"] == "gdzoo/pets-task3"
    assert [each["prompt"] for each in results["before"]] == [*CONCEPTS.values()]
    second = new_concept(root, cwd / "zoo/gdzoo/own-task1") | {"instance_prompt": "a wug"}
    run = prepare_text_to_image(TextToImageConfig(**second))
    assert run.config.benchmark == "own" and run.config.tasks_known(2) == 6
    preserved = run.job.preservation(run, run.chains[0], 2).prompts
    assert {*CONCEPTS.values(), "a qvk thing"} <= set(preserved) and "a wug" not in preserved
    with pytest.raises(ConfigError, match="was taught to .* before"):
        prepare_text_to_image(TextToImageConfig(**second | {"instance_prompt": CONCEPTS["dog"]}))


def test_a_checkpoint_belongs_to_the_concept(root, cwd):
    """Prompts and photos are not in the settings that make the run id: a chain goes on with a longer list."""

    def origin(prompt: str, class_prompt: str) -> dict:
        concept = of_one_concept(root, instance_prompt=prompt, class_prompt=class_prompt)
        run = prepare_text_to_image(TextToImageConfig(**concept))
        return task_checkpoints(run.chains[0], 1, run.accelerator).origin

    dog = origin("a sks dog", "a dog")
    assert dog == origin("a sks dog", "a dog")
    assert dog["run"] == origin("a sks cat", "a cat")["run"]
    assert dog != origin("a sks cat", "a dog") and dog != origin("a sks dog", "a cat")
