"""Flow matching against closed forms, quadrature and diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import special, stats

from stepstack.diffusion import flow
from stepstack.diffusion.config import SamplerConfig, TimeConfig


def drawn(count: int = 40_000, **options) -> np.ndarray:
    return flow.draw_times(TimeConfig(**options), count, torch.Generator().manual_seed(0)).numpy()


def test_times_have_the_density_that_is_asked_for():
    assert stats.kstest(drawn(density="uniform"), "uniform").pvalue > 0.01
    logits = np.log(t := drawn(density="logit_normal", mean=0.5, std=0.7).astype(np.float64)) - np.log1p(-t)
    assert stats.kstest(logits, "norm", args=(0.5, 0.7)).pvalue > 0.01

    def integral(t, a=5.0):
        return (np.sinh(a * (2 * t - 1)) / np.sinh(a) + 1) / 2

    assert stats.kstest(drawn(density="u"), integral).pvalue > 0.01
    tails = np.histogram(drawn(density="u"), bins=3, range=(0, 1))[0]
    assert min(tails[0], tails[2]) > 5 * tails[1]


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "u"])
@pytest.mark.parametrize("shift", [0.5, 3.0, 13.0])
def test_training_times_are_shifted_as_those_of_the_sampler(density, shift):
    """A shift of logit(t) by -log(shift): the same draws, moved towards noise where the shift is above 1."""
    plain, moved = (drawn(2000, density=density, shift=s).astype(np.float64) for s in (1.0, shift))
    expected = special.expit(special.logit(plain) - np.log(shift))
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert (moved.mean() < plain.mean()) == (shift > 1)


def test_the_path_leads_from_noise_to_data():
    data, noise = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    for t, expected in ((0.0, noise), (1.0, data), (0.25, 0.75 * noise + 0.25 * data)):
        t_B = torch.full((2,), t, dtype=torch.float64)
        x = flow.interpolate(data, noise, t_B)
        torch.testing.assert_close(x, expected)
        torch.testing.assert_close(flow.predicted_data(x, flow.velocity(data, noise), t_B), data)


def test_the_shifted_schedule_and_its_steps_are_those_of_diffusers():
    """Our times are 1 - sigma, our velocity is minus its prediction; the same model gives the same video."""
    cfg = SamplerConfig(steps=7, guidance=1.0, shift=13.0)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    sigmas = np.linspace(1, 0, 8)[:-1]
    scheduler.set_timesteps(sigmas=(13 * sigmas / (1 + 12 * sigmas)).tolist())
    torch.testing.assert_close(1 - flow.sampling_times(cfg).float(), scheduler.sigmas)
    assert flow.sampling_times(cfg)[1] == pytest.approx(1 - 13 * (6 / 7) / (1 + 12 * 6 / 7))

    def model(x, t_B):
        return torch.tanh(x) * (1 + t_B.reshape(-1, 1))

    noise = torch.randn(2, 5)
    theirs = noise
    for sigma, step in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        t, prediction = flow.to_sigma(1 - (1 - sigma), model(theirs, (1 - sigma).expand(2)))
        assert float(t) == pytest.approx(1 - float(sigma))
        theirs = scheduler.step(prediction, step, theirs).prev_sample
    *_, ours = flow.euler(noise, cfg, model, model)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_guidance_moves_away_from_the_unconditional():
    """With constant velocities one Euler pass gives x1 - x0 = v_u + w (v_c - v_u), whatever the steps."""
    noise = torch.zeros(1, 2)
    up, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    for steps in (1, 5):
        cfg = SamplerConfig(steps=steps, guidance=3.0, shift=4.0)
        *_, end = flow.euler(noise, cfg, lambda x, t: up, lambda x, t: right)
        torch.testing.assert_close(end, right + 3 * (up - right))
    calls = []
    list(flow.euler(noise, SamplerConfig(steps=2, guidance=1.0), lambda x, t: up, lambda x, t: calls.append(t)))
    assert calls == []


def test_the_error_is_summed_over_samples_and_weighed():
    predicted, target = torch.zeros(2, 3, 2), torch.stack([torch.ones(3, 2), 2 * torch.ones(3, 2)])
    assert flow.squared_error(predicted, target).item() == pytest.approx(5)
    assert flow.squared_error(predicted, target, torch.tensor([2.0, 0.5])).item() == pytest.approx(4)
