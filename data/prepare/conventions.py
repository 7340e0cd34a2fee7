"""Conventions of the numbers of a box: declared by the user, verified against the pictures, and never guessed silently.

The same box of a 640 x 480 picture is published as (64, 48, 320, 240) pixels, (100, 100, 500, 500) thousandths, (10,
10, 50, 50) percent, (0.1, 0.1, 0.5, 0.5), or as x, y, width, height of any of these. Training on the wrong reading runs
without an error and loses many points of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data.errors import BadRow, DataError
from stepstack.scoring.vision import spatial

Space = Literal["pixels", "thousand", "unit"]
SourceSpace = Literal["pixels", "thousand", "percent", "unit"]
Layout = Literal["xyxy", "xywh"]
Numbers = tuple[float, ...]  # four numbers of a box or two of a point

MIN_MISFITS = 5  # fewer wrong boxes than this, or than a tenth of all, are single bad rows
MISFIT_SHARE = 0.1
OTHER_SHARE = 0.98  # fraction of the boxes that must suit a convention for an error to suggest it
AT_EDGE = 0.97  # fraction of an axis from which on a box ends at the edge
MIN_AT_EDGE = 3


@dataclass(frozen=True, slots=True)
class Annotation:
    """Box or point of a source, with the (width, height) of its picture in pixels."""

    where: str
    numbers: Numbers
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Convention:
    """Space and layout in which a source writes its numbers."""

    space: SourceSpace
    layout: Layout

    def __str__(self) -> str:
        return f"space={self.space} layout={self.layout}"


@dataclass(frozen=True, slots=True)
class _Reading:
    """All annotations read in one convention.

    ``fits``: inside the picture and in order. ``beyond``: ends outside, [N]. ``begin`` and ``reach``: begin and end in
    fractions of width and height, [N, 2].
    """

    fits: NDArray[np.bool_]
    beyond: NDArray[np.bool_]
    begin: NDArray[np.float64]
    reach: NDArray[np.float64]


def check_convention(source: str, marks: Sequence[Annotation], declared: Convention) -> None:
    """Raise DataError where the numbers of ``source`` contradict the declared convention, naming the one that they
    suit.

    There are three signs. Numbers of at most 1 in a space where that is a pixel or less. Many boxes that leave the
    picture or are reversed, where another reading suits them. Boxes that end just where another space ends and almost
    never beyond it, like pixels of a 640 x 480 picture that are read as thousandths.
    """
    if not marks:
        return
    values = np.array([mark.numbers for mark in marks], float)
    sizes = np.array([mark.size for mark in marks], float)
    now = _read(values, sizes, declared)
    readings = {other: _read(values, sizes, other) for other in _others(declared, values.shape[1])}
    if declared.space != "unit" and 0 < np.nanmax(values) <= 1:
        readings = {other: reading for other, reading in readings.items() if other.space == "unit"}
        best = max(readings, key=lambda other: readings[other].fits.mean())
        wrong = np.ones(len(marks), bool)
        raise DataError(_contradicted(source, marks, declared, best, wrong, "no number is above 1"))
    wrong = ~now.fits
    if wrong.sum() >= MIN_MISFITS and wrong.mean() > MISFIT_SHARE:
        best = max(readings, key=lambda other: (readings[other].fits.mean(), *readings[other].reach.max(0)))
        if readings[best].fits.mean() >= OTHER_SHARE:
            why = f"{wrong.sum()} of {len(marks)} are then reversed or outside of their picture"
            raise DataError(_contradicted(source, marks, declared, best, wrong, why))
    for other, reading in sorted(readings.items(), key=lambda item: item[0].layout != declared.layout):
        # In the same space the layouts differ too little for this: boxes in the middle end at the edge as x, y, w, h.
        if other.space != declared.space and (at := _at_edge(now, reading)).any():
            why = f"{at.sum()} of {len(marks)} end at the edge of {other.space} and {reading.beyond.sum()} beyond it"
            raise DataError(_contradicted(source, marks, declared, other, at, why))


def possible_spaces(marks: Sequence[Annotation], layout: Layout) -> list[SourceSpace]:
    """Spaces that the numbers can be in: those in which nearly all lie inside of their pictures.

    Numbers of at most 1 are fractions. One space is left alone where boxes end just at its edge, inside of the edges of
    the others.
    """
    values = np.array([mark.numbers for mark in marks], float)
    sizes = np.array([mark.size for mark in marks], float)
    fractions = bool(np.nanmax(values) <= 1)
    spaces: tuple[SourceSpace, ...] = ("unit",) if fractions else ("pixels", "thousand", "percent")
    readings = {space: _read(values, sizes, Convention(space, layout)) for space in spaces}
    fitting = {space: reading for space, reading in readings.items() if reading.fits.mean() >= OTHER_SHARE}
    for space, reading in fitting.items():
        others = [other for name, other in fitting.items() if name != space]
        if others and all(_at_edge(other, reading).any() for other in others):
            return [space]
    return list(fitting)


def normalise_numbers(numbers: Numbers, size: tuple[int, int], convention: Convention) -> tuple[Numbers, Space, bool]:
    """Numbers of a box as x1, y1, x2, y2 or of a point inside the picture, their space, and whether they were clipped.

    Percent become thousandths. Up to a pixel outside of the picture is rounding and clipped. BadRow names any other
    fault.
    """
    factor, space = 10.0 if convention.space == "percent" else 1.0, written_space(convention.space)
    values = tuple(float(number) * factor for number in numbers)
    if len(values) == 4 and convention.layout == "xywh":
        values = (values[0], values[1], values[0] + values[2], values[1] + values[3])
    extent = {"pixels": size, "thousand": (1000, 1000), "unit": (1, 1)}[space]
    limits = extent * 2
    slack = [room / side for room, side in zip(limits, size * 2, strict=True)]
    if not all(map(math.isfinite, values)):
        raise BadRow(f"{list(numbers)} is not finite: repair or remove the row")
    inside = tuple(
        min(max(value, 0.0), limit) if -more <= value <= limit + more else value
        for value, limit, more in zip(values, limits, slack, strict=False)
    )
    why = spatial.check(inside, extent) if len(inside) == 4 else _outside(inside, extent)
    if why is not None:
        read = "" if convention.space == "pixels" else f", in a space of {extent[0]} x {extent[1]},"
        raise BadRow(f"{list(numbers)} as {convention}{read} in a picture of {size[0]} x {size[1]}: {why}")
    return inside, space, inside != values


def check_same(one: Numbers, its: Convention, other: Numbers, others: Convention, size: tuple[int, int]) -> None:
    """Raise BadRow unless the two boxes of a picture of ``size`` are the same within 2 pixels or thousandths."""
    sizes = np.array([size], float)
    first, second = (_read(np.array([v], float), sizes, c) for v, c in ((one, its), (other, others)))
    apart = np.abs(np.hstack([first.begin - second.begin, first.reach - second.reach]))
    if not (apart <= np.maximum(2 / np.hstack([sizes, sizes]), 2 / 1000)).all():
        raise BadRow(
            f"{list(one)} as {its} and {list(other)} as {others} are two boxes in a picture of {size[0]} x {size[1]}, "
            "and should be one: which is right?"
        )


def written_space(space: SourceSpace) -> Space:
    """Space in which numbers of a source are written."""
    return "thousand" if space == "percent" else space


def _outside(point: Numbers, extent: tuple[int, int]) -> str | None:
    inside = 0 <= point[0] <= extent[0] and 0 <= point[1] <= extent[1]
    return None if inside else f"{list(point)} lies outside of it"


def _others(declared: Convention, width: int) -> Iterator[Convention]:
    for space in get_args(SourceSpace):
        for layout in get_args(Layout) if width == 4 else (declared.layout,):
            if (space, layout) != (declared.space, declared.layout):
                yield Convention(space, layout)


def _read(values: NDArray, sizes: NDArray, convention: Convention) -> _Reading:
    """Annotations read in a convention, from ``values`` [N, 4] or [N, 2] and ``sizes`` [N, 2] in pixels."""
    scale = {"pixels": sizes, "thousand": 1000.0, "percent": 100.0, "unit": 1.0}[convention.space]
    start, end = values[:, :2] / scale, values[:, -2:] / scale
    ordered = np.ones(len(values), bool)
    if values.shape[1] == 4:
        end = start + end if convention.layout == "xywh" else end
        ordered = (end > start).all(1)
    slack = 1 / sizes
    beyond = (end > 1 + slack).any(1)
    return _Reading(ordered & (start >= -slack).all(1) & ~beyond, beyond, start, end)


def _at_edge(now: _Reading, other: _Reading) -> NDArray[np.bool_]:
    """Annotations that end at the edge of ``other`` on an axis where that edge lies well inside of the declared space
    [N].

    None counts unless there are enough of them, nearly all suit ``other`` and almost none end beyond it.
    """
    at = ((now.reach < AT_EDGE * other.reach) & (other.reach >= AT_EDGE)).any(1) & ~other.beyond
    enough = at.sum() >= max(MIN_AT_EDGE, 10 * other.beyond.sum())
    return at if enough and other.fits.mean() >= OTHER_SHARE else np.zeros(len(at), bool)


def _contradicted(
    source: str, marks: Sequence[Annotation], declared: Convention, other: Convention, wrong: NDArray, why: str
) -> str:
    example = marks[int(np.flatnonzero(wrong)[0])]
    changes = [f"space={other.space}"] if other.space != declared.space else []
    changes += [f"layout={other.layout}"] if other.layout != declared.layout else []
    return (
        f"{source}: its numbers are not {declared}: {why}. They look like {other}: set {' and '.join(changes)}. "
        f"For example {example.where}: {list(example.numbers)} in a picture of {example.size[0]} x {example.size[1]}"
    )
