"""Teacher and student: how they are made, how they speak, and the engine between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from data.drawn import sentences
from data.drawn.sentences import Line
from data.media import audio
from data.sets import speech
from data.sets.speech import DurationModel, Judge, Kept, Take
from recipes.stepaudio.config import Config, EngineConfig, SpeechLmConfig
from recipes.stepaudio.data import (
    EOT,
    engine_lines,
    layout_of,
    load_decoder,
    load_tokenizer,
    prompt_ids,
    recordings,
)
from recipes.stepaudio.reward import similarities, speaker_centroids, transcriber
from stepstack.config import ROOT, ConfigError, to_dict
from stepstack.core.run import Run
from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import SpeechPrompt
from stepstack.generation.types import EngineError, Prompt, Sampling
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine, engine_of
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from stepstack.models.speech.decoder import SpeechDecoder
from stepstack.models.speech.judges import Dnsmos, SpeakerEncoder
from stepstack.models.speech.mask import GroupMask
from stepstack.models.speech.tokens import GROUP_SECONDS, TokenLayout
from stepstack.records import Problem
from stepstack.report import jsonl
from stepstack.scoring import speech as scoring
from stepstack.scoring.speech import TakeMeasures


def build(shape: SpeechLmConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Untrained model over the text and the audio tokens; a turn's end is its end of sequence."""
    lm = tiny.qwen2(len(tokenizer), seed=seed, max_length=512, **shape.arguments)
    end = int(tokenizer.convert_tokens_to_ids(EOT))  # type: ignore[arg-type]
    lm.config.eos_token_id = end
    assert lm.generation_config is not None
    lm.generation_config.eos_token_id = end
    return lm


def mask_of(layout: TokenLayout, lm: PreTrainedModel) -> GroupMask:
    return GroupMask(layout, [lm.config.eos_token_id], lm.config.vocab_size)


def generator_of(cfg: Config, folder: Path, device: torch.device) -> tuple[HfGenerator, PreTrainedTokenizerBase]:
    """Sampler of a model folder, which keeps whole groups."""
    place = Pretrained(path=str(folder))
    lm, tokenizer = pretrained.load(place, AutoModelForCausalLM), pretrained.load_tokenizer(place)
    mask = mask_of(layout_of(cfg, tokenizer), lm)
    return HfGenerator(lm, tokenizer, cfg.generator, device, mask=mask), tokenizer


def line_of(meta: dict[str, str], text: str) -> Line:
    return Line(text, meta["speaker"], meta["tag"])


def asked_line(cfg: Config, question: Question) -> Line:
    """Line that a question asks for. EngineError for a voice that is given by a recording, which no tiny model has
    learned, and for a chat."""
    match question.request:
        case SpeechPrompt(text, speaker, tag, None):
            line = Line(text, speaker, tag)
            sentences.check_line(line, cfg.drawn)
            return line
        case str():
            return line_of(dict(question.problem.meta), question.problem.text)
        case _:
            raise EngineError(
                f"question {question.problem.index} asks for a voice by its recording, or for a chat: the tiny models "
                "speak drawn lines by speakers that they know: evaluate a published model, or a server"
            )


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder that speaks the lines of problems."""
    generator, tokenizer = generator_of(cfg, folder, device)

    def prompt(question: Question) -> Prompt:
        return Prompt(question.problem, prompt_ids(asked_line(cfg, question), tokenizer))

    return engine_of(cfg.generator, generator, tokenizer, prompt=prompt)


def say(cfg: Config, line: Line, folder: Path, out: Path, temperature: float, seed: int) -> str:
    """Write a WAV of a spoken line; returns a line to print. ConfigError for a line that the model cannot say, or a
    folder without a model."""
    sentences.check_line(line, cfg.drawn)
    check_model(cfg, folder)
    generator, tokenizer = generator_of(cfg, folder, torch.device("cpu"))
    layout = layout_of(cfg, tokenizer)
    sampling = Sampling(temperature=temperature, seed=seed, max_tokens=cfg.max_tokens)
    [[take]] = speak(generator, tokenizer, layout, sampling)([line], 0)
    audio.write_wav(out, load_decoder(cfg).decode(take.codes).numpy(), speech.RATE)
    ended = "" if take.ended else ", cut off: it did not end by itself"
    return f"{out}: {take.groups * GROUP_SECONDS:.2f} s, {take.groups} groups of tokens{ended}"


def check_model(cfg: Config, folder: Path) -> None:
    """ConfigError for a folder without a model."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no model: train one (make train RECIPE={cfg.name}), or give --model")


# -- the data engine ------------------------------------------------------------------------------------------------


def speak(
    generator: HfGenerator, tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, sampling: Sampling
) -> speech.Speak:
    """Function that speaks lines; a take's seed follows from its line's place and its own number."""

    def takes(lines: Sequence[Line], first: int) -> list[list[Take]]:
        prompts = [
            Prompt(Problem(first + k, line.text, ""), prompt_ids(line, tokenizer)) for k, line in enumerate(lines)
        ]
        found: dict[int, list[Take]] = {}
        for group in generator.generate(prompts, sampling):
            place = group.prompt.problem.index - first
            found[place] = [
                Take(lines[place], layout.split(layout.whole_groups(r.ids)), r.finish == "stop") for r in group.rollouts
            ]
        return [found[place] for place in range(len(lines))]

    return takes


def judge(cfg: EngineConfig, decoder: SpeechDecoder, recorded: Sequence[Take], speakers: Sequence[str]) -> Judge:
    """Function that measures takes: duration against the one expected by ``recorded``, and of ``cfg.measured`` word
    errors, similarity to the centroid of its speaker (one of ``speakers``), overall DNSMOS, and silence within. A take
    without a whole group has the least of each."""
    durations, asked = DurationModel(recorded), cfg.measured
    transcribe = transcriber(cfg.judge) if "wer" in asked else None
    encoder = SpeakerEncoder() if "similarity" in asked else None
    centroids = {} if encoder is None else speaker_centroids(encoder, decoder, recorded, speakers)
    dnsmos = Dnsmos() if "dnsmos" in asked else None

    def measured(takes: Sequence[Take]) -> list[tuple[TakeMeasures, str]]:
        waves = {k: decoder.decode(take.codes) for k, take in enumerate(takes) if asked and take.groups}
        heard = {}
        if transcribe is not None and waves:
            heard = dict(zip(waves, transcribe(list(waves.values())), strict=True))
        return [(measures(take, waves.get(k), heard.get(k, "")), heard.get(k, "")) for k, take in enumerate(takes)]

    def measures(take: Take, wave: Tensor | None, heard: str) -> TakeMeasures:
        wer = scoring.word_errors(take.line.text, heard, "spoken-en").rate if "wer" in asked else None
        similarity = mos = silence = None
        if encoder is not None:
            found = {} if wave is None else similarities(encoder, centroids, wave)
            similarity = found.get(take.line.speaker, -1.0)
        if dnsmos is not None:
            mos = 1.0 if wave is None else dnsmos.rate(wave)["overall"]
        if "silence" in asked:
            silence = 0.0 if wave is None else scoring.silences(wave.numpy(), speech.RATE)[1]
        duration = take.groups / durations.groups(take.line)
        return TakeMeasures(
            wer=wer, similarity=similarity, dnsmos=mos, duration=duration, silence=silence, ended=take.ended
        )

    return measured


def run_engine(run: Run[Config], teacher: Path) -> Kept:
    """Takes of the engine's lines by the teacher, filtered."""
    cfg, kind = run.config, run.config.engine
    generator, tokenizer = generator_of(cfg, teacher, run.device)
    layout, codebooks = layout_of(cfg, tokenizer), load_tokenizer(cfg)
    sampling = cfg.engine_sampling
    weights = hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()[:16]
    speak_lines = speak(generator, tokenizer, layout, sampling)
    measured = judge(kind, load_decoder(cfg), recordings(cfg, "train"), cfg.drawn.names)
    makers = {"tokenizer": codebooks.digest, "teacher": weights}
    return spoken(run, engine_lines(cfg), speak_lines, measured, layout, makers)


def spoken(
    run: Run[Config],
    lines: Sequence[Line],
    speak_lines: speech.Speak,
    judge: Judge,
    layout: TokenLayout,
    makers: Mapping[str, str],
) -> Kept:
    """Takes of lines, spoken and measured shard by shard in the engine's folder, then filtered; the report goes to
    engine/report.json of the run.

    ``makers``: digests of what makes them beside the engine's config and the seed. ConfigError, or DataError, for
    shards of anything else in the folder, and for shards without a measure that the config asks for.
    """
    cfg, kind = run.config, run.config.engine
    folder = run.dir / "engine" if kind.folder is None else ROOT / kind.folder
    settings = to_dict(kind) | {"filter": None, "folder": None, "seed": cfg.seed, **makers}
    identity = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
    files = speech.run_engine(
        folder,
        lines,
        speak_lines,
        judge,
        identity=identity,
        shard=kind.shard,
        process=run.rank,
        processes=run.processes,
    )
    run.accelerator.wait_for_everyone()
    takes = speech.read_engine(files, lines, identity, kind.shard)
    if lacking := [name for name in kind.measured if any(getattr(each.measures, name) is None for each in takes)]:
        raise ConfigError(
            f"{folder}: its shards were written when nobody measured {' and '.join(lacking)}, for which this config "
            "asks: remove them, and the lines are spoken again, or name another engine.folder"
        )
    kept = speech.keep(takes, kind.filter, layout)
    if run.is_main:
        report = {"rates": kept.rates, "texts_without_a_take": kept.silent_texts, "codebooks": kept.codebooks}
        jsonl.write_json_atomic(run.dir / "engine" / "report.json", report)
    return kept


def student_takes(run: Run[Config], teacher: Path) -> list[Take]:
    """Utterances that the student learns, by ``source``."""
    if run.config.source == "recordings":
        return limited(run.config, recordings(run.config, "train"))
    return chosen(run, run_engine(run, teacher))


def chosen(run: Run[Config], kept: Kept) -> list[Take]:
    """Takes of the engine that the student learns, by ``source``. ConfigError where there are none."""
    cfg = run.config
    takes = {"all": kept.spoken, "kept": kept.passed, "best": kept.best}[cfg.source]
    if not takes:
        raise ConfigError(
            f"source={cfg.source}: no take of the engine passes its filters: {run.dir / 'engine' / 'report.json'} says "
            "which refused how many: loosen engine.filter, or train the teacher for longer"
        )
    return limited(cfg, [each.take for each in takes])


def limited(cfg: Config, takes: list[Take]) -> list[Take]:
    """The first ``limit`` takes. ConfigError where there are fewer: sources would not be compared at equal numbers."""
    if cfg.limit is not None and len(takes) < cfg.limit:
        raise ConfigError(f"limit={cfg.limit}, but source={cfg.source} has {len(takes)} takes: lower the limit")
    return takes[: cfg.limit]
