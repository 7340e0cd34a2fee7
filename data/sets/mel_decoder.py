"""Fitting of what makes mels of speech codes, from recordings and their codes: tables, or a flow-matching net."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import DataError
from stepstack.diffusion.speech import mel_flow_loss
from stepstack.models.speech.codebook import Codebook
from stepstack.models.speech.decoder import (
    FRAMES_A_GROUP,
    ContextTables,
    MelFlow,
    MelFlowShape,
    context_places,
    context_size,
)
from stepstack.models.speech.mel import log_mel
from stepstack.models.speech.tokenizer import FRAMES, Codes, semantic_features
from stepstack.models.speech.tokens import LINGUISTIC, SEMANTIC

CROP = 8  # groups of an example


def train_mel_flow(
    recordings: Sequence[tuple[Tensor, Codes]],
    semantic: Codebook,
    shape: MelFlowShape,
    *,
    steps: int = 300,
    batch: int = 24,
    lr: float = 2e-3,
    seed: int = 0,
) -> MelFlow:
    """Net trained by flow matching on crops of waves and their codes, a pure function of its arguments. Recordings
    shorter than a crop are left out; DataError where all are."""
    torch.manual_seed(seed)
    net, rng = MelFlow(shape), random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    examples = [(log_mel(wave, FRAMES), codes) for wave, codes in recordings if len(codes[0]) >= CROP * LINGUISTIC]
    if not examples:
        raise DataError(f"no recording has {CROP} groups of codes: give longer ones")
    frames = torch.cat([mel for mel, _ in examples])
    net.mean_C.copy_(frames.mean(0))
    net.deviation_C.copy_(frames.std(0).clamp(min=1e-2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        crops = [_crop(*rng.choice(examples), rng) for _ in range(batch)]
        loss = mel_flow_loss(net, torch.stack([mel for mel, _ in crops]), [c for _, c in crops], semantic, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.eval()


def _crop(mel_FC: Tensor, codes: Codes, rng: random.Random) -> tuple[Tensor, Codes]:
    first = rng.randint(0, len(codes[0]) // LINGUISTIC - CROP)
    last = first + CROP
    cut = codes[0][first * LINGUISTIC : last * LINGUISTIC], codes[1][first * SEMANTIC : last * SEMANTIC]
    return mel_FC[first * FRAMES_A_GROUP : last * FRAMES_A_GROUP], cut


def fit_context_tables(
    recordings: Iterable[tuple[Tensor, Codes]], semantic: Codebook, linguistic: int, *, ridge: float = 3.0
) -> ContextTables:
    """Tables of least squares, with a ridge of that many observations of zero an entry; deterministic."""
    size, width = context_size(linguistic, len(semantic)), semantic.centroids_VD.shape[1]
    gram, products = torch.zeros(size, size), torch.zeros(size, width)
    for wave, codes in recordings:
        places = context_places(codes, linguistic, len(semantic))
        error = semantic_features(wave)[: len(places)] - semantic.decode(codes[1])
        seen = torch.zeros(len(places), size).scatter_(1, places, 1.0)
        used = places.unique()
        gram[used[:, None], used] += seen[:, used].T @ seen[:, used]
        products[used] += seen[:, used].T @ error
    weights = torch.linalg.solve(gram + ridge * torch.eye(size), products)
    whole, scale = _bytes(weights)
    return ContextTables(whole * scale, linguistic, len(semantic))


def _bytes(weights_VO: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as whole numbers of a byte, and the scale of each entry: what a file holds."""
    scale = (weights_VO.abs().amax(1, keepdim=True) / 127).clamp(min=1e-6).half().float()
    return (weights_VO / scale).round().clamp(-127, 127), scale


def save_context_tables(file: Path, tables: ContextTables, digest: str) -> None:
    """Write tables, a byte a number. ``digest``: of the tokenizer whose codes they read."""
    sizes = {"digest": digest, "linguistic": str(tables.linguistic), "semantic": str(tables.semantic)}
    whole, scale = _bytes(tables.weights_VO)
    save_file({"codes": whole.to(torch.int8).contiguous(), "scale": scale.half()}, file, metadata=sizes)


def load_context_tables(file: Path, digest: str) -> ContextTables:
    """Tables of a file. DataError for one that is missing, or reads the codes of another tokenizer."""
    content = _metadata(file, digest)
    tensors = load_file(file)
    weights = tensors["codes"].float() * tensors["scale"].float()
    return ContextTables(weights, int(content["linguistic"]), int(content["semantic"]))


def _metadata(file: Path, digest: str) -> dict[str, str]:
    if not file.is_file():
        raise DataError(f"{file} does not exist: make it first (make data)")
    with safe_open(file, framework="pt") as opened:
        content = opened.metadata() or {}
    if content.get("digest") != digest:
        raise DataError(f"{file} reads codes of {content.get('digest')}, the tokenizer is {digest}: make it again")
    return content


def save_mel_flow(file: Path, net: MelFlow, digest: str) -> None:
    """Write a net in half precision. ``digest``: of the tokenizer whose codes it reads."""
    content = {"shape": json.dumps(net.settings()), "digest": digest}
    save_file({name: value.half().contiguous() for name, value in net.state_dict().items()}, file, metadata=content)


def load_mel_flow(file: Path, digest: str) -> MelFlow:
    """Net of a file. DataError for one that is missing, or reads the codes of another tokenizer."""
    content = _metadata(file, digest)
    net = MelFlow(MelFlowShape(**json.loads(content["shape"])))
    net.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return net.eval()
