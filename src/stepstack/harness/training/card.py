"""The model card of an exported model, README.md in its folder: what made it, from what, and how it did."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from stepstack.config import ROOT, RunConfig, flatten, start_model, without
from stepstack.core.inputs import CARD, PIPELINE_INDEX, TRAINING
from stepstack.harness.model import shown_path
from stepstack.harness.summary import with_error
from stepstack.report import jsonl
from stepstack.report.provenance import describe

UNSAID_START = "The config of this recipe does not say. Name the start model and its licence before you share this."
MODELS = ("model", "model-adapter")  # folders of a run that get a card
LICENCE_KEYS = ("license", "license_name", "license_link")
UNKNOWN = "unknown"  # one of the hub's own values of `license`
HUB_SOURCE = re.compile(r"(?:[^=]*=)?hf:([^@]+)(?:@.*)?")  # hf:owner/name@split, also as a part of name=source


@dataclass(frozen=True, slots=True)
class StartModel:
    """The model that training began from: its ``name`` as a reader may know it, whether that is one of the ``hub``, and
    the keys of its licence in its own card, none where it has no card here or says nothing."""

    name: str
    hub: bool
    licence: Mapping[str, Any]


def write_cards(folder: Path, config: RunConfig, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the card, and the config, into each model folder of a finished run in ``folder``.

    ``results``: moment -> task -> result of its evaluations; a run that was not evaluated has none.
    """
    for place in (folder / name for name in MODELS):
        if place.is_dir():
            record = jsonl.read_json(folder / "config.json", "config", "files", "provenance", "history")
            start = start_of(config)
            written = yaml.safe_dump(shared_values(record), sort_keys=False, allow_unicode=True)
            jsonl.write_text_atomic(place / TRAINING, written)
            head = metadata(place, record["config"], start, results)
            text = f"---\n{head.to_yaml()}\n---\n\n{body(place, record, start, results)}"
            jsonl.write_text_atomic(place / CARD, text)  # last: a folder with a card is whole


def shared_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run's config.json without the folder of runs, which is one machine's."""
    return without(record["config"], ("dir",))


def start_of(config: RunConfig) -> StartModel | None:
    """The start model of a config; None where the run made it. Its card is looked for in its folder, or among the files
    of the hub that this machine has: nothing is downloaded."""
    begins_with = start_model(config)
    if begins_with is None:
        return None
    name, revision = begins_with
    place = next((place for place in (Path(name), ROOT / name) if place.is_dir()), None)
    if place is not None:
        return StartModel(shown_path(str(place.resolve())), False, _licence(place / CARD))
    cached = try_to_load_from_cache(name, CARD, revision=revision)
    return StartModel(name, True, _licence(Path(cached)) if isinstance(cached, str) else {})


def _licence(card: Path) -> dict[str, Any]:
    facts = (metadata_load(card) or {}) if card.is_file() else {}
    return {key: facts[key] for key in LICENCE_KEYS if facts.get(key)}


def metadata(
    place: Path, config: Mapping[str, Any], start: StartModel | None, results: Mapping[str, Mapping[str, Any]]
) -> ModelCardData:
    """The card's head, which the hub reads."""
    library, task = kind_of(place)
    licence = {"license": UNKNOWN} if start is None or not start.licence else dict(start.licence)
    return ModelCardData(
        **licence,
        base_model=start.name if start is not None and start.hub else None,
        datasets=hub_datasets(config) or None,
        library_name=library,
        pipeline_tag=task,
        tags=["stepstack", config["recipe"]],
        model_name=config["name"],
        eval_results=list(_eval_results(task, results.get("after", {}))) or None,
    )


def kind_of(place: Path) -> tuple[str, str]:
    """(library that loads a model folder, the hub's name of what it does)."""
    if (place / PIPELINE_INDEX).is_file():
        return "diffusers", "image-to-video"
    if (place / "adapter_config.json").is_file():
        return "peft", kind_of(place.parent / MODELS[0])[1]
    [architecture] = jsonl.read_json(place / "config.json", "architectures")["architectures"]
    return "transformers", "image-text-to-text" if "ConditionalGeneration" in architecture else "text-generation"


def hub_datasets(config: Mapping[str, Any]) -> list[str]:
    """Names of data sets of the hub that the key ``data`` of a config names, each once; drawn data has none, nor has a
    recipe without that key."""
    sources = [HUB_SOURCE.fullmatch(value) for _, value in _texts(config.get("data", {}))]
    return [name for name in dict.fromkeys(match[1] for match in sources if match) if _is_repo_id(name)]


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in flatten(values):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield key, item


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _eval_results(task: str, after: Mapping[str, Any]) -> Iterator[EvalResult]:
    for name, result in after.items():
        for metric in result["metrics"]:
            if metric["value"] is not None:
                yield EvalResult(
                    task_type=task,
                    dataset_type=name,
                    dataset_name=f"{name}, version {result['version']}",
                    metric_type=metric["name"],
                    metric_value=metric["value"],
                    metric_args={key: metric[key] for key in ("stderr", "n") if metric[key] is not None},
                )


def body(
    place: Path,
    record: Mapping[str, Any],
    start: StartModel | None,
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """The card's text, in Markdown."""
    config = record["config"]
    parts = [f"# {config['name']}", f"Trained by the recipe `{config['recipe']}` of stepstack."]
    if place.name != MODELS[0]:
        parts.append("These are the adapters alone: `PeftModel.from_pretrained` puts them on the start model.")
    parts += [
        "## Begun from",
        begun_from(start) if "model" in config else UNSAID_START,
        "## Data",
        data_text(config, record["files"]),
    ]
    parts += ["## Results", results_table(results)]
    parts += ["## Training", training_text(record)]
    return "\n\n".join(parts) + "\n"


def begun_from(start: StartModel | None) -> str:
    """Sentences on the start model and its licence."""
    if start is None:
        return (
            "Weights that the run drew at random and trained itself. No licence follows from them: it is unknown until "
            "you choose one."
        )
    name = f"[{start.name}](https://huggingface.co/{start.name})" if start.hub else f"`{start.name}`"
    if not start.licence:
        return f"{name}. Its licence is unknown: it has no card here that names one. Look it up before you share this."
    return f"{name}, whose card names the licence {', '.join(map(str, start.licence.values()))}."


def data_text(config: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Sentences on the data, and a table of what the run read, with its sha256."""
    names, paths = hub_datasets(config), {text for _, text in _texts(config.get("data", {}))}
    lines = [f"`data.type` is `{config['data']['type']}`."] if "data" in config else []
    if names:
        lines.append(f"Data sets of the hub: {', '.join(names)}.")
    elif not paths & files.keys():
        lines.append("Its rows are drawn by the run itself: they are no published data set.")
    rows = [f"| `{shown_path(path)}` | `{digest}` |" for path, digest in files.items()]
    table = ["", "| read by the run: data, models, files of code | sha256 |", "|---|---|", *rows] if rows else []
    return "\n".join([" ".join(lines), *table])


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Every metric of every task, a column a moment, each value ± its standard error."""
    if not results:
        return "The run evaluated nothing (`evals` is empty, or what hears or judges its answers is not installed)."
    tasks = dict.fromkeys(task for by_task in results.values() for task in by_task)
    rows = []
    for task in tasks:
        columns = [_metrics(by_task.get(task)) for by_task in results.values()]
        for name in dict.fromkeys(name for column in columns for name in column):
            known = next(column[name] for column in columns if name in column)
            better = "" if known["higher_is_better"] else " (less is better)"
            rows.append([task, f"{name}{better}", *(_cell(column.get(name)) for column in columns), str(known["n"])])
    head = ["task", "metric", *results, "n"]
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, ["---"] * len(head), *rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in escaped]
    return "\n".join([*lines, "", "± one standard error; n: questions."])


def _metrics(result: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    return {} if result is None else {metric["name"]: metric for metric in result["metrics"]}


def _cell(metric: Mapping[str, Any] | None) -> str:
    return "" if metric is None else with_error(metric["value"], metric["stderr"])


def training_text(record: Mapping[str, Any]) -> str:
    """The command that trains the same again, the commit and the machine."""
    command = f"stepstack launch {TRAINING} {shlex.quote('name=' + record['config']['name'])}"
    lines = [
        f"[{TRAINING}]({TRAINING}) here is the whole config. In a checkout of stepstack at the commit below:",
        "",
        "```sh",
        command,
        "```",
        "",
        f"Begun with {describe(record['provenance'])}.",
    ]
    if changes := [change for entry in record["history"] for change in entry["changed"]]:
        lines.append(f"Changed while it went on: {'; '.join(changes)}.")
    return "\n".join(lines)
