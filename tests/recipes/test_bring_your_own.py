"""A reward, rows and a generator engine, each in a user's own file; nothing of the repository is edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.orz import recipe
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.generation.types import Answer
from stepstack.harness.answers import read
from stepstack.records import Problem, Score
from stepstack.rl.config import FileReward
from stepstack.rl.reward import load_reward

MINI = str(ROOT / "tests" / "system" / "mini.yaml")

# A rule that has nothing to do with what the base model was taught: whatever the sum, the answer is to be 1.
REWARD = """
def score(completions, **columns):
    return [float("{1}" in text) for text in completions]
"""

TASK = """
from stepstack.generation.types import Sampling
from stepstack.harness.task import Task
from stepstack.records import Problem, Score

TASK = Task(
    name="mine",
    version=1,
    about="sums of two digits",
    rows=lambda data: [Problem(10 * a + b, f"{a}+{b}", str(a + b)) for a in range(10) for b in range(10)],
    request=lambda problem: f"User: {problem.text}=?\\nAssistant: <think>",
    score=lambda answers: [Score(float(f"{{{a.problem.gold}}}" in a.text), answer=a.text) for a in answers],
    budget=Sampling(max_tokens=32, stop=("</answer>",)),
)
"""

ENGINE = '''
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator


class Counting(HfGenerator):
    """Our own engine, which counts how often it was given weights."""

    loads: list[int] = []

    def load(self, weights, version):
        self.loads.append(version)
        super().load(weights, version)


def build(lm, tokenizer, source, device, *, batch):
    return Counting(lm, tokenizer, HfConfig(batch=batch), device)
'''


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_ten_lines_of_ones_own_lift_the_tiny_model(tmp_path):
    """The rule is learned, from a base model that was trained for another one; the digest is in the run's record."""
    reward = written(tmp_path, "my_reward.py", REWARD)
    words = [f"reward={{type: file, path: {reward}}}", "steps=12", "eval_every=12", "actor.optim.lr=3e-3"]
    run = Run(load_config(MINI, [*words, f"dir={tmp_path}", "name=mine"]))
    recipe.train(run)
    seen = rows(run)
    before, after = seen[0]["eval/accuracy"], seen[-1]["eval/accuracy"]
    assert after > before + 0.1
    assert list(json.loads((run.dir / "config.json").read_text())["files"]) == [str(reward)]
    reward.write_text(REWARD + "# another\n")
    with pytest.raises(ConfigError, match=r"these keys differ:\s+.*my_reward.py: "):
        Run(run.config)


def test_a_task_file_is_trained_on_and_evaluated(tmp_path, capsys):
    task = written(tmp_path, "mine.py", TASK)
    words = [f"data={{type: task, path: {task}, select: 6, test: 8}}", f"dir={tmp_path}", "name=rows", "steps=2"]
    run = Run(load_config(MINI, words))
    recipe.train(run)
    prompts = {row.problem for row in read(next(run.dir.glob("evals/after/test-*/samples.jsonl")))}
    train, select, test = ({problem.text for problem in one.rows(tmp_path)} for one in recipe.tasks(run.config))
    assert prompts == test
    assert (len(train), len(select), len(test)) == (86, 6, 8)
    assert not train & (select | test)
    capsys.readouterr()
    assert cli.main(["eval", MINI, *words, "--tasks", str(task)]) == 0
    assert "mine v1" in capsys.readouterr().out
    with pytest.raises(
        ConfigError, match=r"mine.py has 100 rows, of which data.test=90 and data.select=10 are held out"
    ):
        recipe.tasks(load_config(MINI, [f"data={{type: task, path: {task}, select: 10, test: 90}}"]))[0].rows(tmp_path)


def test_an_engine_of_ones_own_gets_each_version_of_the_weights_and_the_exported_ones(tmp_path):
    engine = written(tmp_path, "my_engine.py", ENGINE)
    generator = f"rollout.generator={{type: file, path: {engine}, options: {{batch: 64}}}}"
    run = Run(load_config(MINI, [generator, f"dir={tmp_path}", "name=engine", "steps=3"]))
    built = []
    original = recipe.build_generator

    def kept(*args, **more):
        built.append(original(*args, **more))
        return built[-1]

    recipe.build_generator = kept
    try:
        recipe.train(run)
    finally:
        recipe.build_generator = original
    assert built[0].loads == [0, 1, 2, 3, 3]


def answers(*texts: str) -> list[Answer]:
    problem = Problem(0, "1+1", "2", {"level": 3})
    return [Answer(problem=problem, sample=i, finish="stop", text=text) for i, text in enumerate(texts)]


def test_both_forms_of_a_reward(tmp_path):
    ours = (
        "from stepstack.records import Score\ndef score(rollouts):\n    return [Score(len(r.text)) for r in rollouts]"
    )
    trl = "def score(prompts, completions, level, **more):\n    return [a + len(c) for a, c in zip(level, completions)]"
    none = "def score(completions):\n    return [None for _ in completions]"
    for text, want in ((ours, [1, 2]), (trl, [4.0, 5.0]), (none, [0.0, 0.0])):
        scores = load_reward(FileReward(path=str(written(tmp_path, "r.py", text))))(answers("a", "bb"))
        assert [score.value for score in scores] == want
        assert all(isinstance(score, Score) for score in scores)
    assert scores[0].failure == "no score"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def score(rollouts):\n    return [1.0]", "r.py:score returned 1 for 2 rollouts"),
        ("def score(rollouts):\n    return 1.0", "r.py:score returned float for 2 rollouts"),
        ("def score(rollouts):\n    return [float('nan')] * 2", "a score must be a finite number"),
        ("def score(rollouts):\n    return ['good'] * 2", "returned 'good': a score must be a number"),
        (
            "def score(completions, solution):\n    return [0.0] * 2",
            "asks for solution: there are prompts, completions",
        ),
        ("def grade(rollouts):\n    return [0.0] * 2", "r.py defines no score: it has grade"),
        ("score = 3", "score is no function"),
    ],
)
def test_a_wrong_reward_is_one_clear_error(tmp_path, text, said):
    file = written(tmp_path, "r.py", text)
    with pytest.raises((ValueError, ConfigError), match=said):
        load_reward(FileReward(path=str(file)))(answers("a", "bb"))
    with pytest.raises(ConfigError, match=r"nowhere\.py does not exist"):
        load_reward(FileReward(path="nowhere.py"))
