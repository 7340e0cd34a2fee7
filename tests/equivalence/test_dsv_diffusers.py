"""DSV in Wan, LTX and our own video transformer: what it must not change, and that a run goes on where it stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import nn

from stepstack.config import ConfigError
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.dsv.config import DsvConfig, Fixed, Measured
from stepstack.models.video.dsv.diffusers import enable_dsv
from stepstack.models.video.dsv.speed import AttentionShape, SpeedProfile, SpeedRow, device_name
from stepstack.report.html import Report

GRID = (3, 4, 4)
CONFIG = DsvConfig(dispatch=Fixed(), cube=(2, 2, 2), rank=8, sampling=2, switch=1e9, warmup=2, every_sparse=1)


def wan() -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    latents, text = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 3, 8)
    return model, {"hidden_states": latents, "timestep": torch.tensor([10, 500]), "encoder_hidden_states": text}


def ltx() -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=8,
    )
    inputs = {"hidden_states": torch.randn(2, 48, 4), "encoder_hidden_states": torch.randn(2, 3, 8)}
    inputs |= {"timestep": torch.tensor([10, 500]), "encoder_attention_mask": torch.ones(2, 3)}
    return model, inputs | {"num_frames": 3, "height": 4, "width": 4}


def own() -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    model = VideoDiT(
        layers=2,
        heads=2,
        head_width=16,
        channels=4,
        text_channels=(8, 6),
        split=(8, 4, 4),
        mlp=2,
        with_image=False,
        with_motion=False,
    )
    inputs = {"latents_BFCYX": torch.randn(2, 3, 4, 4, 4), "time_B": torch.tensor([0.1, 0.7])}
    inputs |= {"text_BLC": torch.randn(2, 3, 8), "text_mask_BL": torch.ones(2, 3), "clip_BMC": torch.randn(2, 2, 6)}
    return model, inputs


MODELS = pytest.mark.parametrize("make", [wan, ltx, own])


def predicted(model, inputs) -> torch.Tensor:
    """diffusers' own models wrap their output."""
    out = model(**inputs)
    return out if isinstance(out, torch.Tensor) else out.sample


def run(model, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and gradients of the model's own parameters by name."""
    model.zero_grad()
    out = predicted(model, inputs)
    out.square().mean().backward()
    return out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def at_sparsity(dsv, value: float) -> None:
    """Put DSV in stage 2 with every head at this sparsity."""
    dsv.stage = 2
    for attention in dsv.attentions:
        attention.sparsity_H = torch.full((2,), value)


def train(model, inputs, dsv, steps: int) -> list[float]:
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = predicted(model, inputs).square().mean()
        loss.backward()
        optimizer.step()
        dsv.step()
        losses.append(loss.item())
    return losses


@MODELS
def test_a_run_may_begin_with_inference(make):
    model, inputs = make()
    dsv = enable_dsv(model, CONFIG)
    with torch.inference_mode():
        model(**inputs)
    at_sparsity(dsv, 0.5)
    assert run(model, inputs)[0].isfinite().all()
    dsv.step()


@MODELS
def test_a_dense_stage_changes_nothing_bit_for_bit(make):
    model, inputs = make()
    out, gradients = run(model, inputs)
    dsv = enable_dsv(model, CONFIG)
    for _ in range(2):  # the predictors learn in both, which the model must not feel
        again, same = run(model, inputs)
        assert torch.equal(out, again)
        assert gradients.keys() == same.keys()
        assert all(torch.equal(gradients[name], same[name]) for name in gradients)
        dsv.step()


@MODELS
@pytest.mark.parametrize("selector", ["low_rank", "pooled"])
def test_sparsity_0_is_dense_attention_to_rounding(make, selector):
    model, inputs = make()
    out, gradients = run(model, inputs)
    dsv = enable_dsv(model, DsvConfig(dispatch=Fixed(), cube=(2, 2, 2), rank=8, selector=selector))
    at_sparsity(dsv, 0.0)
    again, same = run(model, inputs)
    torch.testing.assert_close(again, out, rtol=0, atol=2e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=2e-6, msg=name)
    at_sparsity(dsv, 0.5)
    assert (run(model, inputs)[0] - out).abs().max() > 1e-4  # so that the paths above were sparse ones


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_under_checkpointing_each_pass_is_observed_once(reentrant, sparse):
    made = []
    for checkpointed in (False, True):
        model, inputs = wan()
        inputs["hidden_states"].requires_grad_()  # what a reentrant checkpoint needs to have gradients at all
        dsv = enable_dsv(model, CONFIG)
        if sparse:
            at_sparsity(dsv, 0.5)
        if checkpointed:

            def again(function, *args):
                return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=reentrant)

            model.enable_gradient_checkpointing(again)
        out, gradients = run(model, inputs)
        assert [a.observed.count for a in dsv.attentions] == [1, 1]
        made.append((out, gradients, [a.observed.gradients for a in dsv.attentions]))
    (out, gradients, inner), (again_out, again_gradients, again_inner) = made
    assert torch.equal(out, again_out)
    for name, gradient in gradients.items():  # a reentrant checkpoint adds up what blocks share in another order
        torch.testing.assert_close(
            again_gradients[name], gradient, rtol=1e-4 if reentrant else 0, atol=1e-6 if reentrant else 0, msg=name
        )
    assert all(torch.equal(a, b) for x, y in zip(inner, again_inner, strict=True) for a, b in zip(x, y, strict=True))


def test_inference_observes_nothing_and_may_be_sparse():
    model, inputs = wan()
    dsv = enable_dsv(model, CONFIG)
    at_sparsity(dsv, 0.5)
    with torch.no_grad():
        model(**inputs)
    assert all(a.observed is None for a in dsv.attentions)
    model.eval()
    out = predicted(model, inputs)
    assert all(a.observed is None for a in dsv.attentions)
    with torch.inference_mode():
        assert torch.equal(predicted(model, inputs), out)


@pytest.mark.parametrize("stop", [1, 4], ids=["in stage 1", "in stage 2"])
def test_a_resumed_run_is_the_run(stop, tmp_path):
    model, inputs = wan()
    dsv = enable_dsv(model, CONFIG)
    train(model, inputs, dsv, stop)
    torch.save({"model": model.state_dict(), "dsv": dsv.state_dict()}, tmp_path / "state.pt")
    losses = train(model, inputs, dsv, 4)
    assert dsv.stage == 2

    fresh, _ = wan()
    other = enable_dsv(fresh, CONFIG)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh.load_state_dict(state["model"])
    other.load_state_dict(state["dsv"])
    assert train(fresh, inputs, other, 4) == losses
    assert other.metrics() == dsv.metrics()
    assert other.maps() == dsv.maps()
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_state_dict_carries_the_predictors_and_the_optimizer_passes_them_by(tmp_path):
    model, inputs = wan()
    dsv = enable_dsv(model, CONFIG)
    names = [name for name in model.state_dict() if "predictor" in name]
    assert names[:2] == [f"blocks.0.attn1.processor.predictor.{which}" for which in ("query", "key")]
    assert len(names) == 4
    before = {name: model.state_dict()[name].clone() for name in names}
    out = predicted(model, inputs)
    out.square().mean().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n in names)  # clipping would count them in
    torch.optim.AdamW(model.parameters(), lr=1.0).step()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in names)
    dsv.step()
    assert not any(torch.equal(model.state_dict()[name], before[name]) for name in names)
    model.save_pretrained(tmp_path)
    saved = WanTransformer3DModel.from_pretrained(tmp_path)
    enable_dsv(saved, CONFIG)
    from safetensors.torch import load_file

    saved.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert all(torch.equal(saved.state_dict()[name], model.state_dict()[name]) for name in names)


def test_a_pass_that_gave_nan_teaches_nothing():
    model, inputs = own()
    dsv = enable_dsv(model, CONFIG)
    train(model, inputs, dsv, 1)
    before = {name: w.clone() for name, w in model.state_dict().items() if ".predictor." in name}
    metrics, sparsity = dsv.metrics(), [a.sparsity_H.clone() for a in dsv.attentions]
    model(**inputs | {"latents_BFCYX": inputs["latents_BFCYX"] * float("nan")})
    dsv.step()
    assert all(torch.equal(model.state_dict()[name], w) for name, w in before.items())
    assert all(torch.equal(a.sparsity_H, s) for a, s in zip(dsv.attentions, sparsity, strict=True))
    assert dsv.metrics() == metrics | {"dsv/skipped": 1, "dsv/stage": 2, "dsv/sparse": 1} | {
        f"dsv/sparse/{i:02d}": 1 for i in range(2)
    }
    assert all(a.observed is None for a in dsv.attentions)
    train(model, inputs, dsv, 1)
    assert dsv.metrics()["dsv/loss"] != metrics["dsv/loss"]


def test_accumulated_passes_are_averaged():
    model, inputs = wan()
    one, two = enable_dsv(model, CONFIG), None
    twin, _ = wan()
    two = enable_dsv(twin, CONFIG)
    for attention, other in zip(one.attentions, two.attentions, strict=True):
        other.load_state_dict(attention.state_dict())
    model(**inputs)
    for _ in range(2):
        two.generator.manual_seed(CONFIG.seed)  # the same sample
        twin(**inputs)
    one.step()
    two.step()
    for name, value in one.metrics().items():
        assert two.metrics()[name] == pytest.approx(value, rel=1e-6)
    for attention, other in zip(one.attentions, two.attentions, strict=True):
        torch.testing.assert_close(attention.predictor.query, other.predictor.query)


def test_each_block_is_dispatched_by_its_own_sparsity(tmp_path):
    model, inputs = wan()
    dsv = enable_dsv(model, DsvConfig(dispatch=Fixed(sparsity=0.5), cube=(2, 2, 2), rank=8))
    dense = predicted(model, inputs)
    at_sparsity(dsv, 0.4)
    assert dsv.sparse() == [False, False]
    assert torch.equal(predicted(model, inputs), dense)
    dsv.attentions[1].sparsity_H = torch.tensor([0.9, 0.3])  # the mean of its heads counts
    assert dsv.sparse() == [False, True]
    assert not torch.equal(predicted(model, inputs), dense)
    dsv.stage = 1
    assert torch.equal(predicted(model, inputs), dense)


def speed(**changes) -> SpeedProfile:
    shape = {"device": device_name(torch.device("cpu")), "dtype": "float32", "heads": 2, "head_dim": 16}
    shape |= {"cube": (2, 2, 2), "selector": "low_rank", "rank": 8}
    rows = (
        SpeedRow(grid=GRID, sparsity=0.0, dense_s=1, sparse_s=2),
        SpeedRow(grid=GRID, sparsity=1.0, dense_s=1, sparse_s=0),
    )
    return SpeedProfile(shape=AttentionShape(**(shape | changes)), rows=rows, provenance={})


def test_the_dispatch_follows_the_measured_profile_and_refuses_another(tmp_path):
    speed().save(tmp_path / "speed.json")
    config = DsvConfig(dispatch=Measured(file=str(tmp_path / "speed.json")), cube=(2, 2, 2), rank=8)
    model, inputs = wan()
    dsv = enable_dsv(model, config)
    model(**inputs)
    at_sparsity(dsv, 0.45)
    assert dsv.sparse() == [False, False]
    at_sparsity(dsv, 0.55)
    assert dsv.sparse() == [True, True]
    dsv.step()
    restored = enable_dsv(wan()[0], config)
    restored.load_state_dict(dsv.state_dict())
    assert (restored.stage, restored.speed) == (2, dsv.speed)

    inputs["hidden_states"] = torch.randn(2, 4, 4, 8, 8)
    with pytest.raises(ConfigError, match="no grid 4x4x4, only 3x4x4"):
        model(**inputs)
    for changes, said in (
        ({"device": "abacus"}, "device: profiled abacus"),
        ({"head_dim": 64}, "head_dim: profiled 64"),
    ):
        speed(**changes).save(tmp_path / "speed.json")
        model, inputs = wan()
        enable_dsv(model, config)
        with pytest.raises(ConfigError, match=said):
            model(**inputs)


def test_bad_use_is_one_clear_error():
    model, inputs = ltx()
    dsv = enable_dsv(model, CONFIG)
    with pytest.raises(ConfigError, match="already enabled"):
        enable_dsv(model, CONFIG)
    with pytest.raises(ConfigError, match="num_frames, height and width"):
        model(**inputs | {"num_frames": None, "video_coords": torch.zeros(2, 3, 48)})
    inputs["hidden_states"] = inputs["hidden_states"][:, :40]
    with pytest.raises(ValueError, match="40 tokens are not the 48 of a grid of 3 x 4 x 4"):
        dsv.attentions[0].attend(
            torch.zeros(1, 40, 32), *torch.zeros(3, 1, 2, 40, 16), dsv.call(GRID, torch.device("cpu"), training=True)
        )
    with pytest.raises(ConfigError, match="knows no Linear, only WanTransformer3DModel"):
        enable_dsv(nn.Linear(2, 2), CONFIG)
    with pytest.raises(ConfigError, match="multiple of 8"):
        DsvConfig(dispatch=Fixed(), rank=12)
    with pytest.raises(ConfigError, match=r"no speed profile at gone\.json"):
        enable_dsv(wan()[0], DsvConfig(dispatch=Measured(file="gone.json")))
    with pytest.raises(ConfigError, match=r"rank: 8 -> 16"):
        enable_dsv(wan()[0], DsvConfig(dispatch=Fixed())).load_state_dict(dsv.state_dict())
    model, inputs = wan()
    enable_dsv(model, CONFIG)
    model.blocks[0].attn1.processor._parallel_config = object()
    with pytest.raises(ConfigError, match="no enable_parallelism"):
        model(**inputs)


def test_metrics_and_maps_say_what_happens(tmp_path):
    model, inputs = wan()
    dsv = enable_dsv(model, CONFIG)
    assert dsv.metrics() == {}
    train(model, inputs, dsv, 3)
    metrics, maps = dsv.metrics(), dsv.maps()
    assert metrics["dsv/stage"] == 2
    assert metrics["dsv/sparse"] == 1
    for name in ("sparsity", "recall", "mass", "pooled_recall", "density", "loss"):
        assert metrics[f"dsv/{name}"] == pytest.approx((metrics[f"dsv/{name}/00"] + metrics[f"dsv/{name}/01"]) / 2)
    assert all(len(rows) == 2 and len(rows[0]) == 2 for rows in maps.values())
    report = Report("dsv")
    report.heatmaps("DSV", maps, "block", "head")
    page = report.write(tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml") == len(maps)


def test_an_unobserved_copy_keeps_working():
    model, inputs = wan()
    dsv = enable_dsv(model, CONFIG)
    at_sparsity(dsv, 0.5)
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(**inputs).sample, model.eval()(**inputs).sample)
