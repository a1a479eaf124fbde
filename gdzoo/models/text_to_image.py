"""Text-to-image models as a kind of model (gdzoo.models.kinds): the student and the teacher, of every LatentSpace."""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from gdzoo.method.objective import Batch, Cond, Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.models.fingerprints import tensors_fingerprint
from gdzoo.models.latents import LatentSpace
from gdzoo.models.lora import STUDENT, Adapter, fused_copy
from gdzoo.models.preservation import EMPTY, Preservation


class TrainedText(NamedTuple):
    """A text-to-image model to be measured and published.

    Attributes:
        network: in float32, without adapters, on the CPU or on the space's device.
        adapter: what is in `network` already, to be published beside it; None: all weights were trained.
    """

    space: LatentSpace
    network: ModelMixin
    adapter: Adapter | None = None


class TextStudent:
    """A text-to-image network that is trained, in the latents of a frozen VAE; its kind is that of `space`.

    Args:
        network: on the device of `space`; trained whole, or through its adapter alone. What is frozen of it may be in
            half precision: it is published as the space's own network has it.
        prompts: of each label of the data.
        dropout: share of the images that get the empty prompt, which guidance needs.
    """

    def __init__(
        self,
        network: ModelMixin,
        space: LatentSpace,
        prompts: Sequence[str],
        dropout: float = 0.0,
        adapter: Adapter | None = None,
    ):
        self.network, self.space = network, space
        self.dropout, self.adapter = dropout, adapter
        self.table, self.empty = space.embed(prompts), space.embed([""])  # conditions [labels, ...], [1, ...]

    @property
    def weights(self) -> nn.Module | Adapter:
        """The trained weights alone, with state_dict() and load_state_dict()."""
        return self.adapter or self.network

    def parameters(self) -> list[nn.Parameter]:
        return self.adapter.parameters() if self.adapter else list(self.network.parameters())

    def real(self, columns: tuple[Tensor, ...], random: StepRandom) -> Drawn:
        """Latents of moments [B, 2C, h, w], half of them of the mirrored images' moments where there are any.

        Args:
            columns: moments, the mirrored images' moments if images are mirrored, labels [B].
        """
        device = self.space.device
        moments, *mirrored, labels = (column.to(device) for column in columns)
        if mirrored:
            chosen = random.rand(len(moments)) < 0.5
            moments = torch.where(chosen[:, None, None, None], mirrored[0], moments)
        count, channels, *side = moments.shape
        latents = self.space.sample_latents(moments, random.randn(count, channels // 2, *side))
        cond = self.cond_of(labels)
        if self.dropout:
            dropped = random.rand(count) < self.dropout
            cond = {name: _where(dropped, self.empty[name], value) for name, value in cond.items()}
        return Drawn(latents, cond)

    def cond_of(self, labels: Tensor) -> Cond:
        """The conditions [B, ...] of the prompts of labels [B]."""
        return self.space.chosen(self.table, labels)

    def noised(self, drawn: Drawn, random: StepRandom) -> Batch:
        return self.space.noised(drawn, random)

    def timesteps(self, count: int, random: StepRandom) -> Tensor:
        return self.space.timesteps(count, random)

    def loss_weight(self, snr_gamma: float | None) -> Callable[[Tensor], Tensor] | None:
        return self.space.loss_weight(snr_gamma)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.space.predict(network, x_t, t, cond)

    def trained(self, network: ModelMixin) -> TrainedText:
        copy = fused_copy(network, self.space.network if self.adapter else None)
        network.to("cpu")  # with an adapter it is kept, but not used any more
        return TrainedText(self.space, copy, self.adapter)


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of `one` [1, ...] where chosen [B], else those of `other` [B, ...]."""
    return torch.where(chosen.view(-1, *[1] * (other.ndim - 1)), one, other)


class TextTeacher:
    """The frozen text-to-image model of the task before. Counts its passes, in images.

    One object serves one task: its pool's key is computed once.

    Args:
        network: one of its own, which is frozen; or, with `adapter`, the student's, whose TEACHER adapter it is.
        preservation: the prompts that it draws for.
        steps, guidance, eta: of drawing. Guidance belongs to drawing alone: in a target it would act twice.
    """

    def __init__(
        self,
        network: ModelMixin,
        space: LatentSpace,
        preservation: Preservation,
        steps: int,
        guidance: float = 1.0,
        eta: float = 0.0,
        adapter: Adapter | None = None,
    ):
        self.network = network if adapter else network.requires_grad_(False).eval()
        self.adapter, self.space = adapter, space
        self.preservation, self.steps, self.guidance, self.eta = preservation, steps, guidance, eta
        self.table = space.embed(preservation.prompts)  # conditions [P, ...]
        self.dtype, self.passes = torch.float32, 0
        self._pool_key: str | None = None

    @torch.inference_mode()
    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The conditional output, float32, at x_t [B, C, h, w] and t [B], in the scheduler's prediction_type."""
        self.passes += len(x_t)
        with self._in_place():
            return self._run(x_t, t, cond).float()

    def draw(self, count: int, random: StepRandom) -> Drawn:
        """`count` latents from fresh noise, for prompts at random."""
        rows = self.preservation.random_rows(count, random)
        return Drawn(self._draw(rows, random), self._cond(rows))

    def condition(self, count: int, random: StepRandom) -> Cond:
        """Embeddings of `count` preservation prompts at random."""
        return self._cond(self.preservation.random_rows(count, random))

    def draw_stored(self, count: int, first: int, random: StepRandom) -> dict[str, Tensor]:
        """Latents [count, C, h, w] of a pool from number `first` on, and the rows [count] of their prompts."""
        rows = self.preservation.rows(first, count).to(self.space.device)
        return {"latents": self._draw(rows, random), "rows": rows}

    def from_stored(self, stored: dict[str, Tensor]) -> Drawn:
        return Drawn(stored["latents"], self._cond(stored["rows"]))

    def pool_key(self) -> str:
        """A hash of the weights, the prompts and their order, and how it draws.

        Trap: a folder of class images that is known by its number of files belongs to whatever drew it.
        """
        if self._pool_key is None:
            asked = [self.preservation.prompts, self.preservation.groups, self.preservation.empty_share]
            how = [self.preservation.seed, self.steps, self.guidance, self.eta, self.space.latent_shape]
            weights = {name: each for name, each in self.network.state_dict().items() if f".{STUDENT}." not in name}
            self._pool_key = tensors_fingerprint(weights, json.dumps([*asked, *how]))
        return self._pool_key

    def to(self, dtype: torch.dtype):
        """Set the precision of its passes: of its weights, or by autocast where it shares the student's network."""
        self.dtype = dtype
        if self.adapter is None:
            # Not the network's own to(), which warns of modules to be kept in float32, though there are none.
            nn.Module.to(self.network, dtype)

    def _draw(self, rows: Tensor, random: StepRandom) -> Tensor:
        count = len(rows)
        self.passes += self.space.passes_of_drawing(count, self.steps, self.guidance)
        noise = random.randn(count, *self.space.latent_shape)
        uncond = {} if self.guidance == 1 else self._cond(torch.full_like(rows, EMPTY))
        with self._in_place():
            return self.space.draw(
                self._run, self._cond(rows), uncond, noise, self.steps, self.guidance, self.eta, random
            )

    def _cond(self, rows: Tensor) -> Cond:
        return self.space.chosen(self.table, rows)

    def _in_place(self) -> contextlib.AbstractContextManager:
        return self.adapter.teaching() if self.adapter else contextlib.nullcontext()

    def _run(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.adapter is None:
            # Autocast would cast the weights anew in every pass, and compute all normalizations in float32.
            cond = {name: value.to(self.dtype) for name, value in cond.items()}
            with torch.autocast(x_t.device.type, enabled=False):
                return self.space.predict(self.network, x_t.to(self.dtype), t, cond)
        half = self.dtype != torch.float32
        # Weights cast without gradients must not be used again for the student.
        with torch.autocast(x_t.device.type, self.dtype if half else None, enabled=half, cache_enabled=False):
            return self.space.predict(self.network, x_t, t, cond)
