"""The command line: every command is a function of a few lines."""

from __future__ import annotations

import argparse
import logging
import sys
import webbrowser
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stepstack import __version__, config
from stepstack.config import CONFIGS, ConfigError
from stepstack.planning import commands as planners
from stepstack.rl.types import EngineError
from stepstack.simulation import commands as simulations

# The user's to mend: shown without a traceback. FloatingPointError: training met NaN.
MANUAL = """StepFun's published training systems as recipes that run.

  stepstack config                              the menu: every file in configs/
  stepstack config orz-tiny --explain           every value, and the file that set it
  stepstack launch orz-tiny seed=1 name=trial   train; killed, the same line goes on
  stepstack launch orz-32b --dry-run            the accelerate line that would be typed
  stepstack eval orz-tiny name=trial seed=1     score the trained model on held-out problems
  stepstack sample stepvideo-tiny --image a.png --prompt "a red circle moves right"
  stepstack votes clips/a clips/b --out votes   which of two models' clips? blind, in a browser
  stepstack eval orz-32b --tasks aime24,math500 --model Qwen/Qwen2.5-32B
"""

EXPECTED = (ConfigError, ValueError, FileNotFoundError, FloatingPointError, EngineError)


def main(argv: Sequence[str] | None = None) -> int:
    top = parser()
    args, rest = top.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word or "overrides" not in args]
    if strange:
        top.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:  # argparse takes a list of words in one piece only; overrides may also follow a flag
        args.overrides = [*args.overrides, *rest]
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        return args.run(args)
    except EXPECTED as error:
        if args.verbose:
            raise
        hint = " (where: stepstack --verbose)" if type(error) is ValueError else ""
        print(f"stepstack {args.command}: {error}{hint}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="stepstack", description=MANUAL, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--verbose", action="store_true", help="log decisions, and show tracebacks of expected errors")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str, named: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        if named:
            sub.add_argument("name", help="a config: the stem of a file in configs/, or a path")
            sub.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
        return sub

    launch = command("launch", _launch, "type the `accelerate launch` line of a config (what `make train` does)")
    launch.add_argument("--dry-run", action="store_true", help="print the line only")
    launch.add_argument("--open", action="store_true", help="open the run's report in a browser at the end")
    launch.add_argument("--rank", type=int, help="this machine's number, where SLURM does not say it")
    launch.add_argument("--head", help="address of machine 0, where SLURM does not say it")
    launch.add_argument("--placement", type=Path, metavar="FILE", help="machines by rank (stepstack plan pods --out)")
    launch.add_argument("--host", help="this machine's name in the placement, where it is not its own")
    train = command("train", _train, "train in this process (what the launch line runs in each process)")
    train.add_argument("--dry-run", action="store_true", help="check the config and print what a run would do")
    train.add_argument("--stop-after", type=int, metavar="STEP", help="save and stop after this step; resumable")
    show = command("config", _config, "print a config as resolved; without NAME, the menu", named=False)
    show.add_argument("name", nargs="?")
    show.add_argument("overrides", nargs="*", metavar="a.b.c=value")
    show.add_argument("--explain", action="store_true", help="with the file or flag that set each value")
    command("data", _data, "prepare the data of a config, with a manifest of hashes")
    _eval_options(command("eval", _eval, "evaluate a config's model, or any other in its place, on benchmark tasks"))
    _sample_options(command("sample", _sample, "a picture and a prompt become a clip, GIF and MP4"))
    _tasks_options(command("tasks", _tasks, "the menu of tasks; get their data, give them to lm-eval", named=False))
    view = command("view", _view, "a page with every sample of one evaluation, or two side by side", named=False)
    view.add_argument("folders", nargs="+", help="runs/<name>/evals/<label>, or one task's folder in it")
    view.add_argument("--out", default="samples.html", help="the page to write")
    _votes_options(command("votes", _votes, "which of two models' clips: blind votes, and a table", named=False))
    _vbench_options(command("vbench", _vbench, "let VBench-I2V score an evaluation of vbench_i2v", named=False))
    _clips_options(command("clips", _clips, "of a folder of videos: how many move, FVD-style distance", named=False))
    overlap = command("contamination", _contamination, "which questions of evaluation tasks the training data holds")
    overlap.add_argument("--tasks", default="", help="names or files, separated by commas; default: the config's evals")
    overlap.add_argument("--ngram", type=int, default=13, help="words in a row that count as overlap")
    command("report", _report, "write runs/<name>/report.html anew, also while the run goes on")
    command("record", _record, "keep a finished run's figures in evals/results, for the tables")
    table = command("table", _table, "generate the tables in the READMEs from evals/results", named=False)
    table.add_argument("--check", action="store_true", help="change nothing; fail when a table is stale")
    table.add_argument("table", nargs="?", help="print this layout of evals/tables instead")
    table.add_argument("--format", choices=("md", "tex", "html"), default="md", help="of the table that is printed")
    _profile_options(command("profile", _profile, "measure from which sparsity DSV pays on this device", named=False))
    bench = command("bench", _bench, "measure against a peer, or a plan; writes evals/results", named=False)
    benches = ("rl", "dsv", "dsv-cpu", "stepvideo", "stepvideo-cpu", "pods", "video-memory")
    bench.add_argument("bench", choices=benches)
    bench.add_argument("options", nargs="*", metavar="key=value")
    plan = command("plan", None, "decide what machines do, without a machine; a menu: stepstack plan -h", named=False)
    commands_of(planners, plan.add_subparsers(dest="planner", required=True, metavar="PLANNER"))
    sim = command("sim", None, "what plans come to: time, money, waste; a menu: stepstack sim -h", named=False)
    commands_of(simulations, sim.add_subparsers(dest="simulation", required=True, metavar="SIMULATION"))
    return top


def _profile_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("what", choices=("dsv",))
    sub.add_argument("grids", nargs="+", metavar="FxHxW", help="latent frames x rows x columns, in tokens")
    sub.add_argument("--heads", type=int, required=True)
    sub.add_argument("--head-dim", type=int, required=True)
    sub.add_argument("--cube", default="4x4x4", metavar="FxHxW", help="the config's cube")
    sub.add_argument("--selector", choices=("low_rank", "pooled"), default="low_rank")
    sub.add_argument("--rank", type=int, default=16, help="of the predictors")
    sub.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    sub.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    sub.add_argument("--out", type=Path, default=Path("dsv-speed.json"), help="for dispatch.file of the config")


def commands_of(package: ModuleType, commands) -> None:
    """The files of a package are a menu (stepstack/planning/commands says what each holds)."""
    for file in sorted(Path(package.__path__[0]).glob("[a-z]*.py")):
        module = import_module(f"{package.__name__}.{file.stem}")
        sub = commands.add_parser(file.stem, help=module.HELP, description=module.HELP)
        module.options(sub)
        sub.set_defaults(run=module.run)


def _launch(args: argparse.Namespace) -> int:
    from stepstack.core import launch

    loaded = config.load(args.name, args.overrides)
    if args.host and not args.placement:
        raise ConfigError(f"--host {args.host} is a name in a placement: say --placement FILE too")
    placement = launch.Placement(args.placement, args.host) if args.placement else None
    status = launch.run(
        loaded, args.name, args.overrides, rank=args.rank, head=args.head, placement=placement, dry_run=args.dry_run
    )
    if args.open and status == 0 and not args.dry_run:
        from stepstack.core.run import Run

        if (report := Run.folder(loaded) / "report.html").is_file():
            webbrowser.open(report.resolve().as_uri())
    return status


def _train(args: argparse.Namespace) -> int:
    loaded = config.load(args.name, args.overrides)
    recipe = config.recipe_module(loaded.recipe)
    if args.dry_run:
        for key, value in recipe.describe(loaded).items():
            print(f"{key:32} {value}")
        return 0
    from stepstack.core.run import Run

    quiet_libraries()
    recipe.train(Run(loaded, stop_after=args.stop_after))
    return 0


def _config(args: argparse.Namespace) -> int:
    if args.name is None:
        for path in sorted(CONFIGS.glob("*.yaml")):
            first = path.read_text().partition("\n")[0]
            print(f"{path.stem:20} {first.removeprefix('#').strip()}")
        return 0
    resolved = config.resolve(args.name, args.overrides)
    built = config.build(config.recipe_module(resolved.values["recipe"]).Config, resolved)
    for key, value, source in config.explain(built, resolved):
        print(f"{key} = {value}" + (f"   # {source}" if args.explain else ""))
    return 0


def _data(args: argparse.Namespace) -> int:
    loaded = config.load(args.name, args.overrides)
    print(config.recipe_module(loaded.recipe).prepare(loaded))
    return 0


def _eval_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", help="folder or hub name; default: runs/<name>/model")
    sub.add_argument(
        "--tasks", default="", help="names, files, lm_eval:<task>; with commas; default: the config's evals"
    )
    sub.add_argument("--samples", type=int, metavar="K", help="samples a question, in place of the task's own number")
    sub.add_argument("--greedy", action="store_true", help="one sample at temperature 0")
    sub.add_argument("--max-tokens", type=int, help="bound of a response, in place of the task's")
    sub.add_argument("--seed", type=int, default=0, help="of the samples")
    sub.add_argument("--limit", type=int, metavar="N", help="the first N questions only")
    sub.add_argument("--data", type=Path, help="folder of benchmark files; default: evals/data")
    sub.add_argument("--include", type=Path, help="folder with more tasks for lm_eval:<task>")
    sub.add_argument("--retry-failed", action="store_true", help="ask failed questions again")
    sub.add_argument("--checkpoints", action="store_true", help="the curve of a run's checkpoints, on its select split")
    sub.add_argument("--server", metavar="URL", help="an OpenAI-compatible server answers, e.g. http://host:8000/v1")
    sub.add_argument("--server-model", help="its model's name; default: the only one it has")
    sub.add_argument("--key-file", help="file that holds the server's API key")
    sub.add_argument("--open", action="store_true", help="show the page of samples in a browser")


def _eval(args: argparse.Namespace) -> int:
    from stepstack.harness import checkpoints, command
    from stepstack.harness.server import ServerConfig
    from stepstack.harness.suite import Options
    from stepstack.harness.task import DATA

    loaded = config.load(args.name, args.overrides)
    recipe = config.recipe_module(loaded.recipe)
    quiet_libraries()
    options = Options(
        samples=args.samples, greedy=args.greedy, max_tokens=args.max_tokens, seed=args.seed, limit=args.limit,
        retry=args.retry_failed, data=args.data or DATA, include=args.include,
    )  # fmt: skip
    names = _words(args.tasks)
    if args.checkpoints:
        return checkpoints.run(loaded, recipe, names or ["select"], options)
    server = None
    if args.server:
        server = ServerConfig(url=args.server, model=args.server_model, key_file=args.key_file)
    command.run(loaded, recipe, model=args.model, tasks=names, options=options, server=server, show=args.open)
    return 0


def _sample_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--image", type=Path, required=True, help="the first frame")
    sub.add_argument("--prompt", required=True, help="what happens in the clip")
    sub.add_argument("--motion", type=float, default=5.0, help="motion score: 0 still, 5 usual, 20 wild")
    sub.add_argument("--seed", type=int, default=0, help="of the noise")
    sub.add_argument("--crop", action="store_true", help="cut a picture of another shape")
    sub.add_argument("--model", help="folder; default: runs/<name>/model")
    sub.add_argument("--out", type=Path, default=Path("clip"), help="files to write, without ending")


def _sample(args: argparse.Namespace) -> int:
    loaded = config.load(args.name, args.overrides)
    recipe = config.recipe_module(loaded.recipe)
    if "sample" not in recipe.__all__:
        raise ConfigError(f"{args.name} makes no clips: its recipe is {loaded.recipe}")
    quiet_libraries()
    given = {key: vars(args)[key] for key in ("image", "prompt", "motion", "seed", "crop", "model", "out")}
    for file in recipe.sample(loaded, recipe.Wish(**given)):
        print(file)
    return 0


def _votes_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "a", type=Path, help="clips of a model: an evaluation of ti2v_eval, or files named as its pictures"
    )
    sub.add_argument("b", type=Path, help="clips of the model that it is compared with")
    sub.add_argument("--out", type=Path, required=True, help="folder of the votes; the same command goes on there")
    sub.add_argument("--data", type=Path, help="folder of benchmark files; default: evals/data")
    sub.add_argument("--common", action="store_true", help="compare what both have, where one lacks clips")
    sub.add_argument("--table", nargs="?", const="votes", choices=("votes", "first_frame"), help="print and write only")
    sub.add_argument("--port", type=int, default=8765, help="of the page; 0: a free one")
    sub.add_argument("--seed", type=int, default=0, help="of what stands left")
    sub.add_argument("--open", action="store_true", help="show the page in a browser")


def _votes(args: argparse.Namespace) -> int:
    from rich.console import Console

    from data import ti2v_eval
    from stepstack.harness import pairwise, votes
    from stepstack.harness.task import DATA

    found = ti2v_eval.pairs((args.data or DATA) / ti2v_eval.FOLDER, args.a, args.b, common=args.common)
    study = votes.Study(folder=args.out, pairs=found, questions=ti2v_eval.DIMENSIONS, seed=args.seed)
    judge: pairwise.Judge = ti2v_eval.FirstFrame() if args.table == "first_frame" else votes.Votes(study)
    if args.table is None:
        votes.serve(study, args.port, args.open)
    elif args.table == "votes":
        study.check()
    file = args.out / f"result-{args.table or 'votes'}.json"
    Console().print(pairwise.conclude(file, (str(args.a), str(args.b)), found, judge))
    print(file)
    return 0


def _vbench_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", type=Path, help="runs/<name>/evals/<label>/vbench_i2v-...")
    sub.add_argument("--python", type=Path, help="of VBench's own environment (scripts/vbench_venv.sh); else read only")
    sub.add_argument("--data", type=Path, help="folder of benchmark files, with a clone of VBench; default: evals/data")
    sub.add_argument("--device", default="cuda", help="that VBench computes on")


def _vbench(args: argparse.Namespace) -> int:
    from rich.console import Console

    from stepstack.harness import vbench
    from stepstack.harness.task import DATA

    if args.python is not None:
        vbench.run(args.python, (args.data or DATA) / vbench.CLONE, args.folder, args.device)
    Console().print(vbench.conclude(args.folder))
    return 0


def _tasks_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("tasks", nargs="*", metavar="NAME", help="a task, or a benchmark with --fetch; default: all")
    sub.add_argument("--fetch", action="store_true", help="download the benchmarks' rows into --data")
    sub.add_argument("--from", dest="source", help="a file or folder that has them, in place of a download")
    sub.add_argument("--export", type=Path, metavar="DIR", help="write them for `lm_eval --include_path DIR`")
    sub.add_argument("--data", type=Path, help="folder of benchmark files; default: evals/data")


def _clips_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", type=Path, help="of video files, also in folders below")
    sub.add_argument("--against", type=Path, help="folder of true videos, for the Fréchet distance")
    sub.add_argument(
        "--features", type=Path, help="its network, by torch.export.save: [B, 3, F, H, W] in [-1, 1] to [B, D]"
    )
    sub.add_argument("--frames", type=int, default=16, help="of each video, from its first, that the network sees")
    sub.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"), help="in pixels")


def _clips(args: argparse.Namespace) -> int:
    from stepstack import video_figures
    from stepstack.models.video_features import SavedFeatures

    if (args.against is None) != (args.features is None):
        raise ConfigError("--against and --features go together: true videos, and the network that compares")
    files = video_figures.files_in(args.folder)
    print(f"dynamic degree (Farneback)  {video_figures.dynamic_degree(files):.3f} of {len(files)} videos")
    if args.against is not None:
        true = video_figures.files_in(args.against)
        found = video_figures.frechet(files, true, SavedFeatures(args.features), args.frames, tuple(args.size))
        print(f"Fréchet distance            {found['distance']:.4g} to {len(true)} true videos")
        print(f"of their two halves         {found['true']:.4g}")
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from data import benchmarks
    from stepstack.harness import task

    data = args.data or task.DATA
    if args.fetch:
        for file in benchmarks.fetch(args.tasks or list(benchmarks.BENCHMARKS), data, args.source):
            print(file)
        return 0
    found = [task.load(name) for name in args.tasks or task.menu_of()]
    if args.export:
        from stepstack.harness import lm_eval_export

        print(lm_eval_export.export(found, args.export, data))
        return 0
    for one in found:
        print(f"{one.name:24} v{one.version}  {one.about}")
    return 0


def _view(args: argparse.Namespace) -> int:
    from stepstack.harness import command
    from stepstack.report import viewer

    print(viewer.write(Path(args.out), command.places_of(args.folders)))
    return 0


def _contamination(args: argparse.Namespace) -> int:
    from stepstack.core.run import Run
    from stepstack.harness import contamination
    from stepstack.harness.suite import LM_EVAL
    from stepstack.harness.task import DATA, load
    from stepstack.report import jsonl

    loaded = config.load(args.name, args.overrides)
    recipe = config.recipe_module(loaded.recipe)
    names = _words(args.tasks) or [name for name in loaded.evals if not name.startswith(LM_EVAL)]
    tasks = [load(name, recipe.own(loaded)) for name in names]
    training = {loaded.name: [problem.text for problem in load("train", recipe.own(loaded)).rows(DATA)]}
    found = contamination.report(training, tasks, DATA, n=args.ngram)
    file = Run.folder(loaded) / "contamination.json"
    jsonl.write_json_atomic(file, found)
    print(contamination.markdown(found) + f"\n{file}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from stepstack.core.run import Run

    loaded = config.load(args.name, args.overrides)
    print(config.recipe_module(loaded.recipe).write_report(Run.folder(loaded)))
    return 0


def _record(args: argparse.Namespace) -> int:
    from stepstack.core.run import Run
    from stepstack.report import tables

    loaded = config.load(args.name, args.overrides)
    print(tables.record(Run.folder(loaded)))
    return 0


def _table(args: argparse.Namespace) -> int:
    from stepstack.report import tables

    if args.table is not None:
        print(tables.render(args.table, args.format), end="")
        return 0
    return tables.generate(check=args.check)


def _profile(args: argparse.Namespace) -> int:
    import torch

    from stepstack.models.dsv import speed

    device = torch.device(args.device)
    shape = speed.Shape(
        device=speed.device_name(device),
        dtype=args.dtype,
        heads=args.heads,
        head_dim=args.head_dim,
        cube=speed.parse_grid(args.cube),
        selector=args.selector,
        rank=args.rank,
    )
    profile = speed.measure(shape, [speed.parse_grid(grid) for grid in args.grids], device)
    profile.save(args.out)
    for line in profile.lines():
        print(line)
    print(f"-> {args.out}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from stepstack import bench

    return bench.main(args.bench, args.options)


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def quiet_libraries() -> None:
    """Library chatter that a user can do nothing about."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
