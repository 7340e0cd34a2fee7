"""Pictures of perception data in preparation: what is counted, what is refused, and splits that nothing is left of."""

import datasets
import pytest
from PIL import Image

from data.errors import DataError
from data.prepare.config import IntakeOptions
from data.prepare.manifest import read_source
from data.sets import page_ocr
from tests.unit.data.photos import errors_of, photos, write


def ocr_rows(*images: str) -> list[dict]:
    return [{"image": name, "conversations": [{}, {"value": f"text {k}"}]} for k, name in enumerate(images)]


def test_pictures_on_white_are_counted_and_thin_ones_are_bad_rows(tmp_path):
    photos(tmp_path, 1)
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (20, 10), (0, 0, 0, 255)).save(tmp_path / "opaque.png")
    source = write(tmp_path / "t.json", ocr_rows("0.png", "clear.png", "opaque.png"))
    manifest = page_ocr.prepare(tmp_path / "out", source, [], IntakeOptions())
    assert (manifest.counts["over_white"], manifest.counts["kept"]) == (1, {"train": 3})
    assert page_ocr.load(tmp_path / "out", "train")[1].pictures[0].image().getpixel((3, 3)) == (255, 255, 255)
    Image.new("RGB", (3000, 12)).save(tmp_path / "strip.png")
    Image.new("I;16", (30, 12)).save(tmp_path / "deep.png")
    source = write(tmp_path / "bad.json", ocr_rows("0.png", "strip.png", "deep.png"))
    _, thin, deep = errors_of(lambda: page_ocr.prepare(tmp_path / "bad", source, [], IntakeOptions()))
    assert "bad.json row 2: strip.png is 3000 x 12, beyond 200:1" in thin
    assert "bad.json row 3: deep.png has samples of more than 8 bits (mode I;16)" in deep
    manifest = page_ocr.prepare(tmp_path / "dropped", source, [], IntakeOptions(drop_bad=True))
    assert (manifest.counts["bad"], manifest.counts["kept"]) == (2, {"train": 1})


def test_no_name_or_link_leads_out_of_the_folders_of_pictures(tmp_path):
    photos(tmp_path / "images", 1)
    photos(tmp_path / "secret", 2)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret" / "1.png")
    names = ["../secret/0.png", "link.png", str(tmp_path / "secret" / "1.png")]
    source = write(tmp_path / "t.json", ocr_rows(*names))
    options = IntakeOptions(images=(str(tmp_path / "images"),), copy=True)
    _, *lines = errors_of(lambda: page_ocr.prepare(tmp_path / "out", source, [], options))
    for line, name in zip(lines, names, strict=True):
        assert f"the picture {name} is not below {tmp_path / 'images'}" in line
    linked = write(tmp_path / "l.json", ocr_rows("link.png", "../images/0.png"))
    both = IntakeOptions(images=(str(tmp_path / "images"), str(tmp_path / "secret")))
    page_ocr.prepare(tmp_path / "out", linked, [], both)
    assert [record.pictures[0].path for record in page_ocr.load(tmp_path / "out", "train")] == [
        str(tmp_path / "secret" / "1.png"),
        str(tmp_path / "images" / "0.png"),
    ]


def test_a_split_without_rows_is_refused(tmp_path):
    photos(tmp_path, 1)
    source = write(tmp_path / "t.json", ocr_rows("0.png"))
    with pytest.raises(DataError, match=r"no row of train is left to write \(read 2, .*contaminated 1\)"):
        page_ocr.prepare(tmp_path / "out", source, [f"val={source}"], IntakeOptions())
    bad = write(tmp_path / "bad.json", ocr_rows("none.png"))
    with pytest.raises(DataError, match="no row of val is left to write"):
        page_ocr.prepare(tmp_path / "out", source, [f"val={bad}"], IntakeOptions(drop_bad=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["owner/name-that-is-none", "{folder}@validation", "{folder}/none"])
def test_an_unknown_name_or_split_of_the_hub_is_a_data_error(tmp_path, monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_list([{"x": 1}]).to_parquet(tmp_path / "rows" / "train.parquet")
    source = "hf:" + name.format(folder=tmp_path / "rows")
    with pytest.raises(DataError, match=r"^hf:.* cannot be read \(.*\): correct the name or @split"):
        read_source(source)
