"""Tiny scenes that are drawn, not stored: coloured forms to find, count and list, and words to read.

A hash of their content (for a scene with words, of its text) decides which scenes are held out, so no stage of training
can ever see one, whatever its config. Text is drawn with Pillow's own font. Its pixels may differ between versions of
Pillow, the gold does not.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from pydantic import NonNegativeInt, PositiveInt

from data.drawn.splits import Split, split_of
from data.media.images import Record, Target
from stepstack.config import ConfigError, Strict

Shape = Literal["circle", "square", "triangle", "diamond", "cross"]
Colour = Literal["red", "green", "blue", "yellow", "purple", "cyan", "orange", "black", "white"]
Box = tuple[int, int, int, int]

RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 20, 30),
    "green": (0, 140, 50),
    "blue": (20, 50, 230),
    "yellow": (245, 215, 0),
    "purple": (140, 20, 160),
    "cyan": (0, 200, 220),
    "orange": (255, 115, 0),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
MIN_GAP = 1  # free pixels between objects
MAX_PLACEMENTS = 200  # attempts to place the parts of a scene, before it is drawn anew
MAX_FAILED_DRAWS = 20_000  # draws without a new scene, after which there are no more


@dataclass(frozen=True, slots=True)
class Thing:
    """Form that fills its box: pixels x1 <= x < x2, y1 <= y < y2, each side touched."""

    shape: Shape
    colour: Colour
    box: Box


@dataclass(frozen=True, slots=True)
class Line:
    """Line of text. ``corner``: the upper left of its ink in pixels. ``height``: height of the font."""

    text: str
    colour: Colour
    corner: tuple[int, int]
    height: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Content of a scene, which ``render`` draws; ``size`` is (width, height) in pixels."""

    size: tuple[int, int]
    background: Colour
    things: tuple[Thing, ...] = ()
    lines: tuple[Line, ...] = ()

    def __str__(self) -> str:
        """Content in one line, of which hashes are taken."""
        things = [f"{t.colour} {t.shape} {t.box}" for t in self.things]
        lines = [f"{line.colour} {line.text!r} {line.corner} {line.height}" for line in self.lines]
        return "; ".join([f"{self.size} {self.background}", *things, *lines])


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """The picture of a scene, drawn when its pixels are asked for."""

    scene: Scene

    def image(self) -> Image.Image:
        return render(self.scene)


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects(Strict):
    """Scenes of forms that do not touch. All ranges are inclusive."""

    type: Literal["objects"] = "objects"
    """Choice of the data: drawn forms."""
    task: Literal["grounding", "counting", "detection"] = "grounding"
    """Question about a scene: grounding asks for one form, whose name no other has; counting for the number of a kind;
    detection for all forms."""
    size: tuple[PositiveInt, PositiveInt] = (56, 56)
    """Width and height of a scene in pixels."""
    background: Colour = "white"
    """Colour behind the forms, none of ``colours``."""
    objects: tuple[NonNegativeInt, NonNegativeInt] = (1, 3)
    """Least and most forms of a scene, all kinds together."""
    count: tuple[NonNegativeInt, NonNegativeInt] = (0, 3)
    """Least and most forms of the kind that task=counting asks for."""
    sides: tuple[PositiveInt, PositiveInt] = (14, 28)
    """Least and greatest side of a form in pixels."""
    grid: PositiveInt = 1
    """Pixels of which sides and corners are multiples."""
    colours: tuple[Colour, ...] = ("red", "green", "blue", "yellow")
    """Colours of the forms."""
    shapes: tuple[Shape, ...] = ("circle", "square", "triangle")
    """Shapes of the forms."""
    named_by: Literal["colour and shape", "colour", "shape"] = "colour and shape"
    """Properties that a form's name is made of."""
    train: NonNegativeInt = 20000
    """Distinct scenes of the training set."""
    select: NonNegativeInt = 256
    """Distinct scenes that are watched during training; disjoint from the other sets."""
    test: NonNegativeInt = 512
    """Distinct scenes that are reported; disjoint from the other sets."""
    seed: NonNegativeInt = 0
    """Seed of the drawing; which scenes are held out does not depend on it."""

    def __post_init__(self) -> None:
        _ordered(objects=self.objects, count=self.count, sides=self.sides)
        if not self.colours or not self.shapes or self.background in self.colours:
            raise ValueError("colours and shapes must not be empty, and background must not be one of the colours")
        if self.sides[1] // self.grid * self.grid < self.sides[0] or self.sides[0] > min(self.size):
            raise ValueError(
                f"sides={self.sides}: no multiple of grid={self.grid} within them fits into {self.size}: widen them"
            )
        if self.task == "grounding" and self.objects[0] < 1:
            raise ValueError("objects: grounding needs at least 1 in a scene, raise the first")
        if self.task == "grounding" and self.objects[1] > 1 and len(self.names) < 2:
            raise ValueError(
                "objects: with one name only, grounding can ask for one object only: add colours or shapes"
            )
        if self.task == "counting" and self.count[1] > self.objects[1]:
            raise ValueError(
                f"count={self.count} goes beyond objects={self.objects}, which are all of a scene: lower count"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All names that an object may have."""
        return tuple(dict.fromkeys(name(self, shape, colour) for colour in self.colours for shape in self.shapes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Words(Strict):
    """Scenes of lines of words to be read; ranges are inclusive. Sets are split by the text: a held-out text is not
    seen at another place either."""

    type: Literal["words"] = "words"
    """Choice of the data: drawn words."""
    size: tuple[PositiveInt, PositiveInt] = (56, 56)
    """Width and height of a scene in pixels."""
    background: Colour = "white"
    """Colour behind the words, none of ``colours``."""
    colours: tuple[Colour, ...] = ("black",)
    """Colours of the lines."""
    characters: str = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    """Characters of the words, printable ASCII without the space; the default has no letters and digits that look
    alike."""
    length: tuple[PositiveInt, PositiveInt] = (2, 3)
    """Least and most characters of a word."""
    words: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Least and most words of a line."""
    lines: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Least and most lines of a scene."""
    heights: tuple[PositiveInt, PositiveInt] = (16, 20)
    """Least and greatest height of the font in pixels."""
    train: NonNegativeInt = 20000
    """Distinct scenes of the training set."""
    select: NonNegativeInt = 256
    """Distinct scenes that are watched during training; disjoint from the other sets."""
    test: NonNegativeInt = 512
    """Distinct scenes that are reported; disjoint from the other sets."""
    seed: NonNegativeInt = 0
    """Seed of the drawing; which scenes are held out does not depend on it."""

    def __post_init__(self) -> None:
        _ordered(length=self.length, words=self.words, lines=self.lines, heights=self.heights)
        if not self.colours or self.background in self.colours:
            raise ValueError("colours must not be empty, and background must not be one of them")
        if not self.characters or not self.characters.isascii() or not self.characters.isprintable():
            raise ValueError("characters must be printable ASCII: the built-in font has no others for certain")
        if " " in self.characters:
            raise ValueError("characters must not hold a space: `words` says how many words a line has")


Scenes = Objects | Words


def problems(cfg: Scenes, split: Split) -> list[Record]:
    """Distinct scenes of a split as records in pixels, a pure function of the config.

    ConfigError where there are not that many.
    """
    wanted = {"train": cfg.train, "select": cfg.select, "test": cfg.test}[split]
    rng = random.Random(f"{cfg.seed}-{split}")
    question_of_scene: dict[Scene, str] = {}
    in_vain = 0
    while len(question_of_scene) < wanted:
        scene, question = draw(rng, cfg)
        if split_of_scene(scene) == split and scene not in question_of_scene:
            question_of_scene[scene], in_vain = question, 0
        elif (in_vain := in_vain + 1) == MAX_FAILED_DRAWS:
            raise ConfigError(
                f"data.{split}={wanted}: only {len(question_of_scene)} such scenes were found; ask for fewer, or for "
                "a finer grid, more objects or longer words"
            )
    return [record(index, cfg, scene, question) for index, (scene, question) in enumerate(question_of_scene.items())]


def split_of_scene(scene: Scene) -> Split:
    """Split by the text or, without one, by the whole content."""
    return split_of("\n".join(line.text for line in scene.lines) or str(scene))


def draw(rng: random.Random, cfg: Scenes) -> tuple[Scene, str]:
    """Scene and its question (``Record.question``). ConfigError where its parts do not fit into it."""
    for _ in range(MAX_PLACEMENTS):
        scene = _draw_lines(rng, cfg) if isinstance(cfg, Words) else _draw_things(rng, cfg)
        if scene is not None:
            return scene
    raise ConfigError(
        f"{cfg.size}: too small for what a scene must hold: ask for fewer or smaller things, or enlarge it"
    )


def record(index: int, cfg: Scenes, scene: Scene, question: str) -> Record:
    """Question about a scene, with its gold."""
    pictures = (ScenePicture(scene),)
    if isinstance(cfg, Words):
        text = "\n".join(line.text for line in scene.lines)
        return Record(index, "ocr", pictures, question, (), "pixels", scene.size, text)
    targets = tuple(_target(cfg, thing) for thing in scene.things)
    if cfg.task != "detection":
        targets = tuple(target for target in targets if target.label == question)
    count = len(targets) if cfg.task == "counting" else None
    return Record(index, cfg.task, pictures, question, targets, "pixels", scene.size, count=count)


def name(cfg: Objects, shape: Shape, colour: Colour) -> str:
    """Name of an object: "red circle", or one half of it."""
    return {"colour and shape": f"{colour} {shape}", "colour": colour, "shape": shape}[cfg.named_by]


def _target(cfg: Objects, thing: Thing) -> Target:
    x1, y1, x2, y2 = thing.box
    return Target(name(cfg, thing.shape, thing.colour), (float(x1), float(y1), float(x2), float(y2)))


def render(scene: Scene) -> Image.Image:
    """Picture of a scene in RGB. Forms have hard edges; text is smoothed."""
    image = Image.new("RGB", scene.size, RGB[scene.background])
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(canvas, thing)
    for line in scene.lines:
        left, top, _, _ = _ink(line.text, line.height)
        at = (line.corner[0] - left, line.corner[1] - top)
        canvas.text(at, line.text, fill=RGB[line.colour], font=_font(line.height))
    return image


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing) -> None:
    x1, y1, x2, y2 = thing.box
    right, bottom, fill = x2 - 1, y2 - 1, RGB[thing.colour]  # Pillow's corners are inclusive
    x, y = (x1 + right) / 2, (y1 + bottom) / 2
    match thing.shape:
        case "circle":
            canvas.ellipse((x1, y1, right, bottom), fill=fill)
        case "square":
            canvas.rectangle((x1, y1, right, bottom), fill=fill)
        case "triangle":
            canvas.polygon([(x, y1), (x1, bottom), (right, bottom)], fill=fill)
        case "diamond":
            canvas.polygon([(x, y1), (right, y), (x, bottom), (x1, y)], fill=fill)
        case "cross":
            third = (x2 - x1) // 3
            canvas.rectangle((x1 + third, y1, right - third, bottom), fill=fill)
            canvas.rectangle((x1, y1 + third, right, bottom - third), fill=fill)


def _draw_things(rng: random.Random, cfg: Objects) -> tuple[Scene, str] | None:
    """Scene of objects and its question; None where the objects found no place."""
    kinds = [(shape, colour) for shape in cfg.shapes for colour in cfg.colours]
    question = "" if cfg.task == "detection" else rng.choice(cfg.names)
    if cfg.task == "detection":
        chosen = [rng.choice(kinds) for _ in range(rng.randint(*cfg.objects))]
    else:
        right = [kind for kind in kinds if name(cfg, *kind) == question]
        others = [kind for kind in kinds if name(cfg, *kind) != question]
        wanted = 1 if cfg.task == "grounding" else rng.randint(*cfg.count)
        total = rng.randint(max(wanted, cfg.objects[0]), cfg.objects[1]) if others else wanted
        chosen = [rng.choice(right) for _ in range(wanted)] + [rng.choice(others) for _ in range(total - wanted)]
    boxes: list[Box] = []
    for _ in chosen:
        box = _place(rng, cfg, boxes)
        if box is None:
            return None
        boxes.append(box)
    things = (Thing(shape, colour, box) for (shape, colour), box in zip(chosen, boxes, strict=True))
    scene = Scene(cfg.size, cfg.background, tuple(sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))))
    return scene, question or ", ".join(cfg.names)


def _place(rng: random.Random, cfg: Objects, taken: Sequence[Box]) -> Box | None:
    low, high = -(-cfg.sides[0] // cfg.grid), min(*cfg.size, cfg.sides[1]) // cfg.grid
    for _ in range(MAX_PLACEMENTS):
        side = rng.randint(low, high) * cfg.grid
        x, y = (rng.randint(0, (room - side) // cfg.grid) * cfg.grid for room in cfg.size)
        box = (x, y, x + side, y + side)
        if not any(_touch(box, other) for other in taken):
            return box
    return None


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] + MIN_GAP and b[0] < a[2] + MIN_GAP and a[1] < b[3] + MIN_GAP and b[1] < a[3] + MIN_GAP


def _draw_lines(rng: random.Random, cfg: Words) -> tuple[Scene, str] | None:
    """Scene of lines and its question; None where the lines are too wide or too many for the picture."""
    height, colour = rng.randint(*cfg.heights), rng.choice(cfg.colours)
    texts = [" ".join(_words(rng, cfg)) for _ in range(rng.randint(*cfg.lines))]
    inks = [_ink(text, height) for text in texts]
    widths = [right - left for left, _, right, _ in inks]
    step = height + height // 4  # from line to line
    tall = max(bottom - top for _, top, _, bottom in inks)
    room = cfg.size[0] - max(widths), cfg.size[1] - step * (len(texts) - 1) - tall
    if min(room) < 0:
        return None
    top = rng.randint(0, room[1])
    lines = tuple(
        Line(text, colour, (rng.randint(0, cfg.size[0] - width), top + step * number), height)
        for number, (text, width) in enumerate(zip(texts, widths, strict=True))
    )
    return Scene(cfg.size, cfg.background, lines=lines), ""


def _words(rng: random.Random, cfg: Words) -> list[str]:
    return ["".join(rng.choices(cfg.characters, k=rng.randint(*cfg.length))) for _ in range(rng.randint(*cfg.words))]


@functools.cache
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


@functools.lru_cache(maxsize=100_000)
def _ink(text: str, height: int) -> Box:
    """Left, top, right, bottom of the ink of a line drawn at (0, 0)."""
    left, top, right, bottom = _font(height).getbbox(text)
    return int(left), int(top), int(right), int(bottom)


def _ordered(**ranges: tuple[int, int]) -> None:
    for key, (low, high) in ranges.items():
        if low > high:
            raise ValueError(f"{key}={(low, high)}: the first must not be above the second")
