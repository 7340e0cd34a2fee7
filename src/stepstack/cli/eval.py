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
    again = "ask anew what was answered before: everything, or with --again=failed what failed"
    parser.add_argument("--again", nargs="?", const="all", choices=("all", "failed"), help=again)
    curve = "the curve of a run's checkpoints, on its select split"
    parser.add_argument("--checkpoints", action="store_true", help=curve)
    server = "an OpenAI-compatible server answers, e.g. http://host:8000/v1"
    parser.add_argument("--server", metavar="URL", help=server)
    parser.add_argument("--server-model", help="its model's name; default: the only one it has")
    model_id = "which weights it serves (a commit, a hash); default: what its list of models tells"
    parser.add_argument("--model-id", metavar="ID", help=model_id)
    parser.add_argument("--key-file", help="file that holds the server's API key")
    parser.add_argument("--concurrency", type=int, metavar="N", help="requests to it in flight; default: 32")
    patience = "seconds without any answer of the server before it is given up; default: 60"
    parser.add_argument("--patience", type=float, metavar="S", help=patience)
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds of one answer; default: 600")
    parser.add_argument("--open", action="store_true", help="show the page of samples in a browser")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.core.inputs import refuse_others
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
        again=args.again,
        data=args.data,
        include=args.include,
    )
    names, server = words(args.tasks), server_of(args)
    if args.model is None and server is None:
        refuse_others(cfg.folder, cfg)
    if args.checkpoints:
        return checkpoint_curve(cfg, recipe, names or ["select"], chosen)
    evaluate(cfg, recipe, model=args.model, tasks=names, options=chosen, server=server, show=args.open)
    return 0


def server_of(args: argparse.Namespace) -> ServerConfig | None:
    """The server that answers. ConfigError for its options without it, and for another model beside it."""
    from stepstack.config import ConfigError
    from stepstack.harness.engines.server import ServerConfig

    options = {"model": args.server_model} | {
        name: getattr(args, name) for name in ("model_id", "key_file", "concurrency", "patience", "timeout")
    }
    given = {name: value for name, value in options.items() if value is not None}
    if args.server is None and given:
        flags = ["--server-model" if name == "model" else f"--{name.replace('_', '-')}" for name in given]
        raise ConfigError(f"{', '.join(flags)} without --server: give its URL, or leave them out")
    if args.server is not None and (args.model or args.checkpoints):
        other = "--model" if args.model else "--checkpoints"
        raise ConfigError(f"--server and {other}: either a server answers or the model itself, leave one out")
    return None if args.server is None else ServerConfig(url=args.server, **given)


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

    Results go to runs/<name>/evals/<label>, the label being the model's folder name and hash; those of a model that
    does not lie in the run's folder, and of a server, to runs/<name>/evals/others/<label>, where nobody takes them for
    the run's.
    """
    from datetime import UTC, datetime

    from stepstack.config import digest
    from stepstack.core.folder import CHANGEABLE_KEYS
    from stepstack.core.processes import LaunchedProcesses
    from stepstack.harness.engine import Engine
    from stepstack.harness.engines.server import ServerEngine
    from stepstack.harness.model import folder_of, record
    from stepstack.harness.suite import evaluate_all
    from stepstack.harness.summary import label_of, print_table
    from stepstack.report import viewer

    began, world = datetime.now(UTC), LaunchedProcesses(cfg.launch)
    engine: Engine
    own = False
    if server is not None:
        engine = remote = ServerEngine(server)
        facts = world.gather([remote.model_record()] if world.rank == 0 else [])[0]
    else:
        folder = folder_of(model or str(cfg.folder / "model"))
        own = folder.resolve().is_relative_to(cfg.folder.resolve())
        facts = world.gather([record(folder, model)] if world.rank == 0 else [])[0]
        engine = recipe.open_engine(cfg, folder, world.device)
    label = label_of(facts)
    place = cfg.folder / "evals" / label if own else cfg.folder / "evals" / "others" / label
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
        print_table(label if own else f"{label} (not of run {cfg.name})", evaluated, began)
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
