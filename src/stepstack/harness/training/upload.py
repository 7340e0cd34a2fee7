"""Upload of a finished run's model folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from stepstack.config import ConfigError, difference
from stepstack.core.folder import lock
from stepstack.core.inputs import CARD, TRAINING
from stepstack.harness.training.card import shared_values
from stepstack.report import jsonl


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Repository ``repo`` (owner/name) of the hub, and its branch ``revision``, which is made where there is none, or
    main. ``private``: whether nobody else may read it, where it is made now."""

    repo: str
    revision: str | None = None
    private: bool = False


def finished_model(run: Path, name: str) -> Path:
    """Model folder ``name`` of a run's folder. ConfigError where there is none, where it has no card yet, or where the
    run goes on, or went on, after it was written."""
    folder = run / name
    if not (run / "config.json").is_file():
        raise ConfigError(f"{run} is no run: train it first, or say which by name=... and dir=...")
    if not folder.is_dir():
        raise ConfigError(f"{run} has no {name}: train it to the end")
    lock(run)
    if not (folder / CARD).is_file() or not (folder / TRAINING).is_file():
        raise ConfigError(f"{folder} has no {CARD}, which is written last: train to the end, by the same command")
    trained = yaml.safe_load((folder / TRAINING).read_text())
    now = shared_values(jsonl.read_json(run / "config.json", "config"))
    if changed := difference(trained, now):
        raise ConfigError(
            f"{folder} is older than its run, whose config was changed since ({'; '.join(changed)}): train to the end, "
            "by the same command"
        )
    return folder


def files(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each file that is uploaded, in order of their names."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), file.stat().st_size


def check_repo(repo: str) -> None:
    """ConfigError for what is no owner/name of the hub."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo!r} is no repository of the hub ({error}): give owner/name") from None
    if "/" not in repo:
        raise ConfigError(f"--repo {repo!r} names no owner: give owner/name")


def push(folder: Path, to: Destination) -> str:
    """Upload a model folder in one commit; returns its URL. The endpoint and the token are those of huggingface_hub:
    HF_ENDPOINT, HF_TOKEN or `hf auth login`.

    ConfigError for a card that the hub refuses, before anything is made there, and for a repository that is public
    where a private one is asked for; huggingface_hub's HfHubHTTPError for what else the hub refuses.
    """
    try:
        ModelCard.load(folder / CARD).validate()
    except ValueError as error:
        raise ConfigError(f"the hub refuses {folder / CARD}: {error}: correct its head") from None
    api = HfApi()
    api.create_repo(to.repo, private=to.private or None, exist_ok=True)
    if to.private and not api.model_info(to.repo).private:
        raise ConfigError(f"{to.repo} is there already and public: make it private, or push without --private")
    if to.revision is not None:
        api.create_branch(to.repo, branch=to.revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=to.repo, folder_path=folder, revision=to.revision, commit_message="Trained with stepstack"
    )
    return commit.commit_url
