"""Models spread over processes: FSDP2's shards, DDP's copies, and what both need of gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stepstack.config import ConfigError


def mixed_precision(precision: str) -> MixedPrecisionPolicy | None:
    """FSDP2's policy for a run's precision: bfloat16 weights in the forward and backward pass, while gradients are
    reduced and accumulated in float32, and outputs (log-probabilities, values, velocities) are not rounded. The
    policy of accelerate has bfloat16 for all of these, and casts inputs such as timesteps."""
    if precision != "bf16":
        return None
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32, cast_forward_inputs=False
    )


def shard(accelerator: Accelerator, module: nn.Module, role: str) -> nn.Module:
    """Spread a module over all processes, in place, by its ``_no_split_modules``. Process 0 has the weights; on the
    others their memory need not exist yet (``Run.load``).

    ConfigError where a buffer is in its state dict, which accelerate cannot shard, and where the sharded module has
    other parameters than the whole one: tied weights that came untied would be trained apart, or not at all.
    """
    whole = dict(module.named_parameters())
    state = module.state_dict(keep_vars=True)
    if buffers := [name for name, value in state.items() if not isinstance(value, nn.Parameter)]:
        raise ConfigError(
            f"{role}: {type(module).__name__} keeps buffers in its weights ({', '.join(buffers[:3])}), which FSDP2 of "
            "accelerate cannot shard: take launch.file=ddp"
        )
    trained = {name for name, parameter in whole.items() if parameter.requires_grad}
    sharded = fsdp2_prepare_model(accelerator, module)
    now = dict(sharded.named_parameters())
    if now.keys() != whole.keys() or trained != {name for name, p in now.items() if p.requires_grad}:
        differ = sorted(now.keys() ^ whole.keys())
        raise ConfigError(
            f"{role}: sharding {type(module).__name__} changed its parameters ({', '.join(differ[:3])}): tied weights "
            "came untied. Give it tie_weights(), or take launch.file=ddp"
        )
    return sharded


def replicate(module: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """A whole copy on each process, gradients averaged, in a run whose other models are sharded."""
    module = module.to(device)
    if processes == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


@contextlib.contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Gradients of this backward pass stay on their process, to be reduced with those of a later one."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)
    elif isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def clip_gradients(parameters: Sequence[Tensor], limit: float | None) -> float:
    """Scale all gradients so that their norm over all processes is at most ``limit``, None: no limit; the norm
    before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
