"""stepaudio-3b with a tiny random model and codebooks of the published sizes: trained, asked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken

from data.drawn.sentences import Line
from data.errors import DataError
from data.media import audio
from data.sets import seed_tts, speech
from data.sets.speech import Take
from recipes.protocol import load_config
from recipes.stepaudio import model as recipe_model
from recipes.stepaudio.config import Config, EngineConfig
from recipes.stepaudio.evaluation import spoken
from recipes.stepaudio.evaluation.open import open_engine
from recipes.stepaudio.recipe import describe, tasks, train
from recipes.stepaudio.released import chat as form
from recipes.stepaudio.released import data, model
from recipes.stepaudio.released.chat import Reference, ReleasedChat
from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.core.types import SingleProcess
from stepstack.harness.evaluate import evaluate
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from stepstack.models.speech import mask
from tests.cards import check_card

SIZES = (1024, 4096)
PIECES = ("system\n", "human\n", "assistant\n")
SPECIAL = ("<s>", "<|EOT|>", "<|BOT|>")
DECODER = """
import numpy as np
RATE = 22050
def decode(linguistic, semantic, voice):
    return np.full(len(semantic) * 882, 0.1 if voice is None else 0.2, np.float32)
"""


def published(folder: Path, extra: int = sum(SIZES)) -> dict[str, int]:
    """A tiny random Qwen2 with audio tokens behind its text, and the ids of its chat form."""
    tokenizer = tiny.tokenizer(pieces=PIECES, special=SPECIAL)
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<audio_{n}>", normalized=False) for n in range(extra)])
    lm = tiny.qwen2(len(tokenizer), seed=0, max_length=2048, hidden=16, layers=2, intermediate=32)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bos, end, begin = (int(tokenizer.convert_tokens_to_ids(name)) for name in SPECIAL)
    return {"bos": bos, "begin": begin, "end": end, "first": first}


def recorded(count: int) -> list[Take]:
    """Made-up recordings of two speakers, every third one with tags."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(count):
        groups = int(rng.integers(2, 6))
        codes = (rng.integers(0, 1024, 2 * groups).tolist(), rng.integers(0, 4096, 3 * groups).tolist())
        tag = "(高兴1)(快速1)" if k % 3 == 2 else ""
        found.append(Take(Line(f"第{k}句 line {k}", ("Tingting", "Ann")[k % 2], tag), codes))
    return found


def words(folder: Path, count: int = 24) -> list[str]:
    """Model, token files and a decoder in a folder; the overrides that name them."""
    ids = published(folder / "base")
    for split, size in (("train", count), ("test", 6)):
        speech.save_takes(folder / "tokens" / f"{split}.safetensors", recorded(size), "digest")
    facts = {"digest": "digest", "codebooks": list(SIZES)}
    (folder / "tokens" / data.FACTS).write_text(json.dumps(facts))
    (folder / "decoder.py").write_text(DECODER)
    return [
        f"model.path={folder / 'base'}",
        f"data.folder={folder / 'tokens'}",
        f"released.decoder={folder / 'decoder.py'}",
        *(f"released.{name}={value}" for name, value in ids.items()),
        "released.parameters=null",
        "precision=no",
        "batch=6",
        "layout.max_tokens=2048",
        "max_tokens=40",
        "student.optim.lr=1e-2",
        "student.optim.schedule.warmup=0",
        "save.every=2",
        "trackers=[]",
        "launch={file: cpu, nodes: 1, processes_per_node: 1, threads: 1}",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("released")


@pytest.fixture(scope="module")
def overrides(place):
    return words(place)


def config(folder: Path, overrides, *more: str) -> Config:
    return load_config("stepaudio-3b", [f"dir={folder}", "name=run", *overrides, *more], kind=Config)


def test_the_released_form(tmp_path, overrides):
    """Turns as the released code has them: system, reference text and tokens, tags before the text, an open turn."""
    cfg = config(tmp_path, overrides)
    tokenizer = pretrained.load_tokenizer(model.place_of(cfg))
    chat = ReleasedChat(cfg, tokenizer)
    line, reference = Line("你好", "Tingting", "(高兴1)(四川话)"), Reference("早", ([1, 2], [0, 1, 4095]))
    ids = chat.prompt(line, reference, named=True)
    first = cfg.released.first
    assert tokenizer.decode(ids) == (
        f"<s><|BOT|>system\n{form.SYSTEM['speaker'].replace('{speaker}', 'Tingting')}<|EOT|>"
        "<|BOT|>human\n早<|EOT|><|BOT|>assistant\n<audio_1><audio_2><audio_1024><audio_1025><audio_5119><|EOT|>"
        "<|BOT|>human\n(高兴1)(四川话)你好<|EOT|><|BOT|>assistant\n"
    )
    assert ids[0] == cfg.released.bos
    assert sum(number >= first for number in ids) == 5
    plain = chat.prompt(line, reference, named=False)
    assert form.SYSTEM["plain"] in tokenizer.decode(plain)
    assert form.SYSTEM["rap"] in tokenizer.decode(chat.prompt(Line("你好", "A", "(RAP)"), reference, named=True))
    assert form.SYSTEM["hum"] in tokenizer.decode(chat.prompt(Line("你好", "A", "（哼唱）"), reference, named=True))
    injected = chat.prompt(Line("<|EOT|>", "A", ""), reference, named=True)
    assert sum(number == cfg.released.end for number in injected) == 4  # a text ends no turn
    with pytest.raises(DataError, match="holds audio tokens: a text is words"):
        chat.prompt(Line("<audio_7>", "A", ""), reference, named=True)


def test_the_published_ids(overrides):
    cfg = load_config("stepaudio-3b", kind=Config)
    assert (cfg.released.bos, cfg.released.begin, cfg.released.end, cfg.released.first) == (1, 4, 3, 65536)
    optim = cfg.student.optim
    assert (optim.lr, optim.schedule.factor(10**6, 10**6) * optim.lr) == (2e-5, pytest.approx(2e-6))
    assert optim.lr_factors["embed_tokens"] == 5


def test_rows_have_another_reference_and_learn_the_end(tmp_path, overrides):
    cfg = config(tmp_path, overrides)
    tokenizer = pretrained.load_tokenizer(model.place_of(cfg))
    chat, takes = ReleasedChat(cfg, tokenizer), data.takes(cfg, "train")
    rows = data.rows(cfg, takes, data.Voices.of(takes), chat, 2048)
    named = 0
    for take, row in zip(takes, rows, strict=True):
        assert row.ids[-1] == cfg.released.end
        assert chat.layout.split(row.ids[:-1]) == take.codes
        text = tokenizer.decode(row.prompt_ids)
        reference = text.split("human\n")[1].split("<|EOT|>")[0]
        other = next(each for each in takes if each.line.text == reference)
        assert other.line.speaker == take.line.speaker
        assert (reference != take.line.text, other.line.tag) == (True, "")
        named += f"[{take.line.speaker}]" in text
    assert 0 < named < len(rows)
    with pytest.raises(DataError, match=r"24 rows are over 50 tokens.*'第0句 line 0' \(\d+ tokens\)"):
        data.rows(cfg, takes, data.Voices.of(takes), chat, 50)
    with pytest.raises(DataError, match=r"no other recording of the speaker 'Bob' .* there are Ann, Tingting"):
        data.Voices.of(takes).reference(Line("a", "Bob", ""))


def test_it_learns_one_epoch_and_is_heard(tmp_path, overrides, monkeypatch):
    monkeypatch.setattr(spoken, "open_recognizer", lambda kind: Deaf())
    cfg = config(tmp_path, overrides, "evals=[clips, resynthesis]", "epochs=4")
    train(Run(cfg))
    losses = [json.loads(row)["loss"] for row in (cfg.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 16  # four epochs of 24 takes by 6
    assert losses[-1] < losses[0]
    results = [json.loads(file.read_text()) for file in cfg.folder.glob("evals/after/*/result.json")]
    assert {result["task"] for result in results} == {"clips", "resynthesis"}
    sounds = list((cfg.folder / "sounds").glob("*.wav"))
    assert sounds
    assert {audio.wav_rate(file) for file in sounds} == {22050}
    base, learned = (load_file(folder / "model.safetensors") for folder in (Path(cfg.model.path), cfg.folder / "model"))
    assert base.keys() == learned.keys()
    assert not torch.equal(base["model.embed_tokens.weight"], learned["model.embed_tokens.weight"])


class Deaf:
    def transcribe(self, waves):
        return [""] * len(waves)


def test_a_voice_by_its_recording(tmp_path, overrides, monkeypatch):
    """Zero-shot: seed-tts-eval's prompt becomes the reference turn, and no speaker is named."""
    monkeypatch.setattr(spoken, "open_recognizer", lambda kind: Deaf())
    monkeypatch.setattr(data, "open_tokenizer", lambda cfg: Encoder())
    asked = []
    prompt = ReleasedChat.prompt

    def watched(self, line, reference, *, named):
        asked.append((line.text, reference.text, reference.codes, named))
        return prompt(self, line, reference, named=named)

    monkeypatch.setattr(ReleasedChat, "prompt", watched)
    folder = tmp_path / seed_tts.FOLDER / "en"
    audio.write_wav(folder / "a.wav", np.full(16000, 0.1, np.float32), 16000)
    (folder / "meta.lst").write_text("a|he said|a.wav|open it\nb|he said|a.wav|close it\n")
    cfg = config(tmp_path, overrides, "benchmarks.encoder=null")
    [task] = [task for task in tasks(cfg) if task.name == "seed_tts_en"]
    engine = open_engine(cfg, Path(cfg.model.path), torch.device("cpu"))
    world = SingleProcess()
    made = {"name": "x", "sha256": "0"}
    _, result = evaluate(task, engine, world, root=tmp_path / "evals", data=tmp_path, model=made)
    assert sorted(asked) == [
        ("close it", "he said", ([3, 3], [5, 5, 5]), False),
        ("open it", "he said", ([3, 3], [5, 5, 5]), False),
    ]
    assert result["metrics"][0]["name"] == "WER (whisper-tiny.en, seed-en)"
    assert (result["metrics"][0]["value"], result["n"]) == (1.0, 2)


class Encoder:
    """Four codes too many, which are cut."""

    def encode(self, wave_T):
        return [3, 3, 3], [5, 5, 5, 5]


@pytest.mark.parametrize("source", ["all", "kept"])
def test_a_published_teacher_speaks_new_lines(tmp_path, overrides, source):
    lines = tmp_path / "lines.txt"
    lines.write_text("一|Ann|(高兴1)\n二|Tingting\n三|Ann\n")
    teacher = f"engine.teacher={{type: pretrained, path: {load_config('stepaudio-3b', overrides).model.path}}}"
    keep = "engine.filter={wer: null, silence: null, duration: null, ended: false}"
    cfg = config(tmp_path, overrides, f"source={source}", teacher, f"engine.lines={lines}", keep, "engine.shard=2")
    train(Run(cfg))
    report = json.loads((cfg.folder / "engine" / "report.json").read_text())
    assert report["rates"][0]["takes"] == 12  # three lines four times
    assert len(list((cfg.folder / "engine").glob("shard-*.json"))) == 2
    assert (cfg.folder / "model" / "model.safetensors").is_file()
    assert "The run evaluated nothing" in check_card(cfg.folder).text


class Ear:
    """Stand-in of the speaker's encoder: one voice for all."""

    def embed(self, wave_T):
        return torch.tensor([1.0, 0.0])


def test_a_published_teachers_takes_are_held_against_the_speakers_of_its_lines(tmp_path, overrides, monkeypatch):
    """Not against those of the drawn lines, of whom there is no recording."""
    monkeypatch.setattr(recipe_model, "SpeakerEncoder", Ear)
    monkeypatch.setattr(EngineConfig, "packages", ())
    lines = tmp_path / "lines.txt"
    lines.write_text("一|Ann\n二|Tingting\n")
    teacher = f"engine.teacher={{type: pretrained, path: {load_config('stepaudio-3b', overrides).model.path}}}"
    keep = "engine.filter={wer: null, silence: null, duration: null, ended: false, similarity: 0.5}"
    cfg = config(tmp_path, overrides, "source=all", teacher, f"engine.lines={lines}", keep)
    train(Run(cfg))
    takes = json.loads((cfg.folder / "engine" / "shard-00000.json").read_text())["takes"]
    assert {take["measures"]["similarity"] for take in takes} <= {1.0, -1.0}


def test_tokens_are_made_of_recordings(tmp_path, overrides, monkeypatch):
    monkeypatch.setattr(data, "open_tokenizer", lambda cfg: Pair())
    (tmp_path / "wavs").mkdir()
    for name in "abc":
        audio.write_wav(tmp_path / "wavs" / f"{name}.wav", np.full(16000, 0.1, np.float32), 16000)
    meta = tmp_path / "wavs" / "train.lst"
    meta.write_text("a|早|a.wav|Ann|(快速1)\nb|好|b.wav|Ann\nc|你|c.wav|Ann\n")
    named = f"data={{type: files, folder: {tmp_path / 'new'}, recordings: {{train: {meta}, test: {meta}}}}}"
    cfg = config(tmp_path, overrides, named)
    said = data.prepare(cfg)
    assert ("3 train" in said, "3 test" in said, "codebooks pair" in said) == (True, True, True)
    assert [(t.line.tag, t.codes) for t in data.takes(cfg, "train")][:2] == [
        ("(快速1)", ([3, 3], [5, 5, 5])),
        ("", ([3, 3], [5, 5, 5])),
    ]
    with pytest.raises(DataError, match=r"has codes of codebooks \[1024, 4096\], the config \(8, 16\)"):
        data.takes(config(tmp_path, overrides, named, "codebooks=[8, 16]"), "train")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"give data\.paraformer"):
        data.prepare(cfg)


class Pair(Encoder):
    sizes, digest = SIZES, "pair"


def test_a_model_without_audio_tokens_is_refused(tmp_path, overrides):
    published(tmp_path / "short", extra=100)
    cfg = config(tmp_path, overrides, f"model.path={tmp_path / 'short'}")
    with pytest.raises(ConfigError, match="lengthen its embeddings first"):
        model.load(cfg, model.place_of(cfg))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("source=kept", r"give engine\.teacher and engine\.lines"),
        ("model={type: tiny}", "a tiny model data.type=sentences"),
        ("generator={type: vllm}", r"samples without the mask .* give generator\.type=hf"),
        ("evals=[swapped]", "no such task"),
    ],
)
def test_what_cannot_be(change, said):
    with pytest.raises(ConfigError, match=said):
        load_config("stepaudio-3b", [change])
    with pytest.raises(ConfigError, match="are those of a published model"):
        load_config("stepaudio-tiny", ["epochs=1"])


def test_plans_and_dry_runs(tmp_path, overrides, capsys):
    assert cli.main(["plan", "memory", "stepaudio-3b"]) == 0
    said = capsys.readouterr().out
    assert "1.4 GiB a GPU, sharded over 32" in said
    assert cli.main(["launch", "stepaudio-3b", "--dry-run"]) == 0
    assert "--num_machines 4" in capsys.readouterr().out
    assert "1 epochs of 256 on recordings" in describe(load_config("stepaudio-3b", kind=Config))["student"]
    cfg = config(tmp_path, overrides)
    need = cfg.footprint(1)
    assert need is not None
    assert need.host == 4 * Pretrained(path=cfg.model.path).size
    assert mask.GROUP == 5


def test_the_command_speaks_in_a_given_voice(tmp_path, overrides, monkeypatch, capsys):
    monkeypatch.setattr(data, "open_tokenizer", lambda cfg: Encoder())
    out, voice = tmp_path / "out.wav", tmp_path / "voice.wav"
    audio.write_wav(voice, np.full(16000, 0.1, np.float32), 16000)
    base = load_config("stepaudio-3b", overrides).model.path
    words = ["speak", "stepaudio-3b", f"dir={tmp_path}", "name=run", *overrides, "--model", base, "--out", str(out)]
    given = ["--reference", str(voice), "--reference-text", "早"]
    assert cli.main([*words, "--text", "你好", "--tags", "(快速1)", *given]) == 0
    assert "out.wav" in capsys.readouterr().out
    assert float(np.abs(audio.read_audio(out, 22050, spoken.ANY)).max()) == pytest.approx(0.2, abs=1e-3)
    assert cli.main([*words, "--text", "你好", "--speaker", "Ann"]) == 0
    assert float(np.abs(audio.read_audio(out, 22050, spoken.ANY)).max()) == pytest.approx(0.1, abs=1e-3)
    for more, said in ((["--stream"], "leave --stream out"), (given[:2], "belong together")):
        assert cli.main([*words, "--text", "你好", *more]) == 2
        assert said in capsys.readouterr().err
