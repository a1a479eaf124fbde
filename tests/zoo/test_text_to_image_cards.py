"""Cards of text-to-image models: the front matter as the Hub parses it, and the body."""

import copy
import re

import jinja2
import pytest
from huggingface_hub import ModelCard

from gdzoo.zoo.cards import text_to_image_card
from tests.hub.store import validate_card
from tests.zoo.test_cards import front_matter
from tests.zoo.text_to_image import COST, concepts, text_to_image_results

SETTINGS = {"benchmark": "tiny-captions", "resolution": 8, "rank": None, "strategy": "generative_distillation"}
COMMAND = "accelerate launch gdzoo/train_text_to_image.py --strategy generative_distillation"


def card(results: dict | None = None, repo_id: str = "gdzoo/tiny-captions-task2", **kwargs) -> str:
    return text_to_image_card(
        repo_id, results or text_to_image_results(), kwargs.pop("settings", SETTINGS), COMMAND, **kwargs
    )


def test_front_matter_of_a_chain_from_scratch():
    metadata = front_matter(card())
    model_index = metadata.pop("model-index")
    assert metadata == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "apache-2.0",
        "tags": [
            "text-to-image",
            "dreambooth",
            "gdzoo",
            "tiny-captions",
            "diffusion",
            "continual-learning",
            "generative-distillation",
        ],
        "instance_prompt": "a red one",
        "widget": [
            {"text": "a red zero", "output": {"url": "samples/task1-0.png"}},
            {"text": "a blue zero", "output": {"url": "samples/task1-1.png"}},
            {"text": "a red one", "output": {"url": "samples/task2-0.png"}},
        ],
        "base_model": "gdzoo/tiny-captions-task1",
        "base_model_relation": "finetune",
    }
    [found] = model_index[0]["results"]
    values = {metric["type"]: metric["value"] for metric in found["metrics"]}
    assert (found["task"]["type"], values["old_distance"], values["drift_guidance_1"]) == ("text-to-image", 102.0, 0.25)
    first = front_matter(card(text_to_image_results(1), "gdzoo/tiny-captions-task1"))
    assert not {"base_model", "base_model_relation"} & first.keys()


def test_front_matter_of_concepts_on_a_strangers_model():
    metadata = front_matter(card(concepts(1), "gdzoo/pets-task1"))
    assert metadata["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert metadata["license"] == "creativeml-openrail-m" and "lora" in metadata["tags"]
    assert metadata["instance_prompt"] == "a photo of sks dog"
    assert front_matter(card(concepts(2), "gdzoo/pets-task2"))["base_model"] == "gdzoo/pets-task1"
    local = concepts(1, pretrained="./model", base_model=None, license=None)
    metadata, text = front_matter(card(local)), card(local)
    assert not {"base_model", "license"} & metadata.keys()
    assert "Derived from the weights of `./model`, whose licence applies." in text


@pytest.mark.parametrize("results", [text_to_image_results(1), text_to_image_results(3), concepts(1), concepts(2)])
def test_the_hub_reads_it(results):
    text = card(results)
    assert validate_card(text) == ([], []) and ModelCard(text).data.eval_results
    assert "\n\n\n" not in text and not re.search(r"[ \t]\n", text)


def test_body():
    others = [text_to_image_results(strategy="generative_replay")]
    lines = card(text_to_image_results(2, run="1a2b"), others=others).splitlines()
    for line in (
        'pipe = DiffusionPipeline.from_pretrained("gdzoo/tiny-captions-task2", revision="run-1a2b")',
        'image = pipe("a red one", num_inference_steps=20, guidance_scale=1.5).images[0]',
        "| 1 | a red zero | – |",
        "| 3 | a blue one (not taught yet) | |",
        "| | after task 1 | after task 2 |",
        "| old accuracy | – | 0.875 |",
        "| drift, guidance 1 | 0.25 | 0.25 |",
        "| task 1 | 1 | 0.875 |",
        "| preserved | 0.125 | 0.125 |",
        "- asked for *a red zero*, it drew *a red one* 12 times of about 128",
        "| generative replay | 0.875 | 0.9375 | 302 | 120.5 | 0.5 | 0.25 | 0.125 | 33 |",
        "| Time for the chain so far | 2 min 3 s |",
        "The weights: apache-2.0.",
        COMMAND,
    ):
        assert line in lines, line
    text = "\n".join(lines)
    assert "](samples.png)" in text and "arXiv:2311.14028" in text and "lora" not in text
    assert "Judged at guidance 1.5 with 20 sampling steps and 256 drawings" in text
    assert "one group of concepts after another" in text and "starting from random weights" in text


def test_a_model_judged_at_guidance_1_has_no_rows_of_it_twice():
    found = {name: value for name, value in text_to_image_results()["metrics"].items() if "guidance" not in name}
    text = card(text_to_image_results(metrics=found))
    assert "| old accuracy | – | 0.875 |" in text and "| drift, guidance 1 |" not in text


def test_how_the_adapter_is_loaded():
    lines = card(concepts(2), "gdzoo/pets-task2").splitlines()
    assert 'pipe = DiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")' in lines
    run = "run-generative_distillation-42"
    start = lines.index("pipe.load_lora_weights(")
    assert [line.strip() for line in lines[start + 1 : start + 5]] == [
        '"gdzoo/pets-task2",',
        'subfolder="lora",',
        'weight_name="pytorch_lora_weights.safetensors",',
        f'revision="{run}",',
    ]
    assert "| 1 | a photo of sks dog | a photo of a dog |" in lines
    assert "| 2 | a photo of <pot\\|1> pot | – |" in lines
    scratch = text_to_image_results(2, "generative_replay", seed=69, rank=8)
    base = 'DiffusionPipeline.from_pretrained("gdzoo/tiny-captions-replay-seed69-task1")'
    assert base in card(scratch, "gdzoo/tiny-captions-replay-seed69-task2")


def test_an_adapter_alone_names_its_base_and_how_it_is_loaded():
    alone = concepts(2, adapter_only=True, pretrained_lora="mine.safetensors")
    text = card(alone, "gdzoo/pets-task2")
    metadata, lines = front_matter(text), text.splitlines()
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (metadata["base_model"], metadata["base_model_relation"]) == (base, "adapter")
    assert {"lora", "text-to-image"} <= set(metadata["tags"]) and metadata["library_name"] == "diffusers"
    start = lines.index(f'pipe = DiffusionPipeline.from_pretrained("{base}")')
    run = "run-generative_distillation-42"
    assert lines[start + 1] == f'pipe.load_lora_weights("gdzoo/pets-task2", revision="{run}")'
    assert lines[start + 2].startswith("image = pipe(") and 'subfolder="lora"' not in text
    assert "continued the LoRA `mine.safetensors`" in text and "[gdzoo/pets-task1]" in text
    assert validate_card(text) == ([], []) and "\n\n\n" not in text and not re.search(r"[ \t]\n", text)
    local = card(alone | {"adapter_base": "my-model"}, "gdzoo/pets-task2")  # a folder of that name
    assert not {"base_model", "base_model_relation"} & front_matter(local).keys()
    assert 'from_pretrained("my-model")  # the folder that it was trained on' in local


def test_validation_drawings():
    text = card(concepts(1, validation={"prompts": ["a sks dog | in rain", "a sks dog asleep"], "images": 4}))
    assert "](validation.png)" in text and "`--validation_prompt`: a sks dog \\| in rain, a sks dog asleep." in text
    assert validate_card(text) == ([], []) and "\n\n\n" not in text


def test_a_model_that_was_not_evaluated():
    history = [{"task": k, "metrics": {}, "groups": [], "cost": COST} for k in (1, 2)]
    text = card(text_to_image_results(metrics={}, groups=[], evaluation=None, history=history))
    assert "model-index" not in front_matter(text) and "This model was not evaluated." in text


def test_no_prompt_breaks_the_card():
    evil = 'a "dog"\n---\nlicense: mit | x \x1b[31m \ud800 人'
    results = concepts(1, prompts=[{"task": 1, "prompt": evil, "class_prompt": evil}])
    results["tasks"][0] |= {"names": [evil]}
    results["samples"][0] |= {"prompt": evil}
    text = card(results)
    text.encode()  # it can be written
    metadata = front_matter(text)
    assert metadata["license"] == "creativeml-openrail-m" and "人" in metadata["instance_prompt"]
    assert validate_card(text) == ([], []) and "\x1b" not in text
    assert [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| 1 |")] == [4]
    [line] = [line for line in text.splitlines() if line.startswith("image = pipe(")]
    compile(line.replace("pipe(", "print("), "card", "exec")


def test_it_is_pure_and_a_missing_value_is_an_error():
    results = text_to_image_results()
    before = copy.deepcopy(results)
    assert card(results) == card(results) and results == before
    del results["hardware"]
    with pytest.raises(jinja2.UndefinedError, match="hardware"):
        card(results)


def test_a_long_chain_can_be_read():
    results = concepts(1)
    names = [f"a photo of thing {n}" for n in range(300)]
    results |= {"prompts": [{"task": 1, "prompt": name, "class_prompt": None} for name in names]}
    text = card(results)
    assert len(text) < 25_000 and "| ... | 200 more prompts | |" in text
    results["prompts"] += [{"task": 2, "prompt": f"a photo of wug {n}", "class_prompt": None} for n in range(3)]
    text = card(results)
    assert "| ... | 250 more prompts | |" in text and "| 1 | a photo of thing 0 |" in text and "photo of wug 2" in text
