"""Validation drawings of a text-to-image task: what the student draws for the user's prompts while it trains.

They change no bit of the training: their noise has generators of its own, and the student is as before afterwards.
"""

import importlib
import time

import numpy as np
from PIL import Image

from gdzoo.evaluation.measure import SAMPLE_SEED
from gdzoo.models.latents import LatentSpace
from gdzoo.training.learner import Learner
from gdzoo.training.prompt_results import draw_prompts
from gdzoo.training.run import Chain, Run
from gdzoo.zoo.folders import remove_folder
from gdzoo.zoo.pictures import prompt_grid


class Validation:
    """Draws grids into the validation folder of a task and into the trackers; see gdzoo.training.jobs.Start.

    All processes of an Accelerator draw together, and the main process writes.
    """

    def __init__(self, run: Run, chain: Chain, task: int, space: LatentSpace):
        self.accelerator, self.chain, self.task, self.space = run.accelerator, chain, task, space
        self.config = chain.config.of_task(task)

    def __call__(self, step: int, learner: Learner) -> float:
        """Draw if it is time to; returns the seconds that it took, which are not those of training."""
        config, started = self.config, time.perf_counter()
        if step == 1 and self.accelerator.is_main_process:  # of a run that was not resumed
            remove_folder(self.chain.validation_folder(self.task))
        if step % config.validation_steps and step != config.max_train_steps:
            return 0.0
        grid = self._draw(learner)
        if grid:
            file = self.chain.validation_file(self.task, step)
            file.parent.mkdir(parents=True, exist_ok=True)
            grid.save(file)
            self._log(grid, self.chain.step(self.task, step))
        return time.perf_counter() - started

    def _draw(self, learner: Learner) -> Image.Image | None:
        """The grid, a row for each prompt, on the main process."""
        config, network = self.config, learner.student.network
        prompts = [prompt for prompt in config.validation_prompt for _ in range(config.num_validation_images)]
        how = (config.guidance_scale, config.eval_steps, config.eval_batch_size, config.mixed_precision)
        network.eval()
        with learner.averaged():
            images = draw_prompts(self.space, network, prompts, SAMPLE_SEED, *how)
        network.train()
        self.space.offload()
        if images is None:
            return None
        rows = zip(config.validation_prompt, images.split(config.num_validation_images), strict=True)
        return prompt_grid(list(rows))

    def _log(self, grid: Image.Image, step: int):
        config, name = self.config, f"{self.chain.title}/validation"
        if config.report_to == "tensorboard":
            tracker = self.accelerator.get_tracker("tensorboard")
            tracker.log_images({name: np.array(grid)[None]}, step=step, dataformats="NHWC")
        elif config.report_to:  # wandb and trackio
            picture = {name: importlib.import_module(config.report_to).Image(grid)}
            # Trap: wandb drops steps below the last one, as those of the next chain are.
            if config.report_to == "wandb":
                self.accelerator.log(picture | {f"{self.chain.title}/step": step})
            else:
                self.accelerator.log(picture, step=step)
