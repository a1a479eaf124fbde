"""Preparation of a run: everything that can be checked before work, phase by phase."""

import dataclasses
import math
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch.distributed.fsdp import CPUOffloadPolicy

from gdzoo import machine
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.streaming import ImageData
from gdzoo.errors import one_line
from gdzoo.evaluation.pretrained import Pretrained, load_pretrained, open_data, with_pretrained
from gdzoo.hub.client import PermanentHubError, TemporaryHubError, check_rights, connect
from gdzoo.models.unet import create_unet, flops_of_forward
from gdzoo.training.chains import check_others
from gdzoo.training.checkpoint import CheckpointError, other_run, read_state
from gdzoo.training.output import check_output
from gdzoo.training.run import Chain, Run, make_chains, task_checkpoints
from gdzoo.training.unconditional import UnconditionalJob
from gdzoo.zoo.names import LATEST, TRAINING_FOLDER, is_checkpoint

# Of steps whose rehearsal is computed together: eight of the digits, one of larger U-Nets.
GFLOP_AT_ONCE, MOST_AT_ONCE = 12.0, 8


def prepare(config: TrainConfig) -> Run:
    """Check the settings, and open the data and the model that they name; nothing is written.

    Raises:
        ConfigError, DataError: in one line that names the flag or the file.
    """
    given, config = config, config.resolve()
    config.check_strategies()
    accelerator = create_accelerator(config)
    torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
    pretrained = load_pretrained(config) if config.pretrained_model_name_or_path else None
    if pretrained:  # the recipe depends on the model
        given = dataclasses.replace(given, pretrained_model_name_or_path=config.pretrained_model_name_or_path)
        config = with_pretrained(given, pretrained).resolve()
    config = with_precision(config, accelerator)
    data = open_data(config, config.dataset_root, config.dataloader_num_workers, pretrained)
    config = with_data(config, data)
    if config.push_to_hub:
        config = with_namespace(config, make_chains(config, data), accelerator)
    gflop = gflop_of_step(config, data, pretrained)
    threads = machine.threads_for(gflop)
    torch.set_num_threads(threads)
    job = UnconditionalJob(pretrained)
    run = Run(config, accelerator, data, make_chains(config, data), threads, steps_at_once(gflop), job)
    job.check_publishing(run)
    check_others(run)
    check_output(run)
    check_checkpoint(config, run.share, accelerator)
    return run


def with_data(config: TrainConfig, data: ImageData) -> TrainConfig:
    """The config with the range of the images, and without an evaluator where it would have nothing to learn.

    Raises:
        ConfigError, DataError: an evaluator cannot be trained on these images, or their range is not the same for all.
    """
    data.check_range()
    images = sum(data.counts["train"][label] for label in data.evaluator_labels)
    needed = images * data.channels * data.benchmark.resolution**2 / 1e9
    if config.evaluator == "train" and data.test_split is None and needed > config.cache_limit_gb:
        raise ConfigError(
            f"--cache_limit_gb {config.cache_limit_gb}: without a test split the evaluator's images must fit in memory:"
            f" give {math.ceil(10 * needed) / 10}, a test split, or --evaluator"
        )
    if config.evaluator == "train" and len(data.names) == 1:
        config = dataclasses.replace(config, evaluator="none", replay_pool_balanced=False)
    return dataclasses.replace(config, image_bits=data.image_bits)


def create_accelerator(config: TrainConfig) -> Accelerator:
    """The processes, devices and precision of the run. Raises ConfigError."""
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to,
            project_dir=str(Path(config.output_dir, TRAINING_FOLDER, "logs")),
            # The other processes wait while the main process computes metrics, or waits for another run's chain.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))],
        )
    except ValueError as error:  # accelerate keeps the first precision of a process, e.g. of a notebook
        raise ConfigError(f"--mixed_precision {config.mixed_precision}: {one_line(error)}") from error
    if accelerator.distributed_type == DistributedType.FSDP:
        check_fsdp(accelerator)
    return accelerator


def check_fsdp(accelerator: Accelerator):
    """Raises ConfigError for anything but FSDP version 2 with all shards on the accelerators."""
    if not accelerator.is_fsdp2:
        raise ConfigError("FSDP works in version 2 only: say --fsdp_version 2, or choose it in `accelerate config`")
    if isinstance(accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("FSDP works without offloading only: say --fsdp_offload_params false")


def with_precision(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """The config with the precision in use, which `accelerate config` may have chosen; None is float32.

    Raises:
        ConfigError
    """
    used = accelerator.mixed_precision
    if used == "fp16" and accelerator.device.type == "cpu":  # autocast would leave the student in float32
        raise ConfigError("--mixed_precision fp16 needs a GPU: on a CPU say bf16 or no")
    return dataclasses.replace(config, mixed_precision=None if used == "no" else used)


def gflop_of_step(config: TrainConfig, data: ImageData, pretrained: Pretrained | None) -> float:
    """1e9 FLOPs of a forward pass on all images of a step of a resolved config, whatever its strategy is."""
    if pretrained:
        unet = pretrained.pipeline.unet
    else:
        with torch.device("meta"):
            unet = create_unet(config.model, data.channels, data.benchmark.resolution)
    return flops_of_forward(unet, config.train_batch_size + config.replay_batch_size) / 1e9


def steps_at_once(gflop: float) -> int:
    """Number of steps whose rehearsal is computed together; `gflop` is that of one."""
    return max(1, min(MOST_AT_ONCE, int(GFLOP_AT_ONCE / gflop)))


def with_namespace(config: TrainConfig, chains: list[Chain], accelerator: Accelerator) -> TrainConfig:
    """The config with the namespace that --push_to_hub pushes to, by default that of the token's account.

    Raises:
        ConfigError: the token may not write there.
    """
    namespace = config.hub_namespace
    if accelerator.is_main_process:
        repo_names = [chain.folder(task).name for chain in chains for task in chain.task_numbers]
        try:
            namespace = check_rights(connect(config.hub_token), namespace, repo_names)
        except PermanentHubError as error:
            raise ConfigError(f"--push_to_hub: {error}") from error
        except TemporaryHubError as error:
            if namespace is None:
                raise ConfigError(
                    f"--push_to_hub: the Hub cannot be reached ({error}): give --hub_namespace"
                ) from error
    return dataclasses.replace(config, hub_namespace=broadcast_object_list([namespace])[0])


def check_checkpoint(config: TrainConfig, chains: list[Chain], accelerator: Accelerator):
    """Refuse a checkpoint that cannot be read, or that belongs to another run. Raises ConfigError."""
    where = config.resume_from_checkpoint
    if not where or not is_checkpoint(where) or not chains:
        return
    own = [task_checkpoints(chain, task, accelerator) for chain in chains for task in chain.task_numbers]
    try:
        if where == LATEST:
            for checkpoints in own:
                checkpoints.refuse_other_run()
        else:
            origin = read_state(Path(where))["origin"]
            alike = [each.origin for each in own if all(each.origin[k] == origin.get(k) for k in ("strategy", "task"))]
            if origin not in alike:
                raise other_run(Path(where), origin, (alike or [own[0].origin])[0])
    except CheckpointError as error:
        raise ConfigError(f"--resume_from_checkpoint: {error}") from error
