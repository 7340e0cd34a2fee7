"""lm-eval both ways, offline: its tasks give through our engine what they give through its own ``hf`` model, and our
tasks in its own command line give the score that they give here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from stepstack.config import ROOT, ConfigError
from stepstack.core.types import SingleProcess
from stepstack.generation.types import EngineError
from stepstack.harness import answers as io
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.engines.server import ServerConfig, ServerEngine
from stepstack.harness.evaluate import Stopped, evaluate
from stepstack.harness.lm_eval.export import export
from stepstack.harness.task import load
from stepstack.models.lm import tiny
from tests import tools
from tests.servers import ModelServer

pytest.importorskip("lm_eval", reason="lm-eval is not installed here: it is in the extra `eval`")
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from stepstack.harness.lm_eval import tasks as lm_eval_tasks
from stepstack.harness.lm_eval.model import StepstackLM

LENGTH = 96  # of the model; some prompts and texts are longer
MODEL = {"name": "tiny", "sha256": "0" * 64}
UNTIL = ["4", "u-", "r>"]
NAMES = ["local_words", "local_choice", "local_text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that likes <eos> and </answer>, so that its answers end in every way."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tokenizer()
    lm = tools.qwen2(len(tokenizer), max_length=LENGTH, seed=12)
    with torch.no_grad():
        lm.get_input_embeddings().weight[[1, tokenizer.convert_tokens_to_ids("</answer>")]] *= 2
    lm.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder) -> GeneratorEngine:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny.tokenizer()
    return GeneratorEngine(tools.generator(lm, tokenizer), tokenizer, batch=5, facts={"engine": "hf"}, lm=lambda: lm)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """lm-eval tasks on local rows: one that generates, one that chooses (with examples), one of whole texts."""
    place = tmp_path_factory.mktemp("tasks")
    questions = [f"{'so ' * (i * 3)}{chr(97 + 2 * i)} what comes after {i * 7}?" for i in range(12)]
    rows = [{"question": q, "choices": ["one", " two two", "3"], "gold": i % 3} for i, q in enumerate(questions)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"test": str(place / "rows.jsonl"), "train": str(place / "rows.jsonl")}
    data = {"data_files": files, "cache_dir": str(place / "cache")}
    common = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "metadata": {"version": 1.5}}
    words = {
        "task": "local_words",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{question}}",
        "generation_kwargs": {"until": UNTIL, "max_gen_toks": 20, "do_sample": False},
        "process_results": "!function scores.words",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("even", "size")],
    }
    choice = {
        "task": "local_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "fewshot_split": "train",
        "num_fewshot": 1,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    text = {
        "task": "local_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "question",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    }
    group = {
        "group": "local_all",
        "task": ["local_choice", {"task": "local_choice", "task_alias": "again", "num_fewshot": 0}][:1],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": 2},
    }
    for task in (words, choice, text):
        plain = yaml.safe_dump(common | task).replace("'!function scores.words'", "!function scores.words")
        (place / f"{task['task']}.yaml").write_text(plain)
    (place / "local_all.yaml").write_text(yaml.safe_dump(group))
    code = "def words(doc, results):\n    return {'even': float(len(results[0]) % 2 == 0), 'size': len(results[0])}\n"
    (place / "scores.py").write_text(code)
    return place


def ours(names, engine, own, root, world=None, **changes):
    options = {"model": MODEL, "limit": None, "seed": 0, "include": own, **changes}
    return lm_eval_tasks.evaluate(names, engine, world or SingleProcess(), root=root, **options)


@pytest.fixture(scope="module")
def theirs(folder, own):
    """What lm-eval's own model makes of the tasks."""
    lm = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    manager = TaskManager(include_path=own, include_defaults=False)
    return simple_evaluate(lm, tasks=NAMES, task_manager=manager, bootstrap_iters=1000)


@pytest.fixture(scope="module")
def found(engine, own, tmp_path_factory):
    """The same through our engine: name -> (folder, result)."""
    root = tmp_path_factory.mktemp("ours")
    return dict(zip(NAMES, ours(NAMES, engine, own, root), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_are_those_of_lm_evals_own_model(name, theirs, found):
    folder, result = found[name]
    want = {key: value for key, value in theirs["results"][name].items() if isinstance(value, float) and "," in key}
    have = {metric["name"]: metric["value"] for metric in result["metrics"]}
    spread = {m["name"].replace(",", "_stderr,"): m["stderr"] for m in result["metrics"] if m["stderr"] is not None}
    assert have | spread == pytest.approx(want, rel=1e-5)
    assert (result["task"], result["version"], result["kind"]) == (f"lm_eval:{name}", 1.5, "eval")
    assert (result["n"], result["k"], result["failed"]) == (12, 1, {"engine": 0, "grader": 0})
    assert result["shots"] == theirs["n-shot"][name] == (name == "local_choice")
    assert result["metrics"][0]["higher_is_better"] is (name != "local_text")
    assert folder.name.startswith(f"lm_eval.{name}-")
    assert {file.name for file in folder.iterdir()} == {"plan.json", "result.json", "samples.jsonl"}


def test_the_responses_are_those_of_lm_evals_own_model(theirs, found):
    folder, result = found["local_words"]
    samples, rows = io.read(folder / "samples.jsonl"), theirs["samples"]["local_words"]
    assert [sample.answer for sample in samples] == [row["resps"][0][0] for row in rows]
    assert [sample.score for sample in samples] == [row["even"] for row in rows]
    assert 0 < result["metrics"][0]["value"] < 1
    assert {sample.finish for sample in samples} == {"stop", "length"}
    assert any(sample.text.endswith(tuple(UNTIL)) for sample in samples)  # what lm-eval does not show
    assert result["truncated"] == sum(sample.finish == "length" for sample in samples)
    assert result["tokens"] == sum(len(sample.ids) for sample in samples)
    assert samples[3].prompt == rows[3]["arguments"][0][0] == samples[3].problem


def test_the_likelihoods_are_those_of_lm_evals_own_model(engine, own, theirs):
    for name in NAMES[1:]:
        lm = StepstackLM(engine)
        task = TaskManager(include_path=own, include_defaults=False).load([name])["tasks"][name]
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests()
        have = getattr(lm, task.instances[0].request_type)(task.instances)
        want = [response for row in theirs["samples"][name] for [response] in row["resps"]]
        if name == "local_choice":
            assert [greedy for _, greedy in have] == [greedy for _, greedy in want]
            have, want = [value for value, _ in have], [value for value, _ in want]
        assert have == pytest.approx(want, rel=1e-5)


def test_likelihoods_without_context_and_with_spaces(engine, folder):
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    from lm_eval.api.instance import Instance

    pairs = [("", "abc"), ("a question ", "yes"), ("a  ", " no"), ("x" * 200, "yy"), ("<eos>a", "b")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    have = StepstackLM(engine).loglikelihood(requests)
    want = theirs.loglikelihood(requests)
    assert [value for value, _ in have] == pytest.approx([value for value, _ in want], rel=1e-5)
    assert [greedy for _, greedy in have] == [greedy for _, greedy in want]


def test_a_group_is_aggregated_by_lm_eval(engine, own, found, tmp_path, monkeypatch):
    plain = TaskManager(include_path=own, include_defaults=False)
    monkeypatch.setattr(lm_eval_tasks, "_manager", lambda names, include: plain)  # that of all tasks takes seconds
    (_, part), (folder, whole) = ours(["local_all"], engine, own, tmp_path)
    assert part["metrics"] == found["local_choice"][1]["metrics"]
    [figure] = whole["metrics"]
    assert figure["name"] == "acc,none"
    assert figure["value"] == part["metrics"][0]["value"]
    assert figure["stderr"] == pytest.approx(part["metrics"][0]["stderr"])
    assert (whole["n"], whole["task"], whole["samples"]) == (12, "lm_eval:local_all", 12)
    assert io.read(folder / "samples.jsonl") == []


class Counting:
    """A real generator that goes away after so many groups and notes what it was asked."""

    def __init__(self, of, leave_after: int):
        self.of, self.left, self.asked = of, leave_after, Counter()
        self.max_positions = of.max_positions

    def generate(self, prompts, sampling):
        for group in self.of.generate(prompts, sampling):
            if self.left == 0:
                raise EngineError("gone")
            self.left -= 1
            self.asked[group.prompt.problem.index] += 1
            yield group


def test_an_interrupted_task_goes_on_and_nothing_is_generated_twice(engine, own, found, tmp_path):
    counting = Counting(engine.generator, leave_after=7)
    fragile = GeneratorEngine(counting, engine.tokenizer, batch=5, facts=engine.facts)
    with pytest.raises(Stopped, match=r"the engine went away: gone\n.*the same command goes on from there"):
        ours(["local_words"], fragile, own, tmp_path)
    [folder] = tmp_path.iterdir()
    assert not (folder / "result.json").exists()
    with (folder / "generated-0.jsonl").open("a") as file:
        file.write('{"key": "torn')
    counting.left = -1
    [(_, result)] = ours(["local_words"], fragile, own, tmp_path)
    assert len(counting.asked) == 12
    assert set(counting.asked.values()) == {1}
    assert result["metrics"] == found["local_words"][1]["metrics"]
    assert io.read(folder / "samples.jsonl") == io.read(found["local_words"][0] / "samples.jsonl")
    assert ours(["local_words"], fragile, own, tmp_path) == [(folder, result)]
    assert counting.asked.total() == 12


class Half:
    """One of two processes, as threads."""

    processes = 2

    def __init__(self, rank, place, barrier):
        self.rank, self.place, self.barrier = rank, place, barrier

    def gather(self, items):
        self.place[self.rank] = items
        self.barrier.wait()
        everything = self.place[0] + self.place[1]
        self.barrier.wait()
        return everything


def test_two_processes_share_the_requests(engine, folder, own, found, tmp_path):
    place, barrier, results = [[], []], threading.Barrier(2, timeout=60), [None, None]
    lm = AutoModelForCausalLM.from_pretrained(folder)
    generators = [Counting(tools.generator(lm, engine.tokenizer), -1) for _ in range(2)]

    def work(rank):
        mine = GeneratorEngine(generators[rank], engine.tokenizer, batch=5, facts=engine.facts)
        results[rank] = ours(["local_words"], mine, own, tmp_path, Half(rank, place, barrier))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert results[0][0][1]["metrics"] == found["local_words"][1]["metrics"]
    assert [generator.asked.total() for generator in generators] == [6, 6]
    assert not generators[0].asked & generators[1].asked


def test_through_a_server_and_a_failed_request_is_not_scored(engine, own, found, tmp_path):
    with ModelServer(engine.generator) as server:
        server.refuse = "what comes after 14?"
        remote = ServerEngine(ServerConfig(url=server.url, patience=1))
        [(folder, result)] = ours(["local_words"], remote, own, tmp_path, limit=6)
        with pytest.raises(ConfigError, match="lm_eval:local_choice needs log-likelihoods: the server at"):
            ours(["local_choice"], remote, own, tmp_path)
    samples = {sample.index: sample for sample in io.read(folder / "samples.jsonl")}
    local = {sample.index: sample for sample in io.read(found["local_words"][0] / "samples.jsonl")}
    assert (samples[2].score, samples[2].finish) == (None, "error")
    assert samples[2].failure.endswith("this prompt is refused")
    kept = [index for index in range(6) if index != 2]
    assert [samples[index].score for index in kept] == [local[index].score for index in kept]
    assert result["failed"] == {"engine": 1, "grader": 0}
    assert (result["metrics"][0]["n"], result["n"]) == (5, 6)
    assert result["metrics"][0]["value"] == pytest.approx(sum(local[index].score for index in kept) / 5)


TASK = '''
from stepstack.harness.task import Task
from stepstack.records import Problem, Score
from stepstack.generation.types import Sampling


def rows(data):
    return [Problem(i, f"{{i}} + {{i}} = ?", str(i % 4), {{"note": [i], "odd": i % 2 == 1}}) for i in range(3, 27)]


def score(rollouts):
    """Right when the answer's length says so; some have no verdict."""
    found = []
    for rollout in rollouts:
        problem = rollout.problem
        right = len(rollout.text) % 4 == int(problem.gold) or rollout.text.endswith({stop!r}[0])
        failure = "timeout" if problem.index == 5 else None
        found.append(Score(float(right and problem.meta["note"] == [problem.index]), failure=failure))
    return found


TASK = Task(
    name={name!r},
    version=3,
    about="of a test",
    rows=rows,
    request=lambda problem: {prompt},
    score=score,
    budget=Sampling(n={n}, temperature=0, max_tokens=24, stop={stop!r}),
)
'''


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, engine):
    """One whose prompt ends in a blank and that stops at letters, one in ORZ's form with two answers a question."""
    place = tmp_path_factory.mktemp("ours")
    kinds = {
        "letters": {"prompt": '"\\n  User: " + problem.text + " "', "stop": ("x4", "-", "tx"), "n": 1},
        "answers": {"prompt": 'f"User: {problem.text}\\nAssistant: <think>"', "stop": ("</answer>", "User: "), "n": 2},
    }
    for name, kind in kinds.items():
        (place / f"{name}.py").write_text(TASK.format(name=name, **kind))
    return [load(str(place / f"{name}.py")) for name in kinds]


def test_our_tasks_in_lm_evals_own_command_line(folder, engine, tasks, tmp_path):
    place = export(tasks, tmp_path / "written", tmp_path)
    place = place.rename(tmp_path / "moved")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "8"]
    command += ["--model_args", f"pretrained={folder},dtype=float32", "--include_path", str(place)]
    command += [
        "--tasks",
        "stepstack_letters,stepstack_answers",
        "--output_path",
        str(tmp_path / "out"),
        "--log_samples",
    ]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(file.read_text())
    for task in tasks:
        kept, result = evaluate(task, engine, SingleProcess(), root=tmp_path / "here", data=tmp_path, model=MODEL)
        [metric] = result["metrics"]
        theirs = written["results"][f"stepstack_{task.name}"]
        assert (theirs["greedy,none"], theirs["sample_len"]) == (metric["value"], metric["n"])
        assert theirs["greedy_stderr,none"] == pytest.approx(metric["stderr"])
        assert 0.05 < metric["value"] < 0.95
        assert metric["n"] == 23  # one has no verdict
        assert written["versions"][f"stepstack_{task.name}"] == 3
        assert any(sample.text.endswith(task.budget.stop) for sample in io.read(kept / "samples.jsonl"))


def test_what_cannot_be_exported_is_said(tasks, tmp_path):
    from dataclasses import replace

    from stepstack.generation.prompts import Message
    from stepstack.harness.metrics import corpus

    whole = replace(tasks[0], metrics=lambda sampling: [corpus("map", lambda questions: 0.5)])
    with pytest.raises(ConfigError, match="letters: map is a figure of the whole set"):
        export([whole], tmp_path, tmp_path)
    chat = replace(tasks[0], request=lambda p: [Message("system", "a"), Message("user", "b")])
    with pytest.raises(ConfigError, match="row 3 is a chat of several turns"):
        export([chat], tmp_path, tmp_path)
    built = replace(tasks[0], name="built", score=lambda rollouts: [])
    with pytest.raises(ConfigError, match="task built: its score is no function of a module"):
        export([built], tmp_path, tmp_path)


def test_an_unknown_name_is_one_error(engine, own, tmp_path):
    with pytest.raises(ConfigError, match=r"no lm-eval task 'gsm8kk' in lm-eval nor in .*Did you mean .*gsm8k"):
        ours(["local_words", "gsm8kk"], engine, own, tmp_path)
    assert not list(tmp_path.iterdir())
