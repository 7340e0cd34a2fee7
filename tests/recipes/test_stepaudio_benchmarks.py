"""Spoken benchmarks: sounds as files, figures named by who judged, questions of a served model and its judge."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.media import audio
from data.sets import spoken_pairs, spoken_questions
from recipes.stepaudio import data, model
from recipes.stepaudio.config import Benchmarks
from recipes.stepaudio.evaluation import chats, spoken
from recipes.stepaudio.evaluation.engine import Codec, SpeechEngine
from recipes.stepaudio.evaluation.open import open_engine
from recipes.stepaudio.tasks import tasks
from stepstack.config import ConfigError
from stepstack.core.types import SingleProcess
from stepstack.generation.types import Answer, EngineError, Sampling
from stepstack.harness.config import ServedJudge
from stepstack.harness.engine import Question
from stepstack.harness.engines.openai_api import heard
from stepstack.harness.evaluate import evaluate
from stepstack.models.speech.config import TinyWhisper, WhisperFolder, Xvector
from tests.recipes.test_stepaudio import short, tokens  # noqa: F401  (a fixture)

MODEL = {"name": "tiny", "sha256": "0" * 64}


class StandIn:
    """A recogniser that hears what it is told to, in turn; an encoder that hears the mean level's sign."""

    def __init__(self, heard=()):
        self.heard = list(heard)

    def transcribe(self, waves):
        return [self.heard[k % len(self.heard)] for k in range(len(waves))]

    def embed(self, wave_T):
        if not wave_T.abs().max() > 0:
            raise ValueError("silence")
        return torch.tensor([1.0, 0.0]) if wave_T.mean() > 0 else torch.tensor([0.0, 1.0])


@pytest.fixture
def cfg(tmp_path, tokens):  # noqa: F811
    cfg = short(tmp_path, tokens)
    tokenizer = data.text_tokenizer(cfg)
    model.build(cfg.model, tokenizer, 0).save_pretrained(cfg.folder / "model")
    tokenizer.save_pretrained(cfg.folder / "model")
    return cfg


def task_of(cfg, name):
    [task] = [task for task in tasks(cfg) if task.name == name]
    return task


def test_clips_and_resynthesis_are_files_that_are_voted_on(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "open_recognizer", lambda kind: StandIn(["open the red box near the window"]))
    engine = open_engine(cfg, cfg.folder / "model", torch.device("cpu"))
    found = {}
    for name in ("clips", "resynthesis"):
        root = tmp_path / "evals"
        found[name] = evaluate(
            task_of(cfg, name), engine, SingleProcess(), root=root, data=tmp_path, model=MODEL, limit=3
        )
    takes = data.recordings(cfg, "test")
    rows = spoken_pairs.spoken(found["resynthesis"][0])
    for index, row in rows.items():
        wave = audio.read_audio(Path(row.media[0]), 16000, spoken.ANY)
        assert len(wave) == 1920 * takes[index].groups
    names = [metric["name"] for metric in found["clips"][1]["metrics"]]
    assert names == ["WER (whisper-tiny.en, spoken-en)", "over 50% (whisper-tiny.en, spoken-en)", "ended"]
    again = evaluate(
        task_of(cfg, "clips"), engine, SingleProcess(), root=tmp_path / "other", data=tmp_path, model=MODEL, limit=3
    )
    pairs = spoken_pairs.pairs(found["clips"][0], again[0])
    assert [pair.prompt.split()[-1] for pair in pairs] == [take.line.text.split()[-1] for take in takes[:3]]
    assert all(pair.a == pair.b for pair in pairs)  # the same model: the same content


def test_the_tiny_model_speaks_no_given_voice(cfg, tmp_path):
    engine = open_engine(cfg, cfg.folder / "model", torch.device("cpu"))
    folder = tmp_path / "seed_tts_eval" / "en"
    folder.mkdir(parents=True)
    audio.write_wav(folder / "a.wav", np.full(16000, 0.1, np.float32), 16000)
    (folder / "meta.lst").write_text("a|hello|a.wav|open the box\n")
    task = task_of(cfg, "seed_tts_en")
    [problem] = task.rows(tmp_path)
    with pytest.raises(EngineError, match="asks for a voice by its recording"):
        list(engine.complete([Question(problem, task.request(problem))], task.budget))


class Echo:
    """A generator's engine that speaks nothing."""

    batch, facts = 4, {"engine": "echo"}

    def complete(self, questions, budget) -> Iterator:
        for question in questions:
            yield question, [Answer(problem=question.problem, sample=0, finish="stop", ids=())]


def test_resynthesis_of_recordings_has_errors_and_similarity(cfg, tmp_path, monkeypatch):
    """A codec that turns the second recording upside down: its voice is another one's."""
    monkeypatch.setattr(spoken, "open_recognizer", lambda kind: StandIn(["open the box", "close"]))
    monkeypatch.setattr(spoken, "open_encoder", lambda kind: StandIn())
    spoken.voice_of.cache_clear()
    folder = tmp_path / "seed_tts_eval" / "en"
    for name, level in (("a", 0.1), ("b", 0.2)):
        audio.write_wav(folder / f"{name}.wav", np.full(16000, level, np.float32), 16000)
    (folder / "meta.lst").write_text("1|x|a.wav|Open the box!|a.wav\n2|x|a.wav|open it|b.wav\n")
    heard: list[torch.Tensor] = []

    def encode(wave):
        heard.append(wave)
        return [0, 0], [0, 0, 0]

    def decode(codes, voice):
        return heard[-1] * (-1 if "b.wav" in str(voice) else 1)

    engine = SpeechEngine(Echo(), data.layout_of(cfg, data.text_tokenizer(cfg)), Codec(encode, decode, 16000), tmp_path)
    kind = Benchmarks(recognizer=WhisperFolder(path="/models/whisper-large-v3"), encoder=Xvector(path="/m/wavlm"))
    [task] = [t for t in spoken.seed_tasks(kind, 100) if t.name == "seed_tts_en_resynthesis"]
    _, result = evaluate(task, engine, SingleProcess(), root=tmp_path / "evals", data=tmp_path, model=MODEL)
    figures = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert figures == {
        "WER (whisper-large-v3, seed-en)": 0.5,
        "over 50% (whisper-large-v3, seed-en)": 0.5,
        "ended": 1.0,
        "SIM (wavlm)": 0.5,
    }


def test_silence_and_no_sound_have_errors_and_no_voice(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "open_recognizer", lambda kind: StandIn([""]))
    monkeypatch.setattr(spoken, "open_encoder", lambda kind: StandIn())
    spoken.voice_of.cache_clear()
    audio.write_wav(tmp_path / "voice.wav", np.full(1600, 0.1, np.float32), 16000)
    audio.write_wav(tmp_path / "silent.wav", np.zeros(1600, np.float32), 16000)
    [problem] = [spoken.Problem(0, "open it", "a", {"source": str(tmp_path / "voice.wav")})]
    judge = spoken.SpokenJudge(Benchmarks(recognizer=TinyWhisper()), "seed-en", compared=True)
    answer = Answer(problem=problem, sample=0, finish="length", media=(tmp_path / "silent.wav",))
    for score in judge([answer, replace(answer, media=())]):
        assert score.value == 0
        assert dict(score.parts) == {"wer": 1.0, "failed": 1.0, "ended": 0.0, "similarity": 0.0}


# ---- spoken questions


class Judge:
    """A served judge whose verdicts follow from the text that it is shown."""

    def __init__(self, **said: str):
        self.said, self.facts = said, {"engine": "judge"}

    def complete(self, questions, budget):
        for question in questions:
            text = next(v for k, v in self.said.items() if k.replace("_", " ") in question.problem.text)
            yield question, [Answer(problem=question.problem, sample=0, finish="stop", text=text)]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "stepeval_audio_360"
    place.mkdir()
    audio.write_wav(place / "1.wav", np.full(1600, 0.1, np.float32), 16000)
    rows = [
        {"category": "Gaming", "turns": [{"role": "user", "text": "Let us play.", "audio": "1.wav"}]},
        {
            "category": "Singing",
            "turns": [
                {"role": "user", "text": "Sing."},
                {"role": "assistant", "text": "La."},
                {"role": "user", "text": "More."},
            ],
        },
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_stepeval_has_three_figures_and_each_category(folder, monkeypatch):
    judge = Judge(Is_all_that="Yes.", Does_the_answer_do="no", How_good="4 of 5")
    monkeypatch.setattr(chats, "open_judge", lambda kind: judge)
    task = chats.chat_tasks(Benchmarks(judge=ServedJudge(url="http://x")))[0]
    problems = task.rows(folder)
    scores = task.score([Answer(problem=p, sample=0, finish="stop", text="fine") for p in problems])
    assert [score.value for score in scores] == [0.75, 0.75]
    assert dict(scores[0].parts) == {"factuality": 1.0, "relevance": 0.0, "chat": 4.0, "chat/Gaming": 4.0}
    assert [metric.name for metric in task.metrics(task.budget)][:4] == [
        "factuality",
        "relevance",
        "chat score",
        "chat, Voice Instruction Following",
    ]
    assert len(task.metrics(task.budget)) == 3 + len(spoken_questions.CATEGORIES)
    judge.said["How_good"] = "excellent"
    with pytest.raises(EngineError, match="no number from 1 to 5"):
        task.score([Answer(problem=problems[0], sample=0, finish="stop", text="fine")])


def test_stepeval_without_a_judge_asks_nothing(folder):
    with pytest.raises(ConfigError, match=r"give benchmarks\.judge\.url"):
        chats.chat_tasks(Benchmarks())[0].rows(folder)


def test_recordings_are_sent_in_place_of_words(folder):
    chat = spoken_questions.chat_of(spoken_questions.stepeval(folder)[0])
    [part] = heard(chat.turns[0])
    assert (part["type"], part["input_audio"]["format"]) == ("input_audio", "wav")
    sound = (folder / "stepeval_audio_360" / "1.wav").read_bytes()
    assert base64.b64decode(part["input_audio"]["data"]) == sound
    assert heard(chat.turns[0]._replace(file=None)) == "Let us play."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"category": "Dancing", "turns": []}', "category must be one of"),
        ('{"category": "Gaming", "turns": []}', "whose last turn is the user's"),
        ('{"category": "Gaming", "turns": [{"role": "user", "text": " "}]}', "a turn has a role"),
        ('{"category": "Gaming", "turns": [{"role": "user", "text": "a", "audio": "9.wav"}]}', "9.wav does not exist"),
        ("{", "Expecting property name"),
    ],
)
def test_bad_rows_are_named(folder, row, said):
    file = folder / "stepeval_audio_360" / "rows.jsonl"
    file.write_text(f"{file.read_text()}\n{row}")
    with pytest.raises(DataError, match=rf"rows.jsonl:3.*{said}"):
        spoken_questions.stepeval(folder)


def test_llama_questions(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="write the published rows in this form"):
        spoken_questions.llama_questions(tmp_path)
    (tmp_path / "llama_questions").mkdir()
    file = tmp_path / "llama_questions" / "rows.jsonl"
    file.write_text('{"question": "How many legs has a spider?", "answer": "8"}\n')
    plain, judged = (
        chats.chat_tasks(kind)[1] for kind in (Benchmarks(), Benchmarks(judge=ServedJudge(url="u", model="gpt-4o")))
    )
    [problem] = plain.rows(tmp_path)
    answers = [
        Answer(problem=problem, sample=0, finish="stop", text=text)
        for text in ("A spider has eight legs.", "Eighteen.", "")
    ]
    assert [score.value for score in plain.score(answers)] == [1.0, 0.0, 0.0]
    assert [m.name for m in plain.metrics(plain.budget)] == ["right (its words are in the answer)"]
    assert [m.name for m in judged.metrics(Sampling())] == ["right (gpt-4o)"]
    monkeypatch.setattr(chats, "open_judge", lambda kind: Judge(Given_answer="Yes"))
    assert [score.value for score in judged.score(answers)] == [1.0, 1.0, 1.0]
