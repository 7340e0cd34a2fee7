"""The tiny VAE is causal and learns; diffusers' VAEs and Step-Video's chunks stand behind the same protocol."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKLWan

from data.drawn import moving
from data.drawn.moving import Moving
from stepstack.models.video.vae import ChunkedCodec, DcCodec, TinyCodec, TinyVae, VideoCodec, WanCodec, mix


def tiny(**changes) -> TinyVae:
    torch.manual_seed(0)
    vae = TinyVae(**{"patch": (2, 8, 8), "channels": 4, "width": 16, "blocks": 1, **changes})
    vae.calibrate(torch.randn(2, 1 + 2 * vae.patch[0], 3, 2 * vae.patch[1], 2 * vae.patch[2]))
    return vae


def wan() -> WanCodec:
    torch.manual_seed(0)
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=mean, latents_std=std
    )
    return WanCodec(vae.eval())


def dc() -> DcCodec:
    torch.manual_seed(0)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.5,
    )
    return DcCodec(vae.eval())


CODECS = {
    "tiny": (lambda: TinyCodec(tiny()), 9, (5, 4, 4)),
    "wan": (wan, 9, (3, 4, 4)),
    "dc": (dc, 3, (3, 8, 8)),
    "step-video": (lambda: ChunkedCodec(TinyCodec(tiny(patch=(8, 16, 16)))), 34, (6, 2, 2)),
}


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_keeps_its_word(name):
    """Shapes there and back; the first frame by itself gives the first latent of the video."""
    make, frames, grid = CODECS[name]
    codec: VideoCodec = make()
    video = torch.rand(2, frames, 3, 32, 32) * 2 - 1
    assert codec.grid(frames, 32, 32) == grid
    latents = codec.encode(video)
    assert latents.shape == (2, grid[0], codec.channels, *grid[1:])
    assert codec.decode(latents).shape == video.shape
    image = codec.encode(video[:, :1])
    assert codec.grid(1, 32, 32)[0] == image.shape[1] == 1
    torch.testing.assert_close(image[:, 0], latents[:, 0], atol=1e-4, rtol=1e-4)
    assert codec.decode(image).shape[1] == 1


def test_the_tiny_vae_looks_at_no_later_frame():
    vae, codec = (v := tiny()), TinyCodec(v)
    video = torch.randn(1, 9, 3, 16, 16)
    changed = video.clone()
    changed[:, 5:] += 1
    a, b = codec.encode(video), codec.encode(changed)
    torch.testing.assert_close(a[:, :3], b[:, :3])  # frames 0 | 1 2 | 3 4
    assert (a[:, 3:] - b[:, 3:]).abs().max() > 1e-3
    x, y = codec.decode(a), codec.decode(b)
    torch.testing.assert_close(x[:, :5], y[:, :5])
    assert vae.patch_in.weight.shape == (16, 3 * 2 * 8 * 8)


def test_latents_are_normalised_and_that_is_undone():
    vae, codec = (v := tiny()), TinyCodec(v)
    video = torch.randn(8, 5, 3, 16, 16)
    vae.calibrate(video)
    latents = codec.encode(video)
    torch.testing.assert_close(latents.mean((0, 1, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 1, 3, 4)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(codec.decode(latents), vae(video)[0].detach(), atol=1e-4, rtol=1e-4)


def test_patches_go_back_to_where_they_came_from(monkeypatch):
    """With all between them replaced by the identity, putting together undoes cutting into patches."""
    vae = TinyVae(patch=(2, 4, 8), channels=192, width=192, blocks=0)
    vae.patch_in = vae.patch_out = vae.norm_decoder = vae.widen = torch.nn.Identity()
    for way in vae.short_out.parameters():  # the shortcut beside them leads nowhere
        torch.nn.init.zeros_(way)
    cut = {}
    vae.norm_encoder.register_forward_pre_hook(lambda module, args: cut.update(voxels=args[0]))
    video = torch.randn(2, 5, 3, 8, 16)
    vae.posterior(video)
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x: x)
    torch.testing.assert_close(vae.reconstruct(cut["voxels"]), video)


def test_wan_latents_are_normalised_by_its_own_figures():
    codec = wan()
    video = torch.rand(1, 5, 3, 16, 16) * 2 - 1
    raw = codec.vae.encode(video.transpose(1, 2)).latent_dist.mode()
    want = (raw - torch.tensor([0.1, -0.2, 0.3, 0.0])[:, None, None, None]) / torch.tensor([1.0, 2.0, 0.5, 1.5])[
        :, None, None, None
    ]
    torch.testing.assert_close(codec.encode(video), want.transpose(1, 2))
    torch.testing.assert_close(codec.decode(codec.encode(video)), codec.vae.decode(raw).sample.transpose(1, 2))


def test_chunks_are_independent_and_17_frames_are_3_latents():
    codec = ChunkedCodec(TinyCodec(tiny(patch=(8, 16, 16))))
    assert [codec.grid(n, 544, 992) for n in (1, 102, 136, 204)] == [
        (1, 34, 62),
        (18, 34, 62),
        (24, 34, 62),
        (36, 34, 62),
    ]
    video = torch.randn(1, 34, 3, 16, 16)
    other = video.clone()
    other[:, :17] = 0
    a, b = codec.encode(video), codec.encode(other)
    torch.testing.assert_close(a[:, 3:], b[:, 3:])
    torch.testing.assert_close(a[:, :3], codec.inner.encode(video[:, :17]))
    alone = torch.cat([codec.inner.decode(a[:, :3]), codec.inner.decode(a[:, 3:])], 1)
    mixed = codec.decode(a)
    torch.testing.assert_close(mixed[:, :16], alone[:, :16])
    torch.testing.assert_close(mixed[:, 18:], alone[:, 18:])


def test_border_frames_are_mixed_as_published():
    """x[back] = .6 x[back] + .4 x[front]; then x[front] = .6 x[front] + .4 x[back], frame by frame."""
    video = torch.arange(1.0, 10.0).reshape(1, 3, 3, 1, 1, 1)
    want = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for back in (3, 6):
        want[back] = 0.6 * want[back] + 0.4 * (back)
        want[back - 1] = 0.6 * back + 0.4 * want[back]
    torch.testing.assert_close(mix(video).flatten(), torch.tensor(want, dtype=torch.float32))


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (lambda: TinyCodec(tiny()), (8, 32, 32), "take 9 frames of 32 x 32"),
        (lambda: TinyCodec(tiny()), (9, 30, 32), "take 9 frames of 32 x 32"),
        (lambda: ChunkedCodec(TinyCodec(tiny(patch=(8, 16, 16)))), (100, 32, 32), "take 102, or 1 for an image"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(make, size, message):
    codec = make()
    with pytest.raises(ValueError, match=message):
        codec.grid(*size)
    with pytest.raises(ValueError, match=message):
        codec.encode(torch.zeros(1, size[0], 3, *size[1:]))


def test_save_and_load_round_trip(tmp_path):
    vae = tiny()
    vae.save_pretrained(tmp_path)
    video = torch.randn(1, 3, 3, 16, 16)
    again = TinyVae.from_pretrained(tmp_path)
    torch.testing.assert_close(TinyCodec(again).encode(video), TinyCodec(vae).encode(video))


def test_it_learns_to_reconstruct():
    torch.manual_seed(0)
    cfg = Moving(train=16, select=1, test=1, frames=5)
    frames = torch.stack([torch.from_numpy(moving.render(c, cfg)) for c in moving.clips(cfg, "train")])
    video = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    vae = TinyVae(channels=16, width=48, blocks=1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        loss = (vae(video)[0] - video).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.35 * errors[0]


@pytest.mark.parametrize("make", [wan, dc, lambda: TinyCodec(tiny())])
def test_a_codec_takes_videos_and_latents_of_any_device(make):
    codec = make()
    codec.vae.to("meta")
    latents = codec.encode(torch.zeros(1, 1, 3, 32, 32))
    assert latents.device.type == "meta"
    assert codec.decode(torch.zeros(latents.shape)).device.type == "meta"
