"""One reader of videos: frames by time, no more than are wanted, and what is cut off is not taken for a whole file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe

from data.errors import DataError
from data.media import frames, videos

TEST_CARD = ("-f", "lavfi", "-i", "testsrc=s=96x64:r=25:d=4")


def made(file: Path, *options: str, source: tuple[str, ...] = TEST_CARD) -> Path:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *source, *options, str(file)], check=True)
    return file


def ramp(count: int, step: int = 8) -> np.ndarray:
    """Frames that are told apart by their brightness."""
    return np.stack([np.full((32, 48, 3), 16 + step * k, np.uint8) for k in range(count)])


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "avi", "mov"])
def test_whole_files_are_read_as_imageio_reads_them(tmp_path, ending):
    file = made(tmp_path / f"a.{ending}")
    result, fps = videos.read_video(file)
    assert (len(result), fps) == (100, 25)
    assert (result == np.stack(list(imageio.imiter(file, plugin="FFMPEG")))).all()
    start, _ = videos.read_video(file, count=7)
    assert (start == result[:7]).all()


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "avi", "mov"])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, ending):
    whole = made(tmp_path / f"a.{ending}", *(["-movflags", "faststart"] if ending in ("mp4", "mov") else []))
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    with pytest.raises(DataError, match=rf"cut\.{ending} (says that it has 100 frames and ends after|lacks .* bytes)"):
        videos.read_video(cut)
    if ending != "avi":  # what is wanted is whole
        assert (videos.read_video(cut, count=5)[0] == videos.read_video(whole, count=5)[0]).all()


def test_sound_may_be_longer_than_the_picture(tmp_path):
    file = made(tmp_path / "a.mp4", "-f", "lavfi", "-i", "sine=d=7")
    assert len(videos.read_video(file)[0]) == 100


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sound.mp4", r"sound\.mp4 holds sound and no video"),
        ("text.mp4", r"text\.mp4 cannot be read as a video \(.*(Invalid data|moov)"),
        ("empty.mp4", r"empty\.mp4 cannot be read as a video"),
        ("none.mp4", r"none\.mp4 does not exist"),
        ("cut.gif", r"cut\.gif ends early, after \d+ frames|cut\.gif is no whole GIF"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, name, message):
    made(tmp_path / "sound.mp4", source=("-f", "lavfi", "-i", "sine=d=1"))
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = frames.gif(ramp(9))
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=message):
        videos.read_video(tmp_path / name)


@pytest.mark.parametrize("rate", [10, 25, 50, 60])
def test_frames_are_taken_by_time(tmp_path, rate):
    frames.write_mp4(tmp_path / "a.mp4", ramp(4 * rate // 5, step=3 if rate > 25 else 5), fps=rate)
    every = videos.read_video(tmp_path / "a.mp4")[0]
    result, fps = videos.read_video(tmp_path / "a.mp4", fps=10)
    assert fps == 10
    assert (result == every[[int(k * rate / 10 + 1e-6) for k in range(8)]]).all()
    assert (videos.read_video(tmp_path / "a.mp4", count=3, fps=10)[0] == result[:3]).all()


def test_a_slower_video_is_refused_by_name(tmp_path):
    frames.write_mp4(tmp_path / "a.mp4", ramp(9), fps=12)
    with pytest.raises(DataError, match=r"a\.mp4 has 12 frames a second, fewer than fps=25: .*lower fps"):
        videos.read_video(tmp_path / "a.mp4", fps=25)
    frames.write_mp4(tmp_path / "b.mp4", ramp(9), fps=29.97)
    assert len(videos.read_video(tmp_path / "b.mp4", fps=30)[0]) == 9  # one rate, but for its name


def test_the_same_motion_at_any_rate_has_one_score(tmp_path):
    def slide(rate: int) -> np.ndarray:
        x = np.arange(96)[None, :, None] - 20 * np.arange(2 * rate)[:, None, None, None] / rate
        y = np.arange(64)[:, None, None]
        return np.clip(127 + 60 * np.sin(x / 6) * np.cos(y / 5) * np.ones(3), 0, 255).astype(np.uint8)

    scores = []
    for rate in (10, 25, 60):
        frames.write_mp4(tmp_path / f"{rate}.mp4", slide(rate), fps=rate)
        result, _ = videos.read_video(tmp_path / f"{rate}.mp4", fps=10)
        scores.append(frames.motion_score(result, frames.MotionOptions(every=2)))
    assert scores == pytest.approx([4] * 3, rel=0.2)


def test_a_varying_rate_is_made_constant(tmp_path):
    """Half of the frames of the second half are left out: what is shown at a time stays."""
    file = made(tmp_path / "a.mp4", "-vf", r"select=not(mod(n\,2))+lt(n\,50)", "-fps_mode", "vfr")
    header = videos.read_header(file)
    assert header.varies
    result, fps = videos.read_video(file, fps=12.5)
    whole = videos.read_video(made(tmp_path / "b.mp4"))[0][::2]
    assert fps == 12.5
    assert len(result) == pytest.approx(len(whole), abs=2)
    far = [np.abs(a.astype(int) - b).mean() for a, b in zip(result[5:45], whole[5:45], strict=True)]
    assert max(far) < 8


def test_pixels_become_square_and_rotated_films_upright(tmp_path):
    wide = made(tmp_path / "wide.mp4", "-vf", "setsar=2")
    assert videos.read_video(wide, count=2)[0].shape == (2, 64, 192, 3)
    turned = tmp_path / "turned.mp4"
    made(turned, "-c", "copy", source=("-display_rotation", "90", "-i", str(made(tmp_path / "plain.mp4"))))
    assert videos.read_video(turned, count=2)[0].shape == (2, 96, 64, 3)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.sampled_from([4, 5, 6, 10, 25]))
@settings(max_examples=30, deadline=None)
def test_a_gif_that_was_written_is_read_back(tmp_path_factory, times, fps):
    """Pillow writes equal frames as one that is shown longer; the reader repeats it."""
    clip = np.concatenate([np.repeat(frame[None], n, 0) for frame, n in zip(ramp(len(times), 40), times, strict=True)])
    file = tmp_path_factory.mktemp("gif") / "a.gif"
    file.write_bytes(frames.gif(clip, fps))
    result, rate = videos.read_video(file)
    repeated = len(clip) / len(result)  # where all frames stood still for as long
    assert rate * repeated == pytest.approx(100 / round(100 / fps))
    assert np.abs(np.repeat(result, int(repeated), 0).astype(int) - clip).max() <= 2


def test_what_is_transparent_in_a_gif_is_white(tmp_path):
    pictures = [frames.Image.new("RGBA", (8, 8), (0, 0, 0, 0)) for _ in range(2)]
    pictures[1].paste((255, 0, 0, 255), (0, 0, 4, 8))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    result, fps = videos.read_video(tmp_path / "a.gif")
    assert (len(result), fps) == (2, 10)
    assert (result[0] == 255).all()
    assert result[1, 0, 0].tolist() == [255, 0, 0]
    assert (result[1, :, 4:] == 255).all()


def test_a_single_frame_does_not_move():
    noise = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), dtype=np.uint8)
    assert frames.motion_score(noise) == 0.0
