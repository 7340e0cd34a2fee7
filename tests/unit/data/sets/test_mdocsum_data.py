"""Papers in the benchmark's form: what is read, and what is refused with its file, line and row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data.errors import DataError
from data.media.documents import FIGURE
from data.sets import mdocsum
from stepstack.scoring import documents

MARKDOWN = """# Seeing less

<1> ![Overview of the model](figures/overview.png)

We look at less.

<2>![Accuracy by size](figures/accuracy.png)
"""
REFERENCE = [
    {"summary": "Seeing is hard.", "image": {"imageRef": "None", "imageCaption": ""}},
    {
        "summary": "We look at less.",
        "image": {"imageRef": "1", "imageCaption": "Overview of the model"},
        "key_points": ["The model looks at less."],
    },
    {"summary": "It is as good.", "image": {"imageRef": "2", "imageCaption": "Accuracy by size"}},
    {"summary": "Less is enough.", "image": {"imageRef": "None", "imageCaption": ""}},
]


def write(folder: Path, split: str = "test", name: str = "seeing", text: str = MARKDOWN, reference=REFERENCE) -> Path:
    place = folder / split
    (place / "figures").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), "red").save(place / "figures" / "overview.png")
    Image.new("L", (50, 70)).save(place / "figures" / "accuracy.png")
    (place / f"{name}.md").write_text(text)
    (place / f"{name}.json").write_text(reference if isinstance(reference, str) else json.dumps(reference))
    return place


def changed(row: int, **changes) -> list[dict]:
    rows = json.loads(json.dumps(REFERENCE))
    for key, value in changes.items():
        place = rows[row]["image"] if key.startswith("image") and key != "image" else rows[row]
        place[key] = value
    return rows


def test_a_paper_is_read(tmp_path):
    write(tmp_path)
    write(
        tmp_path,
        name="another",
        text="# Short\nNothing to see.",
        reference=[{**row, "image": REFERENCE[0]["image"]} for row in REFERENCE],
    )
    other, paper = mdocsum.load(tmp_path, "test")
    assert (other.name, paper.name, paper.index) == ("another", "seeing", 1)
    assert paper.text.count(FIGURE) == 2
    assert f"<1>{FIGURE}\n" in paper.text
    assert ".png" not in paper.text
    assert [(f.idx, f.caption, f.size) for f in paper.figures] == [
        ("1", "Overview of the model", (60, 40)),
        ("2", "Accuracy by size", (50, 70)),
    ]
    assert paper.figures[1].picture.image().mode == "RGB"
    assert [p.image for p in paper.gold.paragraphs] == ["None", "1", "2", "None"]
    assert paper.gold.paragraphs[1].points == ("The model looks at less.",)
    assert documents.score(documents.write(paper.gold.paragraphs), paper.gold)["omatch"] == 1.0
    assert len(mdocsum.load(tmp_path, "test", limit=1)) == 1


FAULTS = {
    "an idx that no figure has": (
        {"reference": changed(1, imageRef="7")},
        r"seeing\.json row 1: key imageRef is '7'.*1, 2",
    ),
    "an idx that is a number": ({"reference": changed(2, imageRef=2)}, r"row 2: key imageRef is 2"),
    "five paragraphs": (
        {"reference": [*REFERENCE, REFERENCE[0]]},
        r"seeing\.json has 5 paragraphs: must be a list of 4",
    ),
    "no list": ({"reference": {"summary": "x"}}, r"seeing\.json has dict"),
    "no JSON": ({"reference": "[{"}, r"seeing\.json column 3: not JSON"),
    "no summary": ({"reference": changed(0, summary=" ")}, r"row 0: key summary is empty"),
    "an image that is no dict": ({"reference": changed(3, image="1")}, r"row 3: expected"),
    "a caption that is no text": ({"reference": changed(3, imageCaption=None)}, r"row 3: key imageCaption is None"),
    "key points that are no list": ({"reference": changed(1, key_points="x")}, r"row 1: key key_points"),
    "a picture without a tag": (
        {"text": MARKDOWN.replace("<2>", "")},
        r"line 7: picture figures/accuracy\.png has no idx",
    ),
    "a tag given twice": ({"text": MARKDOWN.replace("<2>", "<1>")}, r"line 7: idx 1 is given twice"),
    "a picture that is not there": (
        {"text": MARKDOWN.replace("overview.png", "x.png")},
        r"line 3: figure 1: .*x\.png cannot be",
    ),
    "the letter that stands for figures": ({"text": MARKDOWN + FIGURE}, r"U\+FFFC"),
    "an empty paper": ({"text": "\n"}, r"is empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(tmp_path, fault):
    change, message = FAULTS[fault]
    write(tmp_path, **change)
    with pytest.raises(DataError, match=message) as error:
        mdocsum.load(tmp_path, "test")
    assert str(error.value).startswith(str(tmp_path / "test"))


def test_an_unreadable_picture_is_named(tmp_path):
    place = write(tmp_path)
    (place / "figures" / "accuracy.png").write_bytes(b"\x89PNG and then nothing")
    with pytest.raises(DataError, match=r"seeing\.md: line 7: figure 2: .*accuracy\.png is no whole picture"):
        mdocsum.load(tmp_path, "test")


def test_all_bad_papers_are_named_at_once(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path, name=name, reference=[] if name != "b" else REFERENCE)
    with pytest.raises(DataError) as error:
        mdocsum.load(tmp_path, "test")
    assert [Path(line.split(":")[0]).name for line in str(error.value).splitlines()[1:]] == ["a.md", "c.md"]


def test_a_missing_reference_and_an_empty_folder(tmp_path):
    place = write(tmp_path)
    (place / "seeing.json").unlink()
    with pytest.raises(DataError, match=r"seeing\.json does not exist"):
        mdocsum.load(tmp_path, "test")
    with pytest.raises(DataError, match=r"train holds no papers"):
        mdocsum.load(tmp_path, "train")


def test_a_held_out_paper_that_is_trained_on_is_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, split="train", name="again")
    with pytest.raises(DataError, match=r"again\.md is the same paper as .*seeing\.md"):
        mdocsum.load(tmp_path, "train")
