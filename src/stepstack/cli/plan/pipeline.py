"""`stepstack plan pipeline`: plans of a file's batches beside every baseline, exports, a trace and a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from stepstack.config import ConfigError

if TYPE_CHECKING:
    from stepstack.planning.pipeline.graph import PipelinePlan
    from stepstack.planning.pipeline.job import PipelineJob, PipelineOutcome

HELP = "order of the passes of each batch over the ranks of a pipeline, beside every baseline (PipeWeaver)"
SHOWN = 3  # plans of a picture: the job's own, and the fastest baselines


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="profile, ranks and batches: see configs/plans")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than the file")
    parser.add_argument("--json", action="store_true", help="all plans, with every pass of the file's own")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="torch's schedule, for torchtitan and NeMo AutoModel")
    parser.add_argument("--layout", action="store_true", help="print Megatron's pipeline_model_parallel_layout alone")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="Chrome trace, .json, for ui.perfetto.dev")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="the ranks' passes, .svg, .png or .html")
    parser.add_argument("--batch", type=int, default=0, help="number of the batch that files are of (0)")


def run(args: argparse.Namespace) -> int:
    from stepstack import config
    from stepstack.planning.pipeline.graph import PlanError
    from stepstack.planning.pipeline.job import PipelineJob, as_json, make_plan, table
    from stepstack.terminal import console

    job = config.read(PipelineJob, args.file, args.overrides)
    _check_files(args)
    try:
        outcome = make_plan(job)
        if not 0 <= args.batch < len(outcome.plans):
            raise ConfigError(f"--batch {args.batch}: {args.file} has batches 0 to {len(outcome.plans) - 1}")
        written = [*_exports(args, outcome), *_pictures(args, job, outcome)]
        layout = _layout(outcome.plans[args.batch]) if args.layout else None
    except PlanError as error:
        raise ConfigError(f"{args.file}: {error}") from None
    if layout is not None:
        print(layout)
    elif args.json:
        print(json.dumps(as_json(outcome), indent=1))
    else:
        print(table(outcome), end="")
    for file in written:
        console(stderr=True).print(f"-> {file}")
    return 0


def _check_files(args: argparse.Namespace) -> None:
    from stepstack.simulation.pipeline.figures import FORMATS

    for option, file, suffixes in (
        ("--csv", args.csv, (".csv",)),
        ("--trace", args.trace, (".json",)),
        ("--picture", args.picture, FORMATS),
    ):
        if file is not None and file.suffix not in suffixes:
            raise ConfigError(f"{option} {file}: must end in {' or '.join(suffixes)}")


def _exports(args: argparse.Namespace, outcome: PipelineOutcome) -> list[Path]:
    from stepstack.planning.pipeline import export
    from stepstack.report import jsonl

    if args.csv is None:
        return []
    jsonl.write_text_atomic(args.csv, export.as_csv(outcome.plans[args.batch]))
    return [args.csv]


def _layout(plan: PipelinePlan) -> str:
    from stepstack.planning.pipeline import export

    return export.layout(plan)


def _pictures(args: argparse.Namespace, job: PipelineJob, outcome: PipelineOutcome) -> list[Path]:
    from stepstack import config
    from stepstack.planning.pipeline.job import PLANNED
    from stepstack.planning.pipeline.profile import PipelineProfile
    from stepstack.report import jsonl
    from stepstack.simulation.pipeline import figures, trace

    profile: PipelineProfile = config.read(PipelineProfile, Path(job.profile))
    lines = outcome.timelines[args.batch]
    written = []
    if args.trace is not None:
        jsonl.write_text_atomic(args.trace, json.dumps(trace.chrome_trace(lines[PLANNED], profile)) + "\n")
        written.append(args.trace)
    if args.picture is not None:
        names = [PLANNED, *sorted(set(lines) - {PLANNED}, key=lambda name: lines[name].makespan)]
        shown = {name: lines[name] for name in names[:SHOWN]}
        if args.picture.suffix == ".html":
            figures.page(args.picture, f"{profile.model}, {job.ranks} ranks", shown, profile)
        else:
            jsonl.write_bytes_atomic(
                args.picture, figures.encode(figures.gantt(shown), args.picture.suffix.removeprefix("."))
            )
        written.append(args.picture)
    return written
