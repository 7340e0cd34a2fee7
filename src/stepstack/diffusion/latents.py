"""Prepared videos: latents, first frames, motion scores and encoded prompts in files that are read row by row.

latents.json        grids, files with sha256, widths, what made them; written last: a folder that has it is complete
videos-00000.safetensors   rows of one grid: latents [N, F, C, Y, X], image [N, C, Y, X], motion [N], prompt [N]
prompts-00000.safetensors  distinct prompts: text [P, L, T], mask [P, L], clip [P, M, T']; the first is the empty one
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stepstack.config import ConfigError, difference
from stepstack.models.video.grid import Grid
from stepstack.models.video.prompt_encoders import CutPrompts, Encoded, PromptEncoder
from stepstack.report import jsonl

INDEX = "latents.json"


@dataclass(frozen=True, slots=True)
class Video:
    """One row. ``image_CYX``: the latent of the first frame encoded alone.

    ``loser_FCYX``: in a preference pair, the latents that were liked less under the same conditions.
    """

    latents_FCYX: Tensor
    image_CYX: Tensor
    motion: float
    text: Encoded  # one prompt, so the first axis is 1
    loser_FCYX: Tensor | None = None

    @property
    def tokens(self) -> int:
        frames, _, height, width = self.latents_FCYX.shape
        return frames * height * width


class LatentWriter:
    """Writer of prepared videos: call ``add`` for each row, then ``close``.

    ``made_by``: plain JSON that names the VAE and the text encoders, without which the latents mean nothing. ``shard``:
    rows of a file. ``dtype``: type of the written tensors. ``cut``: after ``close``, the number of distinct prompts
    that are longer than the encoders take.
    """

    def __init__(
        self,
        folder: Path,
        encoder: PromptEncoder,
        made_by: Mapping[str, Any],
        shard: int = 1024,
        dtype: torch.dtype = torch.float32,
    ):
        self.made_by = made_by
        self.folder, self.encoder, self.shard, self.dtype = folder, encoder, shard, dtype
        self.waiting: dict[Grid, list[dict[str, Tensor]]] = {}
        self.files: list[dict[str, Any]] = []
        self.prompts: dict[str, int] = {"": 0}
        self.cut = CutPrompts()
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self, latents_FCYX: Tensor, image_CYX: Tensor, motion: float, prompt: str, loser_FCYX: Tensor | None = None
    ) -> None:
        """Add one row. ValueError for latents that are not finite."""
        place = self.prompts.setdefault(prompt, len(self.prompts))
        row = {"latents": latents_FCYX, "image": image_CYX}
        if loser_FCYX is not None:
            row["loser"] = loser_FCYX
        for name, value in row.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} of {prompt!r} are NaN or infinite: check the VAE and the video")
        row = {name: value.detach().to("cpu", self.dtype) for name, value in row.items()}
        row |= {"motion": torch.tensor(float(motion)), "prompt": torch.tensor(place)}
        frames, _, height, width = latents_FCYX.shape
        rows = self.waiting.setdefault((frames, height, width), [])
        rows.append(row)
        if len(rows) == self.shard:
            self._write(frames, height, width)

    def close(self) -> Path:
        """Write the remaining rows, the prompts and the index. ConfigError where nothing was added."""
        for grid in list(self.waiting):
            if self.waiting[grid]:
                self._write(*grid)
        if not self.files:
            raise ConfigError(
                f"{self.folder}: no videos to write: every one was dropped, or the source is empty: check data.source"
            )
        prompts = list(self.prompts)
        self.cut = self.encoder.cut(prompts)
        names: list[str] = []
        for start in range(0, len(prompts), self.shard):
            encoded = self.encoder.encode(prompts[start : start + self.shard])
            names.append(f"prompts-{len(names):05d}.safetensors")
            state = {
                "text": encoded.text_BLC.to(self.dtype),
                "mask": encoded.mask_BL,
                "clip": encoded.clip_BMC.to(self.dtype),
            }
            save_file({name: value.cpu().contiguous() for name, value in state.items()}, self.folder / names[-1])
        facts = {"files": self.files, "prompts": names, "shard": self.shard, "widths": list(self.encoder.widths)}
        facts["cut_prompts"] = dataclasses.asdict(self.cut)
        written = [*names, *(file["file"] for file in self.files)]
        facts |= {"sha256": {name: _digest(self.folder / name) for name in written}, "made_by": self.made_by}
        jsonl.write_json_atomic(self.folder / INDEX, facts)
        return self.folder

    def _write(self, *grid: int) -> None:
        rows = self.waiting.pop((grid[0], grid[1], grid[2]))
        name = f"videos-{len(self.files):05d}.safetensors"
        save_file({key: torch.stack([row[key] for row in rows]).contiguous() for key in rows[0]}, self.folder / name)
        channels = rows[0]["image"].shape[0]
        self.files.append({"file": name, "grid": list(grid), "rows": len(rows), "channels": channels})


class Latents(Sequence[Video]):
    """Rows of a folder that ``LatentWriter`` wrote. ConfigError for a folder that is none or not complete, that another
    VAE or other encoders than ``made_by`` made, and, as a file is opened, for one that was changed."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any]):
        if not (folder / INDEX).is_file():
            raise ConfigError(f"{folder} holds no prepared latents (no {INDEX}): prepare them first (make data)")
        facts = jsonl.read_json(folder / INDEX, "files", "prompts", "shard", "widths", "sha256", "made_by")
        if changed := difference(facts["made_by"], made_by):
            raise ConfigError(
                f"{folder} was made otherwise than the config says; these differ:\n  " + "\n  ".join(changed) + "\n"
                "Prepare the data again (stepstack data), or name the VAE and the encoders that made it"
            )
        self.sha256: dict[str, str] = facts["sha256"]
        self.folder, self.shard = folder, facts["shard"]
        self.widths: tuple[int, int] = tuple(facts["widths"])
        self.channels: int = facts["files"][0]["channels"]
        self.prompt_files: list[str] = facts["prompts"]
        self.rows = [(file["file"], row) for file in facts["files"] for row in range(file["rows"])]
        self.buckets: dict[Grid, list[int]] = {}
        start = 0
        for file in facts["files"]:
            self.buckets.setdefault(tuple(file["grid"]), []).extend(range(start, start + file["rows"]))
            start += file["rows"]
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Video:  # type: ignore[override]
        name, row = self.rows[index]
        file = self._file(name)
        values = {key: file.get_slice(key)[row : row + 1][0] for key in file.keys()}  # noqa: SIM118
        text = self.prompt(int(values["prompt"]))
        return Video(values["latents"], values["image"], float(values["motion"]), text, values.get("loser"))

    def __iter__(self) -> Iterator[Video]:
        return (self[i] for i in range(len(self)))

    def prompt(self, place: int) -> Encoded:
        file, row = self._file(self.prompt_files[place // self.shard]), place % self.shard
        return Encoded(*(file.get_slice(key)[row : row + 1] for key in ("text", "mask", "clip")))

    @cached_property
    def empty(self) -> Encoded:
        """Encoding of the empty prompt, which replaces a dropped one."""
        return self.prompt(0)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            file = self.folder / name
            if Path(name).name != name:
                raise ConfigError(
                    f"{self.folder / INDEX} names {name}, which leads elsewhere: prepare the folder again"
                )
            if not file.is_file():
                raise ConfigError(f"{file} is missing: prepare the folder again")
            if _digest(file) != self.sha256.get(name):
                raise ConfigError(f"{file} was changed after it was written (sha256): prepare the folder again")
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
