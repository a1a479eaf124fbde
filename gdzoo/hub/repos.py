"""How does one repository get onto the Hub, and back?

There is no list of what was pushed: the Hub itself is asked, so that any machine can push the rest at any time. No
torch here: the process that pushes must start fast.
"""

import dataclasses
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard
from huggingface_hub.errors import (
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling, SpaceInfo
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import SafetensorError, safe_open

from gdzoo.hub.client import PermanentHubError, one_line, translated_errors
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS

DOWNLOADED = ["*.json", "*.safetensors", "*.png", CARD]  # nothing that could run code
SPACE_COMMIT = "gdzoo.hub push-space"  # by which a Space is known as ours

RepoInfo = ModelInfo | SpaceInfo
Files = dict[str, bytes | Path]  # by path in the repo


# What the Hub holds


def find(api: HfApi, repo_id: str, revision: str | None = None, repo_type: str = "model") -> RepoInfo | None:
    """A repo's files with their hashes; None if there is no such repo or revision, or it is hidden from this token."""
    try:
        return api.repo_info(repo_id, revision=revision, repo_type=repo_type, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


def read_remote(api: HfApi, info: RepoInfo, name: str) -> dict:
    """A JSON file of a repo; {} if it has none."""
    if name not in file_names(info):
        return {}
    # By commit: by branch, an outage would silently give what the cache holds.
    return read_json(Path(api.hf_hub_download(info.id, name, revision=info.sha)))


def file_names(info: RepoInfo) -> set[str]:
    """The paths of a repo's files."""
    return {sibling.rfilename for sibling in info.siblings}


def has_weights(info: RepoInfo) -> bool:
    return any(name.endswith(".safetensors") for name in file_names(info))


def missing(files: Files, info: RepoInfo) -> list[str]:
    """The paths of those files that the Hub does not hold byte for byte."""
    there = {sibling.rfilename: sibling for sibling in info.siblings}
    return [path for path, content in files.items() if path not in there or not _same(content, there[path])]


def _same(content: bytes | Path, sibling: RepoSibling) -> bool:
    if sibling.lfs is None:
        return sibling.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes())
    if isinstance(content, bytes):
        return False  # cards and results, which are never LFS files
    with content.open("rb") as file:
        return sibling.size == content.stat().st_size and sibling.lfs.sha256 == sha_fileobj(file).hex()


# One push


@dataclass(frozen=True)
class Target:
    """Where and how to push. Without a namespace each folder goes to the one that it lies in."""

    namespace: str | None = None
    private: bool = False
    revision: str | None = None
    overwrite: bool = False

    def repo_id(self, folder: Path) -> str:
        return f"{self.namespace or folder.parent.name}/{folder.name}"


def push_repo(api: HfApi, folder: Path, target: Target) -> str:
    """Make the Hub hold a folder of the zoo: one commit, the tag of its run, its place in the benchmark's collection.

    It first looks at what is there, so it may be repeated at any time, even after an answer was lost.

    Returns:
        The repo's id.

    Raises:
        TemporaryHubError: nothing is half done; the same call later does the rest.
        PermanentHubError: among others, if the repo, or the run's tag, holds other weights and `target` does not say
            to overwrite them.
    """
    repo_id = target.repo_id(folder)
    with translated_errors():
        results = read_json(folder / RESULTS)
        if "benchmark" not in results:
            raise PermanentHubError(f"{folder / RESULTS} is none of gdzoo's: it names no benchmark")
        files = local_files(folder, repo_id.split("/")[0], results["benchmark"])
        # A card that somebody edited on the Hub is left as it is.
        needed = {path: content for path, content in files.items() if path != CARD}
        info = open_repo(api, repo_id, target)
        sha = info.sha
        tag = f"run-{results['run']}" if "run" in results else None
        tagged = find(api, repo_id, tag) if tag else None
        incomplete = missing(needed, info)
        if incomplete and not target.overwrite:
            refuse_other_run(api, info, results.get("run"))
            refuse_other_weights(repo_id, info, files)
        if tagged and not target.overwrite:
            refuse_other_weights(f"{repo_id}@{tag}", tagged, files)
        if incomplete:
            what = f"task {results['task']}, run {results['run']}" if tag else "evaluator"
            sha = commit(api, info, files, f"{results['benchmark']}: {what}", target)
        if tag and (tagged is None or missing(needed, tagged)):
            if tagged:
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=sha, exist_ok=True)
    add_to_collection(api, repo_id, results["benchmark"], target.private)
    return repo_id


def local_files(folder: Path, namespace: str, benchmark: str = "") -> Files:
    """All files of a folder; the card and the results of a zoo's repo name their relatives under `namespace`."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hidden = {name for name in paths for part in name.parts if part[0] == "." or part == "__pycache__"}
    files: Files = {name.as_posix(): path for name, path in paths.items() if name not in hidden}
    if namespace != folder.parent.name and benchmark:
        relatives = re.compile(rf"(?<![\w-]){re.escape(folder.parent.name)}/(?={re.escape(benchmark)}-)")
        for name in (CARD, RESULTS):
            files[name] = relatives.sub(f"{namespace}/", files[name].read_text("utf-8")).encode()
    return files


def open_repo(api: HfApi, repo_id: str, target: Target, repo_type: str = "model") -> RepoInfo:
    """The repo, at the branch to push to; both are created if they are not there."""
    info = find(api, repo_id, target.revision, repo_type)
    if info is None:
        sdk = "gradio" if repo_type == "space" else None
        # None: an organization's own default decides.
        api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=target.private or None, exist_ok=True)
        if target.revision:
            # From the first commit, which is empty: what main holds is none of this branch's business.
            start = api.list_repo_commits(repo_id, repo_type=repo_type)[-1].commit_id
            api.create_branch(repo_id, branch=target.revision, revision=start, repo_type=repo_type, exist_ok=True)
        info = api.repo_info(repo_id, revision=target.revision, repo_type=repo_type, files_metadata=True)
    if target.private and not info.private:
        raise PermanentHubError(
            f"{repo_id} is public: make it private in its settings, or leave out --hub_private_repo"
        )
    return info


def refuse_other_run(api: HfApi, info: RepoInfo, run: str | None):
    """Of repos with results, only the one with this run's may be pushed to; an evaluator has none.

    Raises:
        PermanentHubError
    """
    there = read_remote(api, info, RESULTS).get("run", run)
    if there != run:
        raise PermanentHubError(f"{info.id} on the Hub holds run {there}, not {run}: --overwrite_hub replaces it")


def refuse_other_weights(name: str, info: RepoInfo, files: Files):
    """The same configuration, trained twice, need not give the same weights.

    Raises:
        PermanentHubError
    """
    if has_weights(info) and missing({path: files[path] for path in files if path.endswith(".safetensors")}, info):
        raise PermanentHubError(
            f"{name} on the Hub holds other weights, trained elsewhere: --overwrite_hub replaces them"
        )


def commit(api: HfApi, info: RepoInfo, files: Files, message: str, target: Target, repo_type: str = "model") -> str:
    """All files in one commit on top of `info`; what is to be overwritten leaves nothing behind. Returns its sha."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    if target.overwrite:
        gone = file_names(info) - {*files, ".gitattributes"}
        operations += [CommitOperationDelete(path) for path in sorted(gone)]
    done = api.create_commit(
        info.id,
        operations,
        commit_message=message,
        parent_commit=info.sha,
        revision=target.revision,
        repo_type=repo_type,
        num_threads=1,  # see above: threads would share the client
    )
    return done.oid


def add_to_collection(api: HfApi, repo_id: str, benchmark: str, private: bool):
    """Show the repo in its benchmark's collection, if that can be done."""
    about = f"Diffusion models after each task of {benchmark}, and the evaluator that their metrics look through"
    try:
        collection = api.create_collection(
            f"gdzoo {benchmark}",
            namespace=repo_id.split("/")[0],
            description=about[:150],  # the Hub takes no more
            private=private,
            exists_ok=True,
        )
        api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    except Exception as error:  # only an ornament: whatever goes wrong with it, the push is done
        print(f"gdzoo: {repo_id} is in no collection ({one_line(error)})", file=sys.stderr)


def push_space(api: HfApi, folder: Path, repo_id: str, target: Target):
    """Make a Space hold exactly a folder, but for its card, in one commit at most.

    Raises:
        TemporaryHubError
        PermanentHubError: among others, if it holds what never came from here and `target` does not overwrite.
    """
    owner = repo_id.split("/")[0]
    with translated_errors():
        validate_repo_id(repo_id)
        files = local_files(folder, owner) | {CARD: space_card(api, folder / CARD, owner)}
        info = open_repo(api, repo_id, target, "space")
        gone = file_names(info) - {*files, ".gitattributes"}
        if gone or missing(files, info):
            if not target.overwrite:
                refuse_other_space(api, info)
            exactly = dataclasses.replace(target, overwrite=True)
            commit(api, info, files, f"{SPACE_COMMIT} {folder.name}", exactly, "space")


def space_card(api: HfApi, file: Path, owner: str) -> bytes:
    """The card with gdzoo's models named as the owner's, if the Hub has them: it builds no Space that preloads more."""
    try:
        card = SpaceCard(file.read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise PermanentHubError(f"{file}: {one_line(error)}") from error
    exists = cache(api.repo_exists)  # most are named twice
    for key in ("models", "preload_from_hub"):
        named = [re.sub("^gdzoo/", f"{owner}/", name) for name in card.data.get(key, [])]
        # What is preloaded may name files of the repo after its id.
        card.data[key] = [name for name in named if exists(name.split()[0])] or None
    return str(card).encode()


def refuse_other_space(api: HfApi, info: RepoInfo):
    """A mistyped id must not empty somebody's Space; a new one holds what the Hub puts there.

    Raises:
        PermanentHubError
    """
    history = api.list_repo_commits(info.id, repo_type="space", revision=info.sha)
    ours = any(commit.title.startswith(SPACE_COMMIT) for commit in history)
    if not ours and file_names(info) - {CARD, ".gitattributes"}:
        raise PermanentHubError(
            f"--repo_id {info.id} is a Space that was not pushed from here: --overwrite_hub replaces it"
        )


# And back


def download(api: HfApi, info: RepoInfo, folder: Path):
    """A model's JSON, safetensors and pictures.

    Raises:
        PermanentHubError: the weights are not safetensors.
    """
    if not has_weights(info):
        raise PermanentHubError(f"{info.id} holds no safetensors, and nothing else is loaded")
    # By commit: by branch, an outage would silently give what the cache holds. Threads would share the client.
    api.snapshot_download(info.id, revision=info.sha, allow_patterns=DOWNLOADED, local_dir=folder, max_workers=1)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes
    for file in folder.rglob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise PermanentHubError(f"{info.id}: {file.relative_to(folder)} is not safetensors ({error})") from error
