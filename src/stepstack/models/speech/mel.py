"""Mel spectrograms and the way back: Slaney's filters, Whisper's log-mel, Griffin-Lim. Waves are float32 [T]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

FLOOR = 1e-5  # least magnitude before the logarithm


@dataclass(frozen=True, slots=True)
class MelSpec:
    """How a spectrogram is made; sizes in samples, frequencies in Hz. The defaults are those of the offline tokenizer:
    100 frames a second, whose centres lie ``hop`` apart, the first at the first sample."""

    rate: int = 16000
    fft: int = 1024
    window: int = 640
    hop: int = 160
    mels: int = 80
    low: float = 0.0
    high: float = 8000.0


@cache
def filterbank(spec: MelSpec) -> Tensor:
    """Triangular filters [mels, fft / 2 + 1] on Slaney's mel scale (linear to 1 kHz, then logarithmic), each of area
    one in Hz."""
    points = _to_hertz(torch.linspace(_to_mel(spec.low), _to_mel(spec.high), spec.mels + 2, dtype=torch.float64))
    bins = torch.arange(spec.fft // 2 + 1, dtype=torch.float64) * spec.rate / spec.fft
    left, centre, right = points[:-2, None], points[1:-1, None], points[2:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return (triangles * 2 / (right - left)).float()


def _to_mel(hertz: float) -> float:
    if hertz < 1000:
        return hertz * 3 / 200
    return 15 + 27 / float(torch.tensor(6.4, dtype=torch.float64).log()) * float(
        torch.tensor(hertz / 1000, dtype=torch.float64).log()
    )


def _to_hertz(mel: Tensor) -> Tensor:
    step = torch.tensor(6.4, dtype=torch.float64).log() / 27
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * step).exp())


def spectrum(wave_T: Tensor, spec: MelSpec) -> Tensor:
    """Complex short-time spectrum [bins, frames], the ends of the wave mirrored."""
    window = torch.hann_window(spec.window)
    return torch.stft(wave_T, spec.fft, spec.hop, spec.window, window, center=True, return_complex=True)


def log_mel(wave_T: Tensor, spec: MelSpec) -> Tensor:
    """Natural logarithm of mel magnitudes, [frames, mels]; a wave of n samples has n // hop frames.

    ValueError for a wave that is too short to be mirrored at its ends.
    """
    if len(wave_T) <= spec.fft // 2:
        raise ValueError(f"{len(wave_T)} samples are too few: a spectrogram needs more than {spec.fft // 2}")
    magnitude = spectrum(wave_T, spec).abs()[:, : len(wave_T) // spec.hop]
    return (filterbank(spec) @ magnitude).clamp(min=FLOOR).log().T


def whisper_mel(wave_T: Tensor, mels: int = 80) -> Tensor:
    """Whisper's features [mels, frames] of a wave at 16 kHz, which the caller has padded to the model's window."""
    spec = MelSpec(fft=400, window=400, mels=mels)
    power = spectrum(wave_T, spec).abs()[:, :-1].square()
    logarithm = (filterbank(spec) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(logarithm, logarithm.max() - 8) + 4) / 4


def magnitudes(log_mel_FC: Tensor, spec: MelSpec, steps: int = 12) -> Tensor:
    """Spectrum magnitudes [bins, frames] whose mels are the given ones, none negative (multiplicative updates from the
    filters' transpose)."""
    wanted, filters = log_mel_FC.T.exp(), filterbank(spec)
    found = filters.T @ (wanted / filters.square().sum(1, keepdim=True))
    for _ in range(steps):
        found = found * (filters.T @ wanted) / (filters.T @ (filters @ found)).clamp(min=1e-8)
    return found


def griffin_lim(
    log_mel_FC: Tensor, spec: MelSpec, steps: int = 32, seed: int = 0, known_T: Tensor | None = None
) -> Tensor:
    """Wave of frames x hop samples whose log-mel is near the given one: fast Griffin-Lim (Perraudin 2013, momentum
    0.99) from random phases. ``known_T``: samples that it begins with, which stay as they are: what follows goes on
    from their phase."""
    magnitude, samples = magnitudes(log_mel_FC, spec), len(log_mel_FC) * spec.hop
    magnitude = torch.nn.functional.pad(magnitude, (0, 1))  # the frame that begins at the last sample
    angle = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    phase, before = torch.polar(torch.ones_like(angle), angle), torch.zeros_like(angle, dtype=torch.complex64)
    for _ in range(steps):
        now = spectrum(_begun(_wave(magnitude * phase, spec, samples), known_T), spec)
        fast = now + 0.99 * (now - before)
        phase, before = fast / fast.abs().clamp(min=1e-9), now
    return _begun(_wave(magnitude * phase, spec, samples), known_T)


def _begun(wave_T: Tensor, known_T: Tensor | None) -> Tensor:
    return wave_T if known_T is None else torch.cat([known_T, wave_T[len(known_T) :]])


def _wave(spectrum_: Tensor, spec: MelSpec, samples: int) -> Tensor:
    window = torch.hann_window(spec.window)
    return torch.istft(spectrum_, spec.fft, spec.hop, spec.window, window, center=True, length=samples)
