"""The output folder: what is there already, and what of it is removed."""

from pathlib import Path

import gdzoo
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import shortened
from gdzoo.data.streaming import ImageData
from gdzoo.errors import cut
from gdzoo.training.locks import Lock, not_writable
from gdzoo.training.run import Chain, Run, evaluator_folder
from gdzoo.zoo.folders import remove_folder, sweep_folder
from gdzoo.zoo.names import TRAINING_FOLDER
from gdzoo.zoo.results import read_folder


def check_output(run: Run):
    """Refuse an output folder that holds another configuration's run, unless it may be overwritten.

    Raises:
        ConfigError
    """
    config, root = run.config, Path(run.config.output_dir)
    folder = Path(root, config.namespace).resolve()
    if Path(gdzoo.__file__).resolve().parent in (folder, *folder.parents):
        raise ConfigError(f"--output_dir {root} would put models into the package's own folder: choose another")
    for source in filter(Path.is_dir, map(Path, config.data_folders)):
        if root.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"--output_dir {root} lies in the data's folder {source}, where it would be read as data")
    folders = [chain.folder(task) for chain in run.chains for task in chain.task_numbers]
    for folder in (root / TRAINING_FOLDER, evaluator_folder(config), *folders):
        if not folder.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"--output_dir {root}: {folder} is a link that leads out of it; remove the link")
    if not config.overwrite_output_dir:
        for chain in run.chains:
            check_published(chain, run.data)


def check_published(chain: Chain, data: ImageData):
    """Refuse published tasks of another configuration, or that are damaged. Raises ConfigError."""
    for folder in filter(Path.exists, map(chain.folder, chain.task_numbers)):
        try:
            other, tasks_there = published_difference(chain, folder, data)
        except ValueError as error:
            raise ConfigError(
                f"--output_dir: {folder} is damaged: {error}; move it away or say --overwrite_output_dir"
            ) from error
        if other:
            raise ConfigError(
                f"--output_dir {chain.config.output_dir} holds another run: {folder.name} was trained with {other};"
                " choose another --output_dir or say --overwrite_output_dir" + _more_tasks(chain, other, tasks_there)
            )


def published_difference(chain: Chain, folder: Path, data: ImageData) -> tuple[str, int]:
    """How the settings or classes of a published task differ from the chain's (empty if they do not), and its tasks.

    Raises:
        ValueError: the folder is damaged.
    """
    there = read_folder(folder)
    return chain.config.difference(there["config"]) or other_classes(chain, data, there), len(there["tasks"])


def _more_tasks(chain: Chain, difference: str, tasks_there: int) -> str:
    """How to train more tasks after those of a published chain, where the tasks are what differs."""
    if not difference.startswith(chain.config.task_flags):
        return ""
    *_, last = filter(Path.exists, map(chain.folder, range(1, tasks_there + 1)))
    if chain.known:
        return f"; to teach more after it, give the new concepts alone, with --pretrained_model_name_or_path {last}"
    return (
        f"; to train further tasks after its own, give the new ones alone, with --pretrained_model_name_or_path {last}"
        " and another --output_dir"
    )


def other_classes(chain: Chain, data: ImageData, results: dict) -> str:
    """The first task of a results.json whose classes or images differ from this run's; empty if none does.

    The settings may be the same: "--tasks 5" and "0,1;2,3" do not say how the data set names its classes.
    """
    for task, (entry, labels) in enumerate(zip(results["tasks"], chain.tasks, strict=False), start=1):
        ours = [data.names[label] for label in labels]
        if entry["names"] != ours:
            there, here = (shortened([cut(name, 60) for name in names]) for names in (entry["names"], ours))
            return f"{there} as the classes of task {task}, not {here}"
        images = sum(data.counts["train"][label] for label in labels)
        # The names may be those of other images. Those of a task that was taught elsewhere are not here.
        if task >= chain.first_task and entry["images"] not in (None, images):
            names = shortened([cut(name, 60) for name in ours])
            return f"{entry['images']:,} images of task {task} ({names}), not {images:,}"
        classes = [data.class_prompts[label] for label in labels] if data.class_prompts else None
        if task >= chain.first_task and classes and entry.get("class_prompts", classes) != classes:
            return f"{entry['class_prompts'][0]!r} as the class prompt of task {task}, not {classes[0]!r}"
    return ""


def open_output(config: TrainConfig) -> bool:
    """Make the output folder, on the main process. Returns whether its file system has locks.

    Raises:
        ConfigError: it cannot be written, or --chains needs locks that it has not.
    """
    try:
        works = Lock(config, "probe").works()
    except OSError as error:
        raise not_writable(config, error) from error
    if config.chains and not works:
        raise ConfigError(
            f"--output_dir {config.output_dir}: its file system has no locks, which --chains needs: choose another for"
            " each process, or another disk"
        )
    return works


def sweep_chain(chain: Chain):
    """Remove what killed runs left half-written of a chain, whose lock is held.

    Before a task looks for its last checkpoint, which may be among what is put back.
    """
    folder, checkpoints = chain.folder(1), chain.checkpoint_folder(1)
    for first in (folder, checkpoints):
        sweep_folder(first.parent, f"{first.name.removesuffix('1')}[0-9]*")
    for task in chain.task_numbers:
        sweep_folder(chain.checkpoint_folder(task))


def clear_output(chains: list[Chain]):
    """Delete what --overwrite_output_dir replaces, also checkpoints and tasks beyond this run's last.

    To be called before the first chain: the old task 1 of a later chain must not be taken for the shared one.

    Raises:
        ConfigError: another process is training one of the chains; nothing is deleted.
    """
    locks = []
    try:
        for chain in chains:
            locks.append(Lock(chain.config, chain.name))
            if not locks[-1].take():
                raise ConfigError(
                    f"--overwrite_output_dir: another process is training {chain.title} in"
                    f" {chain.config.output_dir}: wait for its end, or choose another --output_dir"
                )
        for chain in chains:
            _delete(chain)
    finally:
        for lock in locks:
            lock.free()


def _delete(chain: Chain):
    for first in (chain.folder(1), chain.checkpoint_folder(1), chain.validation_folder(1)):
        stem = first.name.removesuffix("1")
        for folder in first.parent.glob(f"{stem}*"):
            task = folder.name.removeprefix(stem)
            if task.isdecimal() and int(task) >= chain.first_task:
                remove_folder(folder)
