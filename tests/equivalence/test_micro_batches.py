"""The result of an update depends on the rollouts alone: not on micro-batches, packing, shared prompts or accumulation.
And the first update after a rollout is on-policy to the last bit."""

import pytest
import torch

from stepstack.batching.collate import collate
from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import minibatches
from stepstack.core.config import AdamW, TrainableConfig
from stepstack.generation.types import Sampling
from stepstack.models.lm.policy import Policy
from stepstack.models.lm.value import Value
from stepstack.rl import update
from stepstack.rl.config import Gae, Grpo, Kl, PolicyLoss, PpoConfig, RolloutConfig, ValueLoss
from stepstack.rl.roles import Roles
from tests import tools

SHAPES = [(3, 5), (9, 2), (4, 17), (6, 6), (2, 11), (8, 1), (5, 9), (7, 3)]
SIBLINGS = [(4, 5), (4, 2), (3, 17), (3, 6), (8, 11), (8, 1), (9, 9), (9, 3)]  # two answers to each prompt
LAYOUTS = {
    "one padded": BatchLayout(max_tokens=10_000),
    "one packed": BatchLayout(pack=True, max_tokens=10_000),
    "several padded": BatchLayout(max_tokens=45),
    "several packed": BatchLayout(pack=True, max_tokens=32),
    "one row each": BatchLayout(max_tokens=21),
    "shared prompts": BatchLayout(share_prompts=True, max_tokens=10_000),
    "shared prompts, several": BatchLayout(share_prompts=True, max_tokens=45),
    "shared prompts, packed": BatchLayout(share_prompts=True, pack=True, max_tokens=28),
}


class TestedRoles:
    """An actor and a critic of the same weights each time, and one step of the loop's verbs."""

    def __init__(self, folder, **overrides):
        rollout = RolloutConfig(prompts=4, sampling=Sampling(n=2, max_tokens=20))
        self.run = run = tools.make_run(folder, rollout=rollout, **overrides)
        plain = TrainableConfig(optim=AdamW(lr=1e-3), clip=1e9)
        lms = [tools.qwen2(seed=seed) for seed in (0, 1, 2)]
        self.actor = run.trainable("actor", Policy(lms[0]), plain, total_updates=10)
        value = Value(lms[1])
        torch.nn.init.normal_(value.value_head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        self.critic = run.trainable("critic", value, plain, total_updates=10)
        self.reference = run.frozen(Policy(lms[2])) if run.config.kl.weight else None
        self.grads: dict[str, torch.Tensor] = {}
        for role in (self.actor, self.critic):
            role._step = self._spied(role, role._step)

    def _spied(self, role, step):
        """Look at the gradients before they are used."""

        def spied(loss):
            self.grads[role.role] = torch.cat([p.grad.flatten() for p in role.parameters])
            return step(loss)

        return spied

    def step(self, rows=None):
        """(metrics of each actor update, batch)"""
        losses, batch = [], tools.batch(rows or tools.rows(SIBLINGS, n=2))
        actor_update = self.actor.update

        def watched(*arguments):
            losses.append(actor_update(*arguments))
            return losses[-1]

        self.actor.update = watched
        update.learn(self.run, self.run.config, self.roles, batch)
        self.actor.update = actor_update
        return losses, batch

    @property
    def roles(self):
        return Roles(self.actor, self.critic if self.run.config.uses_critic else None, self.reference)

    def weights(self):
        """Of the roles that were updated, in the order of ``grads``."""
        return torch.cat([p.detach().flatten() for role in self.grads for p in self.run.trainables[role].parameters])


# -- invariance -----------------------------------------------------------------------------------------------------


def outcome(folder, layout, **overrides):
    roles = TestedRoles(folder, layout=layout, **overrides)
    metrics, _ = roles.step()
    return metrics[0], torch.cat(list(roles.grads.values())), roles.weights()


@pytest.mark.rounding
@pytest.mark.parametrize("aggregate", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("advantage", [Gae(), Grpo()])
def test_an_update_does_not_depend_on_micro_batches(tmp_path, aggregate, advantage):
    same = {
        "policy_loss": PolicyLoss(aggregate=aggregate),
        "value_loss": ValueLoss(aggregate=aggregate),
        "advantage": advantage,
        "entropy_weight": 0.01,
        "kl": Kl(weight=0.1),
    }
    found = {name: outcome(tmp_path / name, layout, **same) for name, layout in LAYOUTS.items()}
    metrics, grads, weights = found.pop("one padded")
    assert grads.abs().max() > 1e-3
    for name, other in found.items():
        scale = grads.abs().max().item()
        torch.testing.assert_close(other[1], grads, rtol=1e-5, atol=1e-5 * scale, msg=name)
        # AdamW's first step is lr * sign(g), which rounding decides where g is next to nothing.
        clear = (grads.abs() > 1e-4 * scale).nonzero()[:, 0]
        assert len(clear) > 0.5 * len(grads)
        torch.testing.assert_close(other[2][clear], weights[clear], rtol=1e-5, atol=1e-6, msg=name)
        for key in ("actor/loss", "actor/entropy", "actor/kl", "actor/ref_kl", "actor/clip_fraction"):
            assert other[0][key] == pytest.approx(metrics[key], rel=1e-4, abs=1e-6), (name, key)


@pytest.mark.rounding
@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_accumulation_gives_the_gradient_of_the_whole(tmp_path, accumulate):
    rows = tools.rows([(4, 4 + 3 * i) for i in range(8)], n=2)  # micro-batches of very unequal token counts
    roles = TestedRoles(tmp_path, advantage=Grpo())
    run, cfg = roles.run, roles.run.config
    batch = tools.batch(rows)
    [part] = minibatches(run, batch, 1, cfg.layout)
    update.credit(run, batch, cfg)
    size = len(rows) // accumulate
    micros = [collate(rows[i : i + size], False, "cpu") for i in range(0, len(rows), size)]
    assert len(micros) == accumulate
    roles.actor.update(micros, update.policy_loss(cfg), update.loss_denominator(cfg.policy_loss, part))
    module = Policy(tools.qwen2(seed=0))
    (update.policy_loss(cfg)(module, collate(rows, False, "cpu")).total / part.tokens).backward()
    whole = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(roles.grads["actor"], whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


# -- old log-probabilities of the sampler -----------------------------------------------------------------------------


def old_and_weights(folder, sampler=None, **loss):
    """(old log-probabilities of the second update's rows, weights, sampler's stand-ins in the log)"""
    roles = TestedRoles(folder, actor_updates=2, advantage=Grpo(whiten=True), policy_loss=PolicyLoss(**loss))
    rows = tools.rows(SHAPES, n=2)
    for row in rows:
        row.fields["sampler"] = torch.zeros(len(row.ids)) if sampler is None else sampler[row.index]
    batch = roles.step(rows)[1]
    old = {row.index: row.fields["old"] for row in batch.rows if "old" in row.fields}
    return old, roles.weights(), roles.run._pending.get("actor/old_from_sampler")


def test_the_sampler_stands_for_the_old_policy_only_where_it_agrees(tmp_path):
    old, weights, _ = old_and_weights(tmp_path / "computed")
    near = {i: old.get(i, torch.zeros(after)) + 1e-4 for i, (_, after) in enumerate(SHAPES)}
    found, moved, logged = old_and_weights(tmp_path / "near", near, old_from_sampler=1e-3)
    assert logged == [1.0]
    assert len(found) == 4
    assert all(torch.equal(values, near[index]) for index, values in found.items())
    assert not torch.equal(moved, weights)  # a ratio of 1 - 1e-4
    far, same, logged = old_and_weights(tmp_path / "far", near, old_from_sampler=1e-5)
    assert logged == [0.0]
    assert all(torch.equal(values, old[index]) for index, values in far.items())
    assert torch.equal(same, weights)


# -- rows of advantage 0 ---------------------------------------------------------------------------------------------

MIXED, FLAT = [1.0, 0.0], [1.0, 1.0]


def scored_rows(shapes, scores):
    rows = tools.rows(shapes, n=2)
    for row in rows:
        row.reward = scores[row.group][row.sample]
    return rows


def two_steps(folder, layout, shapes, scores, **overrides):
    """Metrics of each update of two steps, the second one without any difference of scores, and gradients and weights
    after both."""
    roles = TestedRoles(folder, layout=layout, advantage=Grpo(), actor_updates=2, **overrides)
    metrics, gradients = [], []
    for step_scores in (scores, [FLAT] * 4):
        metrics += roles.step(scored_rows(shapes, step_scores))[0]
        gradients.append(roles.grads["actor"])
    return metrics, gradients, roles.weights()


@pytest.mark.parametrize("aggregate", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("exact", [True, False])
def test_rows_of_advantage_zero_leave_and_the_update_stays(tmp_path, monkeypatch, exact, aggregate):
    """Against a run that keeps them: bit for bit where a micro-batch is a row, else to the rounding of sums. An update
    of which no row is left moves the weights by Adam's moments all the same."""
    shapes = [(4, 8)] * 8 if exact else SHAPES
    layout = BatchLayout(max_tokens=12 if exact else 45)
    case = (layout, shapes, [MIXED, FLAT, FLAT, MIXED])
    overrides = {"policy_loss": PolicyLoss(aggregate=aggregate)}
    left_out = two_steps(tmp_path / "a", *case, **overrides)
    with monkeypatch.context() as patch:
        patch.setattr(PpoConfig, "skips_zero_advantages", False)
        kept = two_steps(tmp_path / "b", *case, **overrides)
    assert left_out[0][0]["actor/loss"] == pytest.approx(kept[0][0]["actor/loss"], abs=1e-7)
    assert left_out[0][2].keys() == {"actor/loss", "actor/grad_norm"}  # nothing was there to take a mean over
    first, last = left_out[1]
    assert first.abs().max() > 1e-3
    assert not last.any()
    if exact:
        assert torch.equal(first, kept[1][0])
        assert torch.equal(left_out[2], kept[2])
    else:
        torch.testing.assert_close(first, kept[1][0], rtol=1e-6, atol=1e-6 * first.abs().max().item())


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": Kl(weight=0.1)},
        {"entropy_weight": 0.1},
        {"layout": BatchLayout(pack=True), "policy_loss": PolicyLoss(aggregate="pack-mean")},
        {"layout": BatchLayout(pack=True, orz_parity=True)},
        {"advantage": Grpo(whiten=True)},
        {"advantage": Gae()},
    ],
    ids=str,
)
def test_rows_of_advantage_zero_stay_where_something_weighs_on_them(tmp_path, changes):
    roles = TestedRoles(tmp_path, **{"advantage": Grpo()} | changes)
    batch = tools.batch(scored_rows(SHAPES, [MIXED, FLAT, FLAT, MIXED]))
    for_actor, _ = update.prepare(roles.run, roles.run.config, roles.roles, batch)
    assert sum(minibatch.learned for minibatch in for_actor) == 8


def test_orz_pack_mean_does_depend_on_the_packs(tmp_path):
    """Parity, and the reason why it is not our default."""
    parity = {"policy_loss": PolicyLoss(aggregate="pack-mean"), "value_loss": ValueLoss(aggregate="pack-mean")}
    found = [
        outcome(tmp_path / str(limit), BatchLayout(pack=True, max_tokens=limit), **parity)[1] for limit in (10_000, 32)
    ]
    assert (found[0] - found[1]).abs().max() > 0.01 * found[0].abs().max()


def test_pack_mean_is_the_mean_over_packs_of_their_token_means(tmp_path):
    parity = {"policy_loss": PolicyLoss(aggregate="pack-mean"), "advantage": Grpo()}
    roles = TestedRoles(tmp_path, layout=BatchLayout(pack=True, max_tokens=32, orz_parity=True), **parity)
    batch = tools.batch(tools.rows(SHAPES, n=2))
    [part] = minibatches(roles.run, batch, 1, roles.run.config.layout)
    update.credit(roles.run, batch, roles.run.config)
    expected = torch.stack([-micro.field("advantage").mean() for micro in part.micros]).mean()
    assert len(part.micros) > 2
    metrics = roles.actor.update(part.micros, update.policy_loss(roles.run.config), part.packs)
    assert metrics["actor/loss"] == pytest.approx(expected.item(), abs=1e-6)


def test_orz_parity_trains_with_packs_to_drop(tmp_path):
    """Eight packs in three updates: six are trained on, eight have values, advantages and returns."""
    roles = TestedRoles(
        tmp_path, critic_updates=3, actor_updates=3, layout=BatchLayout(pack=True, max_tokens=12, orz_parity=True)
    )
    losses, batch = roles.step(tools.rows([(5, 7)] * 8, n=2))
    assert (roles.critic.updates, roles.actor.updates, len(losses)) == (3, 3, 3)
    assert all({"value", "advantage", "return"} <= set(row.fields) for row in batch.rows)


# -- on-policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_update_is_exactly_on_policy(tmp_path, annotated, updates, layout):
    """Ratio 1, no clip, KL 0: equal, not nearly. Old log-probabilities of the first update are those of the update
    itself; where a KL penalty needs them before, they come from the very micro-batches of the update."""
    changes = {"kl": Kl(weight=0.1, place="reward")} if annotated else {}
    roles = TestedRoles(tmp_path, layout=LAYOUTS[layout], actor_updates=updates, critic_updates=2, **changes)
    metrics, batch = roles.step()
    assert all(row.fields.keys() >= {"value", "advantage", "return"} for row in batch.rows)
    assert sum("old" in row.fields for row in batch.rows) == (8 if annotated else 8 - 8 // updates)
    first = metrics[0]
    assert first["actor/ratio_max"] == 1.0
    assert first["actor/clip_fraction"] == 0.0
    assert first["actor/kl"] == 0.0
    assert first["actor/grad_norm"] > 1e-3
    advantage_N = batch.field("advantage")
    assert advantage_N.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert advantage_N.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    if updates == 1:
        assert first["actor/loss"] == pytest.approx(-advantage_N.mean().item(), abs=1e-6)
    else:
        assert metrics[1]["actor/kl"] > 0.0
        assert metrics[1]["actor/ratio_max"] != 1.0


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "changes",
    [{"advantage": Gae(gamma=0.9, lam=0.8)}, {"kl": Kl(weight=0.3, place="reward")}],
    ids=["discounted", "KL in the reward"],
)
def test_the_critics_first_update_gives_the_values_that_a_forward_of_its_own_would(tmp_path, changes, layout, updates):
    """Values, credit, gradients and weights are equal bit for bit to those of a run that asks the critic for all values
    first, and its first mini-batch goes through it once in place of twice."""
    found = []
    for apart in (True, False):
        case = {"layout": LAYOUTS[layout], "actor_updates": 2, "critic_updates": updates} | changes
        roles = TestedRoles(tmp_path / str(apart), **case)
        forwards = []
        roles.critic.module.register_forward_hook(lambda *call, forwards=forwards: forwards.append(call))
        if apart:
            batch = tools.batch(tools.rows(SIBLINGS, n=2))
            cfg, run = roles.run.config, roles.run
            for_actor, for_critic = update.prepare(run, cfg, roles.roles, batch)
            assert ["value" in row.fields for row in batch.rows].count(False) == -(-8 // updates)
            forwards.clear()
            with torch.no_grad():
                for micro in (micro for part in for_critic for micro in part.micros):
                    micro.store("value", update.values(roles.critic.module, micro))
            update.credit(run, batch, cfg)
            for part in for_critic:
                update.update_critic(roles.critic, part, cfg)
            for part in for_actor:
                update.update_actor(roles.actor, part, cfg)
            spared = len(for_critic[0].micros)
        else:
            _, batch = roles.step()
        fields = [batch.field(name) for name in ("value", "return", "advantage")]
        found.append((len(forwards), torch.cat(fields), torch.cat(list(roles.grads.values())), roles.weights()))
    (passes, *expected), (fewer, *same) = found
    assert fewer == passes - spared
    assert all(map(torch.equal, same, expected))


def test_the_rewards_place_and_the_critics_values(tmp_path):
    """gamma = lambda = 1: the return of every token is the reward, the advantage before whitening reward - value."""
    roles = TestedRoles(tmp_path, advantage=Gae(whiten=False))
    _, batch = roles.step()
    for row in batch.rows:
        torch.testing.assert_close(row.fields["return"], torch.full((len(row.ids),), row.reward))
        torch.testing.assert_close(row.fields["advantage"], row.reward - row.fields["value"])


def test_kl_as_a_penalty_comes_off_the_reward(tmp_path):
    roles = TestedRoles(tmp_path, advantage=Gae(whiten=False), kl=Kl(weight=0.5, place="reward", estimator="k1"))
    _, batch = roles.step()
    for row in batch.rows:
        penalty = 0.5 * (row.fields["old"] - row.fields["ref"])
        to_come = penalty.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(row.fields["return"], row.reward - to_come, atol=1e-5, rtol=1e-5)


def test_no_reference_is_annotated_while_kl_is_off(tmp_path):
    _, batch = TestedRoles(tmp_path).step()
    assert all("ref" not in row.fields for row in batch.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critic_updates": 9}, "9 updates a step need at least as many rollouts, not 8"),
        ({"advantage": Grpo(), "n": 1}, "sampling.n of at least 2"),
        ({"policy_loss": PolicyLoss(old_from_sampler=1e-3)}, "which actor_updates=1 does not have"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"layout": BatchLayout(orz_parity=True)}, "layout.pack=true"),
        ({"layout": BatchLayout(pack=True, orz_parity=True, share_prompts=True)}, "set layout.share_prompts to false"),
        ({"policy_loss": PolicyLoss(aggregate="pack-mean")}, "layout.pack=true"),
    ],
)
def test_a_config_that_cannot_train_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tools.config(tmp_path, **changes)
