"""Codecs from videos to latents and back: a small causal VAE that trains, and those of diffusers behind one protocol.

Shapes: B batch, F frames, C channels, Y X height and width. Videos are floats in [-1, 1], RGB. Latents are normalised
to mean 0 and deviation 1 a channel, for the DiT.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from stepstack.models.video.grid import Grid, grid_of

BORDER_WEIGHT = 0.6  # weight of a frame at a border of two chunks; its neighbour has the rest (Step-Video's decoder)


class VideoCodec(Protocol):
    """Codec from videos to latents. ``stride``: frames, rows and columns of a latent voxel. What it is given may lie on
    any device; what it returns lies on its VAE's."""

    channels: int
    stride: Grid

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Grid of the latents. ValueError for a size that it cannot encode, with the nearest one that it can."""
        ...

    def encode(self, video_BFCYX: Tensor) -> Tensor:
        """Mean of the posterior. A single frame gives a single latent frame, equal to the first one of a video that
        begins with it."""
        ...

    def decode(self, latents_BFCYX: Tensor) -> Tensor: ...


class Norm(nn.Module):
    """RMS over channels, voxel by voxel. A norm over frames would leak the future."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x_BCFYX: Tensor) -> Tensor:
        return F.normalize(x_BCFYX, dim=1) * x_BCFYX.shape[1] ** 0.5 * self.weight


class CausalConv(nn.Conv3d):
    """Convolution of 3 x 3 x 3 that sees this frame and the two before it."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=(0, 1, 1))

    def forward(self, x_BCFYX: Tensor) -> Tensor:
        return super().forward(F.pad(x_BCFYX, (0, 0, 0, 0, 2, 0)))


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            Norm(channels), nn.SiLU(), CausalConv(channels), Norm(channels), nn.SiLU(), CausalConv(channels)
        )

    def forward(self, x_BCFYX: Tensor) -> Tensor:
        return x_BCFYX + self.body(x_BCFYX)


class TinyVae(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Causal VAE of patches: ``patch`` frames, rows and columns become a voxel.

    The first frame is a voxel by itself, behind frames of zeros, so 1 + n * patch[0] frames give 1 + n latent frames.
    Beside the network a linear shortcut leads in and out, without which a small form is not learned for long.
    """

    @register_to_config
    def __init__(
        self, patch: tuple[int, int, int] = (2, 8, 8), channels: int = 16, width: int = 96, blocks: int = 2
    ) -> None:
        super().__init__()
        self.channels = channels
        self.patch: Grid = (patch[0], patch[1], patch[2])  # a list in a loaded config
        voxel = 3 * patch[0] * patch[1] * patch[2]
        self.patch_in, self.patch_out = nn.Linear(voxel, width), nn.Linear(width, voxel)
        self.encoder, self.decoder = (nn.Sequential(*(Residual(width) for _ in range(blocks))) for _ in range(2))
        self.norm_encoder, self.norm_decoder = Norm(width), Norm(width)
        self.short_in, self.short_out = nn.Linear(voxel, channels), nn.Linear(channels, voxel)
        self.moments, self.widen = nn.Conv3d(width, 2 * channels, 1), nn.Conv3d(channels, width, 1)
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("std_C", torch.ones(channels))

    def posterior(self, video_BFCYX: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, C, F, Y, X], not normalised. ValueError for a size that is no whole number of
        patches."""
        grid_of(video_BFCYX.shape[1], video_BFCYX.shape[3], video_BFCYX.shape[4], self.patch)
        t, h, w = self.patch
        video = F.pad(video_BFCYX, (0, 0, 0, 0, 0, 0, t - 1, 0))
        voxels = video.unflatten(1, (-1, t)).unflatten(4, (-1, h)).unflatten(6, (-1, w))  # B F t C H h W w
        flat = voxels.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)  # B F H W voxel
        x = self.encoder(self.patch_in(flat).permute(0, 4, 1, 2, 3))
        mean, logvar = self.moments(F.silu(self.norm_encoder(x))).chunk(2, 1)
        return mean + self.short_in(flat).permute(0, 4, 1, 2, 3), logvar.clamp(-20, 10)

    def reconstruct(self, z_BCFYX: Tensor) -> Tensor:
        """Video of latents that are not normalised."""
        x = F.silu(self.norm_decoder(self.decoder(self.widen(z_BCFYX))))
        t, h, w = self.patch
        flat = self.patch_out(x.permute(0, 2, 3, 4, 1)) + self.short_out(z_BCFYX.permute(0, 2, 3, 4, 1))
        voxels = flat.unflatten(4, (t, 3, h, w))  # B F H W t C h w
        video = voxels.permute(0, 1, 4, 5, 2, 6, 3, 7)
        return video.flatten(6).flatten(4, 5).flatten(1, 2)[:, t - 1 :]

    def forward(self, video_BFCYX: Tensor, noise_BCFYX: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log-variance. It reconstructs a sample where ``noise`` is given, otherwise the
        mean."""
        mean, logvar = self.posterior(video_BFCYX)
        z = mean if noise_BCFYX is None else mean + (0.5 * logvar).exp() * noise_BCFYX
        return self.reconstruct(z), mean, logvar

    @torch.no_grad()
    def calibrate(self, video_BFCYX: Tensor) -> None:
        """Set the mean and deviation of the latents from a batch of videos."""
        mean = self.posterior(video_BFCYX)[0]
        self.mean_C.copy_(mean.mean((0, 2, 3, 4)))
        self.std_C.copy_(mean.std((0, 2, 3, 4)))


class TinyCodec:
    """Codec around ``TinyVae``."""

    def __init__(self, vae: TinyVae):
        self.vae, self.channels, self.stride = vae, vae.channels, vae.patch

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return grid_of(frames, height, width, self.stride)

    @torch.no_grad()
    def encode(self, video_BFCYX: Tensor) -> Tensor:
        z = self.vae.posterior(video_BFCYX.to(self.vae.device))[0].transpose(1, 2)
        return (z - _wide(self.vae.mean_C)) / _wide(self.vae.std_C)

    @torch.no_grad()
    def decode(self, latents_BFCYX: Tensor) -> Tensor:
        z = latents_BFCYX.to(self.vae.device) * _wide(self.vae.std_C) + _wide(self.vae.mean_C)
        return self.vae.reconstruct(z.transpose(1, 2))


class WanCodec:
    """Codec around diffusers' AutoencoderKLWan: causal, 4 frames x 8 x 8, the first frame by itself."""

    def __init__(self, vae: Any):
        self.vae, cfg = vae, vae.config
        self.channels: int = cfg.z_dim
        self.stride: Grid = (cfg.scale_factor_temporal, cfg.scale_factor_spatial, cfg.scale_factor_spatial)
        self.mean_C, self.std_C = torch.tensor(cfg.latents_mean), torch.tensor(cfg.latents_std)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return grid_of(frames, height, width, self.stride)

    @torch.no_grad()
    def encode(self, video_BFCYX: Tensor) -> Tensor:
        self.grid(video_BFCYX.shape[1], *video_BFCYX.shape[3:])
        z = self.vae.encode(video_BFCYX.to(self.vae.device).transpose(1, 2)).latent_dist.mode().transpose(1, 2)
        return (z - _wide(self.mean_C, z)) / _wide(self.std_C, z)

    @torch.no_grad()
    def decode(self, latents_BFCYX: Tensor) -> Tensor:
        z = latents_BFCYX.to(self.vae.device)
        z = z * _wide(self.std_C, z) + _wide(self.mean_C, z)
        return self.vae.decode(z.transpose(1, 2)).sample.transpose(1, 2)


class LtxCodec:
    """Codec around diffusers' AutoencoderKLLTXVideo: causal, 8 frames x 32 x 32 as published, the first frame by
    itself. One that is told the time decodes at time 0, the default of LTXPipeline."""

    def __init__(self, vae: Any):
        self.vae, self.channels = vae, vae.config.latent_channels
        side: int = vae.spatial_compression_ratio
        self.stride: Grid = (vae.temporal_compression_ratio, side, side)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return grid_of(frames, height, width, self.stride)

    @torch.no_grad()
    def encode(self, video_BFCYX: Tensor) -> Tensor:
        self.grid(video_BFCYX.shape[1], *video_BFCYX.shape[3:])
        z = self.vae.encode(video_BFCYX.to(self.vae.device).transpose(1, 2)).latent_dist.mode().transpose(1, 2)
        mean_C, std_C = _wide(self.vae.latents_mean, z), _wide(self.vae.latents_std, z)
        return (z - mean_C) * self.vae.config.scaling_factor / std_C

    @torch.no_grad()
    def decode(self, latents_BFCYX: Tensor) -> Tensor:
        z = latents_BFCYX.to(self.vae.device)
        mean_C, std_C = _wide(self.vae.latents_mean, z), _wide(self.vae.latents_std, z)
        z = (z * std_C / self.vae.config.scaling_factor + mean_C).transpose(1, 2)
        time_B = torch.zeros(len(z), device=z.device) if self.vae.config.timestep_conditioning else None
        return self.vae.decode(z, time_B).sample.transpose(1, 2)


class DcCodec:
    """Codec around diffusers' AutoencoderDC, a deep-compression VAE of images, which encodes every frame by itself."""

    def __init__(self, vae: Any):
        self.vae = vae
        self.channels: int = self.vae.config.latent_channels
        self.scale: float = self.vae.config.scaling_factor
        self.stride: Grid = (1, self.vae.spatial_compression_ratio, self.vae.spatial_compression_ratio)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return grid_of(frames, height, width, self.stride)

    @torch.no_grad()
    def encode(self, video_BFCYX: Tensor) -> Tensor:
        self.grid(video_BFCYX.shape[1], *video_BFCYX.shape[3:])
        frames = video_BFCYX.to(self.vae.device).flatten(0, 1)
        return self.vae.encode(frames).latent.unflatten(0, video_BFCYX.shape[:2]) * self.scale

    @torch.no_grad()
    def decode(self, latents_BFCYX: Tensor) -> Tensor:
        z = latents_BFCYX.to(self.vae.device).flatten(0, 1) / self.scale
        return self.vae.decode(z).sample.unflatten(0, latents_BFCYX.shape[:2])


class ChunkedCodec:
    """Step-Video's layout: independent chunks of 17 frames, 3 latent frames each, whose border frames are mixed on
    decoding.

    ``inner`` must encode a chunk, and a frame by itself.
    """

    def __init__(self, inner: VideoCodec, frames: int = 17):
        self.inner, self.frames = inner, frames
        self.channels, self.stride = inner.channels, inner.stride

    def grid(self, frames: int, height: int, width: int) -> Grid:
        if frames != 1 and frames % self.frames:
            near = max(1, round(frames / self.frames)) * self.frames
            raise ValueError(f"{frames} frames are not whole chunks of {self.frames}: take {near}, or 1 for an image")
        chunks = frames // self.frames or 1
        one = self.inner.grid(min(frames, self.frames), height, width)
        return chunks * one[0], one[1], one[2]

    def encode(self, video_BFCYX: Tensor) -> Tensor:
        batch, frames, _, height, width = video_BFCYX.shape
        self.grid(frames, height, width)
        chunks = video_BFCYX.unflatten(1, (-1, min(frames, self.frames))).flatten(0, 1)
        return self.inner.encode(chunks).unflatten(0, (batch, -1)).flatten(1, 2)

    def decode(self, latents_BFCYX: Tensor) -> Tensor:
        batch, count = latents_BFCYX.shape[:2]
        each = self.inner.grid(self.frames, self.stride[1], self.stride[2])[0]
        if count == 1:
            return self.inner.decode(latents_BFCYX)
        if count % each:
            raise ValueError(f"{count} latent frames are not whole chunks of {each}: give a multiple")
        chunks = self.inner.decode(latents_BFCYX.unflatten(1, (-1, each)).flatten(0, 1))
        return mix(chunks.unflatten(0, (batch, -1)))


def mix(chunks: Tensor) -> Tensor:
    """Frames [B, frames, C, Y, X] of ``chunks`` [B, chunks, F, C, Y, X], where the last frame of one and the first
    frame of the next are drawn towards each other.

    Each is 0.6 of itself and 0.4 of the other, the later one first, like in Step-Video's decoder.
    """
    chunks = chunks.clone()
    back, front = chunks[:, 1:, 0].clone(), chunks[:, :-1, -1].clone()
    back = BORDER_WEIGHT * back + (1 - BORDER_WEIGHT) * front
    chunks[:, 1:, 0] = back
    chunks[:, :-1, -1] = BORDER_WEIGHT * front + (1 - BORDER_WEIGHT) * back
    return chunks.flatten(1, 2)


def _wide(values_C: Tensor, like: Tensor | None = None) -> Tensor:
    """Channel values broadcast over latents [B, F, C, Y, X]."""
    values_C = values_C if like is None else values_C.to(like)
    return values_C[:, None, None]
