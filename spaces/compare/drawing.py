"""Keeps the most recent pipelines and drawings, and draws samples in one thread."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from machine import free_memory, threads_for
from pipelines import Request, TextToImage, Unconditional, bytes_of, load
from results import Evaluator, Model
from safety import RepoRefused
from zoo import Zoo, first_line

MAX_PIPELINES = 12  # two strategies over the five tasks of a benchmark; 35M parameters each are 1.7 GB in all
MAX_PIPELINE_BYTES = 2 << 30  # of all in memory; a larger one is alone
MAX_EVALUATORS = 4
MAX_DRAWINGS, MAX_DRAWING_BYTES = 256, 64 << 20  # PNG files of some 20 KB to 2 MB
# Of one drawing of a text-to-image model: all visitors wait for it, some minutes at most.
MAX_TFLOP = {"cpu": 60, "cuda": 3000}  # by kind of device
TILE_PIXELS = 64  # small images are enlarged to at least this, without smoothing
GRID_PIXELS = 1024  # large images are reduced, so that a grid is no wider
GAP_PIXELS = 4


class Drawing(NamedTuple):
    """Samples as one PNG, a grid with transparent gaps, and the number that the evaluator classifies as each label."""

    png: bytes
    label_counts: tuple[int, ...] | None  # None: no evaluator, or it failed
    evaluator_problem: str | None
    enlarged: bool  # without smoothing
    cut: str  # what was not read of the prompt, if anything


class BoundedCache:
    """Keeps the `size` values used most recently, and of those no more than `most_bytes`."""

    def __init__(self, size: int, most_bytes: float = math.inf):
        self.size, self.most_bytes = size, most_bytes
        self.values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key):
        """The value of a key; None if it is missing."""
        if key not in self.values:
            return None
        self.values.move_to_end(key)
        return self.values[key][0]

    def put(self, key, value, needs: int = 0) -> None:
        """Keep a value of so many bytes."""
        self.make_room(needs)
        self.values[key] = (value, needs)

    def make_room(self, needs: int = 0) -> None:
        """Drop the oldest values until there is room for one more; before it is made, so that there are never more."""
        while self.values and (len(self.values) >= self.size or self._bytes() + needs > self.most_bytes):
            self.values.popitem(last=False)

    def _bytes(self) -> int:
        return sum(needs for _, needs in self.values.values())


class Sampler:
    """Draws samples of the zoo's models.

    One thread loads and calls all models: building a U-Net while another thread runs from_pretrained fails ("Cannot
    copy out of meta tensor"), every call changes a pipeline's scheduler, and torch keeps memory for each thread.
    """

    def __init__(self, zoo: Zoo):
        self.zoo = zoo
        self.pipelines = BoundedCache(MAX_PIPELINES, MAX_PIPELINE_BYTES)
        self.evaluators = BoundedCache(MAX_EVALUATORS)
        self.drawings = BoundedCache(MAX_DRAWINGS, MAX_DRAWING_BYTES)
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")

    def draw(self, model: Model, request: Request) -> Drawing:
        """Samples from the noise of `noise_seed`, by DDIM.

        Models of the same image size get the same noise. Raises any error of loading or drawing.
        """
        return self.thread.submit(self._draw, model, request).result()

    def _draw(self, model: Model, request: Request) -> Drawing:
        evaluator = self.zoo.evaluators.get(model.benchmark)
        key = (model.repo_id, model.revision, evaluator, request)
        drawing = self.drawings.get(key)
        if drawing is None:
            drawing = self._new_drawing(model, evaluator, request)
            if not drawing.evaluator_problem:  # else the next attempt may succeed
                self.drawings.put(key, drawing, len(drawing.png))
        return drawing

    def _new_drawing(self, model: Model, evaluator: Evaluator | None, request: Request) -> Drawing:
        pipeline = self._pipeline(model)
        if model.text:
            check_work(model.repo_id, pipeline, request)
        # By default torch takes hyper-threads too, and all cores of a container's host.
        set_threads(threads_for(pipeline.gflop_of_step(request)))
        images = pipeline.draw(request)
        cut = pipeline.tokens_cut(request.prompt) if model.text else ""
        counts, problem = None, None
        if evaluator:
            try:
                counts = count_labels(self._evaluator(evaluator), images, len(evaluator.names))
            except Exception as error:  # the samples are shown without the evaluator
                problem = describe_failure(evaluator.repo_id, error)
        return Drawing(grid_png(images), counts, problem, min(images.shape[1:3]) < TILE_PIXELS, cut)

    def _pipeline(self, model: Model) -> Unconditional | TextToImage:
        key = (model.repo_id, model.revision)
        pipeline = self.pipelines.get(key)
        if pipeline is None:
            folder = self.zoo.pipeline_folder(model)
            needs = bytes_of(folder)
            self.pipelines.make_room(needs)
            check_memory(model.repo_id, needs)
            pipeline = load(folder)
            self.pipelines.put(key, pipeline, needs)
        return pipeline

    def _evaluator(self, evaluator: Evaluator):
        classifier = self.evaluators.get(evaluator)
        if classifier is None:
            folder = self.zoo.evaluator_folder(evaluator)
            from transformers import AutoModelForImageClassification

            self.evaluators.make_room()
            classifier = AutoModelForImageClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True
            )
            self.evaluators.put(evaluator, classifier)
        return classifier


def describe_failure(repo_id: str, error: Exception) -> str:
    """Why a repository could not be loaded, in one line that names it."""
    return str(error) if isinstance(error, RepoRefused) else f"{repo_id} could not be loaded. {first_line(error)}"


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def check_memory(repo_id: str, needs: int) -> None:
    """Raises RepoRefused: a pipeline's weights, of so many bytes, do not fit into memory."""
    free = free_memory()
    if needs > free:
        raise RepoRefused(f"{repo_id} needs {needs / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free.")


def check_work(repo_id: str, pipeline: TextToImage, request: Request) -> None:
    """Raises RepoRefused: other visitors would wait too long for this drawing."""
    device = pipeline.pipeline.device.type
    needs, most = pipeline.gflop_of_step(request) * request.steps / 1000, MAX_TFLOP[device]
    if needs > most:
        work = f"{request.samples} samples of {repo_id} in {request.steps} steps are {needs:,.0f} TFLOP of work"
        raise RepoRefused(f"{work}, more than {most:,} on this {device.upper()}: ask for fewer samples or steps.")


def count_labels(classifier, images, labels: int) -> tuple[int, ...]:
    """Number of the images [B, H, W, C] in [0, 1] that are classified as each label."""
    import torch

    pixel_values = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    with torch.inference_mode():
        found = classifier(pixel_values=pixel_values).logits.argmax(dim=1)
    return tuple(torch.bincount(found, minlength=labels).tolist())


def grid_png(images) -> bytes:
    """Images [B, H, W, C] in [0, 1] as a grid; small ones are enlarged without smoothing, large ones reduced."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    tiles = [_tile(image, GRID_PIXELS // columns) for image in (images * 255).round().astype("uint8")]
    rows = math.ceil(len(tiles) / columns)
    width, height = (side + GAP_PIXELS for side in tiles[0].size)
    grid = Image.new("RGBA", (columns * width - GAP_PIXELS, rows * height - GAP_PIXELS))
    for i, tile in enumerate(tiles):
        grid.paste(tile, (i % columns * width, i // columns * height))
    png = io.BytesIO()
    grid.save(png, format="PNG")
    return png.getvalue()


def _tile(image, most: int):
    from PIL import Image

    tile = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGBA")
    scale = math.ceil(TILE_PIXELS / min(tile.size))
    if scale > 1:
        return tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
    tile.thumbnail((most, most))
    return tile
