"""The voice that makes recordings offline: hibari's one bundled speaker, on ONNX."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepstack.config import ConfigError
from stepstack.models.speech.packages import HIBARI

SPEEDS = (0.5, 2.0)  # slowest and fastest of the voice, 1 being its own


class HibariVoice:
    """Text to speech by the wheel's one voice (``heart``, English, female). The package would download its other four
    voices, so they cannot be asked for."""

    name, rate = "hibari-tts 0.2.1, heart", 24000

    def __init__(self) -> None:
        file = HIBARI.find()
        import hibari  # an extra: imported only where it is needed

        self.voice = hibari.Hibari(model=str(file))

    def say(self, text: str, speed: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
        """Wave at 24 kHz, the same for the same seed. ConfigError for a text or speed that it cannot say."""
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise ConfigError(f"speed {speed} is beyond the voice's {SPEEDS[0]} to {SPEEDS[1]}")
        wave = self.voice(text, speed=speed, seed=seed)
        if not len(wave):
            raise ConfigError(f"the voice can say nothing of {text!r}: give words with letters")
        return wave
