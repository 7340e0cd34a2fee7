"""`stepstack eval`: evaluate a config's model, or any other in its place, on benchmark tasks."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepstack.cli.common import add_config, add_data, quiet_libraries, words

if TYPE_CHECKING:
    from recipes.protocol import Recipe
    from stepstack.config import RunConfig
    from stepstack.harness.engines.server import ServerConfig
    from stepstack.harness.suite import Evaluated, SuiteOptions

HELP = "evaluate a config's model, or any other in its place, on benchmark tasks"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--model", help="folder or hub name; default: runs/<name>/model")
    tasks = "names, files, lm_eval:<task>; with commas; default: the config's evals"
    parser.add_argument("--tasks", default="", help=tasks)
    samples = "samples a question, in place of the task's own number"
    parser.add_argument("--samples", type=int, metavar="K", help=samples)
    parser.add_argument("--greedy", action="store_true", help="one sample at temperature 0")
    parser.add_argument("--max-tokens", type=int, help="bound of a response, in place of the task's")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions only")
    add_data(parser)
    parser.add_argument("--include", type=Path, help="folder with more tasks for lm_eval:<task>")
    parser.add_argument("--retry-failed", action="store_true", help="ask failed questions again")
    curve = "the curve of a run's checkpoints, on its select split"
    parser.add_argument("--checkpoints", action="store_true", help=curve)
    server = "an OpenAI-compatible server answers, e.g. http://host:8000/v1"
    parser.add_argument("--server", metavar="URL", help=server)
    parser.add_argument("--server-model", help="its model's name; default: the only one it has")
    parser.add_argument("--key-file", help="file that holds the server's API key")
    parser.add_argument("--open", action="store_true", help="show the page of samples in a browser")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.core.inputs import refuse_others
    from stepstack.harness.engines.server import ServerConfig
    from stepstack.harness.suite import SuiteOptions

    cfg = protocol.load_config(args.name, args.overrides)
    recipe = protocol.load(cfg.recipe)
    quiet_libraries()
    chosen = SuiteOptions(
        samples=args.samples,
        greedy=args.greedy,
        max_tokens=args.max_tokens,
        seed=args.seed,
        limit=args.limit,
        retry=args.retry_failed,
        data=args.data,
        include=args.include,
    )
    names = words(args.tasks)
    if args.model is None and args.server is None:
        refuse_others(cfg.folder, cfg)
    if args.checkpoints:
        return checkpoint_curve(cfg, recipe, names or ["select"], chosen)
    server = None
    if args.server:
        server = ServerConfig(url=args.server, model=args.server_model, key_file=args.key_file)
    evaluate(cfg, recipe, model=args.model, tasks=names, options=chosen, server=server, show=args.open)
    return 0


def evaluate(
    cfg: RunConfig,
    recipe: Recipe,
    *,
    model: str | None,
    tasks: Sequence[str],
    options: SuiteOptions,
    server: ServerConfig | None,
    show: bool,
) -> Evaluated:
    """Evaluate ``model`` (default: the run's) on ``tasks`` (default: the config's), print the table, write the page.

    Results go to runs/<name>/evals/<label>, the label being the model's folder name and hash.
    """
    from stepstack.config import digest
    from stepstack.core.folder import CHANGEABLE_KEYS
    from stepstack.core.processes import LaunchedProcesses
    from stepstack.harness.engine import Engine
    from stepstack.harness.engines.server import ServerEngine
    from stepstack.harness.model import folder_of, record
    from stepstack.harness.suite import evaluate_all
    from stepstack.harness.summary import label_of, print_table
    from stepstack.report import viewer

    world = LaunchedProcesses(cfg.launch)
    engine: Engine
    if server is not None:
        engine = remote = ServerEngine(server)
        facts = remote.model_record()
    else:
        folder = folder_of(model or str(cfg.folder / "model"))
        facts = world.gather([record(folder, model)] if world.rank == 0 else [])[0]
        engine = recipe.open_engine(cfg, folder, world.device)
    label = label_of(facts)
    place = cfg.folder / "evals" / label
    evaluated = evaluate_all(
        tasks or cfg.evals,
        engine,
        world,
        recipe_tasks=recipe.tasks(cfg),
        root=place,
        model=facts,
        options=options,
        about={"config": digest(cfg, CHANGEABLE_KEYS)},
    )
    if world.rank == 0:
        print_table(label, evaluated)
        page = viewer.write(place / "samples.html", {label: [folder for folder, _ in evaluated]})
        print(f"samples: {page}")
        if show:
            webbrowser.open(page.resolve().as_uri())
    return evaluated


def checkpoint_curve(cfg: RunConfig, recipe: Recipe, tasks: Sequence[str], options: SuiteOptions) -> int:
    """Evaluate every whole checkpoint of the run, print the table and write the run's report anew."""
    from stepstack.config import ConfigError
    from stepstack.core.processes import LaunchedProcesses
    from stepstack.harness.engines.generator import GeneratorEngine
    from stepstack.harness.model import folder_of
    from stepstack.harness.training import checkpoints

    world = LaunchedProcesses(cfg.launch)
    places = checkpoints.whole(cfg.folder)
    engine = recipe.open_engine(cfg, folder_of(str(cfg.folder / "model")), world.device)
    if not isinstance(engine, GeneratorEngine):
        raise ConfigError(
            f"--checkpoints: the engine of recipe {cfg.recipe} cannot take the weights of a checkpoint: "
            "evaluate exported models"
        )
    checkpoints.run(cfg, places, engine, world, recipe_tasks=recipe.tasks(cfg), tasks=tasks, options=options)
    if world.rank == 0:
        print(f"report: {recipe.write_report(cfg.folder)}")
    return 0
