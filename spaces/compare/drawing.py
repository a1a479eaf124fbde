"""Loads checked pipelines, keeps the most recent ones, and draws samples from a given noise seed."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from machine import threads_for
from results import Evaluator, Model
from safety import RepoRefused
from zoo import Zoo, first_line

MAX_PIPELINES = 12  # two strategies over the five tasks of a benchmark; 35M parameters each are 1.7 GB in all
MAX_EVALUATORS = 4
MAX_DRAWINGS = 256  # PNG files of some 20 to 200 KB
TILE_PIXELS = 64  # small images are enlarged to at least this, without smoothing
GAP_PIXELS = 4


class Drawing(NamedTuple):
    """Samples as one PNG, a grid with transparent gaps, and the number that the evaluator classifies as each label."""

    png: bytes
    label_counts: tuple[int, ...] | None  # None: no evaluator, or it failed
    evaluator_problem: str | None


class Loaded(NamedTuple):
    """A pipeline, and the 1e9 FLOPs of its U-Net on one image."""

    pipeline: Any
    gflop: float


class BoundedCache:
    """Keeps the `size` values used most recently."""

    def __init__(self, size: int):
        self.size = size
        self.values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key, make: Callable[[], Any]):
        """The value of a key, made if it is missing."""
        if key not in self.values:
            if len(self.values) == self.size:
                self.values.popitem(last=False)  # before `make`, so that there are never more than `size`
            self.values[key] = make()
        self.values.move_to_end(key)
        return self.values[key]

    def forget(self, key) -> None:
        del self.values[key]


class Sampler:
    """Draws samples of the zoo's models.

    One thread loads and calls all models: building a U-Net while another thread runs from_pretrained fails ("Cannot
    copy out of meta tensor"), every call changes a pipeline's scheduler, and torch keeps memory for each thread.
    """

    def __init__(self, zoo: Zoo):
        self.zoo = zoo
        self.pipelines = BoundedCache(MAX_PIPELINES)
        self.evaluators = BoundedCache(MAX_EVALUATORS)
        self.drawings = BoundedCache(MAX_DRAWINGS)
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")

    def draw(self, model: Model, noise_seed: int, samples: int, steps: int) -> Drawing:
        """`samples` images from the noise of `noise_seed`, by DDIM in `steps` steps.

        Models of the same image size get the same noise. Raises any error of loading or drawing.
        """
        return self.thread.submit(self._draw, model, noise_seed, samples, steps).result()

    def _draw(self, model: Model, noise_seed: int, samples: int, steps: int) -> Drawing:
        evaluator = self.zoo.evaluators.get(model.benchmark)
        key = (model.repo_id, model.revision, evaluator, noise_seed, samples, steps)
        drawing = self.drawings.get(key, lambda: self._new_drawing(model, evaluator, noise_seed, samples, steps))
        if drawing.evaluator_problem:
            self.drawings.forget(key)  # the next attempt may succeed
        return drawing

    def _new_drawing(self, model: Model, evaluator: Evaluator | None, noise_seed: int, samples: int, steps: int):
        loaded = self.pipelines.get((model.repo_id, model.revision), lambda: self._load_pipeline(model))
        images = draw_images(loaded, noise_seed, samples, steps)
        counts, problem = None, None
        if evaluator:
            try:
                classifier = self.evaluators.get(evaluator, lambda: self._load_evaluator(evaluator))
                counts = count_labels(classifier, images, len(evaluator.names))
            except Exception as error:  # the samples are shown without the evaluator
                problem = describe_failure(evaluator.repo_id, error)
        return Drawing(grid_png(images), counts, problem)

    # torch, diffusers and transformers take seconds to import: here, so that the page opens before.

    def _load_pipeline(self, model: Model) -> Loaded:
        folder = self.zoo.pipeline_folder(model)
        import torch
        from diffusers import DDIMPipeline

        pipeline = DDIMPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        gflop = count_gflop(pipeline.unet)
        return Loaded(pipeline.to("cuda" if torch.cuda.is_available() else "cpu"), gflop)

    def _load_evaluator(self, evaluator: Evaluator):
        folder = self.zoo.evaluator_folder(evaluator)
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def describe_failure(repo_id: str, error: Exception) -> str:
    """Why a repository could not be loaded, in one line that names it."""
    return str(error) if isinstance(error, RepoRefused) else f"{repo_id} could not be loaded. {first_line(error)}"


def count_gflop(unet) -> float:
    """1e9 FLOPs of a forward pass of a copy of a U-Net on one image, of which nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        twin = unet.from_config(unet.config)
        noise = torch.empty(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(noise, 0)
    return counter.get_total_flops() / 1e9


def draw_images(loaded: Loaded, noise_seed: int, samples: int, steps: int):
    """Images [B, H, W, C] in [0, 1], a numpy array."""
    import torch

    # By default torch takes hyper-threads too, and all cores of a container's host.
    torch.set_num_threads(threads_for(samples * loaded.gflop))
    # A CPU generator gives the same noise for a model on any device.
    generator = torch.Generator("cpu").manual_seed(noise_seed)
    return loaded.pipeline(batch_size=samples, generator=generator, num_inference_steps=steps, output_type="np").images


def count_labels(classifier, images, labels: int) -> tuple[int, ...]:
    """Number of the images [B, H, W, C] in [0, 1] that are classified as each label."""
    import torch

    pixel_values = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    with torch.inference_mode():
        found = classifier(pixel_values=pixel_values).logits.argmax(dim=1)
    return tuple(torch.bincount(found, minlength=labels).tolist())


def grid_png(images) -> bytes:
    """Images [B, H, W, C] in [0, 1] as a nearly square grid, enlarged without smoothing."""
    from PIL import Image

    tiles = [_tile(image) for image in (images * 255).round().astype("uint8")]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = (side + GAP_PIXELS for side in tiles[0].size)
    grid = Image.new("RGBA", (columns * width - GAP_PIXELS, rows * height - GAP_PIXELS))
    for i, tile in enumerate(tiles):
        grid.paste(tile, (i % columns * width, i // columns * height))
    png = io.BytesIO()
    grid.save(png, format="PNG")
    return png.getvalue()


def _tile(image):
    from PIL import Image

    tile = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    scale = math.ceil(TILE_PIXELS / min(tile.size))
    return tile.convert("RGBA").resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
