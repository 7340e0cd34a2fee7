"""Weights to servers' GPUs by NCCL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from stepstack.generation.vllm.config import VllmServerConfig
from stepstack.generation.vllm.http import Bucket, Server, ask, everywhere


class NcclSender:
    """Trainer's end of vLLM's NCCL weight transfer: rank 0 of a group with every worker of every server. Not run."""

    def __init__(self, servers: Sequence[Server], cfg: VllmServerConfig):
        """Needs vllm in the trainer and its current CUDA device; blocks until all workers have joined."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.utils.network_utils import get_ip

        self.servers, self.bytes = servers, int(cfg.bucket_gib * 2**30)
        sizes = [server.call("/get_world_size")["world_size"] for server in servers]
        group = {"master_address": cfg.nccl_address or get_ip(), "master_port": cfg.nccl_port}
        group |= {"world_size": 1 + sum(sizes)}
        packing = {"packed": True, "packed_buffer_size_bytes": self.bytes, "packed_num_buffers": 2}
        offsets = list(itertools.accumulate(sizes, initial=1))[:-1]
        bodies = [{"init_info": {**group, **packing, "rank_offset": offset}} for offset in offsets]
        # The workers wait for the trainer inside this request.
        joining = everywhere(servers, "/init_weight_transfer_engine", bodies, again=False)
        self.group = trainer_init(group)
        for future in joining:
            future.result()

    def send(self, pieces: Iterator[Bucket], tag: str) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer as broadcast

        ask(self.servers, "/start_weight_update", {}, again=False)
        for bucket in pieces:
            info = {
                "names": [name for name, _ in bucket],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
                "shapes": [list(tensor.shape) for _, tensor in bucket],
            }
            bodies = [{"update_info": info}] * len(self.servers)
            receiving = everywhere(self.servers, "/update_weights", bodies, again=False)
            for future in receiving:
                if future.done():  # refused before any NCCL call: raise here instead of waiting in the broadcast
                    future.result()
            broadcast(iter(bucket), self.group, 0, lambda item: item[1].cuda(), self.bytes, 2)
            for future in receiving:
                future.result()
        ask(self.servers, "/finish_weight_update", {"weight_version": tag}, again=False)
