"""FSDP: in memory, weights, their average and Adam's moments are shards; files hold whole tensors."""

from diffusers import ModelMixin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from the shards of all processes, which must all call; one that is not sharded is returned."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value, like):
    """A whole tensor, or dicts and lists of them, sharded wherever `like` has a sharded tensor of that shape."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        # Every process has the whole tensor: nothing needs to be sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    if isinstance(like, dict):
        return {key: shard_like(item, like.get(key)) for key, item in value.items()}
    if isinstance(like, list):
        return [shard_like(*pair) for pair in zip(value, like, strict=True)]
    return value


def is_sharded(unet: ModelMixin) -> bool:
    """Whether its parameters are shards of FSDP."""
    return isinstance(unet, FSDPModule)


def whole_unet(unet: ModelMixin) -> ModelMixin:
    """A whole copy of a sharded U-Net, for which all processes must call; one that is not sharded is returned."""
    if not is_sharded(unet):
        return unet
    kind = next(base for base in type(unet).__mro__ if not issubclass(base, FSDPModule))
    plain = kind.from_config(unet.config).to(unet.device)
    plain.load_state_dict({name: whole(tensor) for name, tensor in unet.state_dict().items()})
    return plain
