"""What makes stepaudio's student: the teacher's distribution, the engine's filters, and a reward."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.drawn.sentences import Line, Sentences
from data.errors import DataError
from data.sets.speech import Take
from recipes.protocol import load_config
from recipes.stepaudio import data, model, reward, stages
from recipes.stepaudio.config import EngineConfig, SpeechReward
from recipes.stepaudio.recipe import open_engine, tasks
from stepstack.config import ConfigError
from stepstack.core import preflight
from stepstack.core.run import Run
from stepstack.harness.engine import Question
from stepstack.models.lm.policy import Policy
from stepstack.models.speech.decoder import CentroidDecoder
from stepstack.models.speech.packages import DNSMOS, RESEMBLYZER
from stepstack.records import Score
from stepstack.report import jsonl
from stepstack.scoring.speech import TakeFilter, failed_filters, take_order
from tests import tools
from tests.takes import make_tokens, short, toy_reward, trained


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_tokens(tmp_path_factory.mktemp("tokens"))


# -- the teacher's distribution -------------------------------------------------------------------------------------

LEARNED = ("teacher.steps=24", "teacher.optim={type: adamw, lr: 0.03}", "student.optim={type: adamw, lr: 0.01}")


def test_a_student_learns_its_teachers_distribution(tmp_path, tokens, monkeypatch):
    """Weight 0 is the plain run to the bit; the loss is what its two metrics say, so that one without the divergence
    would be another number; learned alone, the divergence falls."""
    plain = trained(short(tmp_path / "plain", tokens, *LEARNED, "steps=8"), monkeypatch)
    for weight, likelihood in ((0.0, 1.0), (2.0, 0.8), (1.0, 0.0)):
        words = f"distill={{weight: {weight}, likelihood: {likelihood}, temperature: 2.0}}"
        cfg = short(tmp_path / f"{weight}", tokens, *LEARNED, "steps=8", words)
        student = trained(cfg, monkeypatch)
        assert all(torch.equal(plain[name], student[name]) for name in plain) == (weight == 0)
        rows = jsonl.read(cfg.folder / "metrics.jsonl")
        assert len(rows) == 8
        for row in rows:
            want = likelihood * row["policy/nll"] + 4 * weight * row["policy/divergence"]
            assert row["policy/loss"] == pytest.approx(want, rel=1e-5)
            assert row["policy/divergence"] > 0.01
    assert rows[-1]["policy/divergence"] < 0.8 * rows[0]["policy/divergence"]


def test_the_teacher_says_what_it_would_have_said_at_the_same_tokens(tmp_path, tokens, monkeypatch):
    """A student that begins as its teacher begins without a divergence."""
    cfg = short(tmp_path, tokens, *LEARNED, "distill={}", "steps=2")
    run, tokenizer = Run(cfg), data.text_tokenizer(cfg)
    teacher = stages.train_teacher(run, tokenizer)
    monkeypatch.setattr(stages, "_new", lambda run, shape, tokenizer: AutoModelForCausalLM.from_pretrained(teacher))
    stages.train_student(run, data.recordings(cfg, "train"), tokenizer, teacher)
    first, second = jsonl.read(cfg.folder / "metrics.jsonl")
    assert abs(first["policy/divergence"]) < 1e-6
    assert second["policy/divergence"] > 1e-4


def test_a_teacher_of_another_vocabulary_is_one_error(tmp_path, tokens):
    """Beside which a student would learn, and that somebody else trained."""
    cfg = short(tmp_path, tokens, "distill={}")
    run = Run(cfg)
    teacher = stages.train_teacher(run, data.text_tokenizer(cfg))
    other = short(tmp_path, tokens, "codebooks=[8, 32]")
    with pytest.raises(ConfigError, match=r"the teacher has (\d+) logits .*, the student (?!\1)\d+ logits"):
        stages.train_student(run, [], data.text_tokenizer(other), teacher)
    for folder, words in ((teacher, "has the vocabulary .* this config the vocabulary"), (tmp_path, "holds no model")):
        given = short(tmp_path / words[:3], tokens, "codebooks=[8, 32]", f"teacher.folder={folder}")
        with pytest.raises(ConfigError, match=words):
            stages.train_teacher(Run(given), data.text_tokenizer(given))


# -- the engine's filters -------------------------------------------------------------------------------------------


class Ear:
    """Stand-in of the speaker's encoder: two voices, told apart by how long a wave is."""

    def embed(self, wave_T):
        if not wave_T.abs().max():
            raise ValueError("a silent wave has no speaker")
        return torch.tensor([1.0, 0.0]) if len(wave_T) % 3840 else torch.tensor([0.6, 0.8])


class Quality:
    """Stand-in of DNSMOS: a point for each second."""

    def rate(self, wave_T):
        return {"overall": 1 + len(wave_T) / 16000}


@pytest.fixture
def judges(monkeypatch):
    monkeypatch.setattr(model, "SpeakerEncoder", Ear)
    monkeypatch.setattr(model, "Dnsmos", Quality)
    monkeypatch.setattr(EngineConfig, "packages", ())


SPEAKERS = Sentences().names
FILTER = TakeFilter(wer=None, similarity=0.7, dnsmos=2.0, duration=None, silence=None)


def said(speaker: str, groups: int) -> Take:
    return Take(Line("open the box", speaker, ""), ([1] * 2 * groups, [2] * 3 * groups))


def test_similarity_and_dnsmos_are_measured_where_they_are_asked(tokens, tmp_path, judges):
    """Recordings of one speaker have odd lengths, those of the other even ones; so have the takes, or not."""
    one, other = SPEAKERS
    decoder = CentroidDecoder(data.load_tokenizer(short(tmp_path, tokens)).semantic, steps=1)
    recorded = [said(one, 3), said(other, 4)]
    takes = [said(one, 9), said(other, 9), said(other, 10), said(other, 4), Take(recorded[0].line, ([], []), False)]
    found = [measures for measures, _ in model.judge(EngineConfig(filter=FILTER), decoder, recorded, SPEAKERS)(takes)]
    assert [round(each.similarity, 5) for each in found] == [1.0, 0.6, 1.0, 1.0, -1.0]
    assert [round(each.dnsmos, 3) for each in found] == [2.08, 2.08, 2.2, 1.48, 1.0]
    assert [each.wer for each in found] == [each.silence for each in found] == [None] * 5
    refused = [failed_filters(each, FILTER) for each in found]
    assert refused == [(), ("similarity",), (), ("dnsmos",), ("similarity", "dnsmos", "ended")]
    assert min(found[:3], key=take_order) is found[2]
    [(plain, _)] = model.judge(
        EngineConfig(filter=replace(FILTER, similarity=None, dnsmos=None)), decoder, recorded, SPEAKERS
    )(takes[:1])
    assert (plain.similarity, plain.dnsmos) == (None, None)
    with pytest.raises(DataError, match=f"no recording of the speaker {other}"):
        model.judge(EngineConfig(filter=FILTER), decoder, recorded[:1], SPEAKERS)


def test_the_student_learns_the_best_of_n(tokens, tmp_path, judges, monkeypatch):
    words = ("engine.takes=3", "engine.filter={duration: null, ended: false, similarity: 0.5, dnsmos: 1.1}")
    cfg = short(tmp_path, tokens, *words, "source=best")
    trained(cfg, monkeypatch)
    run = Run(cfg)
    teacher = stages.train_teacher(run, data.text_tokenizer(cfg))
    kept = model.run_engine(run, teacher)
    best = model.student_takes(run, teacher)
    assert len(best) == len({take.line for take in best}) == len({each.number for each in kept.passed}) <= 12
    for number in {each.number for each in kept.passed}:
        of = [each for each in kept.passed if each.number == number]
        top = max(of, key=lambda each: each.measures.similarity + each.measures.dnsmos / 4)
        assert top.take in best
    run.config = replace(cfg, source="kept")
    assert len(model.student_takes(run, teacher)) == len(kept.passed) > len(best)


def test_shards_without_what_is_asked_are_refused(tokens, tmp_path, judges):
    cfg = short(tmp_path, tokens)
    run = Run(cfg)
    teacher = stages.train_teacher(run, data.text_tokenizer(cfg))
    model.run_engine(run, teacher)
    run.config = short(tmp_path, tokens, "engine.filter={duration: [0.5, 2.0], ended: false}")
    model.run_engine(run, teacher)  # another threshold needs no other takes
    run.config = short(tmp_path, tokens, "engine.filter={duration: null, ended: false, dnsmos: 1.0}")
    with pytest.raises(ConfigError, match=r"its shards were written when nobody measured dnsmos"):
        model.run_engine(run, teacher)
    shutil.rmtree(run.dir / "engine")
    assert len(model.run_engine(run, teacher).passed) == 24
    run.config = cfg
    model.run_engine(run, teacher)  # more than what is asked does no harm


def test_filters_that_keep_nothing_are_one_error(tokens, tmp_path, judges, monkeypatch):
    cfg = short(tmp_path, tokens, "engine.filter={duration: null, ended: false, dnsmos: 5.0}")
    with pytest.raises(ConfigError, match=r"source=kept: no take of the engine passes .*report.json says which"):
        trained(cfg, monkeypatch)
    report = json.loads((cfg.folder / "engine" / "report.json").read_text())
    assert report["rates"][-1] | {"rate": 0} == {
        "by": "filter",
        "value": "dnsmos",
        "takes": 24,
        "kept": 0,
        "rate": 0,
        "refused": 24,
        "alone": 24,
    }


def test_missing_packages_are_one_error_before_the_first_step(tokens, tmp_path, monkeypatch):
    cfg = short(tmp_path, tokens, "engine.filter={similarity: 0.7, dnsmos: 3.0}")
    assert cfg.engine.measured == ("similarity", "dnsmos")
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="this machine cannot run it") as refused:
        trained(cfg, monkeypatch)
    for package in (RESEMBLYZER.package, DNSMOS.package):
        assert f"engine: the package {package.module} is not installed: {package.install}" in str(refused.value)
    assert "onnxruntime" in str(refused.value)
    assert not (cfg.folder / "teacher").exists()


def test_what_is_asked_of_the_engine():
    cfg = load_config("stepaudio-tiny", ["engine.judge=grammar", "engine.filter.silence=0.5"])
    assert cfg.engine.measured == ("wer", "silence")
    assert [package.module for package in cfg.engine.packages] == ["pocketsphinx"]
    assert (
        load_config("stepaudio-tiny", ["engine.judge=none", "engine.filter={wer: null, silence: null}"]).engine.packages
        == ()
    )


def test_shipped_takes_by_the_real_judges():
    """Each speaker's recordings are nearest to that speaker, and sound better than noise."""
    for file in (RESEMBLYZER, DNSMOS):
        if not file.installed:
            pytest.skip(f"not installed: {file.package.module}")
    cfg = load_config("stepaudio-tiny", ["engine.filter={wer: null, silence: null, similarity: 0.7, dnsmos: 1.5}"])
    takes, recorded = data.recordings(cfg, "test"), data.recordings(cfg, "train")
    takes = [next(take for take in takes if take.line.speaker == name) for name in SPEAKERS]
    swapped = [replace(takes[0], line=replace(takes[0].line, speaker=SPEAKERS[1]))]
    judged = [m for m, _ in model.judge(cfg.engine, data.load_decoder(cfg), recorded, SPEAKERS)([*takes, *swapped])]
    assert all(each.similarity > 0.75 for each in judged[:2])
    assert judged[2].similarity < judged[0].similarity - 0.1
    assert all(1.0 < each.dnsmos < 5.0 for each in judged)


# -- the reward -----------------------------------------------------------------------------------------------------

FAST = "policy: {optim: {type: adamw, lr: 0.02}}"


def test_a_reward_rises_and_sampler_and_trainer_agree(tokens, tmp_path, monkeypatch):
    """A toy reward of a user's file: its mean goes up in a few steps, tokens keep 2:3, and the log-probabilities of the
    sampler, masked and at a temperature, are the trainer's."""
    rl = f"rl={{steps: 12, prompts: 4, takes: 8, temperature: 0.7, {FAST}, reward: {toy_reward(tmp_path)}}}"
    cfg = short(tmp_path, tokens, rl)
    trained(cfg, monkeypatch)
    rows = list(jsonl.read(cfg.folder / "grpo" / "metrics.jsonl"))
    assert len(rows) == 13
    means = [row["reward"] for row in rows[1:]]
    assert sum(means[-3:]) > sum(means[:3]) + 0.6
    assert rows[-1]["eval/accuracy"] > rows[0]["eval/accuracy"] + 0.1
    mismatches = [row["actor/mismatch_max"] for row in rows[1:] if "actor/mismatch_max" in row]
    assert len(mismatches) > 6  # a step whose groups all score alike learns nothing
    assert max(mismatches) < 1e-5
    student, model = (load_file(cfg.folder / place / "model.safetensors") for place in ("student/model", "model"))
    assert any(not torch.equal(student[name], model[name]) for name in student)
    engine = open_engine(cfg, cfg.folder / "model", torch.device("cpu"))
    task = tasks(cfg)[0]
    questions = [Question(problem, task.request(problem)) for problem in task.rows(tmp_path)]
    answers = [answer for _, group in engine.complete(questions, task.budget) for answer in group]
    assert all(take.groups for take in reward.takes_of(cfg, answers))


def test_a_trainer_without_the_mask_would_show(tokens, tmp_path, monkeypatch):
    """What the bound on the mismatch is worth."""
    cfg = short(tmp_path, tokens, f"rl={{steps: 1, prompts: 2, takes: 2, reward: {toy_reward(tmp_path)}}}")
    run, tokenizer = Run(cfg), data.text_tokenizer(cfg)
    teacher = stages.train_teacher(run, tokenizer)
    monkeypatch.setattr(stages, "Policy", lambda lm, mask: Policy(lm))
    stages.train_by_reward(run, teacher, tokenizer)
    assert jsonl.read(cfg.folder / "grpo" / "metrics.jsonl")[1]["actor/mismatch_max"] > 1


def test_the_rule_weighs_words_and_voice():
    cfg = SpeechReward(wer=2.0, similarity=0.5)

    def value(**parts):
        return reward.rewarded(cfg, Score(9.0, {"wer": 0.25, "similarity": 0.8, "ended": 1.0} | parts)).value

    assert value() == pytest.approx(2 * 0.75 + 0.5 * 0.8)
    assert value(wer=3.0) == pytest.approx(0.4)
    assert value(ended=0.0) == 0
    assert value(similarity=-0.2) == pytest.approx(1.5 - 0.1)
    assert reward.rewarded(cfg, Score(0.0, {"wer": 0.0, "ended": 1.0})).value == 2.0  # nobody judged the voice


def test_the_rule_hears_rollouts(tokens, tmp_path, monkeypatch):
    """By stand-ins of recogniser and encoder: ids become takes, takes waves, and each rollout gets its own value."""
    cfg = short(tmp_path, tokens, "rl={steps: 1}")
    takes = data.recordings(cfg, "test")
    heard = [takes[0].line.text, "nothing like it", takes[2].line.text]
    monkeypatch.setattr(reward, "transcriber", lambda name: lambda waves: heard[: len(waves)])
    monkeypatch.setattr(reward, "SpeakerEncoder", Ear)
    monkeypatch.setattr(reward, "CENTROID_RECORDINGS", 1)
    tokenizer = data.text_tokenizer(cfg)
    layout = data.layout_of(cfg, tokenizer)
    prompted = stages.prompts([take.line for take in takes[:3]], tokenizer)
    ids = [layout.interleave(*take.codes) for take in takes[:3]]
    finishes = ("stop", "stop", "length")
    rollouts = [tools.rollout(p, 0, i, f) for p, i, f in zip(prompted, ids, finishes, strict=True)]
    right, wrong, cut = reward.reward_of(cfg)(rollouts)
    assert right.parts["wer"] == cut.parts["wer"] == 0
    assert right.value == pytest.approx(1 + 0.5 * right.parts["similarity"])
    assert wrong.value == pytest.approx(0.5 * wrong.parts["similarity"])
    assert cut.value == 0
    assert reward.reward_of(cfg)([]) == []


def test_what_the_reward_needs_is_asked_before_the_first_step():
    cfg = load_config("stepaudio-tiny-grpo")
    assert [package.module for package in cfg.rl.reward.packages] == ["pocketsphinx", "resemblyzer"]
    assert (cfg.grpo.rollout.sampling.max_tokens, cfg.grpo.rollout.sampling.n) == (cfg.max_tokens, cfg.rl.takes)
    with pytest.raises(ConfigError, match=r"rl.takes"):
        load_config("stepaudio-tiny-grpo", ["rl.takes=1"])
