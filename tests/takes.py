"""Made-up takes and token files of stepaudio, and the overrides of a run of a few steps on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.drawn import sentences
from data.drawn.sentences import Line
from data.drawn.splits import SPLITS
from data.sets import mel_decoder, speech
from data.sets.speech import Take
from recipes.protocol import load_config
from recipes.stepaudio import data
from recipes.stepaudio.config import Config
from recipes.stepaudio.recipe import train
from stepstack.core.run import Run
from stepstack.models.speech.codebook import Codebook
from stepstack.models.speech.decoder import ContextTables, context_size
from stepstack.models.speech.tokenizer import OfflineTokenizer

SHORT = (
    "data.train=24",
    "data.engine=12",
    "data.select=2",
    "data.test=4",
    "codebooks=[8, 16]",
    "teacher.steps=4",
    "teacher.batch=4",
    "teacher.model={hidden: 16, layers: 1, intermediate: 32}",
    "model={hidden: 16, layers: 1, intermediate: 32}",
    "steps=4",
    "batch=4",
    "save.every=2",
    "engine.shard=5",
    "engine.filter={duration: null, ended: false}",
    "max_tokens=20",
    "trackers=[]",
)


def spoken(line: Line) -> Take:
    """Made-up take of a line: a group for each word, two where it is slow."""
    places = [sentences.words().index(word) for word in line.text.split()]
    groups = [place for place in places for _ in range(2 if line.tag == "(slow1)" else 1)]
    return Take(line, ([p % 8 for p in groups for _ in "LL"], [p % 16 for p in groups for _ in "SSS"]))


def make_tokens(folder: Path) -> Path:
    """Codebooks of noise, and files of made-up takes."""
    rng = torch.Generator().manual_seed(0)

    def book(size: int, width: int) -> Codebook:
        return Codebook(torch.randn(size, width, generator=rng).half().float(), torch.zeros(width), torch.ones(width))

    tokenizer = OfflineTokenizer(book(8, 6), book(16, 320))
    tokenizer.save(folder)
    cfg = load_config("stepaudio-tiny", SHORT, kind=Config)
    for split in SPLITS:
        takes = [spoken(line) for line in data.split_lines(cfg, split)]
        speech.save_takes(folder / f"{split}.safetensors", takes, tokenizer.digest)
    tables = ContextTables(torch.zeros(context_size(8, 16), 320), 8, 16)
    mel_decoder.save_context_tables(folder / data.TABLES, tables, tokenizer.digest)
    (folder / data.VOICES).write_text(json.dumps(VOICES))
    (folder / data.CODEC).write_text('{"decoder": {"wer": 0.04}}')
    return folder


def short(folder: Path, tokens: Path, *more: str) -> Config:
    """Config of a short run in ``folder`` on the token files of ``make_tokens``."""
    place = (f"dir={folder}", "name=short", f"tokens={tokens}")
    return load_config("stepaudio-tiny", [*place, *SHORT, *more], kind=Config)


VOICES = {  # of the default speakers, as `stepstack data` writes them
    "heart": {"voice": "hibari", "factor": 1.0, "made_by": "made up"},
    "deep": {"voice": "hibari", "factor": 0.83, "made_by": "made up"},
}

TOY = """
from stepstack.records import Score

def score(rollouts):
    \"\"\"Share of the linguistic tokens that are of the first half of their codebook.\"\"\"
    first = FIRST
    found = []
    for rollout in rollouts:
        linguistic = [token - first for token in rollout.ids if first <= token < first + 8]
        found.append(Score(sum(code < 4 for code in linguistic) / max(1, len(linguistic))))
    return found
"""


def toy_reward(folder: Path) -> str:
    """Setting of a reward that needs no voice package, out of a file that it writes."""
    cfg, file = load_config("stepaudio-tiny", SHORT, kind=Config), folder / "toy_reward.py"
    file.write_text(TOY.replace("FIRST", str(data.layout_of(cfg, data.text_tokenizer(cfg)).first)))
    return f"{{type: file, path: {file}}}"


def trained(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Weights of the student of a whole run, which nobody hears."""
    monkeypatch.setattr("recipes.stepaudio.recipe.missing_judges", lambda cfg: "no judge in this test")
    train(Run(cfg))
    return load_file(cfg.folder / "model" / "model.safetensors")
