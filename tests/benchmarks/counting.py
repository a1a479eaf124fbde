"""What passes of a network without data would allocate and compute on a GPU, for memory.py.

In torch's FakeTensorMode tensors have shapes and lifetimes but no data: what is alive is added up, operation by
operation, forward and backward, with PyTorch's fused attention and CUDA's autocast rules.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

HALF = torch.bfloat16


def _attention(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_aten = torch.ops.aten
FLOPS = flop_registry | {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Count(TorchDispatchMode):
    """Counts while it is entered: bytes of the tensors that are alive, at most (`peak`), and FLOPs of products.

    Trap: under torch's FlopCounterMode gradient checkpointing frees nothing, so FLOPs are counted here as well.

    Args:
        given: tensors that do not count.
    """

    def __init__(self, given: list[Tensor] = ()):
        super().__init__()
        self.alive = self.peak = self.flops = 0
        # A tensor's memory is freed with its storage.
        self._known = {storage._cdata: storage for storage in (each.untyped_storage() for each in given)}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        if function._overloadpacket in FLOPS:
            self.flops += FLOPS[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    def _add(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_):
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


NORMS = ("group_norm", "layer_norm", "rms_norm")  # which CUDA's autocast computes in float32, and a CPU's does not


def _in_float(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def normalized(*args, **kwargs) -> Tensor:
        args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return norm(*args, **kwargs)

    return normalized


@contextmanager
def autocast() -> Iterator[None]:
    """Half precision as on CUDA, on tensors that say they are on a CPU.

    Trap: a TorchFunctionMode sees neither what nn.functional calls nor what a backward pass computes again.
    """
    norms = {name: _in_float(getattr(F, name)) for name in NORMS}
    with torch.autocast("cpu", HALF), patch.multiple(F, **norms):
        yield


def fill(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Give a network on the meta device weights, all zero: fake ones in FakeTensorMode.

    Args:
        dtype: of all but its adapters, which are in float32.
    """
    for place, module in network.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    wanted = dtype if old.is_floating_point() and ".lora_" not in place else old.dtype
                    new = torch.zeros(old.shape, dtype=wanted)
                    tensors[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return network


def weights_of(network: nn.Module) -> list[Tensor]:
    """All that is on the device with it."""
    return [*network.parameters(), *network.buffers()]


def bytes_of(network: nn.Module, dtype: torch.dtype) -> int:
    """Of its weights and buffers in this dtype."""
    return dtype.itemsize * sum(each.numel() for each in weights_of(network))


class Step(NamedTuple):
    """A forward and backward pass.

    Attributes:
        peak: bytes, gradients among them, beside the weights.
        gradients: bytes that are left after it.
        flops: of both passes, with what gradient checkpointing computes again.
    """

    peak: int
    gradients: int
    flops: int


def count_step(network: nn.Module, predict: Callable[..., Tensor], inputs: tuple, half: bool = True) -> Step:
    """Count a training step.

    Args:
        predict: `LatentSpace.predict`.
        inputs: x_t, t and the condition.
    """
    given = [*weights_of(network), *filter(torch.is_tensor, tree_leaves(inputs))]
    # As in the learner, the backward pass is under autocast too, so that weights are cast once for both.
    with Count(given) as count, autocast() if half else nullcontext():
        F.mse_loss(predict(network, *inputs).float(), inputs[0]).backward()
    return Step(count.peak, count.alive, count.flops)


def count_call(network: nn.Module, call: Callable[[nn.Module], object], half: bool = False) -> Count:
    """What a call allocates beside the weights, under autocast or without.

    gdzoo draws in inference mode, in which autocast keeps no half-precision copies of weights; under no_grad it does,
    of those that are not frozen. Trap: in inference mode linear layers are not seen as products, and FLOPs are 0.
    """
    network.requires_grad_(False)
    with torch.no_grad(), Count(weights_of(network)) as count, autocast() if half else nullcontext():
        call(network)
    return count
