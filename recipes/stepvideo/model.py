"""The parts of a run: codec, prompt encoders and DiT, tiny ones made on the spot or published ones read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKLWan
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.drawn.moving import Clip, Moving
from data.drawn.scenes import RGB
from data.drawn.splits import Split
from data.sets.captioned import CaptionedClip, captioned
from recipes.stepvideo.config import (
    Config,
    DitConfig,
    OwnClips,
    PreparedClips,
    PublishedEncoders,
    PublishedVae,
    TinyVaeConfig,
    WordVectors,
)
from stepstack.config import ROOT, ConfigError, Save, to_dict
from stepstack.core.config import TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.diffusion.latents import Latents
from stepstack.loops import reconstruction
from stepstack.loops.reconstruction import VideoMicroBatch
from stepstack.models.video.dit import VideoDiT, from_published
from stepstack.models.video.prompt_encoders import PromptEncoder, TransformersEncoders, WordHashes
from stepstack.models.video.vae import ChunkedCodec, DcCodec, TinyCodec, TinyVae, VideoCodec, WanCodec
from stepstack.models.whole import load_whole, reading
from stepstack.scoring import video as checker

PALETTE = {name: RGB[name] for name in ("red", "green", "blue", "yellow")}
PIPELINE_FILE = "pipeline.json"  # of an exported model: what it was made by
DIT, VAE = "transformer", "vae"  # folders in it, by diffusers' names of the parts
READ_BYTES = 1 << 24
JUDGED_CLIPS = 64  # clips on which a VAE is judged, and calibrated
VAE_EVALUATIONS = 10  # times that its PSNR is measured in its training


def encoder_of(cfg: WordVectors | PublishedEncoders) -> PromptEncoder:
    match cfg:
        case WordVectors():
            return WordHashes(cfg.widths, cfg.lengths)
        case PublishedEncoders():
            language, clip = (_pretrained(path, cfg.dtype) for path in (cfg.language, cfg.clip))
            return TransformersEncoders(language, clip, cfg.lengths)


def _pretrained(path: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = load_whole(AutoModel, path, part=True, dtype=getattr(torch, dtype)).eval()
    with reading(path):
        return model, AutoTokenizer.from_pretrained(path)


def make_codec(run: Run[Config]) -> VideoCodec:
    """The codec of a run; a tiny VAE is trained by a stage of the run, or found finished."""
    cfg, folder = run.config, vae_folder(run)
    if isinstance(cfg.vae, TinyVaeConfig) and not folder.is_dir():
        if cfg.model.start is not None:
            raise ConfigError(f"{folder} does not exist: model.start must be a folder that a run of this VAE exported")
        every = cfg.vae.steps // VAE_EVALUATIONS
        train_vae(stage(run, "vae", shard=False, eval_every=every, save=Save(every=200, keep=1)), cfg.vae, folder)
    return codec_of(cfg.vae, folder)


def clips_of(cfg: Config, split: Split) -> Sequence[CaptionedClip]:
    """Clips of which the run itself makes latents, drawn ones or one's own."""
    assert not isinstance(cfg.data, PreparedClips)
    return captioned(cfg.data, split, cfg.frames, cfg.sizes[0])


def vae_folder(run: Run[Config]) -> Path:
    """Folder of the tiny VAE. It comes with ``model.start``, which knows its latents alone."""
    start = run.config.model.start
    return run.dir / "vae" / "model" if start is None else ROOT / start / VAE


def made_by(cfg: Config, vae: Path) -> dict[str, Any]:
    """Makers of latents, which a model knows: the text encoders and the VAE, where it lies in a folder with the
    digest of its weights. ``vae``: folder of the tiny VAE, whose training does not matter."""
    if isinstance(cfg.vae, TinyVaeConfig):
        folder, known = vae, {"type": cfg.vae.type}
    else:
        folder, known = Path(cfg.vae.path) / (cfg.vae.subfolder or ""), to_dict(cfg.vae)
    return {"text": to_dict(cfg.text), "vae": known | ({"sha256": digest(folder)} if folder.is_dir() else {})}


def codec_of(cfg: TinyVaeConfig | PublishedVae, folder: Path) -> VideoCodec:
    """``folder``: of the tiny VAE."""
    match cfg:
        case TinyVaeConfig():
            return TinyCodec(load_whole(TinyVae, folder).eval())
        case PublishedVae(type="wan"):
            codec: VideoCodec = WanCodec(load_whole(AutoencoderKLWan, cfg.path, subfolder=cfg.subfolder).eval())
        case PublishedVae():
            codec = DcCodec(load_whole(AutoencoderDC, cfg.path, subfolder=cfg.subfolder).eval())
    return ChunkedCodec(codec, cfg.chunk) if cfg.chunk else codec


def train_vae(run: Run[Config], cfg: TinyVaeConfig, out: Path) -> None:
    """ConfigError where the finished VAE does not pass its gate."""
    clips, held_out = (clips_of(run.config, split) for split in ("train", "select"))
    watched = held_out[:JUDGED_CLIPS]
    run.reseed()
    vae = TinyVae(patch=cfg.patch, channels=cfg.channels, width=cfg.width, blocks=cfg.blocks)
    frame_count, height, width = clips[0].frames().shape[:3]
    grid = TinyCodec(vae).grid(frame_count, height, width)
    trainable = run.trainable("vae", vae, TrainableConfig(optim=cfg.optim), cfg.steps)
    each = cfg.batch // run.processes

    def videos(step: int) -> VideoMicroBatch:
        generator = torch.Generator().manual_seed(run.config.seed * 1_000_003 + step)
        rows = torch.randint(len(clips), (cfg.batch,), generator=generator).tolist()
        noise = torch.randn(cfg.batch, cfg.channels, *grid, generator=generator)
        local = slice(run.rank * each, (run.rank + 1) * each)
        return VideoMicroBatch(pixels([clips[i] for i in rows[local]]).to(run.device), noise[local].to(run.device))

    body = trainable.unwrapped
    reconstruction.train(
        run,
        vae=trainable,
        videos=videos,
        steps=cfg.steps,
        batch=cfg.batch,
        weights=cfg.weights,
        evaluate=lambda: {"eval/psnr": psnr(watched, reconstructed(TinyCodec(body), watched))},
    )
    body.eval().calibrate(pixels(clips[:JUDGED_CLIPS]).to(run.device))
    wrong = fault(run.config, watched, reconstructed(TinyCodec(body), watched))
    if not wrong:  # else there is no folder, which a later run would take for one that passed
        run.export("vae", out)
    run.finish()
    if wrong:
        raise ConfigError(f"the VAE of {run.dir} {wrong}: train it longer (vae.steps) under another name")


def reconstructed(codec: VideoCodec, clips: Sequence[CaptionedClip]) -> NDArray[np.uint8]:
    """Reconstructions [B, F, Y, X, RGB] of clips."""
    return frames(codec.decode(codec.encode(pixels(clips))))


def psnr(clips: Sequence[CaptionedClip], videos_BFYXC: NDArray[np.uint8]) -> float:
    """Mean PSNR in dB of reconstructions of clips."""
    return fmean(checker.psnr(video, clip.frames()) for video, clip in zip(videos_BFYXC, clips, strict=True))


def fault(cfg: Config, clips: Sequence[CaptionedClip], videos_BFYXC: NDArray[np.uint8]) -> str:
    """Why reconstructions of held-out clips do not pass the gate of their data, an empty string where they do."""
    seen = f"(PSNR {psnr(clips, videos_BFYXC):.1f} dB)"
    if isinstance(cfg.data, Moving):
        assert isinstance(cfg.vae, TinyVaeConfig)
        share, gate = right_directions(cfg.data, clips, videos_BFYXC), cfg.vae.gate
        said = f"shows the right direction in {share:.0%} of held-out clips {seen}, vae.gate"
    else:
        assert isinstance(cfg.data, OwnClips)
        share, gate = explained_variance(clips, videos_BFYXC), cfg.data.gate
        said = f"explains {share:.0%} of the variance of held-out clips {seen}, data.gate"
    return "" if share >= gate else f"{said} asks for {gate:.0%}"


def right_directions(data: Moving, clips: Sequence[CaptionedClip], videos_BFYXC: NDArray[np.uint8]) -> float:
    """Share of reconstructions of moving clips in which the checker finds the right direction; 1 where none moves."""
    drawn = [Clip.read(clip.name) for clip in clips]
    right = [
        checker.track_motion(video, PALETTE).direction == clip.direction
        for video, clip in zip(videos_BFYXC, drawn, strict=True)
        if clip.score
    ]
    return fmean(right) if right else 1.0


def explained_variance(clips: Sequence[CaptionedClip], videos_BFYXC: NDArray[np.uint8]) -> float:
    """Share of the variance of clips about their mean colours that reconstructions explain, over all clips; 0 for
    reconstructions that are no nearer than these colours. Clips of one colour each count as not explained."""
    true_BFYXC = np.stack([clip.frames() for clip in clips]).astype(np.float64)
    error = np.square(videos_BFYXC - true_BFYXC).sum()
    spread = np.square(true_BFYXC - true_BFYXC.mean((1, 2, 3), keepdims=True)).sum()
    return max(0.0, 1 - float(error / spread)) if spread > 0 else 0.0


def make_dit(cfg: DitConfig, videos: Latents) -> VideoDiT:
    """A DiT with the channels and text widths of the latents that it is trained on. ConfigError for weights that do not
    fit."""
    dit = VideoDiT(
        layers=cfg.layers,
        heads=cfg.heads,
        head_width=cfg.head_width,
        channels=videos.channels,
        text_channels=videos.widths,
        split=cfg.split,
        mlp=cfg.mlp,
        with_image=cfg.with_image,
        with_motion=cfg.with_motion,
    )
    if cfg.start is not None:
        try:
            dit.load_state_dict(weights_of(ROOT / cfg.start, cfg.heads), strict=True)
        except RuntimeError as error:
            raise ConfigError(
                f"model.start={cfg.start}: its weights are of another shape: {error}. Make `model` the config "
                "it was trained by"
            ) from None
    return dit


def start_dtype(cfg: DitConfig) -> torch.dtype:
    """Type of the weights that a DiT begins with, in which it is exported; float32 where they are drawn."""
    if cfg.start is None:
        return torch.float32
    file = next(file for place in (ROOT / cfg.start / DIT, ROOT / cfg.start) for file in place.glob("*.safetensors"))
    with safe_open(file, "pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype


def weights_of(folder: Path, heads: int) -> Mapping[str, Tensor]:
    """In our layout. ConfigError for a folder without weights."""
    if (folder / DIT / "config.json").is_file():
        return load_whole(VideoDiT, folder / DIT, part=True).state_dict()  # DSV's predictors may lie beside
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"model.start={folder} holds no weights (*.safetensors): give the folder of an exported model"
        )
    return from_published({name: value for file in files for name, value in load_file(file).items()}, heads)


def pixels(clips: Sequence[CaptionedClip]) -> Tensor:
    """[B, F, C, Y, X] in [-1, 1]."""
    return as_video(np.stack([clip.frames() for clip in clips]))


def as_video(frames_BFYXC: NDArray[np.uint8]) -> Tensor:
    """[B, F, C, Y, X] in [-1, 1] of uint8."""
    return torch.from_numpy(np.ascontiguousarray(frames_BFYXC)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def frames(video_BFCYX: Tensor) -> NDArray[np.uint8]:
    """[B, F, Y, X, C]."""
    return ((video_BFCYX.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()


def digest(folder: Path) -> str:
    """sha256 of a model folder's weights and config."""
    total = hashlib.sha256()
    files = [f for f in folder.iterdir() if f.suffix in (".safetensors", ".json")]
    for file in sorted(files):
        total.update(file.name.encode())
        with file.open("rb") as handle:
            while part := handle.read(READ_BYTES):
                total.update(part)
    return total.hexdigest()
