"""A worker whose rollouts come from a vLLM server: a stand-in that speaks vLLM's HTTP, loads the weights that are
written for it, and answers with a real model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stepstack.generation.service.config import StreamConfig
from stepstack.generation.service.trainer import RolloutServer
from stepstack.generation.service.worker import Worker
from stepstack.generation.types import Group, Sampling
from stepstack.generation.vllm.config import VllmServerConfig
from stepstack.generation.vllm.server import VllmServerGenerator
from stepstack.models.lm import tiny
from tests import tools
from tests.unit.generation.test_vllm_http import Fake

TOKENIZER = tiny.tokenizer()
PROMPTS = tools.prompts([3, 4, 5, 6], vocab=90)
GREEDY = Sampling(n=2, temperature=0.0, max_tokens=8)
IDENTITY = {"config": "c"}


class Answering(Fake):
    """``lm`` begins with weights of its own, and takes others from the folder that a reload names."""

    def __init__(self) -> None:
        self.lm = tools.qwen2(len(TOKENIZER), seed=9)
        super().__init__()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = tools.prompt(0, body["prompt"])
        sampling = Sampling(n=1, temperature=body["temperature"], max_tokens=body["max_tokens"])
        [group] = tools.generator(self.lm, TOKENIZER).generate([prompt], sampling)
        [rollout] = group.rollouts
        logprobs = {"token_logprobs": list(rollout.logprobs)}
        told = {"token_ids": list(rollout.ids), "text": rollout.text, "finish_reason": rollout.finish}
        return {"choices": [told | {"logprobs": logprobs, "stop_reason": None}]}

    def reload(self, folder: Path) -> None:
        places = dict(self.lm.named_parameters())
        with torch.no_grad():
            for file in folder.iterdir():
                for name, value in load_file(file).items():
                    places[name].copy_(value)


def said(group: Group) -> list[tuple[int, ...]]:
    return [rollout.ids for rollout in group.rollouts]


def test_a_vllm_server_samples_for_a_worker_by_the_trainers_weights(tmp_path):
    first, second = tools.qwen2(len(TOKENIZER), seed=1), tools.qwen2(len(TOKENIZER), seed=2)
    server = RolloutServer(StreamConfig(workers=0), tmp_path / "stream", IDENTITY, None)
    with Answering() as vllm:
        engine = VllmServerGenerator(VllmServerConfig(urls=(vllm.url,), transfer="disk", dir=str(tmp_path / "to-vllm")))
        known = {prompt.problem.index: prompt for prompt in PROMPTS}
        worker = Worker(
            server.address, server.token, IDENTITY, "w", 20.0, GREEDY, tmp_path / "w", lambda _: (engine, known)
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        for version, lm in enumerate((first, second)):
            server.publish(dict(lm.named_parameters()), version)
            server.admit(version, version, [PROMPTS[:2], PROMPTS[2:]], GREEDY)
            units = [group for number in range(2) for group in server.unit(version, number)]
            got = {group.prompt.problem.index: said(group) for group in units}
            local = tools.generator(lm, TOKENIZER).generate(PROMPTS, GREEDY)
            assert got == {group.prompt.problem.index: said(group) for group in local}
            assert {rollout.version for group in units for rollout in group.rollouts} == {version}
            server.trained(version)
        server.close()
        thread.join(10)
        assert not thread.is_alive()
        vllm.shutdown()
