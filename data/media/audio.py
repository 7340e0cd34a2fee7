"""The only reader and writer of audio files. Waves are float32 [T] in [-1, 1], one channel.

WAV in whole numbers is read and written by Python's own ``wave``; every other form (FLAC, OGG, MP3, WAV in floats)
needs soundfile, of the extra ``audio``.
"""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.signal import resample_poly

from data.errors import DataError
from stepstack.bounds import Fraction
from stepstack.config import Strict
from stepstack.report import jsonl

Wave = NDArray[np.float32]
SAMPLE_TYPES = {1: "u1", 2: "<i2", 4: "<i4"}  # of WAV, by bytes
CLIPPED = 0.999  # magnitude from which a sample counts as clipped


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioLimits(Strict):
    """Demands on a recording; one that does not meet them is an error that names its file."""

    least_rate: PositiveInt = 16000
    """Least samples a second; nothing is resampled upwards, since what is missing would stay missing."""
    seconds: tuple[PositiveFloat, PositiveFloat] = (0.2, 30.0)
    """Least and largest duration."""
    peak: NonNegativeFloat = 1e-3
    """Least peak; a recording below is silent."""
    clipped: Fraction = 0.001
    """Largest share of samples at full scale."""


def read_audio(file: Path, rate: int, limits: AudioLimits | None = None) -> Wave:
    """Wave of a file at ``rate``, its channels averaged. DataError for a file that is missing, unreadable, or beyond
    the limits (default: those of ``AudioLimits`` with ``rate`` as the least)."""
    limits = AudioLimits(least_rate=rate) if limits is None else limits
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    recording, recorded_at = _decode(file)
    check_audio(recording, recorded_at, str(file), limits)
    return resample(recording, recorded_at, rate)


def check_audio(recording: Wave, rate: int, name: str, limits: AudioLimits) -> None:
    """DataError that names the recording and what is wrong with it."""
    least, most = limits.seconds
    seconds, peak = len(recording) / rate, float(np.abs(recording).max(initial=0.0))
    if not np.isfinite(recording).all():
        raise DataError(f"{name} holds samples that are no finite numbers: record or export it again")
    if rate < limits.least_rate:
        raise DataError(
            f"{name} has {rate} samples a second, fewer than {limits.least_rate}: what a higher rate would hold cannot "
            "be made up: give the original recording"
        )
    if seconds > most:
        raise DataError(f"{name} is {seconds:.2f} s long, over {most} s: cut it, or raise the limit")
    if seconds < least:
        raise DataError(f"{name} is {seconds:.2f} s long, under {least} s: remove it, or lower the limit")
    if peak < limits.peak:
        raise DataError(f"{name} is silent: its peak is {peak:.1e}, under {limits.peak:.1e}: remove it")
    if (share := float((np.abs(recording) >= CLIPPED).mean())) > limits.clipped:
        raise DataError(f"{name} is clipped: {share:.2%} of its samples are at full scale: record it again, lower")


def resample(recording: Wave, rate: int, wanted: int) -> Wave:
    """Wave at another rate, by scipy's polyphase filter."""
    if rate == wanted:
        return np.asarray(recording, np.float32)
    common = math.gcd(rate, wanted)
    return resample_poly(recording, wanted // common, rate // common).astype(np.float32)


def normalize(recording: Wave, peak: float = 0.999) -> Wave:
    """Wave scaled to a peak; silence stays as it is."""
    loudest = float(np.abs(recording).max(initial=0.0))
    return recording if loudest == 0 else (recording * (peak / loudest)).astype(np.float32)


def trim(recording: Wave, rate: int, below: float = 20.0, keep: tuple[float, float] = (0.05, 0.22)) -> Wave:
    """Wave without silence at its ends, but ``keep`` seconds before and after the speech (Step-Audio's numbers).

    A frame of 32 ms counts as silent where its level is ``below`` dB under that of the loudest one.
    """
    size, hop = round(0.032 * rate), round(0.008 * rate)
    padded = np.pad(recording.astype(np.float64), size // 2)
    energy = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, max(1, len(padded) - size + 1), hop)
    level = energy[np.minimum(starts + size, len(padded))] - energy[starts]
    loud = np.flatnonzero(level > level.max() * 10 ** (-below / 10))
    if not len(loud):
        return recording
    first, last = loud[0] * hop, (loud[-1] + 1) * hop
    return recording[max(0, first - round(keep[0] * rate)) : last + round(keep[1] * rate)]


def wav(recording: Wave, rate: int) -> bytes:
    """WAV of 16-bit samples as bytes; what is beyond [-1, 1] is cut."""
    out = io.BytesIO()
    with wave.open(out, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(_samples(recording).tobytes())
    return out.getvalue()


def wav_rate(file: Path) -> int:
    """Samples a second of a WAV in whole numbers, by its header. DataError for another file."""
    try:
        with wave.open(str(file), "rb") as reader:
            return reader.getframerate()
    except (wave.Error, EOFError, OSError) as error:
        raise DataError(f"{file} is no WAV in whole numbers ({error}): convert it") from None


def write_wav(file: Path, recording: Wave, rate: int) -> Path:
    """Write ``wav`` to a file, atomically."""
    jsonl.write_bytes_atomic(file, wav(recording, rate))
    return file


class WavWriter:
    """WAV that grows: whoever reads the file between two pieces finds a whole one. A context manager."""

    def __init__(self, file: Path, rate: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.rate = file, rate
        self.handle = file.open("wb")
        self.writer = wave.open(self.handle, "wb")  # noqa: SIM115  (closed by __exit__)
        self.writer.setnchannels(1)
        self.writer.setsampwidth(2)
        self.writer.setframerate(rate)

    def __enter__(self) -> WavWriter:
        return self

    def write(self, piece: Wave) -> None:
        """Append samples; they are on disk, and counted in the header, when it returns."""
        self.writer.writeframes(_samples(piece).tobytes())
        self.handle.flush()

    def __exit__(self, *error: object) -> None:
        self.writer.close()
        self.handle.close()


def _samples(recording: Wave) -> NDArray[np.int16]:
    return np.round(np.clip(recording, -1, 1) * 32767).astype("<i2")


def _decode(file: Path) -> tuple[Wave, int]:
    try:
        with wave.open(str(file), "rb") as reader:
            channels, width, rate = reader.getnchannels(), reader.getsampwidth(), reader.getframerate()
            content, frames = reader.readframes(reader.getnframes()), reader.getnframes()
        if len(content) != frames * channels * width:
            raise DataError(f"{file} ends early: its header promises {frames} frames: get it again")
        if width in SAMPLE_TYPES:
            samples = np.frombuffer(content, SAMPLE_TYPES[width]).astype(np.float64)
            scaled = samples / 128 - 1 if width == 1 else samples / 2 ** (8 * width - 1)
            return scaled.reshape(-1, channels).mean(1).astype(np.float32), rate
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends early"
        return _decode_other(file, f"it is no WAV in whole numbers ({reason})")
    return _decode_other(file, f"its samples have {width} bytes")


def _decode_other(file: Path, why: str) -> tuple[Wave, int]:
    if find_spec("soundfile") is None:
        raise DataError(f"{file} cannot be read, since {why}: make setup EXTRAS=audio (soundfile), or convert it")
    import soundfile  # an extra: imported only where it is needed

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as audio: {str(error).splitlines()[0]}: get it again") from None
    return samples.mean(1).astype(np.float32), int(rate)
