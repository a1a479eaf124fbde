"""A simulated GPU: `python -m tests.simulated_gpu gdzoo.train ARGUMENTS` trains on it; without arguments, see `serve`.

The device `gpu:0` computes on the CPU, and is as strict as a real one: what mixes its tensors with the CPU's ends the
run. It says nothing of CUDA's kernels, precision or speed.
"""

import contextlib
import importlib
import json
import os
import sys
import traceback

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cpu")  # until `simulate` has named the other
aten = torch.ops.aten
# What takes tensors of the CPU on CUDA, too. (One number from there is taken everywhere.)
COPIES = {aten.copy_.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class OnGPU(Tensor):
    """A tensor that says it is on the GPU; its values are `host`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False):
        layout = dict(strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype)
        return cls._make_wrapper_subclass(cls, host.size(), **layout, device=DEVICE, requires_grad=requires_grad)

    def __init__(self, host: Tensor, requires_grad: bool = False):
        self.host = host

    def untyped_storage(self):  # tells safetensors which weights are one
        return self.host.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        mixes = function in COPIES or (function in INDEXES and isinstance(args[0], cls))
        if not mixes and any(tensor.dim() for tensor in given if not isinstance(tensor, cls)):
            raise RuntimeError(f"{function} mixes tensors of {DEVICE} and of the CPU")
        device = kwargs.get("device") or DEVICE
        if "device" in kwargs:
            kwargs = kwargs | {"device": torch.device("cpu")}
        args, kwargs = tree_map_only(cls, lambda tensor: tensor.host, (args, kwargs))
        results = function(*args, **kwargs)
        if device.type == "cpu":
            return results
        # What was changed in place is the tensor that it was.
        same = {id(tensor.host if isinstance(tensor, cls) else tensor): tensor for tensor in given}
        return tree_map_only(Tensor, lambda result: same[id(result)] if id(result) in same else cls(result), results)


class Module(backend_registration._DummyBackendModule):
    """torch.gpu: what the libraries ask of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor):
        torch.set_rng_state(state)


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> Tensor:
    return OnGPU(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return OnGPU(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    getattr(target, "host", target).copy_(getattr(source, "host", source))
    return target


def simulate() -> torch.library.Library:
    """Give this process the device, and have accelerate choose it; keep what is returned. Before gdzoo is imported."""
    global DEVICE
    backend_registration._setup_privateuseone_for_python_backend("gpu", Module())
    DEVICE = torch.device("gpu", 0)
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty.memory_format", _empty, "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    torch.inference_mode = torch.no_grad  # torch makes no views of such tensors under the former

    from accelerate import PartialState

    from gdzoo.method.randomness import StepRandom

    PartialState(cpu=True)
    PartialState._shared_state["device"] = DEVICE
    PartialState.default_device = DEVICE
    # No generator of the device's own: the CPU's numbers, brought there.
    create, draw = StepRandom.__init__, StepRandom._slice
    StepRandom.__init__ = lambda self, key, device, *share: create(self, key, "cpu", *share)
    StepRandom._slice = lambda self, *what: draw(self, *what).to(DEVICE)
    return kernels


def run(module: str, arguments: list[str]) -> int:
    return importlib.import_module(module).main(arguments)


def serve():
    """Run commands of stdin, a JSON list [module, arguments, folder] each, and print their pids and then exit codes.

    They are forked, so that the imports are made once, and write to log.txt in their folder.
    """
    for module in ("gdzoo.training.command", "gdzoo.evaluation.command", "sklearn.datasets"):
        importlib.import_module(module)
    for line in sys.stdin:
        module, arguments, folder = json.loads(line)
        pid = os.fork()
        if not pid:
            os.chdir(folder)
            sys.path.insert(0, folder)  # as `python -m` does
            code = 1
            with open("log.txt", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    code = run(module, arguments)
                except BaseException:
                    traceback.print_exc()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    kept = simulate()
    sys.exit(run(sys.argv[1], sys.argv[2:]) if sys.argv[1:] else serve())
