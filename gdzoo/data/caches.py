"""The caches of datasets and huggingface_hub where the user's cannot be written, as in a read-only home."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import datasets
from huggingface_hub import constants


def use_writable_caches():
    """Replace caches that cannot be made or written by temporary ones, which are deleted when the process ends.

    huggingface_hub's may be read-only if it is there: models in it can still be loaded.
    """
    if not (_can_be_made(datasets.config.HF_DATASETS_CACHE) and os.access(datasets.config.HF_DATASETS_CACHE, os.W_OK)):
        datasets.config.HF_DATASETS_CACHE = Path(_temporary())
    if not _can_be_made(constants.HF_HUB_CACHE):
        constants.HF_HUB_CACHE = _temporary()


def _can_be_made(folder) -> bool:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _temporary() -> str:
    folder = tempfile.mkdtemp(prefix="gdzoo-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
