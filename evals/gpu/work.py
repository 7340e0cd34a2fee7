"""Work of a step of `make gpu` for which stepstack has no command: ``python -m evals.gpu.work WHAT ...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def device() -> None:
    """Print versions and the GPU as JSON, and on a line of its own the provenance, which needs more packages."""
    import torch

    gpu = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {"name": properties.name, "gib": round(properties.total_memory / 2**30, 1)}
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu}), flush=True)
    from stepstack.report.provenance import provenance

    print(json.dumps(provenance()))


def dsv(file: Path, **options: int) -> None:
    """Bench dsv, written whenever a contestant has ended."""
    from evals.bench import dsv
    from stepstack.report import jsonl

    for figures in dsv.measurements(**options):
        jsonl.write_json_atomic(file, figures)


def stepvideo(file: Path, **options: int) -> None:
    from evals.bench import stepvideo
    from stepstack.report import jsonl

    jsonl.write_json_atomic(file, stepvideo.measure(**options))


def main(what: str, *words: str) -> None:
    match what:
        case "device":
            device()
        case "dsv" | "stepvideo":
            file, *options = words
            given = {key: int(value) for key, _, value in (option.partition("=") for option in options)}
            (dsv if what == "dsv" else stepvideo)(Path(file), **given)
        case _:
            raise SystemExit(f"{what}: write device, dsv or stepvideo")


if __name__ == "__main__":
    main(*sys.argv[1:])
