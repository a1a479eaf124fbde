"""A text-to-image model that gdzoo taught as the start of a run: what it says of itself, and what settings follow."""

import dataclasses
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from gdzoo.config import ConfigError
from gdzoo.config_text_to_image import CAPTIONED, TextToImageConfig
from gdzoo.errors import one_line
from gdzoo.settings import HUB, MODEL, OUTPUT
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import DEFAULT_SEED, RESULTS, TRAIN_CONFIG
from gdzoo.zoo.results import is_text_to_image, validate_results

FLAG = "--pretrained_model_name_or_path"


def taught_by_gdzoo(config: TextToImageConfig) -> dict | None:
    """The results.json of the pretrained model, if gdzoo taught it; None of a stranger's. Raises ConfigError."""
    results = read_published(config, RESULTS)
    if not results or not is_text_to_image(results):
        return None
    try:
        validate_results(results)
    except ValueError as error:
        raise ConfigError(f"{FLAG} {config.pretrained_model_name_or_path}: {error}") from error
    return results


def read_published(config: TextToImageConfig, name: str) -> dict | None:
    """A JSON file of the pretrained model; None if it has none. Raises ConfigError: the Hub does not say."""
    try:
        file = local_file(config.pretrained_model_name_or_path, name, config.revision)
        return read_json(file) if file.is_file() else None
    except (EntryNotFoundError, RepositoryNotFoundError, OfflineModeIsEnabled):
        return None  # a repository that is not there has a clear error when it is loaded
    except ValueError as error:
        raise ConfigError(f"{FLAG}: {error}") from error
    except Exception as error:  # the client's errors share no base class
        raise ConfigError(
            f"{FLAG} {config.pretrained_model_name_or_path}: the Hub does not say whether gdzoo taught it: try again"
            f" ({one_line(error)})"
        ) from error


def local_file(repo_or_folder: str, name: str, revision: str | None) -> Path:
    """A file of a folder, which may be missing, or of a repository, downloaded."""
    if Path(repo_or_folder).exists():
        return Path(repo_or_folder, name)
    return Path(hf_hub_download(repo_or_folder, name, revision=revision))


def with_known(given: TextToImageConfig, known: dict) -> TextToImageConfig:
    """The settings for concepts that are taught after those of a model of gdzoo.

    Its chain goes on, under its name; with another --benchmark, a chain of its own begins with it.

    Raises:
        ConfigError: the settings contradict those of the chain that goes on.
    """
    beside = known.get("pretrained_tasks", 1 if known["pretrained"] else 0)  # what it was before its chain
    if given.benchmark is None and known["benchmark"] == CAPTIONED:
        raise ConfigError(
            f"--benchmark is missing: {given.pretrained_model_name_or_path} is of the embedded {CAPTIONED}, whose tasks"
            " are fixed: give --benchmark NAME for a chain of your own that begins with it"
        )
    if given.benchmark not in (None, known["benchmark"]):
        return dataclasses.replace(given, pretrained_tasks=known["task"] + beside)
    published = read_published(given, TRAIN_CONFIG) or {}
    adapter = {"rank": known.get("rank")} | {name: published.get(name) for name in ("lora_layers", "pretrained_lora")}
    there = {"strategy": [known["strategy"]], "seed": known["seed"]} | adapter
    mine = {name: getattr(given, name) for name in there} | {"pretrained_lora": given.lora_name}
    default = {"strategy": [], "seed": DEFAULT_SEED} | dict.fromkeys(adapter)
    for flag in there:
        if mine[flag] not in (default[flag], there[flag]) or flag == "seed" and given.seeds:
            raise ConfigError(
                f"--{flag}: {given.pretrained_model_name_or_path} is task {known['task']} of a chain with {flag}"
                f" {_plain(there[flag])}: leave out --{flag}, or begin a chain of your own with --benchmark NAME"
            )
    if (lora := there["pretrained_lora"]) and not given.pretrained_lora and "/" not in lora:
        raise ConfigError(
            f"--pretrained_lora is missing: {given.pretrained_model_name_or_path} began with {lora}, of which only the"
            " name is recorded: give that file or folder"
        )
    return dataclasses.replace(
        with_settings_of(given),
        benchmark=known["benchmark"],
        strategy=[known["strategy"]],
        seed=known["seed"],
        pretrained_tasks=beside,
        adapter_only=known.get("adapter_only") if given.adapter_only is None else given.adapter_only,
        **adapter | {"pretrained_lora": given.pretrained_lora or lora},
    )


def with_settings_of(given: TextToImageConfig) -> TextToImageConfig:
    """The settings of the model that a chain goes on from, where they were not given."""
    published = read_published(given, TRAIN_CONFIG) or {}
    values = {"preserved": published.get("preservation_prompts") or []}
    for spec in dataclasses.fields(given):
        own = (MODEL, OUTPUT, HUB)  # groups of what is not that of the training before
        if spec.metadata["result"] and spec.metadata["flag"] and spec.metadata["group"] not in own:
            values[spec.name] = published.get(spec.name)
    default = {spec.name: getattr(TextToImageConfig(), spec.name) for spec in dataclasses.fields(given)}
    taken = {
        name: value for name, value in values.items() if value is not None and getattr(given, name) == default[name]
    }
    taken.pop("preservation_prompts", None)
    return dataclasses.replace(given, **taken)


def _plain(value) -> str:
    return value[0] if isinstance(value, list) else str(value)
