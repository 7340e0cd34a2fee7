"""Detection data: COCO 2017's instances files, ``{"images": [...], "annotations": [...], "categories": [...]}``.

Boxes are x, y, width, height in pixels there and x1, y1, x2, y2 in the records, whose targets keep the annotation's
``area`` (of its segmentation; where it has none, the box's counts). Crowds (``iscrowd``) are regions, not objects: they
are kept as targets that are marked so, because COCO's own evaluation ignores detections in them. Boxes without area are
dropped and counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import BadRow, DataError
from data.media.images import Record
from data.media.texts import json_value
from data.prepare import intake
from data.prepare.config import IntakeOptions
from data.prepare.conventions import SourceSpace
from data.prepare.intake import IntakeRow
from data.prepare.manifest import Manifest, Source
from data.sets.refcoco import box_numbers

DATA = "coco"


def prepare(
    out: Path,
    source: str | Sequence[str],
    evals: Sequence[str],
    options: IntakeOptions,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Check instances files (``evals``: ``name=file``) and write the prepared folder ``out``.

    ``options.images`` are the folders of the pictures, such as train2017 and val2017. All files must have the same
    categories. The record of each file counts its crowds and its boxes without area. A picture that has only
    crowds is one without objects (``options.empty``). DataError for a wrong
    ``options.space`` or ``.layout``, or with up to 20 bad rows; nothing is written then.
    """
    options = dataclasses.replace(options, space=options.space or "pixels", layout=options.layout or "xywh")
    files = [source] if isinstance(source, str) else list(source)
    files += [entry.partition("=")[2] or entry for entry in evals]
    contents = {file: _content(file) for file in files}
    names = {file: list(_categories(file, content).values()) for file, content in contents.items()}
    for file in files:
        if names[file] != names[files[0]]:
            raise DataError(f"{file}: its categories are not those of {files[0]}: evaluate on what is trained")

    def read(file: str) -> Source:
        return _read(file, contents[file])

    question = ", ".join(names[files[0]])
    return intake.prepare(
        out, DATA, "detection", source, evals, _row, options, read=read, question=question, overwrite=overwrite
    )


def load(place: Path, split: str, images: Sequence[str] = ()) -> list[Record]:
    """Detection records of "train" or an eval: ``question`` names all categories, ``targets`` are the
    objects and the crowds, in the order of the file."""
    return intake.load(place, split, DATA, images)


def _read(source: str, content: Mapping[str, Any]) -> Source:
    """Rows of a file, one an image: ``{"image", "objects": [(label, annotation)]}``.

    DataError for annotations that belong to no row.
    """
    categories = _categories(source, content)
    images = {image["id"]: image for image in content["images"]}
    repeated = [key for key, times in Counter(image["id"] for image in content["images"]).items() if times > 1]
    if repeated:
        times = len(content["images"]) - len(images) + 1
        raise DataError(f"{source}: image id {repeated[0]} stands {times} times: remove all but one")
    objects: dict[Any, list[tuple[str, Any]]] = {key: [] for key in images}
    ids: set[Any] = set()
    crowds = without_area = 0
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{source} annotation {number} (id {annotation.get('id')})"
        if annotation.get("id") in ids:
            raise DataError(f"{where}: its id stands twice: remove one of them")
        ids.add(annotation.get("id"))
        for key, known in (("image_id", images), ("category_id", categories)):
            if annotation.get(key) not in known:
                value = annotation.get(key)
                raise DataError(f"{where}: key {key} is {value!r}, which is not in this file: remove the annotation")
        if annotation.get("iscrowd") not in (None, 0, 1):
            raise DataError(f"{where}: key iscrowd is {annotation['iscrowd']!r}: must be 0 or 1")
        if not _has_area(annotation):
            without_area += 1
        else:
            crowds += bool(annotation.get("iscrowd"))
            objects[annotation["image_id"]].append((categories[annotation["category_id"]], annotation))
    rows = [
        (f"{source} image {number} (id {key})", {"image": image, "objects": objects[key]})
        for number, (key, image) in enumerate(images.items(), 1)
    ]
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    counted = {"rows": len(rows), "crowds": crowds, "without_area": without_area}
    return Source(rows, {"name": source, **counted, "sha256": {Path(source).name: digest}})


def _row(raw: Any, space: SourceSpace | None) -> IntakeRow:
    image = raw["image"]
    if not isinstance(image.get("file_name"), str):
        raise BadRow('expected {"id": ..., "file_name": name, "width": pixels, "height": pixels}')
    sides = (_side(image, "width"), _side(image, "height"))
    annotations = [annotation for _, annotation in raw["objects"]]
    return IntakeRow(
        image=image["file_name"],
        labels=tuple(label for label, _ in raw["objects"]),
        numbers=tuple(box_numbers(one.get("bbox"), f"bbox of annotation {one['id']}") for one in annotations),
        size=sides,
        areas=tuple(_area(one) for one in annotations),
        crowds=tuple(bool(one.get("iscrowd")) for one in annotations),
    )


def _area(annotation: Mapping[str, Any]) -> float | None:
    """Area in square pixels that the annotation gives; None where it gives none."""
    area = annotation.get("area")
    if area is None:
        return None
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < math.inf:
        raise BadRow(
            f"key area of annotation {annotation['id']} is {area!r}: must be a number of square pixels, or left out"
        )
    return area


def _side(image: Mapping[str, Any], key: str) -> int:
    """Whole number of pixels, which may be written as 640.0."""
    side = image.get(key)
    if isinstance(side, bool) or not isinstance(side, int | float) or not float(side).is_integer():
        raise BadRow(f"key {key} is {side!r}: must be a whole number of pixels")
    return int(side)


def _has_area(annotation: Mapping[str, Any]) -> bool:
    """Whether a box is more than a line or a point, of which train2017 has two; what is no box at all is kept, and
    refused with its row."""
    box = annotation.get("bbox")
    return not (isinstance(box, list) and len(box) == 4 and 0 in box[2:])


def _content(source: str) -> Mapping[str, Any]:
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{source} does not exist: give an instances file, such as instances_train2017.json")
    content = json_value(path, path.read_bytes())
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise DataError(f"{source}: key {key} must be a list: is this an instances file of COCO?")
    for key in ("images", "annotations"):
        for number, entry in enumerate(content[key], 1):
            if not isinstance(entry, Mapping) or "id" not in entry:
                raise DataError(f"{source}: {key} entry {number} must be an object with an id")
    if not content["images"]:
        raise DataError(f"{source}: no images: give a file that has some")
    return content


def _categories(source: str, content: Mapping[str, Any]) -> dict[Any, str]:
    """Map from id to name, in the order of the file."""
    named: dict[Any, str] = {}
    for number, entry in enumerate(content["categories"], 1):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name.strip() or "id" not in entry or name in named.values():
            raise DataError(f"{source}: categories entry {number} must have an id and a name of its own")
        named[entry["id"]] = name
    return named
