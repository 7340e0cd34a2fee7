"""`stepstack eval`: a model, tasks, a table, a page with every sample."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from stepstack.config import ConfigError, RunConfig, digest
from stepstack.core.run import FREE, Run
from stepstack.core.world import World
from stepstack.harness.engine import Engine
from stepstack.harness.model import folder_of, record
from stepstack.harness.server import ServerConfig, ServerEngine
from stepstack.harness.suite import Evaluated, Options, evaluate_all
from stepstack.report import viewer


def run(
    cfg: RunConfig,
    recipe: ModuleType,
    *,
    model: str | None,
    tasks: Sequence[str],
    options: Options,
    server: ServerConfig | None,
    show: bool,
) -> Evaluated:
    """Evaluate ``model`` (default: the run's) on ``tasks`` (default: the config's), print the table, write the page.

    Results go to runs/<name>/evals/<label>, the label being the model's folder name and hash.
    """
    world = World(cfg.launch.threads)
    engine: Engine
    if server is not None:
        engine = remote = ServerEngine(server)
        facts = remote.model_record()
    else:
        folder = folder_of(model or str(Run.folder(cfg) / "model"))
        facts = world.gather([record(folder, model)] if world.rank == 0 else [])[0]
        engine = recipe.open_engine(cfg, folder, world.device)
    label = label_of(facts)
    place = Run.folder(cfg) / "evals" / label
    found = evaluate_all(
        tasks or cfg.evals,
        engine,
        world,
        own=recipe.own(cfg),
        root=place,
        model=facts,
        options=options,
        about={"config": digest(cfg, FREE)},
    )
    if world.rank == 0:
        print_table(label, found)
        page = viewer.write(place / "samples.html", {label: [folder for folder, _ in found]})
        print(f"samples: {page}")
        if show:
            webbrowser.open(page.resolve().as_uri())
    return found


def label_of(model: dict[str, Any]) -> str:
    """A folder name for a model: ``model-3fa9c1d2``."""
    stem = model["name"].rstrip("/").rpartition("/")[2]
    return f"{stem}-{model['sha256'][:8]}" if model["sha256"] else stem


def print_table(title: str, found: Evaluated) -> None:
    """Task, metrics with standard errors, and what was lost on the way."""
    table = Table(title=title)
    for column in ("task", "metric", "value", "n", "truncated", "failed", "tokens"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
    for _, result in found:
        for place, metric in enumerate(result["metrics"]):
            first = place == 0
            failed = sum(result["failed"].values())
            table.add_row(
                f"{result['task']} v{result['version']}" if first else "",
                metric["name"] + ("" if metric["higher_is_better"] else " (less is better)"),
                f"{figure(metric['value'])} ± {figure(metric['stderr'])}",
                str(metric["n"]),
                f"{result['truncated']}/{result['samples']}" if first else "",
                f"{failed}/{result['samples']}" if first else "",
                f"{result['length']:.1f}" if first and result["length"] is not None else "",
            )
    console = Console()
    if not console.is_terminal:  # a file or a pipe, which rich takes for 80 columns wide
        console.width = 120
    console.print(table)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def places_of(names: Sequence[str]) -> dict[str, list[Path]]:
    """Label -> evaluation folders, of folders that hold some (runs/<name>/evals/<label>) or are one.

    ConfigError for a folder without a finished evaluation.
    """
    found: dict[str, list[Path]] = {}
    for name in names:
        folder = Path(name)
        whole = (folder / "result.json").is_file()
        places = [folder] if whole else sorted(file.parent for file in folder.glob("*/result.json"))
        if not places:
            raise ConfigError(f"{name} holds no finished evaluation (no result.json): give runs/<name>/evals/<label>")
        label = folder.name if folder.name not in found else str(folder)
        found[label] = places
    return found
