"""The diffusion loop on a tiny DiT: what a step sees, exact resume with the moving average, pairs, buckets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from stepstack.config import ConfigError, Launch, Save
from stepstack.core.config import AdamW, Lora, TrainableConfig
from stepstack.core.ema import Ema
from stepstack.core.run import Run
from stepstack.diffusion import flow
from stepstack.diffusion.batch import local_batch, noised, pick
from stepstack.diffusion.config import Conditions, DiffusionConfig, SamplerConfig
from stepstack.diffusion.latents import INDEX, Latents, LatentWriter
from stepstack.diffusion.preference import video_loss, video_pairs
from stepstack.diffusion.sample import noise_like, pad_first_frame, sample
from stepstack.loops import diffusion, preference
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.prompt_encoders import WordHashes
from stepstack.tuning.config import PreferenceLoss

GRIDS = ((2, 2, 2), (3, 2, 4))
ENCODER = WordHashes(widths=(8, 6), lengths=(4, 3))
MADE_BY = {"vae": {"type": "test", "sha256": "0"}, "text": "words"}


def model() -> VideoDiT:
    torch.manual_seed(3)
    return VideoDiT(layers=1, heads=2, head_width=8, channels=3, text_channels=(8, 6), split=(4, 2, 2))


def prepared(folder, count=12, pairs=False, grids=GRIDS) -> Latents:
    writer = LatentWriter(folder, ENCODER, MADE_BY, shard=5)
    torch.manual_seed(1)
    for i in range(count):
        f, h, w = grids[i % len(grids)]
        latents = torch.randn(f, 3, h, w)
        writer.add(latents, latents[0], i % 3, f"moves {i % 4}", torch.randn(f, 3, h, w) if pairs else None)
    writer.close()
    return Latents(folder, MADE_BY)


def config(tmp_path, **changes) -> DiffusionConfig:
    base = {
        "recipe": "none",
        "name": "loop",
        "dir": str(tmp_path),
        "steps": 4,
        "batch": 4,
        "micro": 4,
        "eval_every": 0,
        "trackers": (),
        "save": Save(every=2),
        "dit": TrainableConfig(optim=AdamW(lr=1e-2), ema=0.9),
    }
    return DiffusionConfig(**{**base, **changes})


def trained(cfg, videos, stop_after=None) -> Run:
    run = Run(cfg, stop_after=stop_after)
    dit = run.trainable("dit", model(), cfg.dit, cfg.steps)
    diffusion.train(run, dit=dit, videos=videos, cfg=cfg)
    return run


def preferred(cfg, videos, reference) -> Run:
    run = Run(cfg)
    loss = video_loss(PreferenceLoss(beta=5.0), reference)
    preference.train(
        run,
        policy=run.trainable("dit", model(), cfg.dit, cfg.steps),
        minibatch=lambda step: video_pairs(run, cfg, videos, step),
        loss=lambda batch: loss,
        steps=cfg.steps,
    )
    return run


def state(run: Run) -> dict:
    dit = run.trainables["dit"]
    weights = {name: value.clone() for name, value in dit.named_weights()}
    with dit.averaged():
        return {**weights, **{f"ema.{name}": value.clone() for name, value in dit.named_weights()}}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def written(tmp_path):
    writer = LatentWriter(tmp_path / "latents", ENCODER, MADE_BY, shard=2)
    for i in range(3):
        writer.add(torch.full((2, 4, 3, 3), float(i)), torch.zeros(4, 3, 3), 1.0, f"word{i}")
    return writer.close()


def test_latents_that_were_changed_cut_off_or_lost_are_named(written):
    names = sorted(file.name for file in written.glob("*.safetensors"))
    assert len(names) == 4
    for name in names:
        content = (written / name).read_bytes()
        for other in (content[:-1], content[:40], bytes([*content[:-3], content[-3] ^ 1, *content[-2:]]), None):
            (written / name).unlink() if other is None else (written / name).write_bytes(other)
            with pytest.raises(ConfigError, match=rf"{name} (was changed after it was written|is missing)"):
                list(Latents(written, MADE_BY))
            (written / name).write_bytes(content)
    assert len(list(Latents(written, MADE_BY))) == 3


def test_latents_know_what_made_them(written):
    with pytest.raises(ConfigError, match=r"made otherwise than the config says(.|\n)*vae\.sha256: 0 -> 1"):
        Latents(written, {"vae": {"type": "test", "sha256": "1"}, "text": "words"})


def test_no_name_of_latents_leads_out_of_their_folder(written):
    index = written / "latents.json"
    (written.parent / "secret.safetensors").write_bytes((written / "videos-00000.safetensors").read_bytes())
    index.write_text(index.read_text().replace("videos-00000.safetensors", "../secret.safetensors"))
    with pytest.raises(ConfigError, match=r"latents\.json names \.\./secret\.safetensors, which leads elsewhere"):
        Latents(written, MADE_BY)[0]


def test_a_resumed_run_is_the_same_run_and_so_is_its_average(tmp_path):
    videos = prepared(tmp_path / "latents")
    whole = state(trained(config(tmp_path, name="whole"), videos))
    with pytest.raises(SystemExit):
        trained(config(tmp_path, name="cut"), videos, stop_after=2)
    run = trained(config(tmp_path, name="cut"), videos)
    assert run.resumed_from == 2
    assert equal(state(run), whole)
    assert not equal(
        {n: w for n, w in whole.items() if n[:4] != "ema."}, {n[4:]: w for n, w in whole.items() if n[:4] == "ema."}
    )


def test_the_average_is_what_its_formula_says():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = Ema([w], decay=0.5)
    want = w.detach().clone()
    for n in range(1, 12):
        with torch.no_grad():
            w.add_(n)
        ema.update(n)
        d = min(0.5, (1 + n) / (10 + n))
        want = d * want + (1 - d) * w.detach()
    torch.testing.assert_close(ema.averages[0], want)
    before = w.detach().clone()
    ema.swap()
    torch.testing.assert_close(w.detach(), want)
    ema.swap()
    assert torch.equal(w.detach(), before)
    ema.state()["0"].copy_(torch.tensor([7.0, 8.0]))  # what a checkpoint is loaded into
    assert ema.averages[0].tolist() == [7.0, 8.0]


def test_micro_batches_change_nothing(tmp_path):
    videos = prepared(tmp_path / "latents")
    once = state(trained(config(tmp_path, name="once"), videos))
    often = state(trained(config(tmp_path, name="often", micro=1), videos))
    for name in once:
        torch.testing.assert_close(once[name], often[name], atol=2e-5, rtol=2e-4, msg=name)


def test_processes_share_a_step_between_them(tmp_path):
    """Two processes see, put together, what one sees: sample for sample, noise included."""
    cfg, videos = config(tmp_path), prepared(tmp_path / "latents")

    class World:
        device = torch.device("cpu")

        def __init__(self, rank, processes):
            self.rank, self.processes = rank, processes

    [whole] = local_batch(World(0, 1), cfg, videos, step=5)
    parts = [local_batch(World(rank, 2), cfg, videos, step=5)[0] for rank in range(2)]
    for name, value in whole.inputs.items():
        assert torch.equal(torch.stack([p.inputs[name] for p in parts], 1).flatten(0, 1), value), name


def test_a_step_is_of_one_bucket_and_all_rows_come(tmp_path):
    videos = prepared(tmp_path / "latents", count=15)
    assert {grid: len(rows) for grid, rows in videos.buckets.items()} == {GRIDS[0]: 8, GRIDS[1]: 7}
    of_row = {row: grid for grid, rows in videos.buckets.items() for row in rows}
    seen = set()
    for step in range(40):
        rows = pick(videos.buckets, 4, 0, step)
        assert len(set(rows)) == 4
        assert len({of_row[row] for row in rows}) == 1
        assert all(tuple(videos[row].latents_FCYX.shape) == (g[0], 3, *g[1:]) for row in rows for g in [of_row[row]])
        seen |= set(rows)
    assert seen == set(range(15))
    assert len(pick({GRIDS[0]: [0, 1]}, 5, 0, 0)) == 5


def test_samples_are_noised_and_conditions_dropped_as_told(tmp_path):
    videos = prepared(tmp_path / "latents")
    cfg = config(tmp_path, conditions=Conditions(drop_text=0.3, drop_image=0.2))
    drawn = [noised(cfg, videos[0], videos.empty, i) for i in range(600)]
    clean = videos[0].latents_FCYX
    for s in drawn[:5]:
        noise = clean - s.target[0]
        torch.testing.assert_close(s.x[0], flow.interpolate(clean[None], noise[None], torch.tensor([s.t]))[0])
    assert 0.24 < sum(s.text is videos.empty for s in drawn) / 600 < 0.36
    kept = [s for s in drawn if float(s.image.abs().max()) > 0]
    assert 0.14 < 1 - len(kept) / 600 < 0.26
    level = [math.log(float((s.image - videos[0].image_CYX).square().mean().sqrt())) for s in kept]
    assert sum(level) / len(level) == pytest.approx(-3, abs=0.15)


def test_a_pair_has_one_noise_and_one_time_and_the_winner_gains(tmp_path):
    videos = prepared(tmp_path / "pairs", count=4, pairs=True, grids=GRIDS[:1])
    cfg = config(tmp_path, steps=30, batch=4, dit=TrainableConfig(optim=AdamW(lr=3e-3)))
    [micro] = local_batch(type("W", (), {"rank": 0, "processes": 1, "device": torch.device("cpu")}), cfg, videos, 0)
    assert (micro.count, len(micro.target_BFCYX)) == (4, 8)
    assert torch.equal(micro.inputs["time_B"][:4], micro.inputs["time_B"][4:])
    rows = pick(videos.buckets, 4, cfg.seed, 0)
    winners = torch.stack([videos[row].latents_FCYX for row in rows])
    losers = torch.stack([videos[row].loser_FCYX for row in rows])
    torch.testing.assert_close(winners - micro.target_BFCYX[:4], losers - micro.target_BFCYX[4:])  # the noise
    run = preferred(cfg, videos, model())
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert sum(r["loss"] for r in rows[-5:]) / 5 < 0.5
    assert sum(r["dit/right"] for r in rows[-5:]) / 5 > 0.9
    assert rows[0]["dit/chosen_reward"] == rows[0]["dit/log_ratio_abs_max"] == 0
    assert rows[-1]["dit/winner_error"] < rows[-1]["dit/loser_error"]


def test_a_reference_that_is_not_the_start_is_refused(tmp_path):
    videos = prepared(tmp_path / "pairs", count=4, pairs=True, grids=GRIDS[:1])
    other = model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    with pytest.raises(ValueError, match="the reference is not the model that training starts from"):
        preferred(config(tmp_path), videos, other)


def test_it_learns_and_samples_what_it_learned(tmp_path):
    """Two prompts, two fixed latents: after training, a prompt's samples are nearer to its own."""
    writer = LatentWriter(tmp_path / "latents", ENCODER, MADE_BY)
    torch.manual_seed(0)
    goals = {word: torch.randn(2, 3, 2, 2) for word in ("left", "right")}
    for word, latents in goals.items():
        writer.add(latents, torch.zeros(3, 2, 2), 0, word)
    videos = Latents(writer.close(), MADE_BY)
    cfg = config(tmp_path, steps=120, batch=16, micro=16, save=Save(every=0))
    run = trained(cfg, videos)
    with run.trainables["dit"].averaged():
        for word, goal in goals.items():
            made = sample_of(run.trainables["dit"].module, word)
            other = goals["left" if word == "right" else "right"]
            assert (made - goal).square().mean() < 0.6 * (made - other).square().mean()


def sample_of(dit, word, steps=10):
    noise = noise_like((2, 3, 2, 2), seeds=range(6))
    words = ENCODER.encode([word])
    words = dataclasses.replace(words, text_BLC=words.text_BLC.expand(6, -1, -1))
    words = dataclasses.replace(words, mask_BL=words.mask_BL.expand(6, -1), clip_BMC=words.clip_BMC.expand(6, -1, -1))
    cfg = SamplerConfig(steps=steps, guidance=1.5, shift=2.0)
    more = {"image_BCYX": torch.zeros(6, 3, 2, 2), "motion_B": torch.zeros(6)}
    *_, last = sample(dit, noise, words, ENCODER.encode([""]), cfg, **more)
    return last


def test_sampling_stops_at_the_first_nan():
    broken = model()
    with torch.no_grad():
        broken.out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="sampling met NaN"):
        sample_of(broken, "left", steps=2)


def test_a_video_has_its_own_noise_and_a_padded_image():
    both = noise_like((2, 3), seeds=[4, 5])
    assert torch.equal(noise_like((2, 3), seeds=[5])[0], both[1])
    image = pad_first_frame(torch.ones(2, 3, 4, 4), 5)
    assert image.shape == (2, 5, 3, 4, 4)
    assert float(image[:, 1:].abs().max()) == 0 < float(image[:, 0].min())


def test_checkpointing_and_lora_train_too(tmp_path):
    videos = prepared(tmp_path / "latents")
    plain = state(trained(config(tmp_path, name="plain"), videos))
    saved = TrainableConfig(optim=AdamW(lr=1e-2), ema=0.9, gradient_checkpointing=True)
    again = state(trained(config(tmp_path, name="saved", dit=saved), videos))
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], atol=1e-5, rtol=1e-4, msg=name)
    adapters = TrainableConfig(optim=AdamW(lr=1e-2), lora=Lora(r=2, alpha=4, targets=("to_q", "to_v")))
    run = trained(config(tmp_path, name="lora", dit=adapters), videos)
    changed = {n for n, w in run.trainables["dit"].named_weights() if not torch.equal(w, dict(model().state_dict())[n])}
    assert changed
    assert all(".to_q." in name or ".to_v." in name for name in changed)
    run.export("dit", run.dir / "model")
    back = VideoDiT.from_pretrained(run.dir / "model")
    for name, value in run.trainables["dit"].named_weights():
        assert torch.equal(back.state_dict()[name], value), name


def test_latents_are_read_back_as_they_were_written(tmp_path):
    videos = prepared(tmp_path / "latents", count=12, pairs=True)
    torch.manual_seed(1)
    want = []
    for i in range(12):
        f, h, w = GRIDS[i % 2]
        want.append((i, torch.randn(f, 3, h, w), torch.randn(f, 3, h, w)))
    got = {video.latents_FCYX.sum().item(): video for video in videos}
    assert len(got) == len(videos) == 12
    for i, latents, loser in want:
        video = got[latents.sum().item()]
        assert torch.equal(video.latents_FCYX, latents)
        assert torch.equal(video.image_CYX, latents[0])
        assert torch.equal(video.loser_FCYX, loser)
        assert video.motion == i % 3
        assert torch.equal(video.text.text_BLC, ENCODER.encode([f"moves {i % 4}"]).text_BLC)
    assert torch.equal(videos.empty.clip_BMC, ENCODER.encode([""]).clip_BMC)
    assert videos.widths == (8, 6)
    assert videos.channels == 3


def test_broken_latents_are_named(tmp_path):
    writer = LatentWriter(tmp_path / "bad", ENCODER, MADE_BY)
    with pytest.raises(ValueError, match="latents of 'a cat' are NaN"):
        writer.add(torch.full((1, 3, 2, 2), math.nan), torch.zeros(3, 2, 2), 0, "a cat")
    with pytest.raises(ConfigError, match="no videos to write"):
        writer.close()
    with pytest.raises(ConfigError, match="no prepared latents"):
        Latents(tmp_path / "bad", MADE_BY)
    videos = prepared(tmp_path / "good")
    assert (tmp_path / "good" / INDEX).is_file()
    file = sorted((tmp_path / "good").glob("videos-*"))[0]
    assert load_file(file)["latents"].ndim == 5
    file.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        list(itertools.islice(videos, 20))


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        DiffusionConfig(recipe="none", batch=4, launch=Launch(processes_per_node=3))
