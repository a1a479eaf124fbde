"""Preparation of a run that trains text-to-image models: everything that can be checked before work."""

import contextlib
import dataclasses
import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard

from gdzoo import machine
from gdzoo.config import ConfigError
from gdzoo.config_text_to_image import DRAWN_IN, TextToImageConfig
from gdzoo.data.captioned import CaptionedDigits
from gdzoo.data.concepts import ConceptPhotos
from gdzoo.data.joined import open_part
from gdzoo.data.prompted import PromptData, PromptedSet
from gdzoo.data.prompts import prompt_key
from gdzoo.data.squares import Squares
from gdzoo.data.streaming import ImageData
from gdzoo.errors import clean, cut, one_line
from gdzoo.evaluation.features import Extractor, load_extractor
from gdzoo.evaluation.fidelity import Fidelity
from gdzoo.evaluation.fidelity_models import load_networks
from gdzoo.method.strategies import rehearses, strategy_class
from gdzoo.models.latents import LatentSpace, cut_prompts, other_resolution
from gdzoo.models.lora import missing_layers
from gdzoo.models.lora_files import LORA_FILE, LORA_FOLDER
from gdzoo.models.pretrained_lora import load_pretrained_lora
from gdzoo.models.small_stable_diffusion import create_unet, flops_of_forward
from gdzoo.models.stable_diffusion import StableDiffusion
from gdzoo.models.text_pipelines import KINDS, load_text_to_image, network_of, open_space
from gdzoo.settings import HUB_ID
from gdzoo.training.chains import check_others
from gdzoo.training.output import check_output
from gdzoo.training.prepare import check_checkpoint, create_accelerator, steps_at_once, with_namespace, with_precision
from gdzoo.training.run import Chain, Run
from gdzoo.training.taught import FLAG, local_file, read_published, taught_by_gdzoo, with_known
from gdzoo.training.text_to_image import Base, TextToImageJob
from gdzoo.zoo.names import TRAIN_CONFIG, repo_of


def prepare_text_to_image(config: TextToImageConfig) -> Run:
    """Check the settings, and open the data and the model that they name; nothing is written.

    Raises:
        ConfigError, DataError: in one line that names the flag or the file.
    """
    given, config = config, config.resolve()
    known = taught_by_gdzoo(config) if config.pretrained_model_name_or_path else None
    if known:
        given = with_known(given, known)
        config = given.resolve()
    goes_on = known if known and known["benchmark"] == config.benchmark else None
    if goes_on and config.labelled:
        raise ConfigError(
            f"{FLAG} {config.pretrained_model_name_or_path} is of {config.benchmark}, whose tasks are fixed: run the"
            " command that began it, with --resume_from_checkpoint latest, or hub on another machine"
        )
    config.check_strategies()
    accelerator = create_accelerator(config)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ConfigError("text-to-image models are not trained with FSDP: use several processes without it, or --rank")
    torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
    config = with_precision(config, accelerator)
    check_8bit_adam(config)
    data = open_data(config, known)  # before the model, which may have to be downloaded
    class_prompts = data.class_prompts or [None] * len(data.names)
    base = load_base(config, known, goes_on) if config.pretrained_model_name_or_path else None
    space = open_space(base.pipeline, "cpu", config.resolution) if base else None
    if base:
        config = with_defaults_of(base, space, given, config)
        asked = [*data.names, *filter(None, class_prompts), *config.preserved, *config.validation_prompt]
        data.remarks += remarks_on(base, space, config, asked)
    check_layers(config, base)
    taught = len(known["prompts"]) + len(known.get("before", [])) if known else 0
    fidelity, left_out = load_fidelity(config, class_prompts, data, accelerator)
    data.remarks += left_out
    job = TextToImageJob(base, class_prompts, taught, load_features(config, accelerator), fidelity)
    if config.push_to_hub:
        config = with_namespace(config, make_chains(config, data, goes_on), accelerator)
    gflop = gflop_of_step(config, space)
    threads = machine.threads_for(gflop)
    torch.set_num_threads(threads)
    chains = make_chains(config, data, goes_on)
    if space:
        check_memory(config, data, chains, space)
    run = Run(config, accelerator, data, chains, threads, steps_at_once(gflop), job)
    if base:
        check_preservation(run)
    job.check_publishing(run)
    check_others(run)
    check_output(run)
    check_checkpoint(config, run.share, accelerator)
    return run


def check_8bit_adam(config: TextToImageConfig):
    """Raises ConfigError: bitsandbytes is installed, but not for this machine."""
    if config.use_8bit_adam:
        try:
            importlib.import_module("bitsandbytes")
        except Exception as error:  # of any class, where its library does not fit CUDA
            raise ConfigError(f"--use_8bit_adam: bitsandbytes cannot be used here ({one_line(error)})") from error


# ---- the model ----


def load_base(config: TextToImageConfig, known: dict | None, goes_on: dict | None) -> Base:
    """The model to teach. Raises ConfigError: it cannot be loaded or trained with these settings.

    Args:
        known: its results.json, if gdzoo taught it.
        goes_on: the same, if its chain goes on; its adapter is then continued on the stranger's model.
    """
    original = config.pretrained_model_name_or_path
    alone = known is not None and known.get("adapter_only", False)  # an adapter without its pipeline
    if alone and not goes_on:
        raise ConfigError(
            f"{FLAG} {original}: it is an adapter alone: for a chain of your own give the model that it belongs to"
            f" ({clean(known.get('adapter_base') or 'the first model of its chain')}) and --pretrained_lora {original}"
        )
    continues = bool(goes_on and known.get("rank"))  # with its adapter alone, on the stranger's model
    pipeline, folder = (None, Path(original)) if continues else _load(original, config)
    local = Path(original).exists()
    name = clean(Path(original).resolve().name) if local else original
    zoo = Path(config.output_dir, config.namespace).resolve()
    in_zoo = local and Path(original).resolve().parent == zoo
    published = repo_of(Path(original).resolve()) if in_zoo else None if local else name
    if not known:
        base = Base(pipeline, folder, name, name, license_of(original, folder), name, published)
        return with_lora(base, config)
    base = Base(pipeline, folder, name, known["pretrained"], known["license"], published or name, published)
    if not goes_on:
        return with_lora(base, config)
    origin = known.get("adapter_base")
    base = base._replace(tasks=known["task"], adapter_base=origin or name)
    if not continues:
        return base
    return with_lora(with_adapter(base, config, origin, known), config)


def with_adapter(base: Base, config: TextToImageConfig, origin: str | None, known: dict) -> Base:
    """The stranger's model, `origin`, and the adapter to continue on it. Raises ConfigError."""
    original = config.pretrained_model_name_or_path
    if not origin or not (HUB_ID.fullmatch(origin) and "/" in origin):
        raise ConfigError(
            f"{FLAG} {original}: its adapter belongs to {origin or 'the first model of its chain'}, a folder of which"
            f" only the name is recorded: give that folder instead, with all concepts in --concepts_list or all of"
            f" --task_datasets, --benchmark {known['benchmark']} and the --output_dir that holds the chain"
        )
    file = LORA_FILE if known.get("adapter_only") else f"{LORA_FOLDER}/{LORA_FILE}"
    try:
        adapter = local_file(original, file, config.revision)
        if not adapter.is_file():
            raise OSError("there is no such file")
    except Exception as error:  # the client's errors share no base class
        raise ConfigError(f"{FLAG} {original}: {file} cannot be read ({one_line(error)})") from error
    began = read_published(config, TRAIN_CONFIG) or {}
    versions = {name: began.get(name) for name in ("revision", "variant")}
    pipeline, folder = _load(origin, dataclasses.replace(config, **versions))
    return base._replace(pipeline=pipeline, folder=folder, name=origin, adapter=adapter, tasks=0)


def with_lora(base: Base, config: TextToImageConfig) -> Base:
    """The base with the LoRA of --pretrained_lora, if there is one. Raises ConfigError: it does not fit."""
    if not config.pretrained_lora:
        return base
    try:
        kind = KINDS[type(base.pipeline).__name__]
        return base._replace(lora=load_pretrained_lora(config.pretrained_lora, base.pipeline, kind))
    except ValueError as error:
        raise ConfigError(f"--pretrained_lora {error}") from error


def with_defaults_of(
    base: Base, space: LatentSpace, given: TextToImageConfig, config: TextToImageConfig
) -> TextToImageConfig:
    """The config with what follows from the model, where `given` says nothing. Raises ConfigError: the rank is another.

    The rank is that of a LoRA of --pretrained_lora; guidance and --adapter_only are those of the model's kind.
    """
    if base.lora and config.rank not in (None, base.lora.rank):
        raise ConfigError(
            f"--rank {config.rank}: {base.lora.name} has rank {base.lora.rank}: leave out --rank, or give that"
        )
    changes = {"rank": base.lora.rank} if base.lora else {}
    if config.adapter_only is None and (config.rank or base.lora):
        changes["adapter_only"] = space.adapter_only
    if given.guidance_scale is None and space.usual_guidance:
        changes["guidance_scale"] = space.usual_guidance
    return dataclasses.replace(config, **changes)


def remarks_on(base: Base, space: LatentSpace, config: TextToImageConfig, prompts: Sequence[str]) -> list[str]:
    """Lines for the terminal: what the model reads and draws otherwise than the prompts and the settings say."""
    lines = [space.remark(config.guidance_scale), base.lora and base.lora.remark]
    if long := space.too_long([*dict.fromkeys(prompts)]):
        lines.append(cut_prompts(long, space.tokens))
    if space.usual_resolution not in (None, config.resolution):
        lines.append(other_resolution(space.usual_resolution, config.resolution))
    return [line for line in lines if line]


def check_layers(config: TextToImageConfig, base: Base | None):
    """Raises ConfigError: a name of --lora_layers is of no layer of the network."""
    if not config.layers:
        return
    with torch.device("meta"):
        network = network_of(base.pipeline) if base else create_unet(config.resolution)
    if unknown := missing_layers(network, config.layers):
        kind = KINDS[type(base.pipeline).__name__] if base else StableDiffusion
        raise ConfigError(
            f"--lora_layers {clean(unknown[0])}: no layer has a name that ends so; choose from"
            f" {', '.join(kind.adapter_targets)}, or write to_q for all of them and attn2.to_q for some"
        )


def _load(repo_or_folder: str, config: TextToImageConfig) -> tuple[DiffusionPipeline, Path]:
    try:
        steps = {flag: getattr(config, flag) for flag in DRAWN_IN}
        pipeline, folder = load_text_to_image(repo_or_folder, config.revision, config.variant, steps)
        space = open_space(pipeline, "cpu", config.resolution, weighting=config.weighting)
        space.loss_weight(config.snr_gamma)
    except ValueError as error:
        raise ConfigError(str(error) if str(error).startswith("--") else f"{FLAG}: {error}") from error
    return pipeline, folder


def license_of(repo_or_folder: str, folder: Path) -> str | None:
    """What the model's card says, of its folder or on the Hub; None if nothing does."""
    with contextlib.suppress(Exception):  # no card, an invalid one, no network
        if Path(repo_or_folder).exists():
            found = ModelCard.load(folder / "README.md").data.license
        else:
            found = HfApi().model_info(repo_or_folder, timeout=10).card_data.license
        return found if isinstance(found, str) else None
    return None


def load_features(config: TextToImageConfig, accelerator: Accelerator) -> Extractor | None:
    """The network of --features. Raises ConfigError."""
    try:
        extractor = load_extractor(config.features, accelerator.device) if config.features else None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return extractor and dataclasses.replace(extractor, name=config.to_dict()["features"])  # without a folder's path


def load_fidelity(
    config: TextToImageConfig, class_prompts: list[str | None], data: ImageData, accelerator: Accelerator
) -> tuple[Fidelity | None, list[str]]:
    """The networks of --clip_model and --dino_model, on the main process alone, which has all drawings.

    Returns:
        None without any; and lines that name the metrics that are left out.

    Raises:
        ConfigError: one that was given cannot be had, or is of another kind.
    """
    clip = dino = error = None
    names, left_out = config.fidelity_models, []
    if accelerator.is_main_process:
        try:
            given = [flag for flag in names if getattr(config, flag)]
            clip, dino, left_out = load_networks(names, given, accelerator.device)
        except ValueError as reason:
            error = str(reason)
    if error := broadcast_object_list([error])[0]:
        raise ConfigError(error)
    public = config.to_dict()  # without a folder's path
    for flag, network in (("clip_model", clip), ("dino_model", dino)):
        if network:
            network.name = public[flag] or names[flag]
    classes = dict(zip(data.names, class_prompts, strict=True))
    return Fidelity(clip, dino, classes) if clip or dino else None, left_out


# ---- the data ----


def open_data(config: TextToImageConfig, known: dict | None) -> ImageData:
    """The images, whose labels have prompts as names; the first are those of a model that gdzoo taught.

    Raises:
        ConfigError, DataError
    """
    if not config.pretrained_model_name_or_path:
        return CaptionedDigits()
    taught = [*known.get("before", []), *known["prompts"]] if known else []
    for concept in config.concept_list:
        if concept.prompt and prompt_key(concept.prompt) in {prompt_key(each["prompt"]) for each in taught}:
            raise ConfigError(
                f"the prompt {concept.prompt!r} was taught to {config.pretrained_model_name_or_path} before: give the"
                " new concept another rare word"
            )
    before = [(each["prompt"], each["class_prompt"]) for each in taught]
    data = PromptData(config.get_benchmark(), list(_sources(config)), before)
    data.check_range()
    return data


def _sources(config: TextToImageConfig) -> Iterator[ImageData]:
    """What is taught: the photos of concepts, data sets, or a benchmark with labels."""
    benchmark, root = config.get_benchmark(), config.dataset_root
    settings = dict(squares=Squares(config.resolution, config.center_crop), num_workers=config.dataloader_num_workers)
    for concept in config.concept_list:
        yield ConceptPhotos(benchmark, concept, caption_column=config.caption_column, **settings)
    for name in config.task_datasets:
        yield open_part(benchmark, name, root, PromptedSet, template=config.prompt_template, **settings)
    if config.labelled:
        yield PromptedSet(benchmark, root, template=config.prompt_template, **settings)


def make_chains(config: TextToImageConfig, data: ImageData, goes_on: dict | None) -> list[Chain]:
    """A chain for each of --seeds (or for --seed) and each strategy; its first tasks are those of the model it has."""
    seeds, before = config.seeds or [config.seed], []
    label = len(goes_on.get("before", [])) if goes_on else 0
    for entry in goes_on["tasks"][: goes_on["task"]] if goes_on else ():
        before.append(list(range(label, label + len(entry["names"]))))
        label += len(entry["names"])
    chains = []
    for each in (dataclasses.replace(config, seed=seed, seeds=[]) for seed in seeds):
        tasks = data.tasks(config.class_order, each.seed)
        concepts = tuple(map(data.fingerprint, tasks)) if config.pretrained_model_name_or_path else ()
        chains += [Chain(each.chain(name), [*before, *tasks], goes_on, concepts) for name in config.strategy]
    return chains


def check_memory(config: TextToImageConfig, data: ImageData, chains: list[Chain], space: LatentSpace):
    """Raises ConfigError: the images of a task do not fit in memory; they are kept as moments of latents, float32."""
    channels, *sides = space.latent_shape
    each = 2 * channels * math.prod(sides) * 4 * (2 if config.random_flip else 1)
    for task in chains[0].task_numbers:
        count = sum(data.counts["train"][label] for label in chains[0].tasks[task - 1])
        if (needed := count * each / 1e9) > config.cache_limit_gb:
            raise ConfigError(
                f"task {task}: its {count:,} images need {needed:.1f} GB of memory as latents, more than"
                f" {config.cache_limit_gb:g}: give fewer images, or a smaller --resolution"
            )


def check_preservation(run: Run):
    """Check what is preserved by the first chain that preserves anything; a remark is added to those of the data.

    Raises:
        ConfigError: all that a task would preserve is what it teaches itself; or a validation prompt is preserved,
            though it is not taught.
    """
    chain, kept = next((each for each in run.chains if rehearses(strategy_class(each.strategy))), None), set()
    for task in chain.task_numbers if chain else ():
        try:
            kept |= {*map(prompt_key, run.job.preservation(run, chain, task).prompts)}
        except ValueError as error:
            raise ConfigError(f"task {task}: {error}") from error
    preserved = [prompt for prompt in run.config.validation_prompt if prompt_key(prompt) in kept]
    taught = {*map(prompt_key, run.data.names)}
    for prompt in preserved:
        if prompt_key(prompt) not in taught:
            raise ConfigError(
                f"--validation_prompt {cut(prompt, 80)!r} is preserved, as class prompts, general captions and"
                " --preservation_prompts are, and would not show how far preservation reaches: reword"
            )
    if preserved:
        run.data.remarks.append(f"--validation_prompt {cut(preserved[0], 80)!r} is preserved once it has been taught")


def gflop_of_step(config: TextToImageConfig, space: LatentSpace | None) -> float:
    """1e9 FLOPs of a forward pass on all images of a step, whatever its strategy is.

    Args:
        space: of the model to teach; None: it is trained from scratch.
    """
    images = config.train_batch_size + config.replay_batch_size
    flops = space.flops_of_forward(images) if space else flops_of_forward(config.resolution, images)
    return flops / 1e9
