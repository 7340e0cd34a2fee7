"""Settings of vLLM. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from stepstack.bounds import Magnitude, Weight
from stepstack.config import Needed, Strict

EVALUATION_BATCH = 4096  # samples that an evaluation gives vLLM at a time; it schedules them itself


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmConfig(Strict):
    """vLLM's engine in the training process."""

    needs_weights: ClassVar[bool] = False
    samples_at_once: ClassVar[int] = EVALUATION_BATCH

    type: Literal["vllm"] = "vllm"
    """Choice of the engine: vLLM in the training process."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the device's memory for engine weights and KV cache together."""
    kv_cache_gib: Magnitude | None = None
    """Exact size of the KV cache in GiB, in place of what the share leaves; null: by the share."""
    tensor_parallel_size: PositiveInt = 1
    """Processes that share one engine."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and response together; null takes the model's own."""
    max_num_seqs: PositiveInt = 256
    """Most sequences that decode together."""
    enforce_eager: bool = False
    """Whether CUDA graphs are left out."""
    enable_prefix_caching: bool = True
    """Whether prompts with a common beginning share their cache."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type that the engine computes in."""
    load_format: Literal["auto", "dummy"] = "auto"
    """Weights that the engine starts with: auto reads the checkpoint's; dummy does not, since the trainer's come
    first."""
    sleep_level: Literal[0, 1, 2] = 1
    """Fate of the weights during ``sleep``: 1 keeps a copy in host memory, 2 drops them, 0 does nothing."""

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"engine": "vllm", "dtype": self.dtype}

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (Needed("vllm", "make setup EXTRAS=vllm"),)


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmServerConfig(Strict):
    """Running ``vllm serve`` processes."""

    needs_weights: ClassVar[bool] = False
    samples_at_once: ClassVar[int] = EVALUATION_BATCH

    type: Literal["vllm_server"] = "vllm_server"
    """Choice of the engine: servers that run beside the training."""
    urls: tuple[str, ...]
    """Address of each server, such as http://host:8000."""
    transfer: Literal["nccl", "disk"] = "nccl"
    """Way of new weights to the servers: nccl broadcasts them to their GPUs; disk writes safetensors to ``dir``."""
    dir: str = ""
    """Folder for transfer=disk that trainer and servers see under the same path; the newest version stays in it."""
    bucket_gib: Magnitude = 1.0
    """Size in GiB of the pieces in which weights are written or sent, about."""
    nccl_address: str | None = None
    """The trainer's address as the servers see it; null takes vLLM's guess."""
    nccl_port: Annotated[int, Field(ge=1, le=65535)] = 51216
    """Port of the trainer for transfer=nccl."""
    concurrency: PositiveInt = 256
    """Rollouts in flight, all servers together."""
    patience: Weight = 300.0
    """Seconds that a server may refuse connections, its start counted, before it is an error."""
    timeout: Magnitude = 3600.0
    """Seconds that one answer may take."""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("urls is empty: name at least one server, e.g. http://localhost:8000")
        if self.transfer == "disk" and not self.dir:
            raise ValueError("transfer: disk needs dir: a folder that the trainer and the servers share")

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"engine": "vllm_server"}
