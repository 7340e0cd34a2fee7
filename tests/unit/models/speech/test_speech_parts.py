"""Parts out of packages: what is said without them, and, where they are installed, what they hear."""

import hashlib
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from data.media import audio
from stepstack.config import ConfigError, Needed
from stepstack.models.speech import judges, whisper
from stepstack.models.speech.packages import (
    DNSMOS,
    HIBARI,
    HIBARI_LEXICON,
    KOKORO,
    KOKORO_VOCAB,
    KOKORO_VOICES,
    RESEMBLYZER,
    SILERO,
    WHISPER,
    WHISPER_TOKENIZER,
    PackageFile,
)
from stepstack.models.speech.voice import HibariVoice
from stepstack.scoring import speech

COMMANDS = ["open the red box near the window", "put the small green cup on the table", "please close the blue door"]
PLACES = ("table", "chair", "window", "garden", "kitchen", "river")
COLOURS = ("red", "green", "blue", "yellow")


def needs(*files: PackageFile):
    missing = [file.package.module for file in files if not file.installed]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def voice() -> HibariVoice:
    return HibariVoice()


def said(voice: HibariVoice, text: str, speed: float = 1.0) -> torch.Tensor:
    wave = audio.resample(voice.say(text, speed), voice.rate, 16000)
    return torch.from_numpy(audio.normalize(wave, 0.5))


FILES = [
    HIBARI,
    HIBARI_LEXICON,
    KOKORO_VOCAB,
    KOKORO_VOICES,
    *KOKORO.parts,
    WHISPER,
    RESEMBLYZER,
    DNSMOS,
    SILERO,
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.package.module}/{file.path}")
def test_a_missing_package_is_named_with_what_still_runs(file):
    if file.installed:
        assert hashlib.sha256(file.find().read_bytes()).hexdigest() == file.sha256
        return
    with pytest.raises(
        ConfigError, match=rf"{file.package.module} is not installed: .*there is no {re.escape(file.purpose)}.*tokens"
    ):
        file.find()


def test_another_version_of_a_package_is_refused():
    for path, words in (("py.typed", "does not exist"), ("__init__.py", "expected 00")):
        with pytest.raises(ConfigError, match=words):
            PackageFile(Needed("yaml", "pip install pyyaml"), path, "00", "figures").find()


def test_loops_are_cut():
    assert whisper.cut_loops("go to the the the the the") == "go to the"
    assert whisper.cut_loops("a b a b a b a b") == "a b"
    assert whisper.cut_loops("very very very good") == "very very very good"
    assert whisper.cut_loops("") == ""


def test_another_binary_is_no_whisper(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x06\0\0\0\x04\0Gpt\0\x01\0\0\0\0\0\0\0")
    with pytest.raises(ConfigError, match="is a Gpt of version 6"):
        whisper.read_ctranslate2(file)


@needs(HIBARI, WHISPER)
def test_whisper_hears_what_is_said(voice):
    heard = whisper.WhisperRecognizer(batch=2).transcribe([said(voice, text) for text in COMMANDS])
    assert [speech.word_errors(*pair, "spoken-en").errors for pair in zip(COMMANDS, heard, strict=True)] == [0, 0, 0]


@needs(HIBARI, WHISPER, WHISPER_TOKENIZER)
@pytest.mark.skipif(find_spec("ctranslate2") is None, reason="not installed: ctranslate2")
def test_the_conversion_transcribes_like_ctranslate2(voice):
    """Twenty clips, greedy, in the same 15 s window; ctranslate2 pads its own to 30 s, which is what may differ."""
    import ctranslate2

    texts = [f"the {colour} cup is in the {place}" for colour in COLOURS for place in PLACES[:5]]
    waves = [said(voice, text) for text in texts]
    recognizer = whisper.WhisperRecognizer()
    ours = recognizer.transcribe(waves)
    model = ctranslate2.models.Whisper(str(WHISPER.find().parent), compute_type="float32", intra_threads=1)
    theirs = []
    for wave in waves:
        features = whisper.whisper_mel(torch.nn.functional.pad(wave, (0, 30 * 16000 - len(wave))))[None].numpy()
        prompt = [[whisper.BEGIN, whisper.NO_TIMESTAMPS]]
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
        ids = model.generate(view, prompt, beam_size=1, suppress_blank=True)[0].sequences_ids[0]
        theirs.append(recognizer.tokenizer.decode(ids).strip())
    assert len(texts) == 20
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 19


@needs(HIBARI, WHISPER)
def test_encoder_features(voice):
    encoder = whisper.WhisperEncoder()
    wave = said(voice, COMMANDS[0])
    alone = encoder(wave)
    assert alone.shape == (len(wave) // 320, 384)
    long = torch.cat([wave, torch.zeros(7 * 16000)])
    assert len(encoder(long)) == len(long) // 320
    torch.testing.assert_close(encoder(long)[: len(alone) - 5], alone[:-5], atol=1e-3, rtol=1e-3)


@needs(HIBARI, RESEMBLYZER)
def test_speakers_are_told_apart(voice):
    encoder = judges.SpeakerEncoder()
    first, second = (said(voice, text) for text in COMMANDS[:2])
    lower = torch.from_numpy(audio.resample(second.numpy(), 16000, 20000))
    same, other = (float(encoder.embed(first) @ encoder.embed(wave)) for wave in (second, lower))
    assert other < 0.75 < same
    with pytest.raises(ValueError, match="no speaker"):
        encoder.embed(torch.zeros(16000))


@needs(HIBARI, DNSMOS)
def test_dnsmos_hears_noise(voice):
    judge, clean = judges.Dnsmos(), said(voice, COMMANDS[0])
    noisy = clean + 0.1 * torch.randn(len(clean), generator=torch.Generator().manual_seed(0))
    assert judge.rate(clean)["overall"] > 3.0 > judge.rate(noisy)["overall"]
    assert judge.rate(clean)["p808"] > judge.rate(noisy)["p808"]


@needs(HIBARI, SILERO)
def test_speech_is_detected(voice):
    chances = judges.SpeechDetector().chances(torch.cat([torch.zeros(8000), said(voice, COMMANDS[0])]))
    assert chances[:12].max() < 0.5 < np.median(chances[20:])


@needs(HIBARI)
@pytest.mark.skipif(find_spec("pocketsphinx") is None, reason="not installed: pocketsphinx")
def test_a_grammar_is_recognised(voice):
    head = "#JSGF V1.0; grammar g; public <s> = "
    recognizer = judges.GrammarRecognizer(head + "open the (red | green) box near the (window | door);")
    assert recognizer.transcribe(said(voice, COMMANDS[0])) == COMMANDS[0]
    with pytest.raises(ConfigError, match="flurble"):
        judges.GrammarRecognizer(head + "open the flurble;")


@needs(HIBARI)
def test_the_voice(voice):
    assert np.array_equal(voice.say("open", seed=1), voice.say("open", seed=1))
    assert len(voice.say(COMMANDS[0], 0.75)) > 1.5 * len(voice.say(COMMANDS[0], 1.5))
    for text, speed, words in (("", 1.0, "can say nothing"), ("open", 3.0, "speed 3.0")):
        with pytest.raises(ConfigError, match=words):
            voice.say(text, speed)
