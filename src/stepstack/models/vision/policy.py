"""Qwen2-VL and Qwen2.5-VL as policies: pictures in prompts, three-part positions, image tokens that are never sampled.

Images are read by transformers' PIL processors, without torchvision.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepstack.models.lm.policy import Policy, checked_mask
from stepstack.scoring.vision.spatial import smart_resize

if TYPE_CHECKING:
    from stepstack.records import Picture

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
MAX_CACHED_BYTES = 1 << 28  # bytes of patches in the cache of a patcher
MAX_CACHED_GRIDS = 1 << 16  # pictures whose grids it keeps
READING = (
    threading.RLock()
)  # of pictures, by one thread at a time; a patcher is copied with its model, a lock cannot be
Grid = tuple[int, int, int]  # patches of a picture: frames, rows, columns


@dataclass(frozen=True, slots=True)
class Patches:
    """Input of the vision tower for one picture: pixels [rows * columns, channels * 2 * patch * patch]."""

    pixels: Tensor
    grid: Grid


class ImagePatcher:
    """Patches of pictures by the model's own image processor, with a cache of the latest ones. Threads may share it."""

    def __init__(self, processor: Any):
        """``processor``: a Qwen2VLImageProcessorPil."""
        self.processor = processor
        self._cache: OrderedDict[Picture, Patches] = OrderedDict()
        self._bytes = 0
        self._grids: dict[Picture, Grid] = {}

    def grid(self, size: tuple[int, int]) -> Grid:
        """Grid of patches of a picture of (width, height) pixels, computed without reading it."""
        p = self.processor
        width, height = smart_resize(
            *size, p.patch_size * p.merge_size, p.size["shortest_edge"], p.size["longest_edge"]
        )
        return 1, height // p.patch_size, width // p.patch_size

    @property
    def merge(self) -> int:
        """Number of patches a side that become one token."""
        return self.processor.merge_size

    def patches(self, picture: Picture) -> Patches:
        """Patches of a picture, read now or before."""
        with READING:
            return self._patches(picture)

    def _patches(self, picture: Picture) -> Patches:
        if picture in self._cache:
            self._cache.move_to_end(picture)
            return self._cache[picture]
        inputs = self.processor(images=[picture.image()], return_tensors="pt")
        frames, rows, columns = inputs["image_grid_thw"][0].tolist()
        image_patches = self._cache[picture] = Patches(inputs["pixel_values"], (frames, rows, columns))
        self._bytes += image_patches.pixels.nbytes
        while self._bytes > MAX_CACHED_BYTES and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].pixels.nbytes
        return image_patches

    def picture_grid(self, picture: Picture) -> Grid:
        """Grid of patches of a picture, which is read once for it: grids are kept for longer than patches."""
        with READING:
            if picture not in self._grids:
                if len(self._grids) >= MAX_CACHED_GRIDS:
                    del self._grids[next(iter(self._grids))]
                self._grids[picture] = self.patches(picture).grid
            return self._grids[picture]

    def tokens(self, size: tuple[int, int]) -> int:
        """Number of image tokens of a picture of (width, height) pixels."""
        frames, rows, columns = self.grid(size)
        return frames * rows * columns // self.merge**2


def positions(ids: Sequence[int], grids: Sequence[Grid], image_token: int, merge: int) -> Tensor:
    """Frame, row and column position of each token, [3, T] (Qwen2-VL, section 2.1: M-RoPE).

    Text counts up in all three. A picture's tokens count from where the text stopped, each in its own direction, and
    text continues after the longest. ValueError where the numbers of image tokens and of pictures do not match, because
    a text was cut or an image token was sampled.
    """
    is_image = torch.tensor(ids) == image_token
    wanted = sum(frames * rows * columns // merge**2 for frames, rows, columns in grids)
    if int(is_image.sum()) != wanted:
        raise ValueError(
            f"{int(is_image.sum())} image tokens in the text, but its {len(grids)} pictures have {wanted}: "
            "encode the prompt with this model's processor"
        )
    parts, at, now = [], 0, 0
    for frames, rows, columns in grids:
        rows, columns = rows // merge, columns // merge
        start = at + int(is_image[at:].int().argmax())
        parts.append(torch.arange(now, now + start - at).expand(3, -1))
        now += start - at
        axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack(axes).flatten(1) + now)
        at, now = start + frames * rows * columns, now + max(rows, columns)
    parts.append(torch.arange(now, now + len(ids) - at).expand(3, -1))
    return torch.cat(parts, dim=1)


def distinct(pictures: Sequence[Sequence[Picture]]) -> list[Picture]:
    """All pictures of some rows, each once, in the order in which they come first."""
    return list(dict.fromkeys(picture for row in pictures for picture in row))


def tower_inputs(tower: nn.Module, patches: Sequence[Patches]) -> tuple[Tensor, Tensor]:
    """Inputs of a vision tower for some pictures: all pixels one after the other, and their grids [pictures, 3]."""
    place = next(tower.parameters())
    pixels = torch.cat([one.pixels for one in patches]).to(place.device, place.dtype)
    return pixels, torch.tensor([one.grid for one in patches], device=place.device)


def by_row(features: Mapping[Picture, Tensor], pictures: Sequence[Sequence[Picture]]) -> Tensor:
    """Features [image tokens, D] of all pictures, row by row, from those of each picture."""
    return torch.cat([features[picture] for row in pictures for picture in row])


def features(tower: nn.Module, patcher: ImagePatcher, pictures: Sequence[Sequence[Picture]]) -> Tensor:
    """Features [image tokens, D] of all pictures, row by row. A picture of several rows goes through the tower once."""
    once = distinct(pictures)
    pixels, grid = tower_inputs(tower, [patcher.patches(picture) for picture in once])
    embedded = tower(pixels, grid_thw=grid).pooler_output
    parts = embedded.split([frames * rows * columns // patcher.merge**2 for frames, rows, columns in grid.tolist()])
    return by_row(dict(zip(once, parts, strict=True)), pictures)


class VisionPolicy(Policy):
    """``Policy`` of a Qwen2-VL or Qwen2.5-VL model."""

    def __init__(self, lm: PreTrainedModel, patcher: ImagePatcher, banned: Sequence[int]):
        if lm.config.model_type not in FAMILIES:
            raise ValueError(
                f"VisionPolicy knows {', '.join(FAMILIES)}, not {lm.config.model_type}: add it to FAMILIES"
            )
        super().__init__(lm, banned)
        self.patcher = patcher

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        select: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        attention_mask: Tensor | None = None,
        pictures: Sequence[Sequence[Picture]] = (),
    ) -> tuple[Tensor, Tensor]:
        """Log-probability [N] and entropy [N], like ``Policy.forward``; ``pictures`` sequence by sequence.

        ``position_ids`` [B, T] count the tokens of each row; the model's own positions are derived from them here.
        """
        body = self.lm.model
        features_RD = features(body.visual, self.patcher, pictures) if any(pictures) else None
        hidden_BTD = body.language_model(
            inputs_embeds=self.embedded(input_ids, features_RD),
            position_ids=self.model_positions(input_ids, position_ids, pictures),
            attention_mask=checked_mask(self.config, attention_mask),
            use_cache=False,
        ).last_hidden_state
        return self.scored(hidden_BTD.flatten(0, 1)[select], labels, temperature)

    def embedded(self, input_ids: Tensor, features_RD: Tensor | None = None) -> Tensor:
        """Embeddings [B, T, D] of tokens, with the features [R, D] of pictures in the places of their R tokens."""
        embedded_BTD = self.lm.get_input_embeddings()(input_ids)
        if features_RD is None:
            return embedded_BTD
        is_image_BT = input_ids == self.lm.config.image_token_id
        return embedded_BTD.masked_scatter(is_image_BT[..., None], features_RD.to(embedded_BTD.dtype))

    def model_positions(
        self, input_ids: Tensor, position_ids: Tensor, pictures: Sequence[Sequence[Picture]] = ()
    ) -> Tensor:
        """Frame, row and column positions [3, B, T]; where rows are packed behind each other [4, B, T], the counts
        of the tokens come first, because by these the model tells the rows apart."""
        starts = (position_ids.flatten() == 0).nonzero()[:, 0].tolist()
        packed = len(starts) > len(position_ids)
        three = position_ids.expand(3, -1, -1)
        if any(pictures):
            ends, flat = [*starts[1:], input_ids.numel()], input_ids.flatten().tolist()
            token, merge, counted = self.lm.config.image_token_id, self.patcher.merge, position_ids.flatten().cpu()
            parts = []
            for start, end, row in zip(starts, ends, pictures, strict=True):
                grids = [self.patcher.picture_grid(picture) for picture in row]
                own = positions(flat[start:end], grids, token, merge)
                # Behind its pictures a sequence counts on by one a token, also where it goes back to its prompt's end.
                ahead = own - torch.arange(end - start)
                last = max((place for place, one in enumerate(flat[start:end]) if one == token), default=-1)
                own[:, last + 1 :] = (ahead + counted[start:end])[:, last + 1 :]
                parts.append(own)
            three = torch.cat(parts, dim=1).unflatten(1, input_ids.shape).to(input_ids.device)
        return torch.cat([position_ids[None], three]) if packed else three
