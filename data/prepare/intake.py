"""Records of perception data: how their sources are checked and prepared.

A box is (x1, y1, x2, y2), a point (x, y), from the top left corner. A record has the ``space`` of its numbers: "pixels"
of the stored picture, "thousand" (0..1000 of its width and height) or "unit" (0..1).

A prepared row is ``{"index", "pictures": [{"root", "path", "sha256"}], "question", "targets": [{"label", "box"|
"point"}], "text", "count", "size"}``. Task, space and the folders that ``root`` counts are in the manifest. A target of
detection has ``"area"`` in square pixels where its source gives one, else its area is that of the box, and ``"crowd":
true`` where it is a crowd region.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import MAX_ERRORS, BadRow, DataError, refuse
from data.media.images import FilePicture, PerceptionTask, Record, Target, check_aspect, decode
from data.media.paths import locate
from data.prepare.config import IntakeOptions
from data.prepare.conventions import (
    Annotation,
    Convention,
    Numbers,
    SourceSpace,
    check_convention,
    check_same,
    normalise_numbers,
    possible_spaces,
    written_space,
)
from data.prepare.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    Source,
    check_target,
    json_lines,
    named_sources,
    new_folder,
    on_hub,
    read_manifest,
    read_source,
    split_rows,
    write_files,
    write_synced,
)
from stepstack import __version__, config

# Rows read and bad, repeated ones among these, those left out as empty; clipped boxes; pictures that have transparent
# parts, which are put on white.
COUNTS = ("read", "bad", "duplicates", "empty", "clipped", "over_white")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeRow:
    """Row of a source.

    ``image`` is a path or an encoded picture. ``numbers`` are boxes in the declared space and layout, or points.
    ``again``: the same boxes in another space, where the source has both. ``size``: size of the picture in the source,
    if given. ``areas`` (square pixels, None: not given) and ``crowds`` (whether it is a crowd region) are of each box;
    empty: none has an area of its own, none is a crowd.
    """

    image: str | bytes
    question: str = ""
    labels: tuple[str, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    text: str = ""
    count: int | None = None
    size: tuple[int, int] | None = None
    again: tuple[Numbers, ...] = ()
    again_space: SourceSpace = "pixels"
    areas: tuple[float | None, ...] = ()
    crowds: tuple[bool, ...] = ()


# Row of a source's JSON value. The space is None for training rows while it is not known.
Parse = Callable[[Any, SourceSpace | None], IntakeRow]


@dataclass(frozen=True, slots=True)
class _StoredPicture:
    root: int | None  # None: in the prepared folder
    path: str
    sha256: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _ReadRow:
    where: str
    row: IntakeRow
    picture: _StoredPicture


def prepare(
    out: Path,
    data: str,
    task: PerceptionTask,
    source: str | Sequence[str],
    evals: Sequence[str],
    parse: Parse,
    options: IntakeOptions,
    *,
    read: Callable[[str], Source] = read_source,
    question: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Read the sources, open every picture, check every row and write ``out`` in one rename.

    The ``prepare`` of each perception data set calls it, with ``options.layout`` set. Where ``options.space`` is None,
    the training numbers must fit one space alone. A train row whose picture is in an eval, byte for byte, is dropped
    and counted as contaminated. ``question``: the question of every row, stored in the manifest only. DataError for a
    convention that the numbers contradict or do not decide, for a split without rows, or with up to 20 bad rows;
    nothing is written then.
    """
    out = Path(out)
    check_target(out, overwrite)
    sources = [source] if isinstance(source, str) else list(source)
    named = named_sources(evals)
    with new_folder(out) as folder:
        intake = _Intake(folder, task, options, parse, read)
        train = intake.split("train", sources)
        held_out = {name: intake.split(name, [place]) for name, place in named.items()}
        if not options.drop_bad:
            refuse(intake.errors, ", nothing written (drop_bad leaves them out)")
        eval_digests = {item.picture.sha256 for rows in held_out.values() for item in rows}
        train_rows = [item for item in train if item.picture.sha256 not in eval_digests]
        counts = {
            **intake.counts,
            "contaminated": len(train) - len(train_rows),
            "kept": {"train": len(train_rows), **{name: len(rows) for name, rows in held_out.items()}},
            "dropped": intake.errors[:MAX_ERRORS],
        }
        splits = {"train": train_rows, **held_out}
        for name, rows in splits.items():
            if not rows:
                raise DataError(
                    f"no row of {name} is left to write ({_shown(counts)}): give rows that are not in an eval"
                )
        files = {f"{name}.jsonl": (name, intake.lines(rows, question is None)) for name, rows in splits.items()}
        described = {
            **config.to_dict(options),
            "task": task,
            "space": written_space(intake.space or "pixels"),
            "images": intake.roots,
            "question": question,
            "source_space": intake.space,
        }
        records = [intake.records[place] for place in sources]
        eval_records = {name: intake.records[place] for name, place in named.items()}
        manifest = Manifest(SCHEMA, __version__, data, records, eval_records, described, counts, {})
        return write_files(folder, files, manifest)


def load(place: Path, split: str, data: str, images: Sequence[str] = ()) -> list[Record]:
    """Records of a prepared split, in order.

    ``images``: present folders of the pictures, if they moved. DataError for another kind of data, a changed file, or
    where the first picture is missing.
    """
    path = Path(place) / MANIFEST if Path(place).is_dir() else Path(place)
    manifest = read_manifest(path, data)
    options = manifest.options
    roots = list(images) or options["images"]
    if len(roots) != len(options["images"]):
        before = len(options["images"])
        raise DataError(f"images: {len(roots)} folders, {path} was prepared with {before}: name as many, in that order")
    records: list[Record] = []
    for row in split_rows(path, manifest, split):
        pictures = tuple(_picture(picture, roots, path.parent) for picture in row["pictures"])
        if not records and not Path(pictures[0].path).is_file():
            raise DataError(f"{pictures[0].path} does not exist: set images to the folders that hold the pictures now")
        targets = tuple(_target(target) for target in row["targets"])
        question = row["question"] if options["question"] is None else options["question"]
        size = (row["size"][0], row["size"][1])
        gold = {"text": row["text"], "count": row["count"]}
        records.append(
            Record(row["index"], options["task"], pictures, question, targets, options["space"], size, **gold)
        )
    return records


class _Intake:
    """Reader of sources into a folder that is being written. ``errors`` and ``counts`` collect over all of them."""

    def __init__(
        self,
        folder: Path,
        task: PerceptionTask,
        options: IntakeOptions,
        parse: Parse,
        read: Callable[[str], Source],
    ):
        self.folder, self.task, self.options, self.parse, self.read = folder, task, options, parse, read
        self.space = options.space
        self.roots = [str(Path(place).resolve()) for place in options.images]
        self.records: dict[str, Mapping[str, Any]] = {}
        self.errors: list[str] = []
        self.counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
        self._by_path: dict[str, _StoredPicture | str] = {}  # a text is the reason why there is none
        self._by_digest: dict[str, _StoredPicture] = {}

    def split(self, name: str, sources: Sequence[str]) -> list[_ReadRow]:
        """Checked rows of a split that stay. The faults of the others are in ``errors``."""
        rows: list[_ReadRow] = []
        first: dict[tuple[str, str], _ReadRow] = {}
        opened = {place: self._open(place) for place in sources}
        if self.space is None:
            self.space = self._decided([one for rows in opened.values() for one in rows])
        for place in sources:
            if self.task != "ocr":
                check_convention(place, _marks(opened[place]), self._convention)
            for one in opened[place]:
                try:
                    self._check(one, train=name == "train")
                    row, clipped = self._normalised(one)
                    checked = _ReadRow(one.where, row, one.picture)
                    self._check_repeats(checked, first.setdefault((one.picture.sha256, row.question), checked))
                except BadRow as bad:
                    self._refuse(one.where, bad)
                    continue
                self.counts["clipped"] += clipped
                if self.task == "detection" and not _objects(row) and self.options.empty == "drop":
                    self.counts["empty"] += 1
                else:
                    rows.append(checked)
        return rows

    def _decided(self, opened: Sequence[_ReadRow]) -> SourceSpace:
        """Space of rows whose numbers fit no other. DataError where they fit several, or none."""
        marks = _marks(opened)
        if not marks:
            return "pixels"
        spaces = possible_spaces(marks, self._convention.layout)
        both = any(one.row.again for one in opened)  # read as thousandths until the space is known
        if len(spaces) == 1 and (spaces == ["thousand"] or not both):
            return spaces[0]
        fit = " and ".join(f"space={space}" for space in spaces) or "none of the spaces"
        one = marks[0]
        raise DataError(
            f"the training numbers fit {fit}, so they do not say what they are: set data.options.space to pixels, "
            f"thousand, percent or unit. For example {one.where}: {list(one.numbers)} in a picture of {one.size[0]} x "
            f"{one.size[1]}"
        )

    def lines(self, rows: Sequence[_ReadRow], with_question: bool) -> bytes:
        """JSON lines of a split, in the form of the module's docstring."""
        return json_lines(self._line(index, item, with_question) for index, item in enumerate(rows))

    def _open(self, place: str) -> list[_ReadRow]:
        """Every row that can be parsed and whose picture can be opened."""
        source = self.read(place)
        self.records[place] = source.record
        roots = self.roots[:] if self.options.images else [] if on_hub(place) else [_folder_of(place)]
        opened = []
        for where, raw in source.rows:
            self.counts["read"] += 1
            try:
                row = self.parse(raw, self.space)
                picture = self._place(row.image, roots)
                if row.size is not None and row.size != picture.size:
                    raise BadRow(
                        f"the picture {picture.path} is {picture.size[0]} x {picture.size[1]} once turned upright, the "
                        f"source says {row.size[0]} x {row.size[1]}: are these its own pictures?"
                    )
            except BadRow as bad:
                self._refuse(where, bad)
            else:
                opened.append(_ReadRow(where, dataclasses.replace(row, image=""), picture))  # no pixels are kept
        return opened

    def _place(self, image: str | bytes, roots: Sequence[str]) -> _StoredPicture:
        """Place of the picture, which is opened once. BadRow where it cannot be used."""
        if isinstance(image, bytes):
            return self._measure("its picture", image, None, "")
        paths = [str(Path(root) / image) for root in roots]  # an absolute path stays itself
        key = " or ".join(paths)
        if key not in self._by_path:
            try:
                self._by_path[key] = self._find(image, roots)
            except BadRow as bad:
                self._by_path[key] = str(bad)
        picture = self._by_path[key]
        if isinstance(picture, str):
            raise BadRow(picture)
        return picture

    def _find(self, image: str, roots: Sequence[str]) -> _StoredPicture:
        found = locate(image, [Path(root) for root in roots])
        if found is None:
            below = " or ".join(roots) or "any folder"
            raise BadRow(
                f"the picture {image} is not below {below} (links are followed): set images to the folder that holds it"
            )
        root, path = roots[found[0]], found[1]
        if root not in self.roots:
            self.roots.append(root)
        relative = path.relative_to(Path(root).resolve()).as_posix()
        return self._measure(image, path.read_bytes(), self.roots.index(root), relative)

    def _measure(self, name: str, content: bytes, root: int | None, path: str) -> _StoredPicture:
        """Decode a picture, so that a broken one is found now. Copy it where it has no file or ``copy`` is set."""
        digest = hashlib.sha256(content).hexdigest()
        copied = root is None or self.options.copy
        if copied and digest in self._by_digest:
            return self._by_digest[digest]
        try:
            decoded = decode(content, name, self.options.max_pixels)
            size = decoded.image.size
            check_aspect(size, name)
        except DataError as error:
            raise BadRow(str(error)) from None
        self.counts["over_white"] += decoded.over_white
        if not copied:
            return _StoredPicture(root, path, digest, size)
        copy_path = f"images/{digest}{_suffix(content)}"
        (self.folder / "images").mkdir(exist_ok=True)
        write_synced(self.folder / copy_path, content)
        return self._by_digest.setdefault(digest, _StoredPicture(None, copy_path, digest, size))

    def _check(self, one: _ReadRow, train: bool) -> None:
        row, known = one.row, _objects(one.row)
        questions = [row.question] if self.task in ("grounding", "counting") else []
        if not all(label.strip() for label in [*row.labels, *questions]):
            raise BadRow("a label is empty: name the object, or remove the row")
        if self.task == "ocr" and not row.text.strip():
            raise BadRow("the text is empty: transcribe the picture, or remove the row")
        if self.task == "grounding" and known != 1:
            raise BadRow(f"{known} boxes: grounding asks for exactly one; mend or remove the row")
        if self.task == "detection" and not known and self.options.empty == "refuse":
            raise BadRow('no objects: add them, or set empty to "drop" (leave out) or "keep" (there are none to see)')
        if self.task == "counting" and known and row.count not in (None, known):
            raise BadRow(f"the count is {row.count}, but {known} objects are marked: mend one of them")
        if self.task == "counting" and not known and row.count != 0 and (train or row.count is None):
            raise BadRow("no objects are marked: training needs their points or boxes; a count alone can be an eval")

    def _normalised(self, one: _ReadRow) -> tuple[IntakeRow, int]:
        """Row with its numbers in the written form, and the number of clipped boxes."""
        size, convention = one.picture.size, self._convention
        boxes = [normalise_numbers(numbers, size, convention)[::2] for numbers in one.row.numbers]
        again = dataclasses.replace(convention, space=one.row.again_space)
        for numbers, same in zip(one.row.numbers, one.row.again, strict=False):
            check_same(numbers, convention, same, again, size)
        row = dataclasses.replace(one.row, numbers=tuple(numbers for numbers, _ in boxes))
        return row, sum(clipped for _, clipped in boxes)

    def _check_repeats(self, one: _ReadRow, first: _ReadRow) -> None:
        if one is first:
            return
        self.counts["duplicates"] += 1
        if one.row == first.row:
            raise BadRow(f"repeats {first.where}: remove one of them")
        raise BadRow(f"asks the same of the same picture as {first.where}, with another answer: keep the right one")

    def _refuse(self, where: str, why: BadRow) -> None:
        self.counts["bad"] += 1
        self.errors.append(f"{where}: {why}")

    @property
    def _convention(self) -> Convention:
        return Convention(self.space or "pixels", self.options.layout or "xyxy")

    def _line(self, index: int, item: _ReadRow, with_question: bool) -> dict[str, Any]:
        picture, row = item.picture, item.row
        known = len(row.numbers)
        labels = row.labels or (row.question,) * known
        extras = zip(row.areas or (None,) * known, row.crowds or (False,) * known, strict=True)
        return {
            "index": index,
            "pictures": [{"root": picture.root, "path": picture.path, "sha256": picture.sha256}],
            **({"question": row.question} if with_question else {}),
            "targets": [
                {
                    "label": label,
                    "box" if len(numbers) == 4 else "point": numbers,
                    **({} if area is None else {"area": area}),
                    **({"crowd": True} if crowd else {}),
                }
                for label, numbers, (area, crowd) in zip(labels, row.numbers, extras, strict=True)
            ],
            "text": row.text,
            "count": row.count,
            "size": picture.size,
        }


def _objects(row: IntakeRow) -> int:
    """Number of boxes or points that are no crowds."""
    return len(row.numbers) - sum(row.crowds)


def _target(row: Mapping[str, Any]) -> Target:
    """Target of a prepared row."""
    box, point = (tuple(row[key]) if key in row else None for key in ("box", "point"))
    return Target(row["label"], box, point, row.get("area"), row.get("crowd", False))


def _marks(opened: Sequence[_ReadRow]) -> list[Annotation]:
    return [Annotation(one.where, numbers, one.picture.size) for one in opened for numbers in one.row.numbers]


def _shown(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items() if isinstance(number, int))


def _picture(row: Mapping[str, Any], roots: Sequence[str], folder: Path) -> FilePicture:
    root = folder if row["root"] is None else Path(roots[row["root"]])
    return FilePicture(str(root / row["path"]), row["sha256"])


def _suffix(content: bytes) -> str:
    """Suffix for people who look into the folder. The program reads the format from the content."""
    kinds = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg"}
    return next((suffix for head, suffix in kinds.items() if content.startswith(head)), "")


def _folder_of(source: str) -> str:
    path = Path(source).resolve()
    return str(path if path.is_dir() else path.parent)
