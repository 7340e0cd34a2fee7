"""Optimizers and schedules as config choices. A schedule counts optimizer updates, not steps of the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stepstack.config import ConfigError, Scale
from stepstack.core import muon
from stepstack.core.config import AdamW, Muon, StepLaw


def resolve_optimizer(cfg: AdamW | Muon | StepLaw, scale: Scale) -> AdamW | Muon:
    """The optimizer itself, also where a law stands for it."""
    return cfg.adamw(scale) if isinstance(cfg, StepLaw) else cfg


def optimizers(module: nn.Module, cfg: AdamW | Muon) -> list[torch.optim.Optimizer]:
    """Every parameter that asks for a gradient is in exactly one of them. Each group keeps its peak as ``peak_lr``."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("no parameter to train: every one is frozen; let lora.targets name layers of the model")
    prepared: list[torch.optim.Optimizer]
    match cfg:
        case AdamW():
            prepared = [_adamw(_groups(named, cfg), cfg.lr, cfg)]
        case Muon():
            tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
            by_muon = [p.ndim == 2 and id(p) not in tables and not _is_table(n) for n, p in named]
            hidden = [p for (_, p), chosen in zip(named, by_muon, strict=True) if chosen]
            rest = [p for (_, p), chosen in zip(named, by_muon, strict=True) if not chosen]
            prepared = []
            if hidden:  # of adapters nothing is left for AdamW
                by_matrix = muon.MuonOptimizer(hidden, cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
                prepared.append(by_matrix)
            if rest:
                prepared.append(_adamw(rest, cfg.adamw_lr, cfg))
    for optimizer in prepared:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return prepared


def _groups(named: list[tuple[str, nn.Parameter]], cfg: AdamW) -> list[dict[str, Any]]:
    """Groups of one learning rate, by ``lr_factors``; one group where there are none. ConfigError for a key that no
    parameter's name holds."""
    by_key: dict[str, list[nn.Parameter]] = {key: [] for key in ("", *cfg.lr_factors)}
    for name, parameter in named:
        by_key[next((key for key in cfg.lr_factors if key in name), "")].append(parameter)
    if unused := [key for key in cfg.lr_factors if not by_key[key]]:
        raise ConfigError(f"optim.lr_factors: no parameter that is trained has {unused[0]!r} in its name: correct it")
    factors = {"": 1.0, **cfg.lr_factors}
    return [{"params": members, "lr": factors[key] * cfg.lr} for key, members in by_key.items() if members]


def _adamw(parameters: list[Any], lr: float, cfg: AdamW | Muon) -> torch.optim.AdamW:
    eps = cfg.eps if isinstance(cfg, AdamW) else 1e-8
    fused = True  # the same arithmetic in one pass over memory
    return torch.optim.AdamW(parameters, lr=lr, betas=cfg.betas, eps=eps, weight_decay=cfg.weight_decay, fused=fused)


def _is_table(name: str) -> bool:
    """Embeddings and heads are looked up or read out, not hidden maps: Muon is not for them."""
    return "embed" in name or "lm_head" in name or "value_head" in name
