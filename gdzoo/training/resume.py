"""Where does a run go on from, and may it push? What is asked of the Hub, and taken from there, before any work."""

import dataclasses
import sys
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.evaluation.evaluator import load_evaluator, other_training
from gdzoo.hub.client import PermanentHubError, TemporaryHubError, check_rights, connect, with_retries
from gdzoo.hub.repos import RepoInfo, Target, download, file_names, find, has_weights, read_remote, refuse_other_run
from gdzoo.models.pipelines import load_pipeline
from gdzoo.models.unet import create_scheduler, create_unet
from gdzoo.zoo.folders import atomic_folder
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG

if TYPE_CHECKING:
    from gdzoo.training.prepare import Run


def hub_target(config: TrainConfig) -> Target:
    """Where --push_to_hub pushes to."""
    return Target(config.namespace, config.hub_private_repo, config.overwrite_hub)


def with_namespace(run: "Run") -> TrainConfig:
    """The config with the namespace that --push_to_hub pushes to, by default the account's, if the token may.

    Raises:
        ConfigError
    """
    config, namespace = run.config, run.config.hub_namespace
    if run.accelerator.is_main_process:
        repo_names = [each.folder(strategy, task).name for each, strategy in chains(run) for task in run.task_numbers]
        try:
            namespace = check_rights(connect(config.hub_token), namespace, repo_names)
        except PermanentHubError as error:
            raise ConfigError(f"--push_to_hub: {error}") from error
        except TemporaryHubError as outage:
            if namespace is None:
                raise ConfigError(
                    f"--push_to_hub: the Hub is out of reach ({outage}): say whose --hub_namespace it is"
                ) from outage
    return dataclasses.replace(config, hub_namespace=broadcast_object_list([namespace])[0])


def chains(run: "Run") -> list[tuple["Run", str]]:
    """Every seed with every strategy."""
    return [(each, strategy) for each in run.of_each_seed() for strategy in run.config.strategy]


def consult_hub(run: "Run"):
    """Bring what the run goes on from into the local zoo, and see that it may push what it is going to make.

    Raises:
        ConfigError
    """
    config = run.config
    if run.accelerator.is_main_process and (config.push_to_hub or config.resume_from_hub):
        api = connect(config.hub_token)
        try:
            if config.resume_from_hub:
                fetch_chains(run, api)
            if config.evaluator == "train" and not config.overwrite_hub:
                fetch_evaluator(run, api)
            if config.push_to_hub:
                check_repos(run, api)
        except (PermanentHubError, ValueError) as error:
            raise ConfigError(str(error)) from error
        except TemporaryHubError as outage:
            if config.resume_from_hub:
                raise ConfigError(f"--resume_from_checkpoint: the Hub is out of reach ({outage})") from outage
            print(f"gdzoo: the Hub is out of reach ({outage}); what is pushed waits in the local zoo", file=sys.stderr)
    run.accelerator.wait_for_everyone()


def check_repos(run: "Run", api: HfApi):
    """Whether all repos that the run will push to are free for it, or its own.

    Raises:
        PermanentHubError, TemporaryHubError
    """
    target = hub_target(run.config)
    for each, strategy in chains(run):
        trained = 0 if run.config.overwrite_output_dir else len(each.published(strategy))
        for task in run.task_numbers:
            info = with_retries(find, api, target.repo_id(each.folder(strategy, task)))
            if info is None:
                continue
            with_retries(api.auth_check, info.id, write=True)
            if info.private and not target.private:  # what is pushed beside it would be public
                raise PermanentHubError(f"{info.id} is private: say --hub_private_repo, too")
            if target.overwrite or not has_weights(info):
                continue
            with_retries(refuse_other_run, api, info, each.config.chain(strategy).run_id())
            if task > trained:
                raise PermanentHubError(
                    f"{info.id} is on the Hub already: --resume_from_checkpoint hub goes on from there,"
                    " --overwrite_hub replaces it"
                )


# What is taken from there


def fetch_chains(run: "Run", api: HfApi):
    """Of each chain the last task that the Hub has, if the local zoo has not come as far; or the one repo by name.

    Raises:
        ConfigError, PermanentHubError, TemporaryHubError
    """
    repo_id, _, revision = run.config.resume_from_hub.partition("@")
    if repo_id != "hub":
        return fetch_by_name(run, api, repo_id, revision or None)
    target = hub_target(run.config)
    for each, strategy in chains(run):
        for task in reversed(run.task_numbers[len(each.published(strategy)) :]):
            info = with_retries(find, api, target.repo_id(each.folder(strategy, task)))
            # A crash between a repo's creation and its first commit leaves an empty one.
            if info is not None and has_weights(info):
                fetch(each, strategy, api, info)
                break


def fetch_by_name(run: "Run", api: HfApi, repo_id: str, revision: str | None):
    """
    Raises:
        ConfigError, PermanentHubError, TemporaryHubError
    """
    info = with_retries(find, api, repo_id, revision)
    if info is None:
        raise ConfigError(f"--resume_from_checkpoint {run.config.resume_from_checkpoint} is not there for this token")
    results = with_retries(read_remote, api, info, RESULTS)
    if not results:
        raise ConfigError(f"--resume_from_checkpoint {repo_id} was not published by gdzoo: it has no {RESULTS}")
    wanted = results.get("strategy"), results.get("seed")
    for each, strategy in chains(run):
        if (strategy, each.config.seed) == wanted:
            return fetch(each, strategy, api, info)
    raise ConfigError(
        f"--resume_from_checkpoint {repo_id} is a model of --strategy {wanted[0]} --seed {wanted[1]},"
        " which this run does not train"
    )


def fetch(run: "Run", strategy: str, api: HfApi, info: RepoInfo):
    """Put a repo of the Hub into the local zoo, as the task of this chain that it says it is.

    Raises:
        ConfigError, PermanentHubError, TemporaryHubError
    """
    what = f"--resume_from_checkpoint {run.config.resume_from_checkpoint}: {info.id}"
    if "model_index.json" not in file_names(info):
        raise ConfigError(f"{what} is no diffusers pipeline: it has no model_index.json")
    results, there = (with_retries(read_remote, api, info, name) for name in (RESULTS, TRAIN_CONFIG))
    task, history = results.get("task"), results.get("history")
    if task not in run.task_numbers or not isinstance(history, list) or len(history) != task:
        raise ConfigError(f"{what} was not published by gdzoo for these tasks: its {RESULTS} says nothing of them")
    other = run.config.chain(strategy).difference(there) or other_classes(run, results)
    if other:
        raise ConfigError(f"{what} was trained with {other}")
    if not run.folder(strategy, task).exists():
        with atomic_folder(run.folder(strategy, task)) as partial:
            with_retries(download, api, info, partial)
            check_pipeline(run, partial, what)


def other_classes(run: "Run", results: dict) -> str:
    """The first task of a results.json that has other classes than here: the data set has changed since. Empty if none.

    The settings may be the same: "--tasks 5" and "0,1;2,3" say nothing of names.
    """
    try:
        there = [task["names"] for task in results["tasks"]]
    except (LookupError, TypeError):
        return "tasks that it does not name"
    for task, (names, labels) in enumerate(zip(there, run.tasks, strict=False), start=1):
        ours = [run.data.names[label] for label in labels]
        if names != ours:
            return f"{names} as the classes of task {task}, not {ours}"
    return ""


def check_pipeline(run: "Run", folder, what: str):
    """
    Raises:
        ConfigError: the model in `folder` cannot be loaded, or is not what this run would train.
    """
    config = run.config
    try:
        pipeline = load_pipeline(folder)
    except Exception as error:  # whatever may be wrong with files from elsewhere
        raise ConfigError(f"{what} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    if run.pretrained:
        unet, scheduler = run.pretrained.pipeline.unet, run.pretrained.pipeline.scheduler
    else:
        unet = create_unet(config.model, run.data.channels, run.data.benchmark.resolution)
        scheduler = create_scheduler(config.prediction_type, config.rescale_betas_zero_snr)
    for found, expected in ((pipeline.unet, unet), (pipeline.scheduler, scheduler)):
        for name, value in expected.config.items():
            there = found.config.get(name)
            if not name.startswith("_") and there != (list(value) if isinstance(there, list) else value):
                raise ConfigError(f"{what} has another {type(found).__name__}: {name} is {there}, not {value}")


def fetch_evaluator(run: "Run", api: HfApi):
    """The benchmark's evaluator on the Hub, if there is none in the local zoo: two would not measure alike.

    Raises:
        PermanentHubError, ValueError: it does not fit.
        TemporaryHubError
    """
    if run.evaluator_folder.exists():
        return
    repo_id = hub_target(run.config).repo_id(run.evaluator_folder)
    info = with_retries(find, api, repo_id)
    if info is None or not has_weights(info):
        return
    there = with_retries(read_remote, api, info, RESULTS)
    if other := other_training(there, run.data, run.config.evaluator_steps):
        raise PermanentHubError(f"{repo_id} on the Hub {other}: train as it was, or say --overwrite_hub")
    with atomic_folder(run.evaluator_folder) as partial:
        with_retries(download, api, info, partial)
        load_evaluator(partial, run.data, "cpu")  # a ValueError names what does not fit
