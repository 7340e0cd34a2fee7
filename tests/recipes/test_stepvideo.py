"""stepvideo end to end on a few steps: stages, evaluation, report, sampling; what it learns is in evals/results."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.drawn import moving
from data.drawn.moving import Moving
from data.errors import DataError
from data.media import frames, images, videos
from data.media.images import FilePicture
from data.sets import clips, ti2v_eval
from recipes.protocol import load_config
from recipes.stepvideo import preference, tasks
from recipes.stepvideo.data import check_options, clip_rate
from recipes.stepvideo.evaluation import vbench
from recipes.stepvideo.generation import sampling
from recipes.stepvideo.generation.engine import Ceiling, ClipEngine, open_pipeline
from recipes.stepvideo.generation.pipeline import ClipRequest, Pipeline, fitted
from recipes.stepvideo.generation.sampling import SampleArgs, clip_request
from recipes.stepvideo.model import DIT, PALETTE, clips_of, codec_of, encoder_of, made_by, make_dit, pixels, vae_folder
from recipes.stepvideo.model import frames as as_frames
from recipes.stepvideo.recipe import train
from stepstack.cli import main as cli
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.diffusion.config import SamplerConfig
from stepstack.diffusion.latents import Latents
from stepstack.generation.types import EngineError, Sampling
from stepstack.harness.engine import Question
from stepstack.harness.training.evaluated import results
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.prompt_encoders import WordHashes
from stepstack.models.video.vae import TinyCodec, TinyVae
from stepstack.report.jsonl import JsonError
from stepstack.scoring import video
from tests import tools
from tests.cards import check_card

SHORT = (
    "steps=3",
    "vae.steps=3",
    "vae.gate=0.0",
    "eval_every=2",
    "data.train=40",
    "data.test=6",
    "data.select=8",
    "sampler.steps=2",
    "batch=4",
    "micro=4",
    "trackers=[]",
    "model.layers=1",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    made = Run(load_config("stepvideo-tiny", [*SHORT, f"dir={tmp_path_factory.mktemp('runs')}", "name=short"]))
    train(made)
    return made


def test_a_run_leaves_a_model_results_curves_and_a_report(run):
    assert (run.dir / "model" / "pipeline.json").is_file()
    assert (run.dir / "model" / "vae" / "config.json").is_file()
    assert check_card(run.dir).data.pipeline_tag == "image-to-video"
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2, 3]
    for label in ("codec", "after"):
        found = results(run.dir / "evals" / label)
        assert set(found) == {"test", "swapped", "motion"}
        figures = {m["name"]: m for m in found["test"][1]["metrics"]}
        assert {"direction", "track error", "colour kept", "first frame PSNR", "drift"} <= set(figures)
        assert found["motion"][1]["metrics"][0]["name"] == "rank correlation"
    page = (run.dir / "report.html").read_text()
    for words in ("true clips through the VAE", "moves", "data:image/png;base64"):
        assert words in page
    data = tools.page_data(run.dir / "report.html")
    assert [stage["name"] for stage in data["sets"][0]["stages"]] == ["VAE", "flow matching"]
    assert {"Track error", "Parts of the VAE's loss"} <= data["charts"].keys()
    assert tools.unexplained(run.dir) == []


def test_the_ceiling_is_the_reconstruction_of_true_clips(run):
    pipeline = open_pipeline(run.config, run.dir / "model", torch.device("cpu"))
    rows = clips_of(run.config, "test")[:3]
    [test, *_] = tasks.tasks(run.config)
    asked = [Question(problem, test.request(problem)) for problem in test.rows(Path())[:3]]
    answered = {q.problem.index: given for q, [given] in Ceiling(run.config, pipeline).complete(asked, test.budget)}
    clips = np.stack([tasks.read(ROOT / answered[index].media[0]) for index in range(3)])
    want = as_frames(pipeline.codec.decode(pipeline.codec.encode(pixels(rows))))
    assert (clips == want).all()


def test_the_engine_looks_at_the_request_and_never_at_the_gold(run):
    engine = ClipEngine(run.config, open_pipeline(run.config, run.dir / "model", torch.device("cpu")))
    [test, *_] = tasks.tasks(run.config)
    problem = test.rows(Path())[0]
    blind = Question(dataclasses.replace(problem, gold="?"), test.request(problem))
    [(_, [answer])] = engine.complete([blind], test.budget)
    [(_, [same])] = engine.complete([Question(problem, test.request(problem))], test.budget)
    assert answer.media == same.media
    with pytest.raises(EngineError, match="budget must be a ClipBudget"):
        next(engine.complete([blind], Sampling()))
    with pytest.raises(EngineError, match="question 0 asks for no clip"):
        next(engine.complete([Question(problem, "a text")], test.budget))


def test_the_exported_model_is_the_average_and_gives_the_same_clips_again(run):
    with run.trainables["dit"].averaged():
        want = dict(run.trainables["dit"].named_weights())
        saved = VideoDiT.from_pretrained(run.dir / "model" / DIT).state_dict()
        assert all(torch.equal(saved[name], value) for name, value in want.items())
    engine = ClipEngine(run.config, open_pipeline(run.config, run.dir / "model", torch.device("cpu")))
    rows = [tasks.prompt_of(clip, run.config.data) for clip in moving.clips(run.config.data, "test")[:4]]
    together, alone = engine.clips(rows, [5] * 4), engine.clips(rows[2:3], [5])
    assert np.abs(together[2].astype(int) - alone[0]).max() <= 1
    assert (engine.clips(rows[2:3], [6]) != alone).any()


def test_a_finished_run_is_left_as_it_is_and_its_evaluations_too(run, capsys):
    before = {file: file.stat().st_mtime_ns for file in run.dir.glob("evals/*/*/result.json")}
    train(Run(run.config))
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_the_judge_is_right_about_true_and_wrong_clips():
    data = Moving(test=40)
    rows = moving.clips(data, "test")
    for clip, other in zip(rows, moving.with_other_directions(rows), strict=True):
        made = moving.render(clip, data)
        right, wrong = tasks.judge(made, clip, data), tasks.judge(made, other, data)
        assert (right["direction"], right["colour"]) == (1.0, 1.0)
        assert right["error"] < 0.4
        assert right["psnr"] == wrong["psnr"] == 100
        if clip.score:
            assert wrong["direction"] == 0.0
            assert wrong["error"] > 1.5
    graded = moving.with_each_score(rows[:20], data.scores)
    seen = [video.track_motion(moving.render(c, data), PALETTE).moved for c in graded]
    assert video.rank_correlation([c.score for c in graded], seen) > 0.94  # ties of 3 scores: no more than 0.943


def test_a_sample_is_shown_at_the_rate_of_its_model(run, tmp_path):
    shutil.copytree(run.dir / "model", tmp_path / "model")
    file = tmp_path / "model" / "pipeline.json"
    facts = json.loads(file.read_text())
    assert facts["fps"] == 6
    file.write_text(json.dumps({**facts, "fps": 10}))
    long = "a red circle moves right and then on and on and on and on and on until it is gone"
    overrides = [*SHORT, f"dir={run.config.dir}", "name=short"]
    line = [
        "sample",
        "stepvideo-tiny",
        *overrides,
        "--image",
        str(picture(tmp_path)),
        "--model",
        str(tmp_path / "model"),
    ]
    assert cli.main([*line, "--prompt", long, "--out", str(tmp_path / "made")]) == 0
    assert [videos.read_video(tmp_path / name)[1] for name in ("made.gif", "made.mp4")] == [10, 10]
    del facts["fps"]
    file.write_text(json.dumps(facts))
    with pytest.raises(JsonError, match=r"pipeline\.json has no 'fps'"):
        open_pipeline(run.config, tmp_path / "model", torch.device("cpu"))


def test_a_sample_begins_with_the_picture_as_it_is_shown(tmp_path):
    cfg = dataclasses.replace(load_config("stepvideo-tiny"), sizes=((32, 64), (64, 32)))
    lying = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.png", exif=exif)
    request = clip_request(cfg, SampleArgs(image=tmp_path / "a.png", prompt="x"))
    assert request.image.shape == (64, 32, 3)
    assert (request.image == 255).all()
    assert (
        request.image == fitted(cfg.sizes, np.asarray(FilePicture(str(tmp_path / "a.png")).image()), "a", True)
    ).all()


def test_a_vae_that_shows_nothing_stops_the_run(tmp_path):
    strict = [word for word in SHORT if "gate" not in word]
    cfg = load_config("stepvideo-tiny", [*strict, f"dir={tmp_path}", "name=gate"])
    for _ in range(2):  # also when the command is given again
        with pytest.raises(ConfigError, match=r"vae\.gate asks for 95%"):
            train(Run(cfg))


def changed(file: Path, at: int = -5) -> None:
    """One bit of a file."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", r"the DiT is not the one that was exported"),
        ("vae/diffusion_pytorch_model.safetensors", r"a file was changed; these differ:\n  vae\.sha256"),
    ],
)
def test_a_model_with_a_changed_bit_is_not_sampled(run, tmp_path, name, words):
    shutil.copytree(run.dir / "model", tmp_path / "model")
    open_pipeline(run.config, tmp_path / "model", torch.device("cpu"))
    changed(tmp_path / "model" / name)
    with pytest.raises(ConfigError, match=words):
        open_pipeline(run.config, tmp_path / "model", torch.device("cpu"))


def test_latents_of_another_vae_are_refused(run, tmp_path):
    shutil.copytree(vae_folder(run), tmp_path / "vae")
    changed(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigError, match=r"latents was made otherwise (.|\n)*vae\.sha256: \w+ -> \w+"):
        Latents(run.dir / "latents", made_by(run.config, tmp_path / "vae"))


def picture(folder: Path, size=(32, 32)) -> Path:
    Image.new("RGB", size, (90, 120, 150)).save(folder / "x.png")
    return folder / "x.png"


def test_sample_writes_a_gif_and_an_mp4(run, tmp_path, capsys):
    overrides = [*SHORT, f"dir={run.config.dir}", "name=short"]
    line = ["sample", "stepvideo-tiny", *overrides, "--image", str(picture(tmp_path)), "--prompt", "a red circle"]
    assert cli.main([*line, "--motion", "5", "--out", str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "made.gif"), str(tmp_path / "made.mp4")]
    with Image.open(tmp_path / "made.gif") as image:
        assert (image.n_frames, image.size) == (9, (256, 256))
    assert videos.read_video(tmp_path / "made.mp4")[0].shape == (9, 256, 256, 3)
    assert cli.main([*line, "--motion", "-1"]) == 2
    assert "--motion -1.0" in capsys.readouterr().err


def test_what_cannot_be_sampled_is_named(run, tmp_path):
    args = SampleArgs(image=picture(tmp_path, (64, 32)), prompt="x")
    with pytest.raises(ConfigError, match=r"is 64 x 32.*50% of it would be left.*--crop"):
        sampling.clip_request(run.config, args)
    assert sampling.clip_request(run.config, dataclasses.replace(args, crop=True)).image.shape == (32, 32, 3)
    with pytest.raises(ConfigError, match="--prompt is empty"):
        sampling.clip_request(run.config, dataclasses.replace(args, prompt=" "))
    with pytest.raises(DataError, match="does not exist"):
        sampling.clip_request(run.config, dataclasses.replace(args, image=tmp_path / "none.png", crop=True))
    other = dataclasses.replace(run.config, text=dataclasses.replace(run.config.text, widths=(8, 8)))
    with pytest.raises(ConfigError, match=r"made otherwise than the config says(.|\n)*text\.widths"):
        open_pipeline(other, run.dir / "model", torch.device("cpu"))
    longer = dataclasses.replace(run.config, vae=dataclasses.replace(run.config.vae, steps=99))
    open_pipeline(longer, run.dir / "model", torch.device("cpu"))  # how its VAE was trained is the folder's affair
    assert cli.main(["sample", "orz-tiny", "--image", "x.png", "--prompt", "x"]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data={type: prepared, folder: x}", "tiny is trained by the run"),
        ("frames=5", "sample what is trained"),
        ("launch.processes_per_node=3", "multiple of 3, processes by context"),
        ("context=2", "context=2 must divide the 1 processes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        load_config("stepvideo-tiny", [change])


def test_a_cluster_shares_videos_by_its_heads(capsys):
    with pytest.raises(ConfigError, match=r"context=32 must divide model\.heads=48"):
        load_config("stepvideo-ti2v-30b", ["context=32"])
    with pytest.raises(ConfigError, match="context_plan is missing: it says how processes that share a"):
        load_config("stepvideo-ti2v-30b", ["dsv={dispatch: {type: fixed}}"])
    assert cli.main(["train", "stepvideo-ti2v-30b", "--dry-run"]) == 0
    assert "128 on 16 nodes, 8 share a video" in capsys.readouterr().out


def test_a_run_goes_on_from_weights_of_either_layout(run, tmp_path):
    videos = Latents(run.dir / "latents", made_by(run.config, vae_folder(run)))
    shape = dataclasses.replace(run.config.model, start=str(run.dir / "model"))
    made = make_dit(shape, videos).state_dict()
    assert all(
        torch.equal(made[n], w) for n, w in VideoDiT.from_pretrained(run.dir / "model" / DIT).state_dict().items()
    )
    with pytest.raises(ConfigError, match=r"model\.start=.* of another shape"):
        make_dit(dataclasses.replace(shape, layers=2), videos)
    with pytest.raises(ConfigError, match="holds no weights"):
        make_dit(dataclasses.replace(shape, start=str(tmp_path)), videos)


def test_preference_goes_on_from_a_run_with_pairs_of_its_own_clips(run, tmp_path):
    overrides = [
        *SHORT,
        f"dir={tmp_path}",
        "name=dpo",
        f"model.start={run.dir / 'model'}",
        "evals=[test]",
        "preference={conditions: 4, clips: 3, margin: 0.0}",
    ]
    overrides.remove("vae.gate=0.0")  # the VAE is the start's: none is trained
    made = Run(load_config("stepvideo-tiny-dpo", [*overrides, "vae.gate=0.0"]))
    train(made)
    assert not (made.dir / "vae").exists()
    assert (made.dir / "model" / "vae" / "config.json").is_file()
    videos = Latents(made.dir / "latents", made_by(made.config, vae_folder(made)))
    assert len(videos) == 4
    for row in videos:
        assert row.loser_FCYX.shape == row.latents_FCYX.shape
        assert not torch.equal(row.loser_FCYX, row.latents_FCYX)
    parts = {label: results(made.dir / "evals" / label)["test"][1]["metrics"] for label in ("before", "after")}
    whole = results(run.dir / "evals" / "after")["test"][1]["metrics"]
    assert [m["value"] for m in parts["before"]] == pytest.approx([m["value"] for m in whole], abs=0.05)
    page = (made.dir / "report.html").read_text()
    for words in ("the start&#x27;s", "Winners above losers"):
        assert words in page
    rows = [json.loads(line) for line in (made.dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the model is the reference still


def test_clips_that_are_all_alike_are_no_pairs(run, tmp_path):
    overrides = [*SHORT, f"dir={tmp_path}", "name=alike", f"model.start={run.dir / 'model'}"]
    made = Run(load_config("stepvideo-tiny-dpo", [*overrides, "preference={conditions: 3, clips: 2, margin: 99.0}"]))
    with pytest.raises(ConfigError, match="3 conditions gave 0 pairs, fewer than batch=4"):
        train(made)


def test_the_pair_of_some_clips_is_the_best_and_the_worst():
    assert preference.choose([(1.0, -0.5), (1.0, -0.2), (1.0, -1.0)], margin=0.5) == (1, 2)
    assert preference.choose([(1.0, -0.5), (1.0, -0.2)], margin=0.5) is None
    assert preference.choose([(0.0, -0.1), (1.0, -0.3)], margin=0.5) == (1, 0)
    assert preference.choose([(1.0, -0.3), (1.0, -0.3)], margin=0.0) == (1, 0)


def test_preference_needs_a_start_and_losers(run):
    with pytest.raises(ConfigError, match=r"preference needs model\.start"):
        load_config("stepvideo-tiny", ["preference={}"])
    with pytest.raises(ConfigError, match="and dsv=null"):
        load_config("stepvideo-tiny-dpo", ["dsv={dispatch: {type: fixed}}"])
    with pytest.raises(ConfigError, match="latents has no losers"):
        preference.make_reference(run, Latents(run.dir / "latents", made_by(run.config, vae_folder(run))))
    with pytest.raises(ConfigError, match=r"does not exist: model\.start must be"):
        train(Run(load_config("stepvideo-tiny-dpo", [*SHORT, f"model.start={run.dir / 'none'}", f"dir={run.dir}"])))


def test_real_clips_are_prepared_and_trained_on(run, tmp_path):
    """As a cluster run does, but by the VAE of the short run and on one CPU."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        frames.write_mp4(tmp_path / f"{name}.mp4", rng.integers(0, 255, (9, 32, 32, 3), dtype=np.uint8), fps=9)
    rows = [{"video": f"{name}.mp4", "caption": f"noise {name}"} for name in ("a", "b")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = clips.ClipOptions(sizes=((32, 32),), lengths=(1, 9), motion=(0, 1e3))
    codec = codec_of(run.config.vae, run.dir / "model" / "vae")
    overrides = [
        f"dir={tmp_path}",
        "steps=2",
        "batch=2",
        "micro=1",
        "precision='no'",
        "launch={file: cpu, processes_per_node: 1, threads: 1}",
        f"data.folder={tmp_path / 'out'}",
        "model={layers: 1, heads: 3, head_width: 32, split: [16, 8, 8]}",
        "data.options={sizes: [[32, 32]], lengths: [1, 9], motion: [0, 1e3]}",
        "trackers=[]",
    ]
    cfg = load_config("stepvideo-t2v-1b", overrides)
    made, source = made_by(cfg, tmp_path), str(tmp_path / "rows.jsonl")
    clips.prepare(tmp_path / "out", source, options, codec, encoder_of(run.config.text), made_by=made)
    real = Run(cfg)
    train(real)
    assert VideoDiT.from_pretrained(real.dir / "model" / DIT).config.channels == 16
    assert json.loads((real.dir / "model" / "pipeline.json").read_text())["fps"] == 9  # that of the videos
    manifest = tmp_path / "out" / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["options"]["fps"]
    manifest.write_text(json.dumps(facts))
    with pytest.raises(
        ConfigError, match=r"manifest\.json does not say the clips' frames per second: prepare the data"
    ):
        clip_rate(real.config)
    other = dataclasses.replace(cfg.data, options=dataclasses.replace(options, lengths=(9,)))
    with pytest.raises(ConfigError, match=r"prepared with other data.options(.|\n)*lengths: \[1, 9\] -> \[9\]"):
        check_options(other)


def test_every_item_of_the_published_evaluation_flows():
    """All 298 prompts, with the first frames that are there: read, fitted to a size of their shape, sampled."""
    place = Path(os.environ.get("STEPSTACK_SHARED", "none")) / "data" / "ti2v_eval"
    if not place.is_dir():
        pytest.skip("STEPSTACK_SHARED does not lead to data/ti2v_eval")
    cfg = dataclasses.replace(load_config("stepvideo-tiny"), sizes=((32, 48), (48, 32), (32, 32)))
    rows = ti2v_eval.read(place)
    fitting = {
        row.name: fitted(cfg.sizes, np.asarray(images.read_image(row.image)), row.name, crop=True)
        for row in rows
        if row.image.is_file()
    }
    by_shape = {row.shape: fitting[row.name] for row in rows if row.name in fitting}
    torch.manual_seed(0)
    dit = VideoDiT(layers=1, heads=1, head_width=8, channels=4, text_channels=(8, 8), split=(4, 2, 2)).eval()
    codec = TinyCodec(TinyVae(channels=4, width=8, blocks=1).eval())
    pipeline = Pipeline(dit, codec, WordHashes((8, 8)), SamplerConfig(steps=1, guidance=2.0), count=3, fps=6)
    asks = [
        ClipRequest(row.prompt, fitting.get(row.name, by_shape[row.shape]), ti2v_eval.MOTION, i)
        for i, row in enumerate(rows)
    ]
    asks.sort(key=lambda ask: ask.image.shape)
    made = [
        clip
        for _, group in itertools.groupby(asks, key=lambda ask: ask.image.shape)
        for clip in pipeline.clips(list(group))
    ]
    assert len(made) == 298
    assert {clip.shape for clip in made} == {(3, 32, 48, 3), (3, 48, 32, 3), (3, 32, 32, 3)}


def eval_set(place: Path) -> Path:
    """Of the published layout: two real items of different shapes, one of anime."""
    for i, name in enumerate(("ti2v_eval_real/H/001", "ti2v_eval_real/V/002", "ti2v_eval_ani/S/003")):
        file = place / "ti2v_eval" / f"{name}.txt"
        file.parent.mkdir(parents=True)
        file.write_text(f"a circle moves {i}")
        size = {"H": (64, 32), "V": (32, 64), "S": (48, 48)}[file.parent.name]
        Image.new("RGB", size, (60 * i, 90, 120)).save(file.with_suffix(".png"))
    return place


def test_pictures_become_clips_by_domain_and_shape_and_are_compared(run, tmp_path, capsys):
    """stepstack eval makes the clips of two models, stepstack votes compares them; what is done is not done again."""
    place, line = eval_set(tmp_path), [*SHORT, f"dir={run.config.dir}", "name=short", "sizes=[[32,48],[48,32],[32,32]]"]
    for seed in ("0", "1"):
        words = ["--tasks", "ti2v_eval", "--data", str(place), "--seed", seed]
        assert cli.main(["eval", "stepvideo-tiny", *line, *words]) == 0
    first, second = sorted(run.dir.glob("evals/model-*/ti2v_eval-clips1-*"))
    found = json.loads((first / "result.json").read_text())
    figures = {metric["name"]: metric for metric in found["metrics"]}
    assert {name: figures[f"first frame PSNR{name}"]["n"] for name in ("", ", real", ", anime", ", portrait")} == {
        "": 3,
        ", real": 2,
        ", anime": 1,
        ", portrait": 1,
    }
    kept = ti2v_eval.clips(first)
    shapes = [videos.read_video(kept[name])[0].shape for name in sorted(kept)]
    assert shapes == [(9, 32, 32, 3), (9, 32, 48, 3), (9, 48, 32, 3)]
    stamps = {file: file.stat().st_mtime_ns for file in kept.values()}
    assert cli.main(["eval", "stepvideo-tiny", *line, "--tasks", "ti2v_eval", "--data", str(place)]) == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}
    capsys.readouterr()
    words = ["votes", str(first), str(second), "--out", str(tmp_path / "votes"), "--data", str(place)]
    assert cli.main([*words, "--table"]) == 2  # nobody has voted
    assert "nobody has been asked" in capsys.readouterr().err
    assert cli.main([*words, "--table", "first_frame"]) == 0
    rows = json.loads((tmp_path / "votes" / "result-first_frame.json").read_text())["rows"]
    assert [(row["dimension"], row["group"], row["n"]) for row in rows] == [
        ("consistency", "real", 2),
        ("consistency", "anime", 1),
        ("consistency", "total", 3),
        ("total", "total", 3),
    ]


def test_pictures_that_are_missing_stop_the_evaluation_before_it_begins(run, tmp_path, capsys):
    place = eval_set(tmp_path)
    (place / "ti2v_eval/ti2v_eval_ani/S/003.png").unlink()
    line = ["eval", "stepvideo-tiny", *SHORT, f"dir={run.config.dir}", "name=short", "--data", str(place), "--tasks"]
    assert cli.main([*line, "ti2v_eval"]) == 2
    assert "1 of 3 prompts have no picture: ti2v_eval_ani/S/003.png" in capsys.readouterr().err
    assert cli.main([*line, "ti2v_eval_partial"]) == 0
    (done,) = run.dir.glob("evals/model-*/ti2v_eval_partial-*/result.json")
    assert json.loads(done.read_text())["n"] == 2


def test_five_clips_of_a_vbench_prompt(run, tmp_path, capsys):
    package = tmp_path / "VBench" / "vbench2_beta_i2v"
    (package / "data/crop/16-9").mkdir(parents=True)
    row = {"prompt_en": "a cat, camera zooms in", "image_name": "a cat.jpg", "dimension": ["camera_motion"]}
    (package / "vbench2_i2v_full_info.json").write_text(json.dumps([row]))
    line = ["eval", "stepvideo-tiny", *SHORT, f"dir={run.config.dir}", "name=short", "--data", str(tmp_path)]
    assert cli.main([*line, "--tasks", "vbench_i2v"]) == 2
    assert "lacks 1 pictures: a cat.jpg" in capsys.readouterr().err
    Image.new("RGB", (32, 18), (60, 90, 120)).save(package / "data/crop/16-9" / "a cat.jpg")
    assert cli.main([*line, "--tasks", "vbench_i2v"]) == 0
    (done,) = run.dir.glob("evals/model-*/vbench_i2v-*")
    videos = vbench.lay_out(done)
    assert sorted(file.name for file in videos.iterdir()) == [f"a cat, camera zooms in-{i}.mp4" for i in range(5)]
    assert len({file.read_bytes() for file in videos.iterdir()}) == 5
