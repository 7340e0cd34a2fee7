"""One loader of pictures: every mode of Pillow and every broken file has one answer, and names lead nowhere else."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data.errors import DataError
from data.media.images import DEEP, check_aspect, decode, read_image
from data.media.paths import locate
from stepstack.scoring.vision.spatial import MAX_ASPECT, smart_resize

# Modes that files have, with a format that keeps each.
SHALLOW = {
    "1": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "P": "PNG",
    "RGB": "PNG",
    "RGBA": "PNG",
    "CMYK": "TIFF",
    "YCbCr": "TIFF",
}
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
DEEP_FILES = {"I;16": "PNG", "I": "TIFF", "F": "TIFF", "I;16B": "TIFF"}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def clear_text(mode: str) -> Image.Image:
    """Black ink on a ground that is transparent, and black under its transparency."""
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((5, 5, 14, 14), fill=(0, 0, 0, 255))
    return image if mode == "RGBA" else image.convert("LA") if mode == "LA" else image.quantize(4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_grounds_are_white(mode, kind):
    content = encoded(clear_text(mode).convert("RGBA") if kind == "WEBP" else clear_text(mode), kind, lossless=True)
    result = decode(content, "x")
    ink = np.zeros((20, 40), bool)
    ink[5:15, 5:15] = True
    assert result.over_white
    assert (np.asarray(result.image) == np.where(ink, 0, 255)[..., None]).all()


@pytest.mark.parametrize(("mode", "key"), [("RGB", (0, 0, 0)), ("L", 0), ("1", 0), ("P", 0)])
def test_a_transparent_colour_is_white(mode, key):
    """A PNG without an alpha channel may name one colour, or entries of its palette, as transparent."""
    image = Image.new(mode, (4, 2), 0 if mode != "RGB" else (0, 0, 0))
    result = decode(encoded(image, "PNG", transparency=key), "x")
    assert result.over_white
    assert (np.asarray(result.image) == 255).all()


@given(mode=st.sampled_from(sorted(SHALLOW)), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers())
@settings(max_examples=80, deadline=None)
def test_every_mode_of_8_bits_is_read_as_pillow_converts_it(mode, size, seed):
    pixels = np.random.default_rng(seed % 2**32).integers(0, 255, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)  # opaque, whatever the mode
    content = encoded(image, SHALLOW[mode])
    result = decode(content, "x")
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.mode == mode
        assert result.image.tobytes() == stored.convert("RGB").tobytes()
    assert (result.image.mode, result.over_white) == ("RGB", False)


@pytest.mark.parametrize("mode", DEEP_FILES)
def test_samples_of_more_than_8_bits_are_refused_by_name(mode, tmp_path):
    values = np.linspace(2000, 3023, 50).reshape(5, 10)
    image = Image.fromarray((values / 3023 if mode == "F" else values).astype({"F": "f4", "I": "i4"}.get(mode, "u2")))
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (10, 5), values.astype(">u2").tobytes())
    (tmp_path / "deep").write_bytes(encoded(image, DEEP_FILES[mode]))
    with Image.open(tmp_path / "deep") as stored:
        assert stored.mode in DEEP
    with pytest.raises(DataError, match=r"deep has samples of more than 8 bits \(mode .*\): convert it to 8 bits"):
        read_image(tmp_path / "deep")


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_obeyed(turn):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 10))  # the corner that comes first
    exif = Image.Exif()
    exif[0x0112] = turn
    result = np.asarray(decode(encoded(image, "PNG", exif=exif), "x").image)
    assert result.shape == ((20, 40, 3) if turn < 5 else (40, 20, 3))
    bottom, right = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    y, x = (-1 if bottom else 0), (-1 if right else 0)
    assert (result[y, x] == 255).all()
    assert result.mean() == pytest.approx(255 / 4)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_a_named_error(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
    content = bytearray(encoded(NOISE, kind))
    for place in data.draw(st.lists(st.integers(0, min(len(content), 400) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            said = f"file.x {decode(bytes(content), 'file.x', 10**6).image.mode}"
        except DataError as error:
            said = str(error)
    assert said.startswith("file.x ")
    assert " at 0x" not in said


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.png does not exist: correct the path"):
        read_image(tmp_path / "none.png")


@given(st.integers(1, 20), st.integers(1, 5000))
def test_the_aspect_that_is_refused_is_the_one_that_the_processor_refuses(short, long):
    for size in ((short, long), (long, short)):
        try:
            smart_resize(*size)
        except ValueError:
            with pytest.raises(DataError, match=f"a.png is {size[0]} x {size[1]}, beyond {MAX_ASPECT}:1"):
                check_aspect(size, "a.png")
        else:
            check_aspect(size, "a.png")


def test_names_lead_nowhere_but_below_their_roots(tmp_path):
    for name in ("one/a.png", "two/sub/b.png", "secret/s.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "to_two.png").symlink_to(two / "sub" / "b.png")
    (one / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    (one / "folder").symlink_to(tmp_path / "secret")
    (tmp_path / "link").symlink_to(one)
    assert locate("a.png", [one, two]) == (0, one / "a.png")
    assert locate("sub/b.png", [one, two]) == (1, two / "sub" / "b.png")
    assert locate("to_two.png", [one, two]) == (1, two / "sub" / "b.png")
    assert locate("sub/../sub/b.png", [two]) == (0, two / "sub" / "b.png")
    assert locate(str(two / "sub" / "b.png"), [one, two]) == (1, two / "sub" / "b.png")
    assert locate("a.png", [tmp_path / "link"]) == (0, one / "a.png")
    for name in ("../secret/s.png", "out.png", "folder/s.png", str(tmp_path / "secret/s.png"), "none.png", "sub"):
        assert locate(name, [one, two]) is None
    assert locate("to_two.png", [one]) is None


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "link", "x.png"]), min_size=1, max_size=6))
@settings(max_examples=60)
def test_no_name_leaves_its_root(tmp_path_factory, parts):
    base = tmp_path_factory.getbasetemp() / "walk"
    for folder in ("a", "b", "root/a", "root/b/a"):
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / "x.png").write_bytes(b"x")
    if not (base / "root/link").is_symlink():
        (base / "root/link").symlink_to(base)
    found = locate("/".join(parts), [base / "root"])
    assert found is None or found[1].is_relative_to((base / "root").resolve())
