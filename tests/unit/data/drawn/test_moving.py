"""Moving forms, and the checker that finds out what moves: right about true clips, and about wrong ones too."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from data.drawn import moving
from data.drawn.moving import Clip, Moving
from data.drawn.scenes import RGB
from data.drawn.splits import split_of
from stepstack.config import ConfigError
from stepstack.scoring import video

PALETTE = {name: RGB[name] for name in ("red", "green", "blue", "yellow")}
CFG = Moving(train=300, select=20, test=60)


def clip(**changes) -> Clip:
    base = {"form": "circle", "colour": "red", "direction": "right", "score": 10.0, "start": (16.0, 15.5)}
    return Clip(**{**base, "radius": 4.0, "grey": 120, **changes})


def test_a_form_is_where_it_should_be_in_every_frame():
    """An independent drawing: sub-pixels counted one by one."""
    for form in ("circle", "square"):
        drawn = clip(form=form, direction="down", score=5.0)
        frames = moving.render(drawn, CFG)
        assert frames.shape == (9, 32, 32, 3)
        fine = (np.arange(32 * 16) + 0.5) / 16
        for k in (0, 3, 8):
            x, y = 16.0, 15.5 + 0.5 * k
            dx, dy = np.abs(fine[None] - x), np.abs(fine[:, None] - y)
            inside = np.hypot(dx, dy) <= 4 if form == "circle" else np.maximum(dx, dy) <= 4
            covered = inside.reshape(32, 16, 32, 16).mean((1, 3))
            want = 120 + covered[..., None] * (np.array(RGB["red"]) - 120)
            assert np.abs(frames[k] - want).max() < (12 if form == "circle" else 1.5)


def test_no_form_leaves_the_frame_and_all_motions_occur():
    for drawn in moving.clips(CFG, "train"):
        track = drawn.track(9)
        assert (track >= drawn.radius - 1e-6).all()
        assert (track <= 32 - drawn.radius + 1e-6).all()
    kinds = Counter((c.direction, c.score) for c in moving.clips(CFG, "train"))
    assert len(kinds) == 12


def test_the_first_frame_tells_neither_direction_nor_speed():
    """Start, radius, grey, colour and form are spread alike over directions and scores."""
    rng = random.Random(1)
    drawn = [moving.draw(rng, CFG) for _ in range(6000)]
    for what in ("direction", "score"):
        groups: dict = {}
        for c in drawn:
            groups.setdefault(getattr(c, what), []).append(c)
        for feature in (lambda c: c.start[0], lambda c: c.start[1], lambda c: c.radius, lambda c: c.grey):
            for a, b in itertools.combinations(groups.values(), 2):
                assert stats.ks_2samp([feature(c) for c in a], [feature(c) for c in b]).pvalue > 1e-3
        table = [
            [sum((c.colour, c.form) == kind for c in g) for g in groups.values()]
            for kind in itertools.product(PALETTE, ("circle", "square"))
        ]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_splits_share_no_clip_and_some_prompts_are_never_trained():
    splits = {name: moving.clips(CFG, name) for name in ("train", "select", "test")}
    assert [len(rows) for rows in splits.values()] == [300, 20, 60]
    assert all(split_of(c.write()) == name for name, rows in splits.items() for c in rows)
    assert moving.clips(CFG, "train") == splits["train"]
    prompts = {c.prompt for c in moving.clips(Moving(train=3000), "train")}
    stored = {c.prompt for c in moving.clips(Moving(test=600), "test")} - prompts
    assert stored
    assert all(moving.is_held_out_prompt(p) for p in stored)
    assert not any(moving.is_held_out_prompt(p) for p in prompts)
    for word in ("right", "left", "up", "down", "red", "green", "blue", "yellow", "circle", "square"):
        assert any(word in p.split() for p in prompts), word


def test_the_checker_is_right_about_every_true_clip():
    for drawn in moving.clips(Moving(test=300), "test"):
        frames = moving.render(drawn, CFG)
        motion = video.track_motion(frames, PALETTE)
        assert motion.direction == (drawn.direction if drawn.score else None), drawn
        assert set(motion.colours) == {drawn.colour}
        assert video.trajectory_error(motion.track, drawn.track(9)) < 0.35
        assert motion.moved == pytest.approx(0.8 * drawn.score, abs=0.15)


def test_the_checker_is_right_in_noise_of_a_decoder():
    rng = np.random.default_rng(0)
    for drawn in moving.clips(Moving(test=60), "test"):
        noisy = np.clip(moving.render(drawn, CFG) / 255 + rng.normal(0, 0.04, (9, 32, 32, 3)), 0, 1)
        motion = video.track_motion(noisy, PALETTE)
        assert motion.direction == (drawn.direction if drawn.score else None)
        assert set(motion.colours) == {drawn.colour}
        assert video.trajectory_error(motion.track, drawn.track(9)) < 0.5


def test_the_checker_tells_wrong_clips():
    drawn = clip()
    frames, true = moving.render(drawn, CFG), drawn.track(9)
    for way, change in {"left": frames[:, :, ::-1], "down": frames.swapaxes(1, 2)}.items():
        motion = video.track_motion(change, PALETTE)
        assert motion.direction == way
        assert video.trajectory_error(motion.track, true) > 3
    backwards = video.track_motion(frames[::-1], PALETTE)
    assert backwards.direction == "left"
    still = video.track_motion(np.repeat(frames[:1], 9, 0), PALETTE)
    assert still.direction is None
    assert still.moved == pytest.approx(0)
    changed = np.concatenate([frames[:5], moving.render(clip(colour="blue"), CFG)[5:]])
    assert video.track_motion(changed, PALETTE).colours == ("red",) * 5 + ("blue",) * 4


def test_an_empty_clip_has_no_form_and_a_large_error():
    motion = video.track_motion(np.full((9, 32, 32, 3), 120, np.uint8), PALETTE)
    assert not motion.whole
    assert (motion.direction, motion.moved, set(motion.colours)) == (None, 0.0, {""})
    assert video.trajectory_error(motion.track, clip().track(9)) == pytest.approx(16)
    partly = np.array(clip().track(9))
    partly[4:] = np.nan
    assert video.trajectory_error(partly, clip().track(9)) == pytest.approx(16 * 5 / 9)


def test_figures_against_other_implementations():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, 50).tolist(), rng.normal(size=50).tolist()
    assert video.rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert video.rank_correlation([1, 1, 1], [1, 2, 3]) is None
    a = rng.random((4, 4, 3))
    assert video.psnr(a, a) == 100
    assert video.psnr(a, a + 0.1) == pytest.approx(20)
    assert video.psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(0)
    line = np.stack([np.arange(9.0), np.zeros(9)], 1)
    assert video.straightness(line) == pytest.approx(1)
    line[4, 1] = 3
    assert video.straightness(line) == pytest.approx(8 / (6 + 2 * np.hypot(1, 3)))


def test_swapped_and_graded_clips_keep_their_first_frame():
    rows = moving.clips(CFG, "test")
    other = moving.with_other_directions(rows)
    assert all(a.direction != b.direction for a, b in zip(rows, other, strict=True))
    assert other == moving.with_other_directions(rows)
    drawn = moving.with_each_score(rows[:3], CFG.scores)
    assert [c.score for c in drawn] == [0, 5, 10] * 3
    for a, b in [*zip(rows, other, strict=True), *zip(np.repeat(rows[:3], 3), drawn, strict=True)]:
        assert (moving.render(a, CFG)[0] == moving.render(b, CFG)[0]).all()


def test_a_clip_survives_its_gold():
    assert Clip.read(clip().write()) == clip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 24}, "leaves the frame"),
        ({"scores": (-1.0, 5.0)}, "must not be negative"),
        ({"radius": (5.0, 3.0)}, "must rise"),
        ({"grey": (0, 300)}, "within 0 to 255"),
    ],
)
def test_impossible_clips_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Moving(**change)


def test_too_many_clips_are_refused(monkeypatch):
    monkeypatch.setattr(moving, "MAX_FAILED_DRAWS", 200)
    few = Moving(radius=(4.0, 4.0), scores=(120.0,), frames=2, test=500, grey=(100, 101))
    with pytest.raises(ConfigError, match=r"data\.test=500"):
        moving.clips(few, "test")


@pytest.mark.parametrize("shape", [(9, 32, 32), (9, 32, 32, 4)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(ValueError, match="must be"):
        video.track_motion(np.zeros(shape, np.uint8), PALETTE)
    with pytest.raises(ValueError, match="NaN"):
        video.track_motion(np.full((1, 2, 2, 3), np.nan), PALETTE)
