"""Real video files, made on the spot: read, measured, put into buckets, encoded; what is wrong is named by its row."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.media import frames, videos
from data.prepare.config import ClipOptions
from data.prepare.manifest import read_manifest
from data.sets import clips
from stepstack.diffusion.latents import Latents
from stepstack.models.video.prompt_encoders import WordHashes
from stepstack.models.video.vae import TinyCodec, TinyVae

OPTIONS = ClipOptions(sizes=((32, 48), (32, 32)), lengths=(1, 5, 9), every=4)
READ = videos.read_video
MADE_BY = {"vae": "test"}
prepare = partial(clips.prepare, made_by=MADE_BY)
ENCODER = WordHashes(widths=(8, 6), lengths=(4, 3))


def codec() -> TinyCodec:
    torch.manual_seed(0)
    return TinyCodec(TinyVae(patch=(2, 8, 8), channels=4, width=16, blocks=1))


def textured(count: int, height: int, width: int, speed: float) -> np.ndarray:
    """A smooth random texture that slides to the right by ``speed`` pixels a frame."""
    rng = np.random.default_rng(0)
    x = np.arange(width)[None, :, None]
    y = np.arange(height)[:, None, None]
    waves = [(rng.uniform(0.1, 0.5, 3), rng.uniform(0.1, 0.5, 3), rng.uniform(0, 6, 3)) for _ in range(5)]
    waves_of_frames = [sum(np.sin(a * (x - speed * k) + b * y + c) for a, b, c in waves) for k in range(count)]
    return np.clip(127 + 25 * np.stack(waves_of_frames), 0, 255).astype(np.uint8)


def video(folder: Path, name: str, count=9, size=(64, 96), speed=1.0) -> str:
    frames.write_mp4(folder / name, textured(count, *size, speed), fps=12)
    return name


def source(folder: Path, *rows: dict) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_videos_become_latents_in_buckets_with_a_manifest(tmp_path):
    rows = [
        {"video": video(tmp_path, "wide.mp4"), "caption": "slides right"},
        {"video": video(tmp_path, "square.mp4", count=7, size=(64, 64)), "caption": "a square"},
        {"video": video(tmp_path, "fast.mp4", speed=3.0), "caption": "slides right", "motion": 40},
        {"video": "wide.mp4", "caption": "slides right"},
    ]
    manifest = prepare(tmp_path / "out", source(tmp_path, *rows), OPTIONS, codec(), ENCODER)
    assert manifest.counts == {
        "read": 4,
        "kept": 3,
        "dropped": {"duplicate": 1},
        "buckets": {"9 x 32 x 48": 2, "5 x 32 x 32": 1},
        "cut_captions": {"language": 0, "clip": 0},
    }
    assert manifest.options["fps"] == 12
    assert read_manifest(tmp_path / "out" / "manifest.json", "clips").files == manifest.files
    result = Latents(tmp_path / "out", MADE_BY)
    assert {grid: len(rows) for grid, rows in result.buckets.items()} == {(5, 4, 6): 2, (3, 4, 4): 1}
    assert sorted(v.motion for v in result)[-1] == 40.0
    fitted = frames.fit(videos.read_video(tmp_path / "square.mp4")[0][:5], (32, 32))
    pixels = torch.from_numpy(fitted).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    [row] = [v for v in result if v.latents_FCYX.shape[0] == 3]
    torch.testing.assert_close(row.latents_FCYX, codec().encode(pixels)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(row.image_CYX, row.latents_FCYX[0], atol=1e-4, rtol=1e-4)


def test_pairs_have_the_loser_beside_the_winner_in_one_bucket(tmp_path):
    rows = [
        {"video": video(tmp_path, "good.mp4"), "loser": video(tmp_path, "bad.mp4", count=6, speed=0.0), "caption": "x"},
        {"video": "good.mp4", "loser": video(tmp_path, "other.mp4", count=9, speed=2.0), "caption": "x"},
    ]
    prepare(tmp_path / "out", source(tmp_path, *rows), OPTIONS, codec(), ENCODER)
    result = Latents(tmp_path / "out", MADE_BY)
    assert {grid: len(rows) for grid, rows in result.buckets.items()} == {(3, 4, 6): 1, (5, 4, 6): 1}  # the shorter's
    for row, name in zip(result, ("bad.mp4", "other.mp4"), strict=True):
        count = 1 + 2 * (len(row.latents_FCYX) - 1)
        fitted = frames.fit(videos.read_video(tmp_path / name)[0][:count], (32, 48))
        pixels = torch.from_numpy(fitted).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
        torch.testing.assert_close(row.loser_FCYX, codec().encode(pixels)[0], atol=1e-4, rtol=1e-4)


def test_pairs_that_are_none_are_named(tmp_path):
    pair = {"video": video(tmp_path, "a.mp4"), "loser": video(tmp_path, "b.mp4", speed=0.0), "caption": "x"}
    with pytest.raises(DataError, match=r"rows\.jsonl line 2: key loser is missing, as in 1 of 2 rows"):
        prepare(tmp_path / "out", source(tmp_path, pair, {"video": "b.mp4", "caption": "y"}), OPTIONS, codec(), ENCODER)
    with pytest.raises(DataError, match=r"none\.mp4 does not exist below"):
        prepare(
            tmp_path / "out", source(tmp_path, pair | {"loser": "none.mp4"}), OPTIONS, codec(), ENCODER, made_by=MADE_BY
        )
    assert not (tmp_path / "out").exists()


def test_the_motion_score_measures_how_far_things_move():
    for speed in (0.0, 0.5, 1.0):
        assert frames.motion_score(textured(9, 64, 96, speed), frames.MotionOptions(every=4)) == pytest.approx(
            4 * speed, rel=0.2, abs=0.1
        )
    assert frames.motion_score(textured(5, 64, 96, 0.5)) == pytest.approx(2, rel=0.2)  # shorter than 12
    assert frames.motion_score(textured(1, 64, 96, 1)) == pytest.approx(0, abs=0.1)


def test_flow_is_measured_pair_by_pair():
    still, moved = textured(1, 64, 96, 1)[0], textured(3, 64, 96, 1.5)
    assert frames.flow_lengths([still, *moved[1:], moved[2]]) == pytest.approx([1.5, 1.5, 0], rel=0.2, abs=0.1)
    assert frames.flow_lengths([still]) == []


def test_a_clip_is_dynamic_where_a_quarter_of_it_moves_far_enough():
    """The shorter side is 64: more than 1.5 pixels to the next frame at 8 frames a second."""
    far, near = textured(16, 64, 96, 2.0), textured(16, 64, 96, 1.0)
    assert frames.is_dynamic(far, 8)
    assert not frames.is_dynamic(near, 8)
    assert frames.is_dynamic(near, 16)  # of each second frame: 2 pixels
    assert not frames.is_dynamic(far, 4)  # 3 pixels are asked for, where frames are 1/4 s apart
    assert not frames.is_dynamic(far[:1], 8)
    assert not frames.is_dynamic(near[:2], 8)
    moving_for = {n: np.concatenate([far[: n + 1], np.repeat(far[n : n + 1], 15 - n, 0)]) for n in (3, 4)}
    assert [frames.is_dynamic(clip, 8) for clip in moving_for.values()] == [False, True]


def test_clips_out_of_the_range_of_motion_are_dropped_and_counted(tmp_path):
    rows = [
        {"video": video(tmp_path, f"{speed}.mp4", speed=speed), "caption": f"at {speed}"} for speed in (0.0, 0.5, 1.5)
    ]
    options = ClipOptions(sizes=((32, 48),), lengths=(9,), every=4, motion=(1.0, 4.0))
    used = []
    counts, fps = clips.read_rows([(str(k), row) for k, row in enumerate(rows)], tmp_path, options, used.append)
    assert [clip.row.caption for clip in used] == ["at 0.5"]
    assert counts["dropped"] == {"motion": 2}
    assert fps == 12
    with pytest.raises(DataError, match="every clip was dropped"):
        clips.read_rows([("row 1", rows[0])], tmp_path, options, used.append)


def test_videos_of_several_rates_need_fps_and_are_then_taken_by_time(tmp_path):
    for rate in (10, 20, 60):
        frames.write_mp4(tmp_path / f"{rate}.mp4", textured(rate, 64, 96, 20 / rate), fps=rate)
    rows = source(tmp_path, *({"video": f"{rate}.mp4", "caption": f"at {rate}"} for rate in (10, 20, 60)))
    options = ClipOptions(sizes=((32, 48),), lengths=(5, 9), every=2)
    with pytest.raises(
        DataError, match=r"10\.mp4 has 10 frames a second, .*60\.mp4 has 60: set data\.options\.fps, at mo"
    ):
        prepare(tmp_path / "out", rows, options, codec(), ENCODER)
    with pytest.raises(DataError, match=r"line 1: .*10\.mp4 has 10 frames a second, fewer than fps=20: "):
        prepare(tmp_path / "out", rows, dataclasses.replace(options, fps=20), codec(), ENCODER)
    assert not (tmp_path / "out").exists()
    manifest = prepare(tmp_path / "out", rows, dataclasses.replace(options, fps=10), codec(), ENCODER, made_by=MADE_BY)
    assert (manifest.options["fps"], manifest.counts["buckets"]) == (10, {"9 x 32 x 48": 3})
    first, *others = Latents(tmp_path / "out", MADE_BY)
    assert [row.motion for row in others] == pytest.approx([first.motion] * 2, rel=0.1)


def test_the_rate_of_the_videos_is_that_of_the_clips(tmp_path):
    rows = source(tmp_path, {"video": video(tmp_path, "a.mp4"), "caption": "x"})
    made = [
        prepare(tmp_path / str(fps), rows, dataclasses.replace(OPTIONS, fps=fps), codec(), ENCODER, made_by=MADE_BY)
        for fps in (None, 12)
    ]
    assert [manifest.options["fps"] for manifest in made] == [12, 12]
    assert made[0].files == made[1].files


def test_each_video_is_decoded_once_and_only_as_far_as_it_is_wanted(tmp_path, monkeypatch):
    asked = []

    def read_video(file, count, fps):
        result = READ(file, count, fps)
        asked.append((file.name, len(result[0])))
        return result

    monkeypatch.setattr(videos, "read_video", read_video)
    rows = source(tmp_path, {"video": video(tmp_path, "long.mp4", count=40), "caption": "x"})
    prepare(tmp_path / "out", rows, OPTIONS, codec(), ENCODER)
    assert asked == [("long.mp4", 9)]


def test_after_a_bad_row_nothing_more_is_encoded(tmp_path):
    names = [video(tmp_path, f"{count}.mp4", count=count) for count in (9, 3, 8)]
    rows = [(name, {"video": name, "caption": name}) for name in names]
    used = []
    with pytest.raises(DataError, match=r"^3\.mp4: .*has 3 frames, the shortest"):
        clips.read_rows(rows, tmp_path, ClipOptions(sizes=((32, 48),), lengths=(5,)), used.append)
    assert [clip.row.place for clip in used] == ["9.mp4"]


def test_videos_lie_below_the_root(tmp_path):
    (tmp_path / "data").mkdir()
    video(tmp_path, "secret.mp4")
    (tmp_path / "data" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    names = ["../secret.mp4", str(tmp_path / "secret.mp4"), "link.mp4"]
    rows = source(tmp_path / "data", *({"video": name, "caption": "x"} for name in names))
    with pytest.raises(DataError, match="3 bad rows") as caught:
        prepare(tmp_path / "out", rows, OPTIONS, codec(), ENCODER)
    for line, name in zip(str(caught.value).splitlines()[1:], names, strict=True):
        assert f"the video {name} does not exist below {tmp_path / 'data'}" in line
    rows = source(tmp_path / "data", {"video": names[1], "caption": "x"})
    prepare(tmp_path / "out", rows, dataclasses.replace(OPTIONS, root=str(tmp_path)), codec(), ENCODER, made_by=MADE_BY)


def test_captions_that_an_encoder_cuts_are_counted(tmp_path):
    video(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "caption": caption} for caption in ("one", "one two three", "one two three four five")]
    manifest = prepare(tmp_path / "out", source(tmp_path, *rows), OPTIONS, codec(), ENCODER)
    assert manifest.counts["cut_captions"] == {"language": 1, "clip": 2}  # 4 and 3 places, one of them for the end
    assert json.loads((tmp_path / "out" / "latents.json").read_text())["cut_prompts"] == {"language": 1, "clip": 2}


def test_every_bad_row_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    video(tmp_path, "good.mp4")
    video(tmp_path, "short.mp4", count=3)
    video(tmp_path, "tall.mp4", size=(128, 32))
    rows = [
        {"video": "good.mp4"},
        {"video": "good.mp4", "caption": " "},
        {"video": "broken.mp4", "caption": "x"},
        {"video": "none.mp4", "caption": "x"},
        {"video": "short.mp4", "caption": "x"},
        {"video": "tall.mp4", "caption": "x"},
        {"video": "good.mp4", "caption": "x", "motion": "fast"},
        {"video": "good.mp4", "caption": "a good one"},
    ]
    options = ClipOptions(sizes=((32, 48),), lengths=(5, 9))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "out", source(tmp_path, *rows), options, codec(), ENCODER)
    message = str(caught.value).splitlines()
    assert message[0].startswith("7 bad rows")
    for number, words in enumerate(
        [
            "caption is missing",
            "caption is empty",
            "broken.mp4 cannot be read",
            "none.mp4 does not exist below",
            "short.mp4 has 3 frames",
            "tall.mp4 is 32 x 128",
            "key motion is 'fast'",
        ],
        1,
    ):
        assert f"line {number}" in message[number]
        assert words in message[number]
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_the_codec_cannot_encode_is_refused_first(tmp_path):
    with pytest.raises(DataError, match=r"a bucket of 8 frames of 48 x 32.*take 9 frames"):
        prepare(
            tmp_path / "out",
            "nowhere.jsonl",
            ClipOptions(sizes=((32, 48),), lengths=(8,)),
            codec(),
            ENCODER,
            made_by=MADE_BY,
        )


def test_latents_that_are_nan_are_named_by_their_row(tmp_path):
    class Broken(TinyCodec):
        def encode(self, video_BFCYX):
            return super().encode(video_BFCYX) * float("nan")

    rows = source(tmp_path, {"video": video(tmp_path, "a.mp4"), "caption": "x"})
    with pytest.raises(DataError, match=r"line 1: .*a\.mp4: latents of 'x' are NaN"):
        prepare(tmp_path / "out", rows, OPTIONS, Broken(codec().vae), ENCODER)
    assert not (tmp_path / "out").exists()


def test_fitting_keeps_the_middle_and_the_shape():
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, None, :, None], (2, 64, 96, 3)).copy()
    result = frames.fit(ramp, (32, 32))
    assert result.shape == (2, 32, 32, 3)
    assert int(result[0, 0, 0, 0]) == pytest.approx(16, abs=2)
    assert int(result[0, 0, -1, 0]) == pytest.approx(79, abs=2)
    assert frames.crop_fraction((64, 96), (32, 32)) == pytest.approx(2 / 3)
    assert frames.nearest((100, 150), [(32, 32), (32, 48), (48, 32)]) == (32, 48)


def test_mp4_and_gif_show_what_they_were_given(tmp_path):
    clip = textured(6, 32, 48, 1.0)
    frames.write_mp4(tmp_path / "a.mp4", clip, fps=6, scale=2)
    back, fps = videos.read_video(tmp_path / "a.mp4")
    assert back.shape == (6, 64, 96, 3)
    assert fps == pytest.approx(6)
    assert np.abs(back[:, ::2, ::2].astype(int) - clip).mean() < 12
    (tmp_path / "a.gif").write_bytes(frames.gif(clip, scale=2))
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size) == (6, (96, 64))
