"""Judges of takes out of the weights in packages. Waves are at 16 kHz.

The speaker is judged by Resemblyzer, the sound by DNSMOS, where speech is by Silero, and the sentences of a grammar by
PocketSphinx.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stepstack.config import ConfigError
from stepstack.models.speech.mel import MelSpec, filterbank
from stepstack.models.speech.packages import AUDIO, DNSMOS, DNSMOS_P808, RESEMBLYZER, SILERO

RATE = 16000
PART, STEP = 160, 77  # frames of 10 ms that the speaker's net sees at a time, and between two of them (1.3 a second)
LOUDNESS = -30.0  # dB of full scale that a quieter wave is raised to
CLIP = round(9.01 * RATE)  # samples that DNSMOS hears at a time


class SpeakerEncoder(nn.Module):
    """Embedding of a voice: GE2E, three LSTM layers, by Resemblyzer's weights. Silences are not taken out, where
    Resemblyzer asks webrtcvad, so its own figures differ a little."""

    name = "Resemblyzer 0.1.4 (GE2E), without its silence removal"
    spec = MelSpec(fft=400, window=400, mels=40)

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        saved = torch.load(RESEMBLYZER.find(), map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({name: saved[name] for name in self.state_dict()})
        self.eval()

    @torch.no_grad()
    def embed(self, wave_T: Tensor) -> Tensor:
        """Unit vector [256] of a wave, the mean over parts of 1.6 s. ValueError for silence."""
        level = 20 * float(wave_T.square().mean().sqrt().clamp(min=1e-9).log10())
        if level < -120:
            raise ValueError("a silent wave has no speaker")
        wave_T = wave_T * 10 ** (max(0.0, LOUDNESS - level) / 20)
        frames = power_mel(wave_T, self.spec).T
        if len(frames) < PART:
            frames = torch.nn.functional.pad(frames, (0, 0, 0, PART - len(frames)))
        parts = frames.unfold(0, PART, STEP).transpose(1, 2)
        _, (hidden, _) = self.lstm(parts)
        each = torch.relu(self.linear(hidden[-1]))
        mean = (each / each.norm(dim=1, keepdim=True)).mean(0)
        return mean / mean.norm()


def power_mel(wave_T: Tensor, spec: MelSpec) -> Tensor:
    """Mel powers [mels, frames], the ends of the wave padded with zeros, as librosa has them."""
    window = torch.hann_window(spec.window)
    found = torch.stft(
        wave_T, spec.fft, spec.hop, spec.window, window, center=True, pad_mode="constant", return_complex=True
    )
    return filterbank(spec) @ found.abs().square()


class Dnsmos:
    """DNSMOS P.835 (signal, background, overall) and P.808 of a wave, by Microsoft's ONNX files."""

    name = "DNSMOS (speechmos 0.0.1.1)"
    spec = MelSpec(fft=321, window=321, mels=120)

    def __init__(self) -> None:
        self.p835, self.p808 = open_onnx(str(DNSMOS.find())), open_onnx(str(DNSMOS_P808.find()))

    def rate(self, wave_T: Tensor) -> dict[str, float]:
        """Scores from 1 to 5 under ``signal``, ``background``, ``overall`` and ``p808``; a short wave is repeated to
        nine seconds, of a long one the mean over its seconds is taken. ValueError for an empty wave."""
        if not len(wave_T):
            raise ValueError("an empty wave has no quality")
        while len(wave_T) < CLIP:
            wave_T = torch.cat([wave_T, wave_T])
        count = int(len(wave_T) / RATE - 9.01) + 1
        scores = np.array([self._clip(wave_T[k * RATE : k * RATE + CLIP]) for k in range(count)]).mean(0)
        return dict(zip(("signal", "background", "overall", "p808"), map(float, scores), strict=True))

    def _clip(self, clip_T: Tensor) -> tuple[float, float, float, float]:
        signal, background, overall = self.p835.run(None, {"input_1": clip_T.numpy()[None]})[0][0]
        mel = power_mel(clip_T[:-160], self.spec).clamp(min=1e-10).log10() * 10
        mel = (torch.maximum(mel - mel.max(), torch.tensor(-80.0)) + 40) / 40
        p808 = self.p808.run(None, {"input_1": mel.T.contiguous().numpy()[None]})[0][0][0]
        return (
            float(np.polyval([-0.08397278, 1.22083953, 0.0052439], signal)),
            float(np.polyval([-0.13166888, 1.60915514, -0.39604546], background)),
            float(np.polyval([-0.06766283, 1.11546468, 0.04602535], overall)),
            float(p808),
        )


class SpeechDetector:
    """Chance of speech in each 32 ms, by Silero's recurrent net."""

    name = "silero-vad 6.2.3"

    def __init__(self) -> None:
        self.session = open_onnx(str(SILERO.find()))

    def chances(self, wave_T: Tensor) -> NDArray[np.float32]:
        wave = np.pad(wave_T.numpy(), (0, -len(wave_T) % 512))
        state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        found = []
        for piece in wave.reshape(-1, 512):
            feed = {"input": np.concatenate([before, piece])[None], "state": state, "sr": np.array(RATE, np.int64)}
            chance, state = self.session.run(None, feed)
            found.append(chance[0, 0])
            before = piece[-64:]
        return np.array(found, np.float32)


class GrammarRecognizer:
    """Sentences of a JSGF grammar, by PocketSphinx: cheap and exact on what the grammar holds, blind to all else."""

    name = "pocketsphinx 5.1.1 with a grammar"

    def __init__(self, jsgf: str):
        """ConfigError without the package, or for a word that its dictionary lacks."""
        if find_spec("pocketsphinx") is None:
            raise ConfigError(f"the package pocketsphinx is not installed: {AUDIO}; Whisper can judge in its place")
        import pocketsphinx  # an extra: imported only where it is needed

        self.decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL", samprate=RATE)
        words = {word for word in _words(jsgf) if self.decoder.lookup_word(word) is None}
        if words:
            raise ConfigError(f"words without a pronunciation in pocketsphinx's dictionary: {sorted(words)}")
        self.decoder.add_jsgf_string("grammar", jsgf)
        self.decoder.activate_search("grammar")

    def transcribe(self, wave_T: Tensor) -> str:
        """Sentence that was heard, "" where none fits."""
        samples = (wave_T.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return "" if found is None else found.hypstr


def _words(jsgf: str) -> set[str]:
    rules = jsgf.split(";", 1)[1]
    for rule in ("#JSGF", "grammar", "public"):
        rules = rules.replace(rule, " ")
    cleaned = "".join(letter if letter.isalpha() or letter in "'<>_" else " " for letter in rules)
    return {word for word in cleaned.split() if "<" not in word and ">" not in word}


def open_onnx(file: str | bytes) -> Any:
    """Session of a file, by its path or its content, on one CPU thread. ConfigError without onnxruntime."""
    if find_spec("onnxruntime") is None:
        raise ConfigError(f"the package onnxruntime is not installed: {AUDIO}")
    import onnxruntime  # an extra: imported only where it is needed

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
