"""Push a folder as a Space."""

import re
from functools import cache
from pathlib import Path

import yaml
from huggingface_hub import HfApi, SpaceCard
from huggingface_hub.utils import validate_repo_id

from gdzoo.errors import one_line
from gdzoo.hub.client import PermanentHubError, translated_errors
from gdzoo.hub.repos import RepoInfo, Target, commit, file_names, local_files, missing, open_repo, other_files
from gdzoo.zoo.names import CARD

COMMIT_TITLE = "gdzoo.hub push-space"  # marks the Spaces that gdzoo pushed


def push_space(api: HfApi, folder: Path, repo_id: str, target: Target):
    """Make a Space hold exactly the files of a folder, with a card rewritten for its owner, in one commit.

    Raises:
        TemporaryHubError
        PermanentHubError: among others, if gdzoo did not push the Space and `target.overwrite` is not set.
    """
    owner = repo_id.split("/")[0]
    with translated_errors():
        validate_repo_id(repo_id)
        files = local_files(folder, owner) | {CARD: space_card(api, folder / CARD, owner)}
        info = open_repo(api, repo_id, target.private, "space")
        if other_files(files, info) or missing(files, info):
            if not target.overwrite:
                refuse_other_space(api, info)
            commit(api, info, files, f"{COMMIT_TITLE} {folder.name}", exact=True, repo_type="space")


def space_card(api: HfApi, file: Path, owner: str) -> bytes:
    """The card with gdzoo's models renamed to the owner's.

    Models that are not on the Hub are left out: the Hub does not build a Space that preloads one of those.
    """
    try:
        card = SpaceCard(file.read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise PermanentHubError(f"{file}: {one_line(error)}") from error
    exists = cache(api.repo_exists)  # most models are named twice
    for key in ("models", "preload_from_hub"):
        named = [re.sub("^gdzoo/", f"{owner}/", name) for name in card.data.get(key, [])]
        # An entry of preload_from_hub may name files after the repository's id.
        card.data[key] = [name for name in named if exists(name.split()[0])] or None
    return str(card).encode()


def refuse_other_space(api: HfApi, info: RepoInfo):
    """Raise PermanentHubError for a Space with files that gdzoo did not push, as behind a mistyped id."""
    history = api.list_repo_commits(info.id, repo_type="space", revision=info.sha)
    ours = any(commit.title.startswith(COMMIT_TITLE) for commit in history)
    if not ours and file_names(info) - {CARD, ".gitattributes"}:  # the Hub itself creates these two
        raise PermanentHubError(
            f"--repo_id {info.id} is a Space that gdzoo did not push: --overwrite_hub replaces its files"
        )
