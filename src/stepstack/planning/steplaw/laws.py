"""Published laws of the learning rate and batch size of pre-training, as pure functions.

N counts non-embedding parameters (mixture of experts: all of them, not those active for a token), D training tokens,
C FLOPs of training, L the final loss in nats a token. Batches are in tokens per optimizer step. Learning rates are
peaks. The constants are the papers'; where Step Law's own table of rivals prints another, the docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

# Range of the runs that Step Law was fitted on; outside of it the law is extrapolated.
PARAMS, TOKENS = (60e6, 1.1e9), (2e9, 100e9)
FINAL_LR, WARMUP = 1e-5, 2000  # the same in every run that it was fitted on; warm-up in optimizer steps


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Power law of N and D: lr = ``lr[0]`` N^``lr[1]`` D^``lr[2]``, and the same for ``batch``."""

    lr: tuple[float, float, float]
    batch: tuple[float, float, float]

    def __call__(self, params: ArrayLike, tokens: ArrayLike) -> tuple[Values, Values]:
        """Peak learning rate and batch in tokens."""
        n, d = np.asarray(params, float), np.asarray(tokens, float)
        return self.lr[0] * n ** self.lr[1] * d ** self.lr[2], self.batch[0] * n ** self.batch[1] * d ** self.batch[2]


STEP = PowerLaw(lr=(1.79, -0.713, 0.307), batch=(0.58, 0.0, 0.571))  # Step Law, equation 1
# The authors' procedure on the 33 grids that they released, the batch free to depend on N: held-out loss below Step
# Law's own (docs/steplaw.md). `stepstack plan steplaw released` finds the constants anew.
REFIT = PowerLaw(lr=(20.24, -0.7126, 0.2092), batch=(21.82, -0.1229, 0.5212))


def warnings(params: float, tokens: float) -> list[str]:
    """Sentences on every size that lies outside of the runs that Step Law was fitted on."""
    texts = []
    for name, value, (low, high) in (("N", params, PARAMS), ("D", tokens, TOKENS)):
        if not low <= value <= high:
            far = low / value if value < low else value / high
            side = "below" if value < low else "above"
            texts.append(f"{name} = {value:.3g} is {far:.3g}x {side} the fitted range [{low:.2g}, {high:.2g}]")
    return texts


def openai(params: ArrayLike) -> Values:
    """Learning rate from N by Kaplan et al. (arXiv 2001.08361), appendix D.6. It turns negative near N = 1.2e10."""
    return 3.239e-3 - 1.395e-4 * np.log(np.asarray(params, float))


def openai_batch(loss: ArrayLike) -> Values:
    """Critical batch from L by Kaplan et al., section 5.1. (Step Law's table prints 2e18, a misprint.)"""
    return 2e8 * np.asarray(loss, float) ** -4.76190


def deepseek(flops: ArrayLike) -> tuple[Values, Values]:
    """Learning rate and batch from C by DeepSeek LLM (arXiv 2401.02954), equation 1. (Step Law's table prints
    0.3188.)"""
    c = np.asarray(flops, float)
    return 0.3118 * c**-0.1250, 0.2920 * c**0.3271


def porian(params: ArrayLike) -> tuple[Values, Values]:
    """Learning rate and batch from N by Porian et al. (arXiv 2406.19146)."""
    n = np.asarray(params, float)
    return 3.7 * n**-0.36, 0.7576 * n**0.703


def minicpm_batch(loss: ArrayLike) -> Values:
    """Batch from L by MiniCPM (arXiv 2404.06395), section 3.2.

    Its learning rate is muP's 0.01, a number and no law. (Step Law's table prints 2e18.)
    """
    return 1.21e9 / np.asarray(loss, float) ** 6.24


def microsoft(params: ArrayLike, tokens: ArrayLike, *, params_unit: float, tokens_unit: float) -> Values:
    """Learning rate from N and D by Bjorck et al. (arXiv 2409.19913).

    The printed formula does not state the units of N and D. With plain counts it gives 1e-10, so the caller has to
    choose them.
    """
    n, d = np.asarray(params, float) / params_unit, np.asarray(tokens, float) / tokens_unit
    return 1.3192e-5 * n**-0.23 * d**-0.32


def meituan(loss: ArrayLike, *, scale: float, exponent: float) -> Values:
    """Learning rate scale x L^-exponent by Wang et al. of MeiTuan. No constants were published, so the caller fits
    them."""
    return scale * np.asarray(loss, float) ** -exponent


def flops_per_token(hidden: int, intermediate: int, layers: int, sequence: int) -> float:
    """Number M of DeepSeek's law for a dense model: 6 FLOPs a weight, and attention over ``sequence`` tokens."""
    return 6.0 * (4 * hidden + 3 * intermediate + 2 * sequence) * layers * hidden


@dataclass(frozen=True, slots=True)
class LawInputs:
    """Inputs of the laws. ``loss`` is None where it is not known yet."""

    params: float
    tokens: float
    flops_per_token: float
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class LawAnswer:
    """Learning rate and batch by one law, each None where the law gives none; ``why`` then states what it lacks."""

    law: str
    lr: float | None
    batch: float | None
    why: str = ""


def answers(at: LawInputs) -> list[LawAnswer]:
    """Every published law at one point, Step Law first."""
    step, rate, wide = STEP(at.params, at.tokens), deepseek(at.flops_per_token * at.tokens), porian(at.params)
    no_loss = "" if at.loss is not None else "the batch needs the final loss"
    kaplan, refit = float(openai(at.params)), REFIT(at.params, at.tokens)
    reasons = [no_loss] if kaplan > 0 else ["the learning rate is negative at this size", no_loss]
    return [
        LawAnswer("Step Law", float(step[0]), float(step[1])),
        LawAnswer("refit, ours", float(refit[0]), float(refit[1]), "of the released runs, docs/steplaw.md"),
        LawAnswer(
            "OpenAI", kaplan if kaplan > 0 else None, _of_loss(openai_batch, at.loss), "; ".join(filter(None, reasons))
        ),
        LawAnswer("DeepSeek", float(rate[0]), float(rate[1])),
        LawAnswer("Porian", float(wide[0]), float(wide[1])),
        LawAnswer("MiniCPM", None, _of_loss(minicpm_batch, at.loss), no_loss or "the learning rate is muP's, no law"),
        LawAnswer("Microsoft", None, None, "units of N and D are not printed: microsoft() takes them"),
        LawAnswer("MeiTuan", None, None, "constants were not published: meituan() takes them"),
    ]


def _of_loss(law: Callable[[float], Values], loss: float | None) -> float | None:
    return None if loss is None else float(law(loss))
