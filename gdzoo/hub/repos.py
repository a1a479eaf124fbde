"""One repository of a model or an evaluator: what the Hub holds, push and download.

No list of pushed repositories is kept. The Hub itself is asked, so any machine can push the rest at any time.
"""

import hashlib
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, SpaceInfo
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

from gdzoo.errors import clean, one_line
from gdzoo.hub.client import PermanentHubError, translated_errors
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS

# Nothing that could run code; a tokenizer's merges are text.
DOWNLOADED = ["*.json", "*.safetensors", "*.png", "tokenizer*/*.txt", CARD]

RepoInfo = ModelInfo | SpaceInfo
Files = dict[str, bytes | Path]  # by path in the repository


# What the Hub holds


def find(api: HfApi, repo_id: str, revision: str | None = None, repo_type: str = "model") -> RepoInfo | None:
    """A repository's files with their hashes; None if it does not exist, or is hidden from this token."""
    try:
        return api.repo_info(repo_id, revision=revision, repo_type=repo_type, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


def read_remote(api: HfApi, info: RepoInfo, name: str) -> dict:
    """A JSON file of a repository; {} if it has none of this name."""
    if name not in file_names(info):
        return {}
    # Trap: given a branch, huggingface_hub silently returns the cached copy while the Hub is down.
    return read_json(Path(api.hf_hub_download(info.id, name, revision=info.sha)))


def file_names(info: RepoInfo) -> set[str]:
    """The paths of a repository's files."""
    return {sibling.rfilename for sibling in info.siblings}


def has_weights(info: RepoInfo) -> bool:
    return any(name.endswith(".safetensors") for name in file_names(info))


def missing(files: Files, info: RepoInfo) -> list[str]:
    """The paths of those files that the Hub does not hold byte for byte."""
    there = {sibling.rfilename: sibling for sibling in info.siblings}
    return [path for path, content in files.items() if path not in there or not _same(content, there[path])]


def _same(content: bytes | Path, sibling) -> bool:
    if sibling.lfs:
        return CommitOperationAdd("_", content).upload_info.sha256.hex() == sibling.lfs.sha256
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == sibling.blob_id


# Push


@dataclass(frozen=True)
class Target:
    """Where and how to push. Without a namespace each folder is pushed to the namespace that contains it."""

    namespace: str | None = None
    private: bool = False
    overwrite: bool = False

    def repo_id(self, folder: Path) -> str:
        return f"{self.namespace or folder.parent.name}/{folder.name}"


def push_repo(api: HfApi, folder: Path, target: Target) -> str:
    """Push a folder of the zoo: one commit, the tag of its run, an entry in the benchmark's collection.

    What the Hub holds already is not pushed again, so the call may be repeated at any time, even after its answer was
    lost. A card edited on the Hub is kept.

    Returns:
        The repository's id.

    Raises:
        TemporaryHubError: the same call later does the rest.
        PermanentHubError: among others, if the repository, or the run's tag, holds other weights and
            `target.overwrite` is not set.
    """
    repo_id = target.repo_id(folder)
    with translated_errors():
        results = read_json(folder / RESULTS)
        if "benchmark" not in results:
            raise PermanentHubError(f"{folder / RESULTS} was not written by gdzoo: it has no `benchmark`")
        files = local_files(folder, repo_id.split("/")[0], results["benchmark"])
        compared = {path: content for path, content in files.items() if path != CARD}
        info = open_repo(api, repo_id, target.private)
        tag = f"run-{results['run']}" if "run" in results else None  # an evaluator has none
        tagged = find(api, repo_id, tag) if tag else None
        incomplete = missing(compared, info)
        if not target.overwrite:
            if incomplete:
                refuse_other_run(api, info, results.get("run"))
                refuse_other_weights(repo_id, info, files)
            if tagged:
                refuse_other_weights(f"{repo_id}@{tag}", tagged, files)
        sha = info.sha
        if incomplete:
            what = f"task {results['task']}, run {results['run']}" if tag else "evaluator"
            sha = commit(api, info, files, f"{results['benchmark']}: {what}", exact=target.overwrite)
        if tag and (tagged is None or missing(compared, tagged)):
            if tagged:
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=sha, exist_ok=True)
    add_to_collection(api, repo_id, results["benchmark"], target.private)
    return repo_id


def local_files(folder: Path, namespace: str, benchmark: str = "") -> Files:
    """All files of a folder but hidden ones.

    The card and the results name other repositories of the benchmark; under another namespace than the folder's, they
    are rewritten to name those of that namespace.
    """
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hidden = {name for name in paths for part in name.parts if part[0] == "." or part == "__pycache__"}
    files: Files = {name.as_posix(): path for name, path in paths.items() if name not in hidden}
    if namespace != folder.parent.name and benchmark:
        others = re.compile(rf"(?<![\w-]){re.escape(folder.parent.name)}/(?={re.escape(benchmark)}-)")
        for name in (CARD, RESULTS):
            files[name] = others.sub(f"{namespace}/", files[name].read_text("utf-8")).encode()
    return files


def open_repo(api: HfApi, repo_id: str, private: bool, repo_type: str = "model") -> RepoInfo:
    """The repository, which is created if it does not exist.

    Raises:
        PermanentHubError: it is public and should be private.
    """
    info = find(api, repo_id, repo_type=repo_type)
    if info is None:
        sdk = "gradio" if repo_type == "space" else None
        # private=None: an organization's own default decides.
        api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=private or None, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type, files_metadata=True)
    if private and not info.private:
        raise PermanentHubError(
            f"{repo_id} is public: make it private in its settings, or leave out --hub_private_repo"
        )
    return info


def refuse_other_run(api: HfApi, info: RepoInfo, run: str | None):
    """Raise PermanentHubError if the repository holds the results of another run."""
    there = read_remote(api, info, RESULTS).get("run", run)
    if there != run:
        raise PermanentHubError(f"{info.id} on the Hub holds run {there}, not {run}: --overwrite_hub replaces it")


def refuse_other_weights(name: str, info: RepoInfo, files: Files):
    """Raise PermanentHubError if the repository holds other weights; the same run may give others elsewhere."""
    if has_weights(info) and missing({path: files[path] for path in files if path.endswith(".safetensors")}, info):
        raise PermanentHubError(
            f"{name} on the Hub holds other weights, trained elsewhere: --overwrite_hub replaces them"
        )


def commit(api: HfApi, info: RepoInfo, files: Files, message: str, exact: bool, repo_type: str = "model") -> str:
    """Add all files in one commit on top of `info`, and delete all others if `exact`. Returns the commit's sha."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    if exact:
        operations += [CommitOperationDelete(path) for path in sorted(other_files(files, info))]
    done = api.create_commit(
        info.id,
        operations,
        commit_message=message,
        parent_commit=info.sha,
        repo_type=repo_type,
        num_threads=1,  # trap: threads share one client, and a ConnectError in any of them closes it
    )
    return done.oid


def other_files(files: Files, info: RepoInfo) -> set[str]:
    """The paths of the repository's files that are not among `files`; .gitattributes is the Hub's own."""
    return file_names(info) - {*files, ".gitattributes"}


def add_to_collection(api: HfApi, repo_id: str, benchmark: str, private: bool):
    """List the repository in its benchmark's collection, if that can be done."""
    about = f"Diffusion models after each task of {benchmark}, and the image classifier used by their metrics"
    try:
        collection = api.create_collection(
            f"gdzoo {benchmark}",
            namespace=repo_id.split("/")[0],
            description=about[:150],  # the Hub's limit
            private=private,
            exists_ok=True,
        )
        api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    except Exception as error:  # the push is complete without it
        print(clean(f"gdzoo: {repo_id} could not be added to a collection ({one_line(error)})"), file=sys.stderr)


# Download


def download(api: HfApi, info: RepoInfo, folder: Path):
    """A model's JSON, safetensors and pictures. Raises PermanentHubError: the weights are not safetensors."""
    if not has_weights(info):
        raise PermanentHubError(f"{info.id} has no safetensors weights, the only ones that gdzoo loads")
    # Traps: a branch may be answered from the cache (see read_remote), and threads share one client (see commit).
    api.snapshot_download(info.id, revision=info.sha, allow_patterns=DOWNLOADED, local_dir=folder, max_workers=1)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # written by huggingface_hub
    for file in folder.rglob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise PermanentHubError(
                f"{info.id}: {file.relative_to(folder)} is not safetensors ({one_line(error)})"
            ) from error
