"""Small pictures and boxes on them, for the tests of perception data."""

import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from data.errors import DataError

SIZE = (640, 480)


def png(size=SIZE, colour=(10, 200, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def photos(folder: Path, count: int, size=SIZE) -> list[str]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(size, (number % 256, number // 256, 7)))
    return [f"{number}.png" for number in range(count)]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return str(path)


def some_boxes(count: int, size=SIZE) -> list[list[int]]:
    """Boxes in pixels of which a third touch the right or lower edge, as photographs have them."""
    rng, boxes = random.Random(1), []
    for number in range(count):
        w, h = rng.randint(20, size[0] // 2), rng.randint(20, size[1] // 2)
        x = size[0] - w if number % 3 == 0 else rng.randint(0, size[0] - w)
        y = size[1] - h if number % 3 == 1 else rng.randint(0, size[1] - h)
        boxes.append([x, y, x + w, y + h])
    return boxes


def as_written(box, space: str, layout: str = "xyxy", size=SIZE) -> list[float]:
    scale = {"pixels": size, "thousand": (1000, 1000), "percent": (100, 100), "unit": (1, 1)}[space]
    x1, y1, x2, y2 = (value / side * room for value, side, room in zip(box, size * 2, scale * 2, strict=True))
    values = [x1, y1, x2 - x1, y2 - y1] if layout == "xywh" else [x1, y1, x2, y2]
    return [round(value, 4) if space == "unit" else round(value) for value in values]


def expressions(folder: Path, boxes, name="train.json", size=SIZE, same=False) -> str:
    """A source of one box a picture, or of all boxes in the ``same`` picture."""
    files = photos(folder, 1, size) * len(boxes) if same else photos(folder, len(boxes), size)
    rows = [
        {"image": file, "problem": f"thing {number}", "solution": box}
        for number, (file, box) in enumerate(zip(files, boxes, strict=True))
    ]
    return write(folder / name, rows)


def errors_of(call) -> list[str]:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value).splitlines()


def instances(folder: Path, **change) -> str:
    photos(folder, 3)
    content = {
        "images": [{"id": 10 + n, "file_name": f"{n}.png", "width": 640, "height": 480} for n in range(2)],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 18, "bbox": [10.5, 20, 100, 200], "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 1, "bbox": [600, 0, 40.3, 480], "iscrowd": 0},
            {"id": 3, "image_id": 11, "category_id": 1, "bbox": [0, 0, 64, 48]},
            {"id": 4, "image_id": 11, "category_id": 1, "bbox": [0, 0, 640, 480], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    for key, value in change.items():
        content[key] = content[key] + value
    return write(folder / "instances.json", content)
