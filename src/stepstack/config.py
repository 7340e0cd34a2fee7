"""YAML -> frozen dataclasses. No torch.

Precedence, weakest first: dataclass default < the ``base:`` chain < the file < ``a.b.c=value`` on the command line.
Nothing else: no interpolation, no environment, no conditionals. Derived values are properties of the dataclasses.

Values are strictly typed, with the scalars of YAML 1.2: `1e-6` is a number, `no` and `2026-11-23` are strings.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from stepstack.bounds import Text, impossible, printable, without_credentials
from stepstack.merging import filled, merge
from stepstack.sections import plain
from stepstack.suggestions import unknown_key
from stepstack.yaml12 import parse

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

RUNS = "runs"  # folder of runs, where no config says another
DERIVED = "derived"  # the source of a value that follows from others

Tracker = Literal["tensorboard", "wandb", "trackio", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab"]


class ConfigError(ValueError):
    """A configuration that cannot be used: names the key, the file and what to do."""


@dataclass(frozen=True, slots=True)
class Needed:
    """A package that a part of a config needs and that not every machine has: the module to import, and the line that
    installs it."""

    module: str
    install: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """Least bytes of a training run: ``states`` (weights, gradients, moments) and ``activations`` (0: not estimated) on
    each device, ``checkpoint`` on disk, of all processes together, and ``host``, the whole weights of all models, which
    the first process holds while it loads."""

    states: int
    activations: int
    checkpoint: int
    host: int


class Strict:
    """Base of every config dataclass: an unknown key is an error."""

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    @property
    def user_files(self) -> tuple[str, ...]:
        """A user's own Python files that decide what this part does."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Files and folders that this part reads, or their names on a hub; a run records the digests of local ones."""
        return ()

    @property
    def begins_with(self) -> tuple[str, str | None] | None:
        """Folder or hub name, and revision, of the weights that this model begins with; None where they are drawn."""
        return None

    @property
    def packages(self) -> tuple[Needed, ...]:
        """Packages that this part needs beyond those that every machine has."""
        return ()

    def derived(self, whole: Any) -> Mapping[str, Any]:
        """Values by name that follow from this part and the ``whole`` config; ``--explain`` shows them too."""
        return {}


@dataclass(frozen=True, slots=True)
class Scale:
    """Size of a training as laws of scale see it: non-embedding parameters and training tokens; None: the config does
    not say."""

    params: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch(Strict):
    """Machines and processes of a run."""

    file: Text = "cpu"
    """File configs/launch/<file>.yaml, a plain accelerate config."""
    nodes: Annotated[int, Field(gt=0, le=100_000)] = 1
    """Machines."""
    processes_per_node: Annotated[int, Field(gt=0, le=1024)] = 1
    """Processes on each machine, one a GPU."""
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    """OMP_NUM_THREADS of each process; tiny models are 10-70x slower with more than 1 on shared cores."""
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """TCP port of machine 0 at which the processes meet."""
    timeout: Annotated[float, Field(gt=0, le=10080)] = 120.0
    """Minutes that a process waits for the others before the run fails, at most a week; more than what one process does
    alone meanwhile, e.g. reading weights."""

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class Save(Strict):
    """Checkpoints of a run."""

    every: NonNegativeInt = 50
    """Steps between two checkpoints; 0: only at the end and on SIGTERM."""
    keep: PositiveInt = 2
    """Number of checkpoints that stay, the newest ones."""
    asynchronous: bool = False
    """Whether training goes on while a checkpoint is written: of a copy in the host's memory, as large as the part that
    each process has of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking(Strict):
    """How trackers file a run, beside its name and its config, which they all get."""

    project: Text = "stepstack"
    """Project of the trackers; TensorBoard has none."""
    group: str = ""
    """Group of the run in W&B and trackio; an empty string is none."""
    tags: tuple[Text, ...] = ()
    """Tags of the run in W&B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(Strict):
    """Keys of every recipe's config."""

    recipe: Text
    """Folder recipes/<recipe> that trains this config."""
    name: Annotated[str, Field(pattern=r"^([^/\\.\s][^/\\]*)?$")] = ""
    """Name of the run, and of its folder in ``dir``: no path, and no dot in front. An empty string takes the
    stem of the config's file."""
    dir: Text = RUNS
    """Folder of runs: absolute, or from the repository; of a config file outside of it, from the current folder."""
    seed: NonNegativeInt = 42
    """Seed of everything that training draws."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of accelerate: no computes in the weights' own type, bf16 under autocast."""
    launch: Launch = Launch()
    """Machines and processes of the run."""
    save: Save = Save()
    """How often checkpoints are written, and how many stay."""
    evals: tuple[str, ...] = ("test",)
    """Tasks before and after training, and of `stepstack eval`: the recipe's own (splits of the data), files
    evals/tasks/<name>.py, lm_eval:<task>, or paths of .py files."""
    eval_every: NonNegativeInt = 10
    """Steps between two evaluations on the watched split; 0: only before the first and after the last step."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Trackers of accelerate that get the metrics, beside metrics.jsonl in the run's folder."""
    tracking: Tracking = Tracking()
    """Project, group and tags of the run in its trackers."""
    peak_tflops: PositiveFloat | None = None
    """Peak TFLOP/s of one device, for MFU; null: looked up for known GPUs by name, else a measured matmul."""
    max_skipped: NonNegativeInt = 5
    """Updates in a row with a non-finite gradient that stop the run; 0 stops at the first one, as 1 does."""

    @property
    def folder(self) -> Path:
        """The run's folder. A relative ``dir`` is one of the repository."""
        return ROOT / self.dir / self.name

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the recipe's own evaluation tasks for this config, which ``evals`` may hold; no torch."""
        return ()

    @property
    def scale(self) -> Scale:
        """Scale of the model that the recipe trains; a recipe that knows it says so."""
        return Scale()

    def footprint(self, shards: int) -> Footprint | None:
        """Memory and disk that training takes with its models over ``shards`` processes; None where the config does not
        know its models."""
        return None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A merged configuration and, for each dotted key (of maps and list items too), its ``file:line`` or flag."""

    path: Path
    values: Mapping[str, Any]
    sources: Mapping[str, str]

    @property
    def stem(self) -> str:
        return self.path.stem


def find(name: str, configs: Path = CONFIGS) -> Path:
    """The file of a config name (``orz-tiny``) or path; the error lists the menu."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else configs / f"{name}.yaml"
    if path.is_file():
        return path
    menu = sorted(p.stem for p in configs.glob("*.yaml"))
    near = difflib.get_close_matches(name, menu, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"no config {name!r}: {path} does not exist.{hint} There are: {', '.join(menu)}")


def resolve(
    name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, *, class_of: Callable[[str], type]
) -> Resolved:
    """Merge the base chain, the file and the overrides of a run, keeping the source of each key; ``class_of`` gives the
    config class of a recipe, whose defaults are what a layer changes. Of a file outside of the repository a relative
    ``dir`` is one of the current folder."""
    merged = _merged(
        find(name, configs), overrides, lambda values: class_of(values["recipe"]) if "recipe" in values else None
    )
    if "recipe" not in merged.values:
        raise ConfigError(
            f"{_shown(merged.path)}: no key 'recipe' (in configs/base? those files are not runnable): name one"
        )
    values, sources = dict(merged.values), dict(merged.sources)
    if not values.get("name"):
        values["name"], sources["name"] = merged.path.stem, f"stem of {_shown(merged.path)}"
    folder = values.get("dir", RUNS)
    if isinstance(folder, str) and not merged.path.resolve().is_relative_to(ROOT):
        values["dir"] = str(Path.cwd() / folder)
        sources.setdefault("dir", "the current folder")
    return Resolved(merged.path, values, sources)


def read(cls: type, path: Path, overrides: Sequence[str] = ()) -> Any:
    """A file that is no run's config, e.g. what a planner plans, validated into ``cls``; the same bases, overrides and
    errors."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: give the path of a YAML file")
    return build(cls, _merged(path, overrides, lambda values: cls))


def _merged(path: Path, overrides: Sequence[str], class_of: Callable[[Mapping[str, Any]], type | None]) -> Resolved:
    """``class_of``: the class of a config that has these values so far, None where they do not tell."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def add(layer: Mapping[str, Any], source: str, where: Mapping[str, str]) -> None:
        _refuse_impossible(layer, source, where)
        cls = class_of(values)
        merge(values, layer, sources, source, where, filled(cls, values) if cls else {})

    for file, layer, where in _chain(path):
        layer.pop("base", None)
        add(layer, _shown(file), where)
    for text in overrides:
        add(_override(text), f"command line {printable(text)}", {})
    return Resolved(path, values, sources)


def _refuse_impossible(layer: Mapping[str, Any], source: str, where: Mapping[str, str]) -> None:
    if wrong := [f"{where.get(key, source)}: {key}: {why}" for key, why in impossible(layer, "")]:
        raise ConfigError("\n".join(wrong))


def build(cls: type, resolved: Resolved) -> Any:
    """Validate into ``cls``. An error names each key, the line that set it and the nearest known key."""
    values = filled(cls, resolved.values)
    try:
        # As JSON, because there strict still lets a list be a tuple and an int be a float.
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain_errors(error, cls, values, resolved))) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values, keys in field order."""
    return plain(config)


def digest(config: Any, ignore: Sequence[str] = ()) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON, without the dotted keys in ``ignore``."""
    values = without(to_dict(config), ignore)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def without(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Values without the dotted ``keys``."""
    below = {name: [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")] for name in values}
    return {
        name: without(value, below[name]) if isinstance(value, Mapping) and below[name] else value
        for name, value in values.items()
        if name not in keys
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) pairs; lists are leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def explain(config: Any, resolved: Resolved) -> list[tuple[str, Any, str]]:
    """(dotted key, value, source) of every value, the defaults included, and of those that follow from others."""
    given = [(key, value, resolved.sources.get(key, "default")) for key, value in flatten(to_dict(config))]
    follows = [(f"{k}{name}", value, DERIVED) for k, p in _parts(config) for name, value in p.derived(config).items()]
    return given + follows


def _parts(config: Any, prefix: str = "") -> Iterator[tuple[str, Strict]]:
    """A config and the configs in it, each with the prefix of its keys."""
    if isinstance(config, Strict):
        yield prefix, config
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value, f"{prefix}{item.name}.")


def user_files(config: Any) -> list[str]:
    """The user's own Python files of a config and of all its parts, each once."""
    return list(dict.fromkeys(path for _, part in _parts(config) for path in part.user_files))


def reads(config: Any) -> list[str]:
    """Files and folders that a config and all its parts read, each once."""
    return list(dict.fromkeys(path for _, part in _parts(config) for path in part.reads))


def start_model(config: Any) -> tuple[str, str | None] | None:
    """``begins_with`` of the model that a recipe trains, its key ``model``; None for a recipe without that key."""
    return next((part.begins_with for prefix, part in _parts(config) if prefix == "model."), None)


def needed(config: Any) -> list[tuple[str, Needed]]:
    """(dotted key, package) of every part of a config that needs one."""
    return [(prefix.rstrip("."), package) for prefix, part in _parts(config) for package in part.packages]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` of every leaf that differs."""
    a, b = dict(flatten(old)), dict(flatten(new))
    keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    return [f"{k}: {a.get(k, '(absent)')} -> {b.get(k, '(absent)')}" for k in keys]


def _override(text: str) -> dict[str, Any]:
    """``a.b.c=value`` as the nested map that a file would hold."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {text!r} is not of the form a.b.c=value")
    try:
        layer: Any = parse(value)[0] if value else ""
    except yaml.YAMLError:
        hint = "put a string with special characters in quotes"
        raise ConfigError(f"override {text[:200]!r}: {value[:200]!r} is not a YAML value; {hint}") from None
    for part in reversed(key.split(".")):
        layer = {part: layer}
    return layer


def _chain(path: Path) -> list[tuple[Path, dict[str, Any], dict[str, str]]]:
    """The files of the base chain as ``_read``, root first. ``base:`` is a path from the file that names it, or the
    name of a config."""
    chain = [(path.resolve(), *_read(path))]
    while (base := chain[-1][1].get("base")) is not None:
        file, _, where = chain[-1]
        if not isinstance(base, str):
            raise ConfigError(f"{where['base']}: base = {base!r}: must be the path of one file")
        parent = (file.parent / base if base.endswith((".yaml", ".yml")) else CONFIGS / f"{base}.yaml").resolve()
        if not parent.is_file():
            raise ConfigError(f"{where['base']}: base = {base!r}: {_shown(parent)} does not exist: correct it")
        if parent in [earlier for earlier, _, _ in chain]:
            raise ConfigError(f"{where['base']}: the base chain of {_shown(path)} loops at {_shown(parent)}: remove it")
        chain.append((parent, *_read(parent)))
    return chain[::-1]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A file's values and, for each dotted key, its ``file:line``."""
    try:
        content, lines = parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f"{_shown(path)}:{error.problem_mark.line + 1}" if error.problem_mark else _shown(path)
        raise ConfigError(f"{line}: not YAML: {error.problem}; repair the line") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_shown(path)}: not YAML: {error}; repair it") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{_shown(path)}: must be a map of keys, not {type(content).__name__}")
    return content or {}, {key: f"{_shown(path)}:{line}" for key, line in lines.items()}


def _explain_errors(error: ValidationError, cls: type, values: Mapping, resolved: Resolved) -> Iterator[str]:
    explained: set[str] = set()
    for item in error.errors(include_url=False):
        key = _dotted(item["loc"], values)
        source = _source_of(key, resolved)
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            text = unknown_key(key, cls)
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            text = f"key {key!r} is missing"
        elif not key:  # a rule between keys: the recipe's own words name them
            text = item["msg"].removeprefix("Value error, ")
        else:
            text = f"{key} = {without_credentials(repr(item['input']))}: {item['msg']}"
            if item["type"] == "string_type" and isinstance(item["input"], int | float):
                text += f""" (in quotes it is one: '"{item["input"]}"')"""
        if key not in explained:  # a union reports each of its members
            explained.add(key)
            yield f"{without_credentials(source)}: {text}"


def _dotted(loc: Sequence[int | str], values: Any) -> str:
    """The YAML path of an error: pydantic's location without the names of union members, which no file holds. The name
    of a member that is chosen by ``type`` may also be that of a key in it."""
    parts, node = [], values
    member_named = False
    for i, part in enumerate(loc):
        if isinstance(node, Mapping):
            if i < len(loc) - 1 and (part not in node or (part == node.get("type") and not member_named)):
                member_named = True
                continue
            member_named = False
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        else:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _source_of(key: str, resolved: Resolved) -> str:
    """The place that set ``key``, or what is nearest above it; the run's own file where nothing did."""
    while key and key not in resolved.sources:
        key = key.rpartition(".")[0]
    return resolved.sources.get(key, _shown(resolved.path))


def _shown(path: Path) -> str:
    """A path as a reader of the repository would write it."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
