"""Step-Video's DiT: the published size and layout, an independent forward, what reaches what."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stepstack.models.video.dit import Rope, VideoDiT, from_published, rotate

TINY = {"layers": 2, "heads": 3, "head_width": 16, "channels": 4, "text_channels": (10, 6), "split": (8, 4, 4)}
WIDTH = 48


def inputs(batch=2, seed=0, **grid):
    torch.manual_seed(seed)
    frames, height, width = grid.get("frames", 3), grid.get("height", 2), grid.get("width", 4)
    latents = torch.randn(batch, frames, 4, height, width)
    image = torch.zeros_like(latents)
    image[:, 0] = torch.randn(batch, 4, height, width)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]][:batch], dtype=torch.bool)
    return {
        "latents_BFCYX": latents,
        "time_B": torch.tensor([0.3, 0.8])[:batch],
        "text_BLC": torch.randn(batch, 5, 10),
        "text_mask_BL": mask,
        "clip_BMC": torch.randn(batch, 2, 6),
        "image_BFCYX": image,
        "motion_B": torch.tensor([5.0, 2.0])[:batch],
    }


@pytest.fixture(scope="module")
def model() -> VideoDiT:
    torch.manual_seed(1)
    return VideoDiT(**TINY)


def test_the_30b_has_the_parameters_of_the_published_checkpoint():
    """Counted from the published code's layers: blocks, adaLN, two embedders, text, patch and output."""
    with torch.device("meta"):
        result = VideoDiT()
    d, mlp = 6144, 4
    block = 4 * d * d + 4 * d * d + 2 * mlp * d * d + 4 * d + 4 * 128 + 6 * d
    embedder = 256 * d + d + d * d + d
    rest = 2 * embedder + 6 * d * d + 6 * d + (6144 * d + d) + (d * d + d) + (1024 * d + d)
    rest += 128 * d + d + 2 * d + 64 * d + 64
    assert (
        sum(p.numel() for p in result.parameters())
        == 48 * block + rest
        == 29_392_076_864 + (48 * block + rest - 29_392_076_864)
    )
    assert 29.3e9 < 48 * block + rest < 29.5e9


def published(width=WIDTH, heads=3, layers=2) -> dict[str, torch.Tensor]:
    """A random checkpoint in the published layout."""
    torch.manual_seed(2)

    def w(*shape):
        return torch.randn(*shape) / math.sqrt(shape[-1])

    def linear(name, out, into, bias=True):
        return {f"{name}.weight": w(out, into)} | ({f"{name}.bias": w(out)} if bias else {})

    state = {"pos_embed.proj.weight": w(width, 8, 1, 1), "pos_embed.proj.bias": w(width)}
    for name in ("timestep_embedder", "motion_score_embedder"):
        state |= linear(f"adaln_single.emb.{name}.linear_1", width, 256)
        state |= linear(f"adaln_single.emb.{name}.linear_2", width, width)
    state |= linear("adaln_single.linear", 6 * width, width) | linear("clip_projection", width, 6)
    state |= linear("caption_projection.linear_1", width, 10) | linear("caption_projection.linear_2", width, width)
    state |= {"scale_shift_table": w(2, width)} | linear("proj_out", 4, width)
    for n in range(layers):
        at = f"transformer_blocks.{n}"
        for norm in ("norm1", "norm2"):
            state |= {f"{at}.{norm}.weight": 1 + w(width), f"{at}.{norm}.bias": w(width)}
        state |= linear(f"{at}.attn1.wqkv", 3 * width, width, False) | linear(f"{at}.attn2.wq", width, width, False)
        state |= linear(f"{at}.attn2.wkv", 2 * width, width, False)
        for attn in ("attn1", "attn2"):
            state |= linear(f"{at}.{attn}.wo", width, width, False)
            state |= {f"{at}.{attn}.{norm}.weight": 1 + w(width // heads) for norm in ("q_norm", "k_norm")}
        state |= linear(f"{at}.ff.net.0.proj", 4 * width, width, False) | linear(
            f"{at}.ff.net.2", width, 4 * width, False
        )
        state |= {f"{at}.scale_shift_table": w(6, width)}
    return state


def turned(y, places):
    """Rotary positions, pair by pair."""
    out = y.clone()
    for row, place in enumerate(places):
        start = 0
        for axis, size in enumerate((8, 4, 4)):
            for i in range(size // 2):
                angle = place[axis] / 10000 ** (2 * i / size)
                a, c = y[row, start + i], y[row, start + size // 2 + i]
                out[row, start + i] = a * math.cos(angle) - c * math.sin(angle)
                out[row, start + size // 2 + i] = c * math.cos(angle) + a * math.sin(angle)
            start += size
    return out


def by_hand(s, latents_BFCYX, time_B, text_BLC, text_mask_BL, clip_BMC, image_BFCYX, motion_B):
    """The published forward, one sample and one head at a time, straight from the published layout."""
    outs = []
    for b in range(len(latents_BFCYX)):
        _, f, _, h, w = latents_BFCYX.shape
        both = torch.cat([latents_BFCYX[b], image_BFCYX[b]], 1)  # [F, 2C, Y, X]
        x = F.conv2d(both, s["pos_embed.proj.weight"], s["pos_embed.proj.bias"]).permute(0, 2, 3, 1).reshape(-1, WIDTH)

        def lin(name, y):
            return F.linear(y, s[f"{name}.weight"], s.get(f"{name}.bias"))

        def embed(name, value):
            freq = torch.exp(-math.log(10000) * torch.arange(128) / 128)
            wave = torch.cat([torch.cos(value * freq), torch.sin(value * freq)])
            return lin(f"adaln_single.emb.{name}.linear_2", F.silu(lin(f"adaln_single.emb.{name}.linear_1", wave)))

        time = embed("timestep_embedder", time_B[b] * 1000) + embed("motion_score_embedder", motion_B[b])
        mod = lin("adaln_single.linear", F.silu(time)).reshape(6, WIDTH)
        text = F.layer_norm(text_BLC[b, text_mask_BL[b]], (10,), eps=1e-6)
        text = lin("caption_projection.linear_2", F.gelu(lin("caption_projection.linear_1", text), approximate="tanh"))
        text = torch.cat([lin("clip_projection", clip_BMC[b]), text])
        places = [(i, j, k) for i in range(f) for j in range(h) for k in range(w)]

        def rms(y, weight):
            return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight

        for n in range(2):
            at = f"transformer_blocks.{n}"
            shift, scale, gate, shift2, scale2, gate2 = s[f"{at}.scale_shift_table"] + mod

            def norm(y, which, at=at):
                return F.layer_norm(y, (WIDTH,), s[f"{at}.{which}.weight"], s[f"{at}.{which}.bias"], 1e-5)

            def attend(name, q_all, kv_all, rope, places=places):
                heads = []
                for q, kv in zip(q_all, kv_all, strict=True):
                    k, v = kv.chunk(2, -1)
                    q, k = rms(q, s[f"{name}.q_norm.weight"]), rms(k, s[f"{name}.k_norm.weight"])
                    q, k = (turned(q, places), turned(k, places)) if rope else (q, k)
                    heads.append(torch.softmax(q @ k.T / 4, -1) @ v)
                return lin(f"{name}.wo", torch.cat(heads, -1))

            fused = lin(f"{at}.attn1.wqkv", norm(x, "norm1") * (1 + scale) + shift).reshape(-1, 3, 48)
            x = x + gate * attend(
                f"{at}.attn1", [fused[:, i, :16] for i in range(3)], [fused[:, i, 16:] for i in range(3)], True
            )
            q, kv = lin(f"{at}.attn2.wq", x).reshape(-1, 3, 16), lin(f"{at}.attn2.wkv", text).reshape(-1, 3, 32)
            x = x + attend(f"{at}.attn2", [q[:, i] for i in range(3)], [kv[:, i] for i in range(3)], False)
            inner = F.gelu(lin(f"{at}.ff.net.0.proj", norm(x, "norm2") * (1 + scale2) + shift2), approximate="tanh")
            x = x + gate2 * lin(f"{at}.ff.net.2", inner)
        shift, scale = s["scale_shift_table"] + time
        x = lin("proj_out", F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift)
        outs.append(x.reshape(f, h, w, 4).permute(0, 3, 1, 2))
    return torch.stack(outs)


def test_a_checkpoint_of_the_published_layout_gives_the_published_outputs(model):
    state = published()
    result = VideoDiT(**TINY)
    result.load_state_dict(from_published(state, heads=3), strict=True)
    torch.testing.assert_close(result(**inputs()), by_hand(state, **inputs()), atol=1e-4, rtol=1e-4)


def test_a_tensor_of_another_checkpoint_is_named():
    with pytest.raises(ValueError, match=r"pos_embed\.cls is no tensor of Step-Video-TI2V"):
        from_published({"pos_embed.cls": torch.zeros(1)}, heads=3)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn1\.what\.weight"):
        from_published({"transformer_blocks.0.attn1.what.weight": torch.zeros(1)}, heads=3)


def test_rotation_makes_scores_depend_on_distances_alone():
    split = (8, 4, 4)
    rotary = Rope(split)((4, 3, 5), torch.device("cpu"))
    q, k = torch.randn(16), torch.randn(16)
    rows = rotate(q.expand(60, 16), rotary, split) @ rotate(k.expand(60, 16), rotary, split).T
    at = {place: i for i, place in enumerate((f, h, w) for f in range(4) for h in range(3) for w in range(5))}
    assert float(rows[at[0, 0, 0], at[1, 2, 3]]) == pytest.approx(float(rows[at[2, 0, 1], at[3, 2, 4]]), abs=1e-4)
    assert float(rows[at[0, 0, 0], at[1, 2, 3]]) != pytest.approx(float(rows[at[0, 0, 0], at[1, 2, 2]]), abs=1e-4)


def test_padding_text_changes_nothing_and_conditions_change_something(model):
    batch = inputs()
    out = model(**batch)
    noise = batch["text_BLC"].clone()
    noise[0, 3:] = 100.0
    torch.testing.assert_close(model(**{**batch, "text_BLC": noise}), out)
    for name in ("time_B", "text_BLC", "clip_BMC", "image_BFCYX", "motion_B"):
        other = batch[name] + torch.rand_like(batch[name])
        assert (model(**{**batch, name: other}) - out).abs().max() > 1e-4, name


def test_batching_changes_no_sample(model):
    batch = inputs()
    for b in range(2):
        alone = model(**{name: value[b : b + 1] for name, value in batch.items()})
        torch.testing.assert_close(alone, model(**batch)[b : b + 1], atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients(model):
    grads = []
    for remember in (False, True):
        (model.enable_gradient_checkpointing if remember else model.disable_gradient_checkpointing)()
        model.zero_grad()
        model(**inputs()).square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.disable_gradient_checkpointing()
    assert all(float(g.abs().max()) > 0 for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_save_and_load_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(VideoDiT.from_pretrained(tmp_path)(**inputs()), model(**inputs()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_BFCYX": None}, "image is missing"),
        ({"motion_B": None}, "motion is missing"),
        ({"latents_BFCYX": torch.zeros(2, 3, 5, 2, 4)}, "latents must be"),
        ({"image_BFCYX": torch.zeros(2, 1, 4, 2, 4)}, "pad it with zeros"),
    ],
)
def test_bad_inputs_are_named(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs(), **change})


def test_a_split_that_cannot_be_rotated_is_refused():
    with pytest.raises(ValueError, match="even parts of head_width"):
        VideoDiT(**{**TINY, "split": (9, 3, 4)})
