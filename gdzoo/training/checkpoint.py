"""Checkpoints of a task in progress: complete, verified, and exact to the bit on a CPU.

A task starts from the folder that the task before published, and the data and random numbers of a step depend on
(seed, task, step) alone. So a checkpoint holds only what changes from step to step:

    {output_dir}/.training/{namespace}--{repo}/checkpoint-{step}/
        state.safetensors   every tensor: model, its average, Adam's moments, generators
        state.json          everything else, and which run and task it belongs to
        manifest.json       the SHA-256 of both

accelerator.save_state would write optimizer, schedule and generators as pickles, which can run code when loaded.
"""

import contextlib
import hashlib
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.errors import clean
from gdzoo.training.sharding import shard_like, whole
from gdzoo.zoo.folders import atomic_folder, read_json, sweep_folder, write_json
from gdzoo.zoo.names import CHECKPOINT_PREFIX, LATEST, is_checkpoint

TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names it and says why."""


@dataclass
class Progress:
    """How far a task is, and its cost so far; passes are images through a U-Net on this process."""

    step: int = 0
    seconds: float = 0.0
    student_passes: int = 0
    teacher_passes: int = 0


class TorchGlobals:
    """The number of threads, and the global generators, which a strategy from outside may use; gdzoo's own do not.

    Those of the main process are saved, and restored on all processes.
    """

    def __init__(self, device: torch.device):
        self.device = None if device.type == "cpu" else torch.get_device_module(device)

    def state_dict(self) -> dict:
        numpy = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        state = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
        state["threads"] = torch.get_num_threads()
        return state | ({"device": self.device.get_rng_state()} if self.device else {})

    def load_state_dict(self, state: dict):
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if not self.device:  # older checkpoints do not say how many
            torch.set_num_threads(state.get("threads", torch.get_num_threads()))
        if self.device and "device" in state:  # one from a CPU has none
            self.device.set_rng_state(state["device"])


@dataclass
class Checkpoints:
    """The checkpoints of one task.

    Attributes:
        origin: the run, strategy, task, ... that they belong to; those of another origin are not used.
        parts: what changes from step to step, each with state_dict() and load_state_dict().
        limit: number of checkpoints to keep.
        writes: whether this process writes; the others only contribute their shards under FSDP.
    """

    folder: Path
    origin: dict
    parts: dict
    limit: int
    writes: bool = True

    def save(self, progress: Progress):
        """Write a checkpoint, then delete those that are too many; all processes must call.

        Raises:
            OSError, SafetensorError: it cannot be written, e.g. because the disk is full; earlier ones are kept.
        """
        tensors = {} if self.writes else None
        state = {name: _without_tensors(part.state_dict(), name, tensors) for name, part in self.parts.items()}
        if not self.writes:
            return
        sweep_folder(self.folder)
        with atomic_folder(self.folder / f"{CHECKPOINT_PREFIX}{progress.step}") as partial:
            save_file(_unshared(tensors), partial / TENSORS)
            write_json(partial / STATE, {"origin": self.origin, "progress": asdict(progress), "state": state})
            write_json(partial / MANIFEST, {name: sha256(partial / name) for name in (TENSORS, STATE)})
        kept = self._by_step()
        later = [step for step in kept if step > progress.step]  # left by a run that was started again
        for step in [*sorted(set(kept) - set(later))[: -self.limit], *later]:
            shutil.rmtree(kept[step], ignore_errors=True)

    def restore(self, where: str | None) -> Progress:
        """Restore the parts from a checkpoint; returns its progress, that of a new task without one.

        Args:
            where: "latest", the folder of one checkpoint (ignored if it belongs to another task, or was deleted because
                its task is done), or anything else for none. If the latest cannot be used, this is printed, and the one
                before is used.

        Raises:
            CheckpointError: the given folder is incomplete or altered.
        """
        if where != LATEST:
            there = where and is_checkpoint(where) and Path(where).exists()
            found = there and read_state(Path(where))["origin"] == self.origin
            return self._load(Path(where)) if found else Progress()
        folders = [folder for _, folder in sorted(self._by_step().items())]
        while folders:
            try:
                return self._load(folders.pop())
            except CheckpointError as error:
                tqdm.write(clean(f"{error}: {'using the one before' if folders else 'starting the task again'}"))
        return Progress()

    def refuse_other_run(self):
        """Raises CheckpointError if all checkpoints are of another run: continuing would delete them."""
        origins = {}
        for folder in self._by_step().values():
            with contextlib.suppress(ValueError):  # a damaged one is reported when it is to be used
                origins[folder] = read_json(folder / STATE).get("origin", {})
        if origins and self.origin not in origins.values():
            raise other_run(*origins.popitem(), self.origin)

    def _by_step(self) -> dict[int, Path]:
        names = {
            folder.name.removeprefix(CHECKPOINT_PREFIX): folder for folder in self.folder.glob(f"{CHECKPOINT_PREFIX}*")
        }
        return {int(step): folder for step, folder in names.items() if step.isdecimal()}

    def _load(self, folder: Path) -> Progress:
        content = read_state(folder)
        if content["origin"] != self.origin:
            raise other_run(folder, content["origin"], self.origin)
        tensors = load_file(folder / TENSORS)
        for name, part in self.parts.items():
            state = _with_tensors(content["state"][name], tensors)
            if name == "optimizer":  # JSON keys are strings; moments are sharded like their parameter
                parameters = [parameter for group in part.param_groups for parameter in group["params"]]
                state["state"] = {
                    int(index): {key: shard_like(moment, parameters[int(index)]) for key, moment in moments.items()}
                    for index, moments in state["state"].items()
                }
            part.load_state_dict(shard_like(state, part.state_dict()))
        return Progress(**content["progress"])


def other_run(folder: Path, origin: dict, expected: dict) -> CheckpointError:
    """The error for a checkpoint of another origin."""
    name = next(name for name in expected | origin if origin.get(name) != expected.get(name))
    return CheckpointError(
        f"{folder} is of another run ({name} {origin.get(name)}, not {expected.get(name)}); use the settings of that"
        " run, or leave out --resume_from_checkpoint to start again"
    )


def read_state(folder: Path) -> dict:
    """The content of a checkpoint's state.json. Raises CheckpointError: a file is missing or altered."""
    try:
        manifest = read_json(folder / MANIFEST)
        for name in (TENSORS, STATE):
            if sha256(folder / name) != manifest.get(name):
                raise CheckpointError(f"{folder / name} is incomplete or altered")
        return read_json(folder / STATE)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror})") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def sha256(file: Path) -> str:
    """The hash of a file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _without_tensors(value, name: str, tensors: dict[str, Tensor] | None):
    """`value` for JSON; each tensor goes into `tensors` (if not None) under its path, which replaces it."""
    if isinstance(value, Tensor):
        value = whole(value.detach())
        if tensors is not None:
            tensors[name] = value.cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {str(key): _without_tensors(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share memory with one before.

    Trap: safetensors refuses them; on a CPU all moments of bitsandbytes' 8-bit Adam share two maps.
    """
    seen = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def _with_tensors(value, tensors: dict[str, Tensor]):
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
