"""Teacher and student: how they are made, how they speak, and the engine between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
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
    rows,
)
from stepstack.batching.rows import Row
from stepstack.batching.stream import RowStream
from stepstack.config import ROOT, ConfigError, Save, to_dict
from stepstack.core.config import TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import SpeechPrompt
from stepstack.generation.types import EngineError, Prompt, Sampling
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine, engine_of
from stepstack.loops import supervised
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.policy import Policy
from stepstack.models.speech.decoder import SpeechDecoder
from stepstack.models.speech.judges import GrammarRecognizer
from stepstack.models.speech.mask import GroupMask
from stepstack.models.speech.tokens import GROUP_SECONDS, TokenLayout
from stepstack.models.speech.whisper import WhisperRecognizer
from stepstack.records import Problem
from stepstack.report import jsonl
from stepstack.scoring import speech as scoring
from stepstack.scoring.speech import TakeMeasures


def build(shape: SpeechLmConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Untrained model over the text and the audio tokens; a turn's end is its end of sequence."""
    sizes = {"hidden": shape.hidden, "layers": shape.layers, "intermediate": shape.intermediate}
    lm = tiny.qwen2(len(tokenizer), seed=seed, max_length=512, **sizes)
    end = int(tokenizer.convert_tokens_to_ids(EOT))  # type: ignore[arg-type]
    lm.config.eos_token_id = end
    assert lm.generation_config is not None
    lm.generation_config.eos_token_id = end
    return lm


def mask_of(layout: TokenLayout, lm: PreTrainedModel) -> GroupMask:
    return GroupMask(layout, [lm.config.eos_token_id], lm.config.vocab_size)


def fit(
    run: Run[Config],
    shape: SpeechLmConfig,
    cfg: TrainableConfig,
    learned: Sequence[Row],
    *,
    tokenizer: PreTrainedTokenizerBase,
    batch: int,
    steps: int,
) -> None:
    """Supervised training of one model from scratch, by the loop. The mask leaves what no turn can hold out of the
    loss."""
    run.reseed()
    make = partial(build, shape, tokenizer, run.config.seed)
    lm = run.load(make, make)
    policy = run.trainable("policy", Policy(lm, mask=mask_of(layout_of(run.config, tokenizer), lm)), cfg, steps)
    stream: RowStream[Row] = RowStream(learned, batch, run.config.seed)
    supervised.train(run, policy=policy, rows=stream.take, steps=steps, layout=run.config.layout)


def train_teacher(run: Run[Config], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folder of the teacher: the config's, or one that a stage of the run trains on the recordings, or found finished.
    ConfigError for a folder of the config that holds no model."""
    cfg, folder = run.config, run.dir / "teacher" / "model"
    if cfg.teacher.folder is not None:
        folder = ROOT / cfg.teacher.folder
        if not (folder / "config.json").is_file():
            raise ConfigError(f"teacher.folder={folder} holds no model: train one, or set it to null")
    if not folder.is_dir():
        inner = stage(run, "teacher", eval_every=0, save=Save(every=cfg.save.every, keep=1))
        learned = rows(recordings(cfg, "train"), tokenizer, layout_of(cfg, tokenizer))
        kind = cfg.teacher
        optim = TrainableConfig(optim=kind.optim)
        fit(inner, kind.model, optim, learned, tokenizer=tokenizer, batch=kind.batch, steps=kind.steps)
        inner.export("policy", folder, tokenizer)
        inner.finish()
        inner.accelerator.free_memory()
    return folder


def generator_of(cfg: Config, folder: Path, device: torch.device) -> tuple[HfGenerator, PreTrainedTokenizerBase]:
    """Sampler of a model folder, which keeps whole groups."""
    place = Pretrained(path=str(folder))
    lm, tokenizer = pretrained.load(place, AutoModelForCausalLM), pretrained.load_tokenizer(place)
    mask = mask_of(layout_of(cfg, tokenizer), lm)
    return HfGenerator(lm, tokenizer, cfg.generator, device, mask=mask), tokenizer


def line_of(meta: dict[str, str], text: str) -> Line:
    return Line(text, meta["speaker"], meta["tag"])


def asked_line(question: Question) -> Line:
    """Line that a question asks for. EngineError for a voice that is given by a recording, which no tiny model has
    learned, and for a chat."""
    match question.request:
        case SpeechPrompt(text, speaker, tag, None):
            line = Line(text, speaker, tag)
            sentences.check_line(line)
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
        return Prompt(question.problem, prompt_ids(asked_line(question), tokenizer))

    return engine_of(cfg.generator, generator, tokenizer, prompt=prompt)


def say(cfg: Config, line: Line, folder: Path, out: Path, temperature: float, seed: int) -> str:
    """Write a WAV of a spoken line; returns a line to print. ConfigError for a line that the model cannot say, or a
    folder without a model."""
    sentences.check_line(line)
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


def judge(cfg: EngineConfig, decoder: SpeechDecoder, durations: DurationModel) -> Judge:
    """Function that measures takes: duration against the expected one, silence within, and word errors where the config
    asks a recogniser."""
    grammar = GrammarRecognizer(sentences.jsgf()) if cfg.judge == "grammar" else None
    whisper = WhisperRecognizer() if cfg.judge == "whisper" else None

    def measured(takes: Sequence[Take]) -> list[tuple[TakeMeasures, str]]:
        heard: list[str] = [""] * len(takes)
        waves = [] if cfg.judge == "none" and cfg.filter.silence is None else [decoder.decode(t.codes) for t in takes]
        if grammar is not None:
            heard = [grammar.transcribe(wave) for wave in waves]
        elif whisper is not None:
            heard = whisper.transcribe(waves)
        results = []
        for k, take in enumerate(takes):
            asked = cfg.judge != "none"
            wer = scoring.word_errors(take.line.text, heard[k], "spoken-en").rate if asked else None
            silence = scoring.silences(waves[k].numpy(), speech.RATE)[1] if waves else None
            duration = take.groups / durations.groups(take.line)
            results.append((TakeMeasures(wer=wer, duration=duration, silence=silence, ended=take.ended), heard[k]))
        return results

    return measured


def run_engine(run: Run[Config], teacher: Path) -> Kept:
    """Takes of the engine's lines by the teacher, filtered; the report goes to engine/report.json."""
    cfg, kind = run.config, run.config.engine
    folder = run.dir / "engine" if kind.folder is None else ROOT / kind.folder
    generator, tokenizer = generator_of(cfg, teacher, run.device)
    layout, codebooks = layout_of(cfg, tokenizer), load_tokenizer(cfg)
    sampling = Sampling(n=kind.takes, temperature=kind.temperature, max_tokens=cfg.max_tokens, seed=cfg.seed)
    lines = engine_lines(cfg)
    weights = hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()[:16]
    made = {"filter": None, "folder": None, "seed": cfg.seed, "tokenizer": codebooks.digest, "teacher": weights}
    settings = to_dict(kind) | made
    identity = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
    measured = judge(kind, load_decoder(cfg), DurationModel(recordings(cfg, "train")))
    files = speech.run_engine(
        folder,
        lines,
        speak(generator, tokenizer, layout, sampling),
        measured,
        identity=identity,
        shard=kind.shard,
        process=run.rank,
        processes=run.processes,
    )
    run.accelerator.wait_for_everyone()
    kept = speech.keep(speech.read_engine(files, lines, identity, kind.shard), kind.filter, layout)
    if run.is_main:
        report = {"rates": kept.rates, "texts_without_a_take": kept.silent_texts, "codebooks": kept.codebooks}
        jsonl.write_json_atomic(run.dir / "engine" / "report.json", report)
    return kept


def student_takes(run: Run[Config], teacher: Path) -> list[Take]:
    """Utterances that the student learns, by ``source``."""
    cfg = run.config
    match cfg.source:
        case "recordings":
            takes = recordings(cfg, "train")
        case "all":
            takes = [each.take for each in run_engine(run, teacher).spoken]
        case "kept":
            takes = [each.take for each in run_engine(run, teacher).passed]
    return takes[: cfg.limit]
