"""Resuming from the Hub: what is asked of it, and downloaded from it, before any work."""

import sys

from huggingface_hub import HfApi

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.errors import clean
from gdzoo.evaluation.evaluator import load_evaluator, other_training
from gdzoo.hub.client import PermanentHubError, TemporaryHubError, connect, with_retries
from gdzoo.hub.repos import (
    RepoInfo,
    Target,
    download,
    file_names,
    find,
    has_weights,
    read_remote,
    refuse_other_run,
)
from gdzoo.models.lora import LORA_FILE
from gdzoo.training.evaluators import evaluator_lock
from gdzoo.training.locks import Lock, not_writable
from gdzoo.training.output import open_output, other_classes
from gdzoo.training.run import Chain, Run, evaluator_folder, published_results
from gdzoo.zoo.folders import atomic_folder
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG
from gdzoo.zoo.results import validate_results


def hub_target(config: TrainConfig) -> Target:
    """Where --push_to_hub pushes to."""
    return Target(config.namespace, config.hub_private_repo, config.overwrite_hub)


def consult_hub(run: Run):
    """Download what the run resumes from into the local zoo, and check that it may push what it will make.

    Raises:
        ConfigError
    """
    config = run.config
    if run.accelerator.is_main_process and (config.push_to_hub or config.resume_from_hub):
        try:
            api = connect(config.hub_token)
            if config.resume_from_hub:
                fetch_chains(run, api)
            if config.evaluator == "train" and not config.overwrite_hub:
                fetch_evaluator(run, api)
            if config.push_to_hub:
                check_repos(run, api)
        except (PermanentHubError, ValueError) as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            raise not_writable(config, error) from error
        except TemporaryHubError as error:
            if config.resume_from_hub:
                raise ConfigError(f"--resume_from_checkpoint: the Hub cannot be reached ({error})") from error
            print(
                clean(f"gdzoo: the Hub cannot be reached ({error}); training continues, pushes wait"), file=sys.stderr
            )
    run.accelerator.wait_for_everyone()


def check_repos(run: Run, api: HfApi):
    """Check that all repositories that the run will push to are new, or hold this run.

    Raises:
        PermanentHubError, TemporaryHubError
    """
    target = hub_target(run.config)
    for chain in run.share:
        trained = 0 if run.config.overwrite_output_dir else len(published_results(chain))
        for task in chain.task_numbers:
            info = with_retries(find, api, target.repo_id(chain.folder(task)))
            if info is None:
                continue
            with_retries(api.auth_check, info.id, write=True)
            if info.private and not target.private:  # what is pushed beside it would be public
                raise PermanentHubError(f"{info.id} is private: say --hub_private_repo, too")
            if target.overwrite or not has_weights(info):
                continue
            with_retries(refuse_other_run, api, info, chain.config.run_id())
            # Another process that trains the chain may have published and pushed this task in the meantime.
            if task > trained and not Lock(chain.config, chain.name).is_taken():
                raise PermanentHubError(
                    f"{info.id} is on the Hub already: --resume_from_checkpoint hub continues from there,"
                    " --overwrite_hub replaces it"
                )


def fetch_chains(run: Run, api: HfApi):
    """Download the last task of each chain that the Hub has and the local zoo has not; or one repository by its name.

    Raises:
        ConfigError, PermanentHubError, TemporaryHubError
    """
    repo_id, _, revision = run.config.resume_from_hub.partition("@")
    if repo_id != "hub":
        return fetch_by_name(run, api, repo_id, revision or None)
    target = hub_target(run.config)
    for chain in run.share:
        for task in reversed(chain.task_numbers[len(published_results(chain)) :]):
            info = with_retries(find, api, target.repo_id(chain.folder(task)))
            # A crash between a repo's creation and its first commit leaves an empty one.
            if info is not None and has_weights(info):
                fetch(run, chain, api, info)
                if run.job.needs_first_task and task > 1:
                    first = with_retries(find, api, target.repo_id(chain.folder(1)))
                    if first is not None and has_weights(first):
                        fetch(run, chain, api, first)
                break


def fetch_by_name(run: Run, api: HfApi, repo_id: str, revision: str | None):
    """Download one repository, as a task of the chain that its results name; raises as `fetch_chains` does."""
    info = with_retries(find, api, repo_id, revision)
    if info is None:
        raise ConfigError(f"--resume_from_checkpoint {run.config.resume_from_checkpoint} is not there for this token")
    results = with_retries(read_remote, api, info, RESULTS)
    if not results:
        raise ConfigError(f"--resume_from_checkpoint {repo_id} was not published by gdzoo: it has no {RESULTS}")
    wanted = results.get("strategy"), results.get("seed")
    for chain in run.chains:
        if (chain.strategy, chain.config.seed) == wanted:
            return fetch(run, chain, api, info)
    raise ConfigError(
        f"--resume_from_checkpoint {repo_id} is a model of --strategy {wanted[0]} --seed {wanted[1]},"
        " which this run does not train"
    )


def fetch(run: Run, chain: Chain, api: HfApi, info: RepoInfo):
    """Download a repository of the Hub into the local zoo, as the task of this chain that its results name.

    Raises:
        ConfigError, PermanentHubError, TemporaryHubError
    """
    what = f"--resume_from_checkpoint {run.config.resume_from_checkpoint}: {info.id}"
    if not {"model_index.json", LORA_FILE} & file_names(info):
        raise ConfigError(f"{what} is no diffusers pipeline: it has no model_index.json")
    results, there = (with_retries(read_remote, api, info, name) for name in (RESULTS, TRAIN_CONFIG))
    try:
        validate_results(results)
    except ValueError as error:
        raise ConfigError(f"{what} was not published by gdzoo: {error}") from error
    task = results["task"]
    if task not in chain.task_numbers:
        raise ConfigError(f"{what} is of task {task}, and this run has {len(chain.tasks)} tasks")
    other = chain.config.difference(there) or other_classes(chain, run.data, results)
    if other:
        raise ConfigError(f"{what} was trained with {other}")
    open_output(run.config)
    lock = Lock(chain.config, chain.name)
    if not lock.take():  # another process trains this chain, or downloads it, too
        return
    try:
        if not chain.folder(task).exists():
            with atomic_folder(chain.folder(task)) as partial:
                with_retries(download, api, info, partial)
                run.job.check_fetched(run, partial, what)
    finally:
        lock.free()


def fetch_evaluator(run: Run, api: HfApi):
    """Download the benchmark's evaluator if there is none in the local zoo: metrics of two evaluators do not compare.

    Raises:
        PermanentHubError, ValueError: it does not fit.
        TemporaryHubError
    """
    folder = evaluator_folder(run.config)
    if folder.exists():
        return
    repo_id = hub_target(run.config).repo_id(folder)
    info = with_retries(find, api, repo_id)
    if info is None or not has_weights(info):
        return
    there = with_retries(read_remote, api, info, RESULTS)
    if other := other_training(there, run.data, run.config.evaluator_steps):
        raise PermanentHubError(f"{repo_id} on the Hub {other}: train as it was, or say --overwrite_hub")
    with evaluator_lock(run.config).held("the evaluator"):
        if not folder.exists():
            with atomic_folder(folder) as partial:
                with_retries(download, api, info, partial)
                load_evaluator(partial, run.data, "cpu")  # a ValueError names what does not fit
