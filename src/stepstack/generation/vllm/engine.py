"""vLLM as a Generator: an engine inside the training process, or ``vllm serve`` processes behind HTTP.

Token ids go in and come out, nobody tokenises again; log-probabilities are those of the distribution that was sampled
(temperature, top_k and top_p applied). Importing this module does not import vllm: the classes do, and
``VllmServerGenerator`` with ``transfer: disk`` never does. docs/vllm.md says how to start either and what was run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stepstack.generation.types import EngineError, Group, Prompt, Rollout, Sampling
from stepstack.generation.vllm.config import VllmConfig
from stepstack.generation.vllm.request import request, to_rollout
from stepstack.generation.vllm.vision import VllmVision

Weights = Iterable[tuple[str, Tensor]]


class VllmGenerator:
    """Generator with an engine in this process, on the GPU that also trains.

    Build it after the Accelerator. In a distributed run every rank has an engine and generates for its own prompts;
    with ``tensor_parallel_size`` T, ranks [0..T-1], [T..2T-1], ... share one engine, its ranks must call ``generate``,
    ``load`` and ``sleep`` together (with as many prompts as each has, also none), and each gets its own groups back.

    Memory: call ``sleep()`` before training; ``load`` and ``generate`` wake what they need.
    Run on CPU, also with two ranks and with tensor_parallel_size 2. Not run (no GPU here): sleep and wake on CUDA.
    """

    def __init__(self, model: str | Path, cfg: VllmConfig, vision: VllmVision | None = None):
        """``model``: folder or hub name with config, tokenizer and (unless dummy) the initial weights, version 0.
        ``vision``: of a model whose prompts have pictures."""
        # vLLM would start the engine in another process, where weights cannot be streamed to.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM
        from vllm.platforms import current_platform

        world = dist.get_world_size() if dist.is_initialized() else 1
        if world % cfg.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size {cfg.tensor_parallel_size} does not divide the {world} processes: take a divisor"
            )
        if cfg.sleep_level and not current_platform.is_sleep_mode_available():
            raise ValueError(f"vLLM cannot sleep on {current_platform.device_type}: set sleep_level: 0")
        kv_cache = {} if cfg.kv_cache_gib is None else {"kv_cache_memory_bytes": int(cfg.kv_cache_gib * 2**30)}
        self.cfg, self.version, self.vision = cfg, 0, vision
        with _random_state_kept():
            self.llm = LLM(
                str(model),
                # The launcher's processes are the engine's: vLLM joins their process group and starts no workers.
                distributed_executor_backend="external_launcher" if world > 1 else "uni",
                tensor_parallel_size=cfg.tensor_parallel_size,
                gpu_memory_utilization=cfg.gpu_memory_utilization,
                max_model_len=cfg.max_model_len,
                max_num_seqs=cfg.max_num_seqs,
                enforce_eager=cfg.enforce_eager,
                enable_prefix_caching=cfg.enable_prefix_caching,
                dtype=cfg.dtype,
                load_format=cfg.load_format,
                enable_sleep_mode=cfg.sleep_level > 0,
                logprobs_mode="processed_logprobs",
                **kv_cache,
                **({} if vision is None else vision.engine_options),
            )
        self.engine = self.llm.llm_engine
        self.max_positions: int = self.engine.model_config.max_model_len
        self._valid = cfg.load_format != "dummy"  # the engine holds the weights of self.version
        self._asleep: set[str] = set()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Groups as they end (tensor parallel: all at the end, since its ranks must step together).

        EngineError if the weights are gone (``load`` first) or an earlier iterator was neither exhausted nor closed.
        """
        if not self._valid:
            raise EngineError(
                "the engine has no weights (sleep_level 2, load_format dummy or a failed load): call load"
            )
        self._idle("generate")
        self.wake()
        alone = self.cfg.tensor_parallel_size == 1
        yield from (self._generate if alone else self._generate_shared)(prompts, sampling)

    def load(self, weights: Weights, version: int) -> None:
        """Stream full tensors under their Hugging Face names into the engine, then forget the prefix cache.

        Tensors may be on any device and of any float type; each must own its memory until the next layer begins.
        EngineError if a parameter of the engine got no value.
        """
        self._idle("load")
        if "weights" in self._asleep:
            self._wake({"weights"})
        self._valid = False
        [missing] = self.llm.collective_rpc(_load_into, args=(weights,))
        if missing:
            raise EngineError(
                f"load of version {version} gave no value to {len(missing)} parameters: {missing[:5]}: "
                "report this with the version of vLLM"
            )
        # Keys and values of the old weights must not serve the new ones.
        if not self.llm.reset_prefix_cache():
            raise EngineError(
                "vLLM kept its prefix cache: something still holds blocks of it: report this with the version of vLLM"
            )
        self.engine.reset_encoder_cache()
        self.engine.set_weight_version(str(version))
        self.version, self._valid = version, True

    def sleep(self) -> None:
        """Free the KV cache, and the weights as ``sleep_level`` says, for the training phase. Level 0: nothing."""
        everything = {"weights", "kv_cache"}
        if self.cfg.sleep_level == 0 or self._asleep == everything:
            return
        self._idle("sleep")
        self.wake()  # vLLM ignores a sleep while a part of it is asleep
        self.llm.sleep(level=self.cfg.sleep_level)
        self._asleep = everything
        self._valid = self._valid and self.cfg.sleep_level == 1  # level 2 wakes with arbitrary memory, not with weights

    def wake(self) -> None:
        """Take back all memory. After level 2 the weights are still invalid: only ``load`` makes them valid."""
        if self._asleep:
            self._wake(set(self._asleep))

    def _wake(self, tags: set[str]) -> None:
        torch.cuda.empty_cache()  # what training no longer uses, its allocator would keep from the engine
        self.llm.wake_up(tags=sorted(tags))
        self._asleep -= tags

    def _idle(self, what: str) -> None:
        if self.engine.has_unfinished_requests():
            raise EngineError(f"{what} while rollouts are in flight: exhaust or close the iterator of generate first")

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        rows = [(i, s) for i in range(len(prompts)) for s in range(sampling.n)]
        bias = {} if self.vision is None else {"logit_bias": self.vision.bias}
        params = [SamplingParams(**request(prompts[i], s, sampling, self.max_positions), **bias) for i, s in rows]
        plain = [{"prompt_token_ids": list(p.ids)} if self.vision is None else self.vision.inputs(p) for p in prompts]
        inputs = [TokensPrompt(**plain[i]) for i, _ in rows]
        tickets = self.llm.enqueue(inputs, params, use_tqdm=False) if rows else []
        # Outputs carry the part of the ticket before the random suffix.
        owner = {ticket.rpartition("-")[0]: row for ticket, row in zip(tickets, rows, strict=True)}
        done: dict[int, list[Rollout]] = {i: [] for i in range(len(prompts))}
        try:
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    i, s = owner[output.request_id]
                    done[i].append(self._rollout(prompts[i], s, output.outputs[0]))
                    if len(done[i]) == sampling.n:
                        yield Group(prompts[i], tuple(sorted(done.pop(i), key=lambda r: r.sample)))
        finally:
            self.engine.abort_request(tickets, internal=True)  # those that ended are unknown to it by now

    def _rollout(self, prompt: Prompt, sample: int, out: Any) -> Rollout:
        logprobs = [entry[token].logprob for token, entry in zip(out.token_ids, out.logprobs, strict=True)]
        return to_rollout(
            prompt,
            sample,
            self.version,
            ids=out.token_ids,
            logprobs=logprobs,
            text=out.text,
            finish=out.finish_reason,
            stop=out.stop_reason,
        )

    def _generate_shared(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Gather the prompts of the tensor-parallel ranks, generate all of them on each, keep this rank's."""
        from vllm.distributed.parallel_state import get_tp_group

        tp = get_tp_group()
        parts: list[Any] = [None] * tp.world_size
        dist.all_gather_object(parts, (list(prompts), sampling), group=tp.cpu_group)
        if any(other != sampling for _, other in parts):
            raise ValueError("the ranks of a tensor-parallel group called generate with different Sampling")
        everyone = [prompt for part, _ in parts for prompt in part]
        start = sum(len(part) for part, _ in parts[: tp.rank_in_group])
        mine = {id(prompt) for prompt in everyone[start : start + len(prompts)]}
        groups = list(self._generate(everyone, sampling))  # to the end before anything is yielded
        yield from (group for group in groups if id(group.prompt) in mine)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """vLLM seeds the process it starts in; the training run's generators must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _load_into(worker: Any, weights: Weights) -> list[str]:
    """Runs in the worker: the checkpoint-format reload that vLLM's own weight transfer uses. Returns the parameters
    that got no value."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = worker.get_model()
    names = {name for name, _ in model.named_parameters()}
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        loaded = model.load_weights((name, tensor.detach()) for name, tensor in weights)
        finalize_layerwise_reload(model, worker.model_config)
        _pack_tied_head(model, worker.model_config)
    return sorted(names - set(loaded))


def _pack_tied_head(model: Any, config: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the head, made at the start; a reload renews it only where the head
    has weights of its own."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and config.hf_text_config.tie_word_embeddings:
        head = model.get_submodule("lm_head").tie_weights(model.get_submodule("model.embed_tokens"))
        head.quant_method.process_weights_after_loading(head)
