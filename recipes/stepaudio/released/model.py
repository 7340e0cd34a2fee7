"""A published model in the released chat form: read, trained on takes, and asked to speak in given voices."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from data.drawn.sentences import Line
from data.media import audio
from data.sets import speech
from data.sets.speech import Take
from recipes.stepaudio.config import Config
from recipes.stepaudio.evaluation.engine import Codec, SpeechEngine
from recipes.stepaudio.model import chosen, judge, limited, spoken
from recipes.stepaudio.released import data
from recipes.stepaudio.released.chat import Reference, ReleasedChat
from recipes.stepaudio.released.data import Voices
from stepstack.batching.rows import Row
from stepstack.batching.stream import RowStream
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import Recording, SpeechPrompt
from stepstack.generation.types import EngineError, Prompt, Sampling
from stepstack.harness import model as folders
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import engine_of
from stepstack.loops import supervised
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.policy import Policy
from stepstack.models.speech.mask import GroupMask
from stepstack.models.speech.tokenizer import Codes
from stepstack.models.speech.tokens import GROUP
from stepstack.records import Problem
from stepstack.report import jsonl
from stepstack.user_code import load_name

log = logging.getLogger(__name__)


def place_of(cfg: Config) -> Pretrained:
    assert isinstance(cfg.model, Pretrained), "a tiny model is made on the spot"
    return cfg.model


def load(cfg: Config, place: Pretrained, *, whole: bool = True) -> PreTrainedModel:
    """Model with its weights, or without; a turn's end is its end. ConfigError for one without the audio tokens."""
    lm = pretrained.load(place) if whole else pretrained.skeleton(place, AutoModelForCausalLM)
    needed, has = cfg.released.first + sum(cfg.codebooks), lm.config.vocab_size
    if has < needed:
        raise ConfigError(
            f"{place.path} has {has} ids, text and audio tokens are {needed}: give a model with the audio tokens, or "
            "lengthen its embeddings first (resize_token_embeddings) and set released.first to its number of text ids"
        )
    assert lm.generation_config is not None
    lm.config.eos_token_id = lm.generation_config.eos_token_id = cfg.released.end
    return lm


def mask_of(cfg: Config, chat: ReleasedChat, lm: PreTrainedModel) -> GroupMask:
    return GroupMask(chat.layout, [cfg.released.end], lm.config.vocab_size)


def train(run: Run[Config]) -> Path:
    """The student's SFT on its takes; returns the folder of the trained model."""
    cfg, place = run.config, place_of(run.config)
    tokenizer = pretrained.load_tokenizer(place)
    chat = ReleasedChat(cfg, tokenizer)
    learned, voices = student_takes(run, chat)
    lm = run.load(lambda: load(cfg, place), lambda: load(cfg, place, whole=False))
    rows = data.rows(cfg, learned, voices, chat, int(lm.config.max_position_embeddings))
    steps = updates(cfg, len(rows))
    run.reseed()
    policy = run.trainable("policy", Policy(lm, mask=mask_of(cfg, chat, lm)), cfg.student, steps)
    stream: RowStream[Row] = RowStream(rows, cfg.batch, cfg.seed)
    supervised.train(run, policy=policy, rows=stream.take, steps=steps, layout=cfg.layout)
    return run.export("policy", run.dir / "model", tokenizer)


def updates(cfg: Config, rows: int) -> int:
    """Updates of the student on that many rows."""
    return cfg.steps if cfg.epochs is None else max(1, math.ceil(rows * cfg.epochs / cfg.batch))


def student_takes(run: Run[Config], chat: ReleasedChat) -> tuple[list[Take], Voices]:
    """Takes that the student learns, by ``source``, and the recordings that give their voices."""
    recorded = data.takes(run.config, "train")
    voices = Voices.of(recorded)
    if run.config.source == "recordings":
        return limited(run.config, recorded), voices
    return chosen(run, run_engine(run, voices, recorded)), voices


def generator_of(cfg: Config, place: Pretrained, device: torch.device) -> tuple[HfGenerator, ReleasedChat]:
    """Sampler of a model, which keeps whole groups, and its prompts."""
    lm, tokenizer = load(cfg, place), pretrained.load_tokenizer(place)
    chat = ReleasedChat(cfg, tokenizer)
    return HfGenerator(lm, tokenizer, cfg.generator, device, mask=mask_of(cfg, chat, lm)), chat


# -- the data engine ------------------------------------------------------------------------------------------------


def run_engine(run: Run[Config], voices: Voices, recorded: Sequence[Take]) -> speech.Kept:
    """Takes of the config's lines by the published teacher, filtered; each process speaks its shards, on whatever node
    it is, into the run's folder."""
    cfg, kind = run.config, run.config.engine
    assert kind.teacher is not None
    generator, chat = generator_of(cfg, kind.teacher, run.device)
    lines = data.own_lines(cfg)
    sampling = cfg.engine_sampling

    def speak(part: Sequence[Line], first: int) -> list[list[Take]]:
        prompts = [
            Prompt(Problem(first + k, line.text, ""), chat.prompt(line, voices.reference(line, cfg.seed), named=True))
            for k, line in enumerate(part)
        ]
        found: dict[int, list[Take]] = {}
        for group in generator.generate(prompts, sampling):
            line = part[group.prompt.problem.index - first]
            found[group.prompt.problem.index - first] = [
                Take(line, chat.layout.split(chat.layout.whole_groups(r.ids)), r.finish == "stop")
                for r in group.rollouts
            ]
        return [found[place] for place in range(len(part))]

    speakers = list(dict.fromkeys(line.speaker for line in lines))
    makers = {"voices": data.digest(recorded), "teacher": folders.record(Path(kind.teacher.path))["sha256"]}
    return spoken(run, lines, speak, judge(kind, Player(cfg), recorded, speakers), chat.layout, makers)


# -- what plays and hears -------------------------------------------------------------------------------------------


class Player:
    """The config's decoder of a published model's codes, which is asked for when the first take is to be heard. Waves
    are at 16 kHz."""

    def __init__(self, cfg: Config):
        self.cfg = cfg

    def decode(self, codes: Codes) -> Tensor:
        wave, rate = play(self.cfg, codes, None)
        return torch.from_numpy(audio.resample(wave.numpy(), rate, speech.RATE))


def play(cfg: Config, codes: Codes, voice: Path | None) -> tuple[Tensor, int]:
    """Wave of codes by the config's file, and its rate. ConfigError where it names none."""
    path = cfg.released.decoder
    if path is None:
        raise ConfigError(
            "nothing plays the published codes: give released.decoder, a Python file with decode(linguistic, semantic, "
            "voice) and RATE, such as one that calls CosyVoice-300M-25Hz; training needs none"
        )
    wave = load_name(path, "decode")(codes[0], codes[1], voice)
    return torch.as_tensor(wave, dtype=torch.float32), int(load_name(path, "RATE"))


def open_engine(cfg: Config, folder: Path, device: torch.device) -> SpeechEngine:
    """A model folder that speaks texts in the voice of a recording, or of a speaker whose recordings were learned."""
    generator, chat = generator_of(cfg, place_of(cfg).moved(folder), device)
    voices = Voices.of(data.takes(cfg, "train")) if data.has_takes(cfg) else Voices({})

    @cache
    def encoded(recording: Recording) -> Reference:
        wave = torch.from_numpy(audio.read_audio(recording.file, speech.RATE))
        return Reference(recording.text, data.whole(data.open_tokenizer(cfg), wave))

    def prompt(question: Question) -> Prompt:
        request = question.request
        if not isinstance(request, SpeechPrompt):
            raise EngineError(
                f"question {question.problem.index} asks for no speech: evaluate a server on it (--server)"
            )
        line = Line(request.text, request.speaker, request.tag)
        given = request.reference
        reference = voices.reference(line, cfg.seed) if given is None else encoded(given)
        return Prompt(question.problem, chat.prompt(line, reference, named=given is None))

    def decode(codes: Codes, voice: Path | None) -> Tensor:
        return play(cfg, codes, voice)[0]

    tokenizer: PreTrainedTokenizerBase = chat.tokenizer
    inner = engine_of(cfg.generator, generator, tokenizer, prompt=prompt)
    rate = speech.RATE if cfg.released.decoder is None else int(load_name(cfg.released.decoder, "RATE"))
    codec = Codec(lambda wave: data.whole(data.open_tokenizer(cfg), wave), decode, rate)
    return SpeechEngine(inner, chat.layout, codec, cfg.folder)


def say(cfg: Config, prompt: SpeechPrompt, folder: Path, out: Path, temperature: float, seed: int) -> str:
    """Write a WAV of a text in the voice of a recording, or of a learned speaker; returns a line to print."""
    engine = open_engine(cfg, folder, torch.device("cpu"))
    budget = Sampling(temperature=temperature, repetition=cfg.engine.repetition, seed=seed, max_tokens=cfg.max_tokens)
    [(_, [answer])] = engine.complete([Question(Problem(0, prompt.text, ""), prompt)], budget)
    [file] = answer.media
    jsonl.write_bytes_atomic(out, (ROOT / file).read_bytes())
    ended = "" if answer.finish == "stop" else ", cut off: it did not end by itself"
    return f"{out}: {answer.length // GROUP} groups of tokens{ended}"
