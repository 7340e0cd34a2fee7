"""The two stages: how rows, policy and loop come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from recipes.chat.config import Config
from recipes.chat.data import load_pairs, load_rows
from recipes.chat.model import reference_model, reference_scores
from stepstack.batching.minibatch import minibatches
from stepstack.batching.pairs import PairMicroBatch, pair_minibatch
from stepstack.batching.reference import cached, cached_scores
from stepstack.batching.stream import RowStream
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.generation.chat import ChatEncoder
from stepstack.loops import preference, supervised
from stepstack.models.lm.policy import Policy
from stepstack.tuning.config import DpoStage, SftStage
from stepstack.tuning.preference import PairScores

Before = Callable[[Trainable], None]
Watch = Callable[[Trainable], Mapping[str, float]]


def sft(
    run: Run[Config], cfg: SftStage, lm: PreTrainedModel, encoder: ChatEncoder, before: Before, watch: Watch
) -> Trainable:
    """Learn conversations; the loss of held-out ones is watched."""
    rows, layout = load_rows(run.config, encoder), run.config.layout
    steps = cfg.updates(len(rows.train.rows))
    policy = run.trainable("policy", Policy(lm), cfg.policy, total_updates=steps)
    before(policy)

    def evaluate() -> Mapping[str, float]:
        [batch] = minibatches(run, supervised.local_batch(run, rows.select.rows, seed=0), 1, layout)
        loss = policy.measure(batch.micros, supervised.likelihood, batch.tokens)["policy/loss"]
        return {"eval/loss": loss, **watch(policy)}

    stream = RowStream(rows.train.rows, cfg.batch, run.config.seed)
    supervised.train(run, policy=policy, rows=stream.take, steps=steps, layout=layout, evaluate=evaluate)
    return policy


def dpo(
    run: Run[Config], cfg: DpoStage, lm: PreTrainedModel, encoder: ChatEncoder, before: Before, watch: Watch
) -> Trainable:
    """Learn preferences. Of held-out pairs the loss, how many are in the right order, and the log-probabilities of
    winners and losers are watched."""
    pairs, layout = load_pairs(run.config, encoder), run.config.layout
    learned, held_out = pairs.train.rows, pairs.select.rows
    steps = cfg.updates(len(learned))
    beside = (
        reference_model(run, lm)
        if cfg.loss.needs_reference and cfg.reference == "model" and not cfg.policy.lora
        else None
    )
    policy = run.trainable("policy", Policy(lm), cfg.policy, total_updates=steps)
    reference: Callable[[PairMicroBatch], PairScores] | None = None
    if cfg.loss.needs_reference and cfg.reference == "cached":
        known = cached(run, policy, [*learned, *held_out], layout, run.dir / "reference.json")
        learned, held_out, reference = known[: len(learned)], known[len(learned) :], cached_scores
    elif cfg.loss.needs_reference:
        reference = reference_scores(policy, beside)
    before(policy)

    def evaluate() -> Mapping[str, float]:
        batch = pair_minibatch(run, held_out, layout)
        metrics = policy.measure(batch.micros, preference.token_loss(cfg.loss, batch, reference), batch.pairs)
        kept = {f"eval/{name}": metrics[f"policy/{name}"] for name in ("loss", "right", "chosen_logp", "rejected_logp")}
        return {**kept, **watch(policy)}

    stream = RowStream(learned, cfg.batch, run.config.seed)
    preference.train(
        run,
        policy=policy,
        minibatch=lambda step: pair_minibatch(run, stream.take(step), layout),
        loss=lambda batch: preference.token_loss(cfg.loss, batch, reference),
        steps=steps,
        evaluate=evaluate,
    )
    return policy
