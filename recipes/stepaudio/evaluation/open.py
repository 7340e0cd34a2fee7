"""A model folder of this recipe as an engine of evaluations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data.sets.speech import RATE
from recipes.stepaudio import model
from recipes.stepaudio.config import Config
from recipes.stepaudio.data import layout_of, load_decoder, text_tokenizer
from recipes.stepaudio.evaluation.engine import Codec, SpeechEngine
from recipes.stepaudio.released import model as released
from stepstack.config import ROOT
from stepstack.models.lm.config import Pretrained
from stepstack.models.speech.tokenizer import Codes, OfflineTokenizer
from stepstack.models.speech.whisper import WhisperEncoder


def open_engine(cfg: Config, folder: Path, device: torch.device) -> SpeechEngine:
    """A model folder that speaks."""
    if isinstance(cfg.model, Pretrained):
        return released.open_engine(cfg, folder, device)
    inner = model.open_engine(cfg, folder, device)
    return SpeechEngine(inner, layout_of(cfg, text_tokenizer(cfg)), codec_of(cfg), cfg.folder)


def codec_of(cfg: Config) -> Codec:
    """The config's codec; Whisper's encoder is read when the first recording is to be encoded."""
    decoder = load_decoder(cfg)
    tokenizers: list[OfflineTokenizer] = []

    def encode(wave_T: Tensor) -> Codes:
        if not tokenizers:
            tokenizers.append(OfflineTokenizer.load(ROOT / cfg.tokens, WhisperEncoder()))
        linguistic, semantic = tokenizers[0].encode(wave_T)
        groups = min(len(linguistic) // 2, len(semantic) // 3)
        return linguistic[: 2 * groups], semantic[: 3 * groups]

    return Codec(encode, lambda codes, voice: decoder.decode(codes), RATE)
