"""What text-to-image models of flow matching have in common; the settings are those of diffusers' scripts."""

from typing import ClassVar

from torch import Tensor

from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Output, euler_sample
from gdzoo.models.latents import LatentSpace
from gdzoo.models.schedules import FlowScheduled

WEIGHTING = dict(logit_mean=0.0, logit_std=1.0, mode_scale=1.29)  # where they are left out


class FlowMatching(FlowScheduled, LatentSpace):
    """See gdzoo.models.latents.LatentSpace. A kind gives `drawing_schedule` and `weighting_scheme` too.

    Attributes:
        weighting_scheme: where --weighting_scheme is left out: the default of diffusers' script of this kind.
    """

    weighting_scheme: ClassVar[str]
    adapter_only = True
    most_on_device = 256  # 1.4 GB of Stable Diffusion 3's, 2.1 GB of FLUX's

    @classmethod
    def checked_weighting(cls, weighting: dict) -> dict:
        return {"weighting_scheme": cls.weighting_scheme} | WEIGHTING | weighting

    def drawing_schedule(self, steps: int) -> dict:
        """The arguments of set_timesteps, as the pipeline's call gives them."""
        raise NotImplementedError

    def denoise(
        self, output: Output, x_t: Tensor, steps: int, eta: float = 0.0, random: StepRandom | None = None
    ) -> Tensor:
        """By Euler's method, which has no eta."""
        return euler_sample(output, self.scheduler, x_t, **self.drawing_schedule(steps))
