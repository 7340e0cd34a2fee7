"""`stepstack sim pipeline`: plans for each batch beside static pipelines, on a profile's times."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepstack.config import ConfigError

if TYPE_CHECKING:
    from stepstack.planning.pipeline.profile import PipelineProfile
    from stepstack.planning.pipeline.search import LocalSearch
    from stepstack.report.formats import Table
    from stepstack.simulation.pipeline.study import ModelCut

HELP = "pipelines planned batch by batch beside static ones, simulated (PipeWeaver)"
STUDIES = {
    "drift": "a stream whose mix of pictures drifts, 8 and 16 microbatches",
    "mixes": "one mix at a time, which the static pipelines are cut for: where plans lose",
    "ablation": "one part of the planner more at a time, in the paper's order",
    "memory": "caps on memory, under the banker's rule",
    "models": "the paper's models, the 37B and text-to-video among them",
}
Result = tuple[Any, "Table"]  # numbers as JSON has them, and their table


def options(parser: argparse.ArgumentParser) -> None:
    menu = "; ".join(f"{name}: {what}" for name, what in STUDIES.items())
    parser.add_argument("study", nargs="?", default="all", choices=(*STUDIES, "all"), help=menu)
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="modules vision and text; default: the paper's 37B"
    )
    parser.add_argument("--ranks", type=int, default=4, help="ranks of the pipeline (4)")
    parser.add_argument(
        "--segments",
        default="1,2",
        metavar="V,T",
        help="chunks of vision and text on a rank (1,2); ablation and models choose their own",
    )
    parser.add_argument("--part", type=int, default=6, help="pictures that go through vision together (6)")
    parser.add_argument("--tokens", type=float, default=8192, help="size of a microbatch's text (8192)")
    parser.add_argument("--picture", type=float, default=1, help="size of a picture, in the profile's unit (1)")
    parser.add_argument("--evaluations", type=int, default=48, help="orders that a search tries (48)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    from stepstack.planning.pipeline.graph import PlanError

    if args.evaluations < 1:
        raise ConfigError(f"--evaluations {args.evaluations}: try at least one order")
    try:
        results = _results(args)
    except PlanError as error:
        raise ConfigError(str(error)) from None
    if args.json:
        print(json.dumps({name: numbers for name, (numbers, _) in results.items()}, indent=1))
    else:
        _show([table for _, table in results.values()])
    return 0


def _results(args: argparse.Namespace) -> dict[str, Result]:
    from stepstack.planning.pipeline.search import LocalSearch
    from stepstack.terminal import console

    names = list(STUDIES) if args.study == "all" else [args.study]
    profile, searched = _profile(args, "37b"), LocalSearch(evaluations=args.evaluations)
    results = {}
    for name in names:
        with console(stderr=True).status(name):
            results[name] = _study(name, args, profile, searched)
    return results


def _study(name: str, args: argparse.Namespace, profile: PipelineProfile, searched: LocalSearch) -> Result:
    from stepstack.simulation.pipeline import published, study

    cut, workload = _cut(args, profile), study.MicrobatchSizes(args.tokens, args.picture)
    match name:
        case "drift":
            found = {f"{many} microbatches": study.drift(profile, cut, many, searched, workload) for many in (8, 16)}
            return found, study.compare_table(f"Drifting mixes, {profile.model}", found)
        case "mixes":
            mixes = study.mixes(profile, cut, 8, searched, workload)
            return mixes, study.mixes_table(mixes)
        case "ablation":
            own, batches = _profile(args, "vlm-s"), study.drawn(study.DRIFT, 8, workload)
            steps = study.ablation(own, batches, published.cut(own, batches, args.ranks), searched)
            reported, source = published.reported_figures()
            return steps, study.ablation_table(own.model, steps, reported["ablation, VLM-S"], source)
        case "memory":
            capped = study.memory_sweep(profile, study.drawn(study.DRIFT, 8, workload), cut)
            return [asdict(one) for one in capped], study.memory_table(capped)
    models = published.models(searched)
    return [asdict(one) for one in models], published.models_table(models)


def _profile(args: argparse.Namespace, default: str) -> PipelineProfile:
    """The profile of the command line, or a published one. ConfigError for other modules than vision and text."""
    from stepstack import config
    from stepstack.planning.pipeline.profile import PipelineProfile
    from stepstack.simulation.pipeline import published

    if args.profile is None:
        return published.profile(default)
    found: PipelineProfile = config.read(PipelineProfile, args.profile)
    if (names := [module.name for module in found.modules]) != ["vision", "text"]:
        raise ConfigError(
            f"{args.profile} has modules {', '.join(names)}: mixes of pictures need vision and text; give one of these"
        )
    return found


def _cut(args: argparse.Namespace, profile: PipelineProfile) -> ModelCut:
    from stepstack.simulation.pipeline.study import ModelCut

    words = args.segments.split(",")
    if len(words) != 2 or not all(word.strip().isdigit() for word in words):
        raise ConfigError(f"--segments {args.segments}: give those of vision and of text, such as 1,2")
    vision, text = map(int, words)
    return ModelCut.of(profile, args.ranks, {"vision": vision, "text": text}, {"vision": args.part})


def _show(tables: list[Table]) -> None:
    from stepstack.report.formats import render

    print(render(tables, "md"), end="")
