"""The model of a run: published or tiny, with a chat template and an end token that it stops at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from recipes.chat.config import Config, TinyChat
from stepstack.batching.config import ChatConfig
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.generation.chat import ChatEncoder, end_tokens
from stepstack.generation.prompts import NotText, encode
from stepstack.generation.types import EngineError, Prompt
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine, open_generator
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.policy import Policy
from stepstack.models.vision import pretrained as vision
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.policy import VisionPolicy
from stepstack.models.vision.processor import Processor
from stepstack.user_code import resolve_path

PIECES = ("user\n", "assistant\n", "So ", "Sure?", ", no", ", yes")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def start_model(run: Run[Config]) -> Pretrained:
    """The place of the model that a run begins with; a tiny one is made there."""
    match run.config.model:
        case TinyChat() as kind:
            folder = run.dir / "base" / "model"
            run.save_once(folder, partial(untrained, kind, run.config.seed))
            return Pretrained(path=str(folder))
        case Pretrained() as place:
            return place


def untrained(cfg: TinyChat, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny model as it is born."""
    tokenizer = tiny.tokenizer(pieces=PIECES, special=tiny.CHAT)
    tokenizer.chat_template = CHATML
    lm = tiny.qwen2(len(tokenizer), seed=seed, **cfg.arguments)
    write_end(lm.generation_config, tokenizer, "<|im_end|>")
    return lm, tokenizer


def load_model(run: Run[Config], place: Pretrained) -> tuple[PreTrainedModel, ChatEncoder]:
    """A model, and how conversations become its tokens. Chat template and end token are those of the config, and are
    saved with the model after training."""
    if isinstance(place, PretrainedVl):
        lm = run.load(lambda: vision.load(place), lambda: vision.skeleton(place))
    else:
        lm = run.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
    encoder, lm.generation_config = make_encoder(place, run.config.chat)
    return lm, encoder


def load_encoder(cfg: Config) -> ChatEncoder:
    """How conversations become tokens of the model that a run begins with; no weight is read."""
    if isinstance(cfg.model, TinyChat):
        lm, tokenizer = untrained(cfg.model, cfg.seed)
        return ChatEncoder(tokenizer, end_tokens(lm.generation_config), turns=cfg.chat.turns)
    return make_encoder(cfg.model, cfg.chat)[0]


def make_encoder(place: Pretrained, cfg: ChatConfig) -> tuple[ChatEncoder, GenerationConfig]:
    """(how conversations become tokens, what the model stops at)."""
    tokenizer, generation = load_tokenizer(place, cfg)
    processor = None
    if isinstance(place, PretrainedVl):
        processor = Processor(tokenizer, vision.load_processor(place).patcher)
    return ChatEncoder(tokenizer, end_tokens(generation), turns=cfg.turns, processor=processor), generation


def make_policy(lm: PreTrainedModel, encoder: ChatEncoder) -> Policy:
    """The model as what returns log-probabilities, with eyes where it has them."""
    if encoder.processor is None:
        return Policy(lm)
    return VisionPolicy(lm, encoder.processor.patcher, encoder.processor.banned)


def load_tokenizer(place: Pretrained, cfg: ChatConfig) -> tuple[PreTrainedTokenizerBase, GenerationConfig]:
    """Tokenizer, and what the model stops at, with the config's chat template and end token in place of the model's
    own. ConfigError for a model without a template."""
    tokenizer, generation = pretrained.load_tokenizer(place), pretrained.load_generation(place)
    if cfg.template is not None:
        tokenizer.chat_template = resolve_path(cfg.template).read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise ConfigError(
            "the model's tokenizer has no chat template: name a file with one (chat.template), or take an Instruct "
            "model"
        )
    if cfg.end is not None:
        write_end(generation, tokenizer, cfg.end)
    return tokenizer, generation


def write_end(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, end: str) -> None:
    """Let a model stop at a token too. ConfigError for a text that is no token."""
    if end not in tokenizer.get_vocab():
        raise ConfigError(f"chat.end = {end!r} is no token of the model: look into its tokenizer.json")
    number = tokenizer.get_vocab()[end]
    generation.eos_token_id = [number, *(other for other in end_tokens(generation) if other != number)]
    tokenizer.eos_token = end


def prompt_builder(encoder: ChatEncoder) -> Callable[[Question], Prompt]:
    """How the harness puts a question: a held-out conversation as it stands in the data, others by their request."""

    def build(question: Question) -> Prompt:
        problem = question.problem
        if "asked" in problem.meta:
            return Prompt(problem, *encoder.open(problem.meta["asked"]))
        if isinstance(question.request, NotText):
            raise EngineError(
                f"question {problem.index} has pictures, clips or speech, which this model does not read: leave the "
                "task out"
            )
        return Prompt(problem, encode(question.request, encoder.tokenizer))

    return build


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the config's generator."""
    place = Pretrained(path=str(folder)) if isinstance(cfg.model, TinyChat) else cfg.model.moved(folder)
    encoder, _ = make_encoder(place, ChatConfig())
    auto = AutoModelForCausalLM if encoder.processor is None else vision.AUTO
    processor, prompt = encoder.processor, prompt_builder(encoder)
    return open_generator(
        cfg.generator, place, device, encoder.tokenizer, auto=auto, processor=processor, prompt=prompt
    )
