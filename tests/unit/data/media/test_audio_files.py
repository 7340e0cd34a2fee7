"""Audio files: round trip, channels and sample types, resampling, trimming, and an error for each kind of bad file."""

import wave
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.media import audio
from data.media.audio import AudioLimits

RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_round_trip(tmp_path):
    file = audio.write_wav(tmp_path / "a.wav", tone(), RATE)
    np.testing.assert_allclose(audio.read_audio(file, RATE), tone(), atol=1 / 32767)


@pytest.mark.parametrize(("width", "scale"), [(1, 127), (2, 32767), (4, 2**31 - 1)])
def test_sample_types_and_channels(tmp_path, width, scale):
    left, right = tone(), 0.5 * tone()
    both = np.stack([left, right], 1) * scale + (128 if width == 1 else 0)
    with wave.open(str(tmp_path / "b.wav"), "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(width)
        writer.setframerate(RATE)
        writer.writeframes(np.round(both).astype(audio.SAMPLE_TYPES[width]).tobytes())
    found = audio.read_audio(tmp_path / "b.wav", RATE)
    np.testing.assert_allclose(found, 0.75 * tone(), atol=0.02 if width == 1 else 1e-4)


def test_resampling_keeps_the_tone():
    low = audio.resample(tone(rate=24000), 24000, RATE)
    assert len(low) == RATE // 2
    middle = slice(500, -500)
    np.testing.assert_allclose(low[middle], tone()[middle], atol=2e-3)
    assert audio.resample(tone(), RATE, RATE).dtype == np.float32


def test_trim_and_normalize():
    padded = np.concatenate([np.zeros(RATE), tone(), np.zeros(RATE)]).astype(np.float32)
    found = audio.trim(padded, RATE)
    assert len(found) / RATE == pytest.approx(0.5 + 0.05 + 0.22, abs=0.05)
    assert np.abs(audio.normalize(padded)).max() == pytest.approx(0.999)
    assert not audio.normalize(np.zeros(5, np.float32)).any()
    assert len(audio.trim(np.zeros(RATE, np.float32), RATE)) == RATE


def write_flat(file: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    return audio.write_wav(file, samples, rate)


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (tone(rate=8000), 8000, "8000 samples a second"),
        (tone(31), RATE, "31.00 s long, over 30.0 s"),
        (tone(0.1), RATE, "under 0.2 s"),
        (tone(level=1e-4), RATE, "silent"),
        (np.sign(tone()), RATE, "clipped"),
    ],
)
def test_bad_recordings(tmp_path, samples, rate, words):
    file = audio.write_wav(tmp_path / "bad.wav", samples, rate)
    with pytest.raises(DataError, match=words) as caught:
        audio.read_audio(file, RATE)
    assert str(file) in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        audio.read_audio(tmp_path / "none.wav", RATE)
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio at all")
    with pytest.raises(DataError, match=r"noise.wav cannot be read"):
        audio.read_audio(noise, RATE)
    short = tmp_path / "short.wav"
    short.write_bytes(audio.wav(tone(), RATE)[:5000])
    with pytest.raises(DataError, match="ends early"):
        audio.read_audio(short, RATE)
    with pytest.raises(DataError, match="no finite numbers"):
        audio.check_audio(np.full(8000, np.nan, np.float32), RATE, "x", AudioLimits())


def test_other_forms_need_soundfile(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed: make setup EXTRAS=audio")
    soundfile.write(tmp_path / "a.flac", tone(), RATE)
    np.testing.assert_allclose(audio.read_audio(tmp_path / "a.flac", RATE), tone(), atol=1e-4)
