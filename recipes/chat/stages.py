"""The two stages: how rows, policy and loop come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from recipes.chat.config import Config
from recipes.chat.data import load_pairs, load_rows
from recipes.chat.model import make_policy
from stepstack.batching.minibatch import minibatches
from stepstack.batching.pairs import pair_minibatch
from stepstack.batching.reference import start_copy, with_reference
from stepstack.batching.stream import RowStream
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.generation.chat import ChatEncoder
from stepstack.loops import preference, supervised
from stepstack.tuning.config import DpoStage, SftStage

Before = Callable[[Trainable], None]
Watch = Callable[[Trainable], Mapping[str, float]]


def sft(
    run: Run[Config], cfg: SftStage, lm: PreTrainedModel, encoder: ChatEncoder, before: Before, watch: Watch
) -> Trainable:
    """Learn conversations; the loss of held-out ones is watched."""
    rows, layout = load_rows(run.config, encoder), run.config.layout
    steps = cfg.updates(len(rows.train.rows))
    policy = run.trainable("policy", make_policy(lm, encoder), cfg.policy, total_updates=steps)
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
    module = make_policy(lm, encoder)
    start = start_copy(run, module, cfg)
    policy = run.trainable("policy", module, cfg.policy, total_updates=steps)
    known, reference = with_reference(run, policy, [*learned, *held_out], cfg, layout, start)
    learned, held_out = known[: len(learned)], known[len(learned) :]
    before(policy)

    def evaluate() -> Mapping[str, float]:
        batch = pair_minibatch(run, held_out, layout)
        metrics = policy.measure(batch.micros, preference.token_loss(cfg.loss, batch, reference), batch.pairs)
        watched = {
            f"eval/{name}": metrics[f"policy/{name}"] for name in ("loss", "right", "chosen_logp", "rejected_logp")
        }
        return {**watched, **watch(policy)}

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
