"""Both vLLM generators against the real engine on CPU (scripts/test_vllm.sh makes the environment).

The oracle is a Hugging Face model of the same weights: log_softmax(logits / T) of the whole sequence in one pass.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from stepstack.generation.types import EngineError, Group, Prompt, Sampling
from stepstack.generation.vllm.config import VllmConfig, VllmServerConfig
from stepstack.generation.vllm.engine import VllmGenerator
from stepstack.generation.vllm.server import VllmServerGenerator
from stepstack.records import Problem

pytest.importorskip("vllm", reason="vLLM is not installed here: run scripts/test_vllm.sh")
pytestmark = pytest.mark.vllm

START = 900  # seconds in which a server must answer
TOLERANCE = 1e-3
LENGTH = 128  # max_model_len
EOS = 95


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """95 printable characters, EOS, and words of several characters up to 128 tokens."""
    words = [chr(c) for c in range(32, 127)] + ["</s>", "<pad>", "ab</answer>", "</answer>cd"]
    words += [f"<{i}>" for i in range(128 - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def tiny_model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}  # head_dim 32
    ends = {"eos_token_id": EOS, "pad_token_id": EOS + 1, "bos_token_id": None}
    config = Qwen2Config(vocab_size=128, **shape, **heads, **ends)
    return perturbed(Qwen2ForCausalLM(config), seed, 0.1)


def perturbed(lm: Qwen2ForCausalLM, seed: int, scale: float) -> Qwen2ForCausalLM:
    twin, generator = copy.deepcopy(lm), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return twin.eval()


@pytest.fixture(scope="module")
def lm() -> Qwen2ForCausalLM:
    return tiny_model(0)


@pytest.fixture(scope="module")
def folder(lm: Qwen2ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    lm.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def colocated_config(**changes) -> VllmConfig:
    settings = {"kv_cache_gib": 0.0625, "max_model_len": LENGTH, "max_num_seqs": 16, "enforce_eager": True}
    return VllmConfig(**{**settings, "dtype": "float32", "sleep_level": 0, **changes})


@pytest.fixture(scope="module")
def engine(folder: Path) -> VllmGenerator:
    before = torch.random.get_rng_state()
    generator = VllmGenerator(folder, colocated_config())
    assert torch.equal(before, torch.random.get_rng_state())
    return generator


@pytest.fixture
def colocated(engine: VllmGenerator, lm: Qwen2ForCausalLM) -> VllmGenerator:
    engine.load(lm.named_parameters(), 0)
    return engine


class Served:
    """One server process on loopback."""

    def __init__(self, folder: Path, log: Path, port: int = 0, **env: str):
        if not port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self.port, self.url, self.log = port, f"http://127.0.0.1:{port}", log
        # The module that `vllm serve` runs; the console script of the CPU package fails for want of vllm's metadata.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", str(LENGTH), "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(2**26)]
        command += ["--logprobs-mode", "processed_logprobs"]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_SERVER_DEV_MODE": "1", **env},
                start_new_session=True,
            )

    def wait(self) -> Served:
        """Until it answers: minutes, where other processes want the same cores."""
        limit = time.monotonic() + START
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return self
            time.sleep(0.5)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def servers(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    logs = tmp_path_factory.mktemp("logs")
    both = [Served(folder, logs / f"{i}.log") for i in range(2)]
    for server in both:
        server.wait()
    yield both  # the list itself: a test puts a new server in a dead one's place
    for server in both:
        server.kill()


@pytest.fixture(scope="module")
def connection(servers: list[Served], tmp_path_factory: pytest.TempPathFactory) -> VllmServerGenerator:
    return VllmServerGenerator(
        VllmServerConfig(
            urls=tuple(server.url for server in servers),
            transfer="disk",
            dir=str(tmp_path_factory.mktemp("transfer")),
            bucket_gib=1e-4,  # several files
            patience=180.0,
        )
    )


@pytest.fixture
def served(connection: VllmServerGenerator, lm: Qwen2ForCausalLM) -> VllmServerGenerator:
    connection.load(lm.named_parameters(), 0)
    return connection


@pytest.fixture(params=["colocated", "served"])
def generator(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def some_prompts(n: int = 5) -> list[Prompt]:
    return [Prompt(Problem(index=10 + i, text="", gold=""), tuple(range(1 + i, 8 + 3 * i))) for i in range(n)]


def by_index(groups) -> dict[int, Group]:
    return {group.prompt.problem.index: group for group in groups}


@torch.no_grad()
def worst(lm: Qwen2ForCausalLM, groups, temperature: float) -> float:
    """Largest |logprob of the engine - logprob of ``lm``| over all response tokens."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows = [torch.tensor(rollout.prompt.ids + rollout.ids) for rollout in rollouts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # on the right, where a causal model does not look
    logp = torch.log_softmax(lm(ids).logits.float() / temperature, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    result = 0.0
    for row, rollout in zip(logp, rollouts, strict=True):
        start = len(rollout.prompt.ids) - 1
        mine = row[start : start + len(rollout.ids)]
        result = max(result, (mine - torch.tensor(rollout.logprobs)).abs().max().item())
    return result


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_model(generator, lm, temperature, record_property):
    groups = list(generator.generate(some_prompts(), Sampling(n=4, temperature=temperature, max_tokens=40)))
    difference = worst(lm, groups, temperature)
    record_property("worst", difference)
    print(f"{type(generator).__name__} T={temperature}: worst logprob difference {difference:.2e}")
    assert difference < TOLERANCE
    assert {rollout.version for group in groups for rollout in group.rollouts} == {0}


def test_groups_hold_n_samples_in_order(generator):
    groups = by_index(generator.generate(some_prompts(), Sampling(n=3, max_tokens=10)))
    assert sorted(groups) == [10, 11, 12, 13, 14]
    for group in groups.values():
        assert [rollout.sample for rollout in group.rollouts] == [0, 1, 2]
        assert all(rollout.prompt.ids == group.prompt.ids for rollout in group.rollouts)
        assert len({rollout.ids for rollout in group.rollouts}) == 3


def test_a_seed_decides_a_rollout(generator):
    sampling = Sampling(n=3, max_tokens=20, seed=7)
    first = by_index(generator.generate(some_prompts(), sampling))
    again = by_index(generator.generate(some_prompts()[::-1], sampling))  # another order, another batch
    other = by_index(generator.generate(some_prompts(), sampling.replace(seed=8)))
    assert all(a.ids == b.ids for i in first for a, b in zip(first[i].rollouts, again[i].rollouts, strict=True))
    assert all(a.ids != b.ids for i in first for a, b in zip(first[i].rollouts, other[i].rollouts, strict=True))


def test_both_engines_sample_the_same(colocated, served):
    sampling = Sampling(n=3, temperature=0.8, top_p=0.9, top_k=20, max_tokens=20)
    here, there = (by_index(g.generate(some_prompts(), sampling)) for g in (colocated, served))
    for i in here:
        assert [r.ids for r in here[i].rollouts] == [r.ids for r in there[i].rollouts]
        assert [r.text for r in here[i].rollouts] == [r.text for r in there[i].rollouts]


def test_top_k_logprobs_are_those_of_the_cut_distribution(generator, lm):
    groups = list(generator.generate(some_prompts(2), Sampling(n=2, top_k=5, max_tokens=20)))
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        start = len(rollout.prompt.ids)
        with torch.no_grad():
            logits = lm(torch.tensor([rollout.prompt.ids + rollout.ids])).logits[0, start - 1 : -1]
        best = logits.topk(5, -1)
        at = (best.indices == torch.tensor(rollout.ids)[:, None]).float().argmax(-1)
        logp = torch.log_softmax(best.values, -1).gather(-1, at[:, None])[:, 0]
        assert (logp - torch.tensor(rollout.logprobs)).abs().max() < TOLERANCE


def test_greedy_takes_the_best_token_and_reports_temperature_one(generator, lm):
    groups = list(generator.generate(some_prompts(2), Sampling(temperature=0.0, max_tokens=20)))
    assert worst(lm, groups, 1.0) < TOLERANCE
    for group in groups:
        [rollout] = group.rollouts
        with torch.no_grad():
            logits = lm(torch.tensor([rollout.prompt.ids + rollout.ids])).logits[0]
        assert logits.argmax(-1)[len(group.prompt.ids) - 1 : -1].tolist() == list(rollout.ids)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_load_changes_what_is_sampled(generator, lm, temperature):
    sampling = Sampling(n=4, temperature=temperature, max_tokens=30)
    old = by_index(generator.generate(some_prompts(), sampling))
    new_lm = perturbed(lm, 5, 0.1)
    generator.load(new_lm.named_parameters(), 3)
    new = by_index(generator.generate(some_prompts(), sampling))  # the same prompts: a stale prefix cache would show
    difference = worst(new_lm, new.values(), temperature)
    print(f"{type(generator).__name__} T={temperature} after load: worst logprob difference {difference:.2e}")
    assert difference < TOLERANCE < worst(lm, new.values(), temperature)
    assert {rollout.version for group in new.values() for rollout in group.rollouts} == {3}
    assert [r.ids for i in old for r in old[i].rollouts] != [r.ids for i in old for r in new[i].rollouts]


def biased(lm: Qwen2ForCausalLM, tokens: list[int], share: float) -> Qwen2ForCausalLM:
    """``lm`` with output rows of ``tokens`` moved towards the mean hidden state, so that they come often."""
    twin = copy.deepcopy(lm)
    with torch.no_grad():
        hidden = twin.model(torch.randint(0, 128, (8, 32))).last_hidden_state.flatten(0, 1).mean(0)
        for token in tokens:
            twin.lm_head.weight[token] = hidden * share
    return twin


def test_stop_strings_eos_and_length(generator, lm):
    tokenizer, stop = tiny_tokenizer(), "</answer>"
    twin = biased(lm, [EOS, 97, 98], 0.05)
    generator.load(twin.named_parameters(), 1)
    groups = generator.generate(some_prompts(), Sampling(n=16, max_tokens=40, stop=(stop, "Q")))
    seen = set()
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        body = rollout.ids[:-1] if rollout.ids[-1] == EOS else rollout.ids
        text = tokenizer.decode(body)
        if rollout.ids[-1] == EOS:
            seen.add("eos")
            assert rollout.finish == "stop"
            assert rollout.text == text
        elif rollout.finish == "stop":
            seen.add("string")
            at = min(text.index(s) + len(s) for s in (stop, "Q") if s in text)
            assert rollout.text == text[:at]
            assert rollout.text.endswith((stop, "Q"))
            before = tokenizer.decode(body[:-1])
            assert stop not in before  # the last token completes the string, characters after it stay in its id
            assert "Q" not in before
        else:
            seen.add("length")
            assert (rollout.finish, len(rollout.ids), rollout.text) == ("length", 40, text)
        assert EOS not in body
        assert len(rollout.ids) == len(rollout.logprobs)
    assert seen == {"eos", "string", "length"}


def test_max_length_bounds_prompt_and_response(generator):
    prompts = some_prompts()
    for sampling, bound in (
        (Sampling(n=4, max_tokens=500, max_length=30), 30),
        (Sampling(n=4, max_tokens=500), LENGTH),
    ):
        rollouts = [r for group in generator.generate(prompts, sampling) for r in group.rollouts]
        full = [r for r in rollouts if r.finish == "length"]
        assert full
        assert all(len(r.prompt.ids) + len(r.ids) == bound for r in full)
        assert all(len(r.prompt.ids) + len(r.ids) <= bound for r in rollouts)
    with pytest.raises(ValueError, match="prompt 14 has 15 tokens and leaves no room within 15"):
        list(generator.generate(prompts, Sampling(max_length=15)))


def test_closing_the_iterator_frees_the_engine(generator):
    iterator = generator.generate(some_prompts(), Sampling(n=8, max_tokens=100))
    next(iterator)
    iterator.close()
    assert len(list(generator.generate(some_prompts(), Sampling(max_tokens=5)))) == 5


def test_colocated_refuses_load_and_generate_in_flight(colocated, lm):
    iterator = colocated.generate(some_prompts(), Sampling(n=8, max_tokens=60))
    next(iterator)
    with pytest.raises(EngineError, match="load while rollouts are in flight"):
        colocated.load(lm.named_parameters(), 1)
    with pytest.raises(EngineError, match="generate while rollouts are in flight"):
        next(colocated.generate(some_prompts(), Sampling()))
    iterator.close()


def test_colocated_load_must_be_complete(colocated, lm):
    some = [(name, value) for name, value in lm.named_parameters() if "layers.1.mlp" not in name]
    with pytest.raises(EngineError, match=r"gave no value to 2 parameters: \['model.layers.1.mlp.down_proj.weight'"):
        colocated.load(some, 4)
    with pytest.raises(EngineError, match="call load"):
        next(colocated.generate(some_prompts(), Sampling()))


def test_colocated_takes_other_float_types(colocated, lm):
    half = {name: value.detach().bfloat16() for name, value in lm.named_parameters()}
    rounded = copy.deepcopy(lm)
    rounded.load_state_dict(half)
    colocated.load(half.items(), 2)
    groups = list(colocated.generate(some_prompts(), Sampling(n=2, max_tokens=20)))
    assert worst(rounded, groups, 1.0) < TOLERANCE < worst(lm, groups, 1.0)


def test_colocated_without_sleep_mode(colocated):
    colocated.sleep()  # level 0: nothing happens
    colocated.wake()
    assert len(list(colocated.generate(some_prompts(), Sampling(max_tokens=5)))) == 5


def test_colocated_sleep_is_refused_where_vllm_cannot(folder):
    from vllm.platforms import current_platform

    if current_platform.is_sleep_mode_available():
        pytest.skip("this platform can sleep: test_colocated_sleep_and_wake covers it")
    with pytest.raises(ValueError, match="cannot sleep on cpu: set sleep_level: 0"):
        VllmGenerator(folder, colocated_config(sleep_level=1))


@pytest.mark.parametrize("level", [1, 2])
def test_colocated_sleep_and_wake(folder, lm, level):
    from vllm.platforms import current_platform

    if not current_platform.is_sleep_mode_available():
        pytest.skip(f"vLLM has no sleep mode on {current_platform.device_type}")
    generator = VllmGenerator(folder, colocated_config(sleep_level=level, gpu_memory_utilization=0.2))
    new_lm = perturbed(lm, 6, 0.1)
    generator.load(new_lm.named_parameters(), 1)
    generator.sleep()
    if level == 2:
        with pytest.raises(EngineError, match="call load"):
            next(generator.generate(some_prompts(), Sampling()))
        generator.load(new_lm.named_parameters(), 2)
    groups = list(generator.generate(some_prompts(), Sampling(n=2, max_tokens=20)))
    assert worst(new_lm, groups, 1.0) < TOLERANCE  # neither the initial weights nor noise


def test_served_groups_use_every_server(served):
    before = [server_requests(server.url) for server in served.servers]
    list(served.generate(some_prompts(4), Sampling(n=2, max_tokens=3)))
    after = [server_requests(server.url) for server in served.servers]
    assert [b - a for a, b in zip(before, after, strict=True)] == [4, 4]


def server_requests(url: str) -> int:
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total")))


def test_served_weights_are_files_that_do_not_pile_up(served, lm):
    served.load(lm.named_parameters(), 8)
    [folder] = Path(served.cfg.dir).iterdir()
    assert folder.name == "weights-8"
    assert len(list(folder.iterdir())) > 1


def test_served_load_waits_for_rollouts_in_flight(served, lm):
    new_lm = perturbed(lm, 9, 0.1)
    iterator = served.generate(some_prompts(5), Sampling(n=4, max_tokens=60))
    groups = [next(iterator)]
    served.load(new_lm.named_parameters(), 9)  # while the pool still samples
    groups += iterator
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        one = Group(rollout.prompt, (rollout,))
        assert worst({0: lm, 9: new_lm}[rollout.version], [one], 1.0) < TOLERANCE


def test_served_failed_load_is_an_error_until_the_next_one(served, lm):
    with pytest.raises(EngineError, match="answered 500"):
        served.load([("no.such.weight", torch.zeros(3))], 5)
    with pytest.raises(EngineError, match="call load first"):
        next(served.generate(some_prompts(), Sampling()))
    served.load(lm.named_parameters(), 6)
    assert worst(lm, served.generate(some_prompts(), Sampling(max_tokens=5)), 1.0) < TOLERANCE


def test_served_weights_of_another_run_are_refused(served):
    other = VllmServerGenerator(served.cfg)
    with pytest.raises(EngineError, match="weights of another run"):
        next(other.generate(some_prompts(), Sampling()))


def test_nccl_needs_a_server_that_was_started_for_it(served):
    with pytest.raises(EngineError, match="--weight-transfer-config"):
        VllmServerGenerator(VllmServerConfig(urls=served.cfg.urls, transfer="nccl"))


@pytest.mark.parametrize("mode", ["1", "2", "served"])
def test_two_ranks(mode, folder, servers, tmp_path):
    """torchrun with gloo: an engine per rank, one engine of two ranks (tensor parallel), or both as clients."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [mode, str(folder), str(tmp_path), *(server.url for server in servers)]
    run = subprocess.run([*command, __file__, *arguments], capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    print("\n".join(line for line in run.stdout.splitlines() if line.startswith("rank")))


def one_rank(mode: str, folder: str, shared: str, *urls: str) -> None:
    """What each process of ``test_two_ranks`` does: load new weights, generate for its own prompts, compare."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if mode == "served":
        cfg = VllmServerConfig(urls=urls, transfer="disk", dir=shared)
        generator = VllmServerGenerator(cfg)
    else:
        generator = VllmGenerator(folder, colocated_config(tensor_parallel_size=int(mode)))
    new_lm = perturbed(tiny_model(0), 5, 0.1)
    generator.load(new_lm.named_parameters(), 3)
    mine = some_prompts()[:3] if rank == 0 else some_prompts()[3:]
    groups = by_index(generator.generate(mine, Sampling(n=3, temperature=0.7, max_tokens=20)))
    assert sorted(groups) == [prompt.problem.index for prompt in mine]
    difference = worst(new_lm, groups.values(), 0.7)
    print(f"rank {rank} mode {mode}: worst logprob difference {difference:.2e}", flush=True)
    assert difference < TOLERANCE
    assert {rollout.version for group in groups.values() for rollout in group.rollouts} == {3}
    if mode == "served":
        with pytest.raises(EngineError, match="answered 500"):  # raised on both, though only the first one sent
            generator.load([("no.such.weight", torch.zeros(3))] * 2, 4)
    dist.barrier()


def test_server_goes_away_and_comes_back(folder, servers, lm, tmp_path):
    """Last: it kills the second server."""
    urls = tuple(server.url for server in servers)
    cfg = VllmServerConfig(urls=urls, transfer="disk", dir=str(tmp_path), patience=2.0, concurrency=2)
    generator = VllmServerGenerator(cfg)
    generator.load(lm.named_parameters(), 1)
    iterator = generator.generate(some_prompts(4), Sampling(n=8, max_tokens=100))
    next(iterator)  # with two rollouts at a time, most are still to come
    servers[1].kill()
    with pytest.raises(EngineError, match=rf"{urls[1]} did not answer .* for 2 s .* start `vllm serve` there again"):
        list(iterator)
    assert generator.retries > 0
    servers[1] = Served(folder, tmp_path / "again.log", servers[1].port).wait()
    patient = VllmServerGenerator(VllmServerConfig(urls=urls, transfer="disk", dir=str(tmp_path), patience=180.0))
    with pytest.raises(EngineError, match="'default' instead of '1'"):  # it restarted with its initial weights
        list(generator.generate(some_prompts(4), Sampling(max_tokens=5)))
    patient.load(lm.named_parameters(), 2)
    assert worst(lm, patient.generate(some_prompts(4), Sampling(max_tokens=5)), 1.0) < TOLERANCE


if __name__ == "__main__":
    one_rank(*sys.argv[1:])
