"""Anchors of today's DreamerV3 and traps in reading it, as properties of the system that the page builds.

Numbers are those of the specification: anchors A1 to A9 (its unit-test anchors), traps T1 to T25 (its
list of what plausible code gets wrong). Those that other files hold already are not repeated here:

A4, T16  test_block_rssm: the cell against its equations; test_jax_weights: against the original's layout
A5, T5   test_distributions, test_heads: predictions against PyTorch and TorchRL
A8, T10  test_laprop: the optimiser against the specification, line by line
A9       test_dreamer_v3_system: parameter counts
T7       test_dreamer_v3_losses: losses on roll-outs by hand; test_jax_weights: every network
T11, T20 test_dreamer_v3_system: what a run stores and how it is evaluated; test_training: frames beside steps
T17      test_dreamer_v3_system: latents go back to where the window came from
T15      test_codecs: the image codec against plain operations
T23      test_dreamer_v3_losses: state of a joint update; test_training: resuming
T24      test_laprop, test_captured: nothing is read back, one graph
T18      test_atari: which end Atari's limit of frames is
T19      test_dreamer_v3_system: when learning starts

The replay's side of T2 stands with the replay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded, UnboundedDiscrete
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import categorical_kl_terms

import wmkit
from wmkit.control import Learned
from wmkit.dynamics import Latent
from wmkit.envs import make_env
from wmkit.functional import categorical_kl, unimix_probs
from wmkit.nn import Bernoulli, BoundedNormal, OneHotCategorical, RMSNorm, SymexpTwoHot
from wmkit.objectives import KLBalance, Scene
from wmkit.systems import System, compose, dreamerv3_jax_parameters
from wmkit.training.schedule import UpdateRatio

DISCOUNT, C, GROUPS, B, T, H = 1 - 1 / 333, 4, 32, 4, 6, 15
PIXELS = UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)
SMALL = ["preset=full", "size.deter=32", "size.hidden=16", "size.units=16", "size.depth=2"]
SMALL += [f"batch.size={B}", f"batch.length={T}"]


def build(actions: TensorSpec, *overrides: str, images: bool = False) -> System:
    torch.manual_seed(0)
    keys = {"velocity": Unbounded((5,))} | ({"pixels": PIXELS} if images else {})
    return wmkit.build(
        "dreamer_v3", observation_spec=Composite(keys), action_spec=actions, overrides=list(overrides)
    )


@pytest.fixture(scope="module")
def built() -> dict[str, System]:
    return {
        "choice": build(OneHot(3), *SMALL, images=True),
        "numbers": build(Bounded(-1, 1, (2,)), *SMALL),
    }


@pytest.fixture
def system(built: dict[str, System]) -> System:
    """Of images, vectors and three actions."""
    return copy.deepcopy(built["choice"])


@pytest.fixture
def steering(built: dict[str, System]) -> System:
    """Of vectors and two numbers."""
    return copy.deepcopy(built["numbers"])


def trained(system: System, seed: int = 0) -> dict[str, Any]:
    """A batch as losses see it: without the context step."""
    return system.fill(system.example_batch(seed)[:, system.context :])


def constant(layer: nn.Linear, bias: float | Tensor) -> None:
    nn.init.zeros_(layer.weight)
    layer.bias.data.copy_(torch.as_tensor(bias).expand_as(layer.bias))


def only(index: int, size: int = 255) -> Tensor:
    """Logits that leave one class."""
    return 1e4 * F.one_hot(torch.tensor(index), size).float()


def scored(system: System, batch: Mapping[str, Any], name: str) -> Tensor:
    """A loss of the world model."""
    scene = Scene(system.world_model, batch)
    found = [terms[name] for x in system.objectives.values() if name in (terms := x.terms(scene))]
    return found[0].loss


def behave(system: System, batch: Mapping[str, Any]) -> Learned:
    return system.controller.learn(Scene(system.world_model, batch), system.schedule.slow)


# -- what the model sees ---------------------------------------------------------------------------------


def test_a_record_holds_what_is_known_on_arriving(system: System) -> None:
    """T1: action t-1 and observation t make state t, whose reward is reward t; nothing of t+1 does."""
    batch, model = trained(system), system.world_model
    nn.init.normal_(model.heads["reward"].out.weight)
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    batch["reward"] = torch.randn(B, T, 1) * 3

    def seen(changed: Mapping[str, Tensor]) -> Tensor:
        torch.manual_seed(1)
        return model.observe({**batch, **changed}).latent.belief

    before = seen({})
    action, velocity = batch["previous_action"].roll(1, -1), batch["velocity"] + 1
    for key, other in (("previous_action", action), ("velocity", velocity)):
        value = batch[key].clone()
        value[:, 3] = other[:, 3]
        same = (seen({key: value}) == before).all(-1).all(0)
        first = 3 if key == "previous_action" else 4  # an observation enters the next belief by the state
        assert same.tolist() == [t < first for t in range(T)], key
    scene = Scene(model, batch)
    term = system.objectives["heads"].terms(scene)["reward"]
    expected = model.heads["reward"].predict(scene.observed.latent.feature).loss(batch["reward"])
    torch.testing.assert_close(term.value, expected)


@pytest.mark.parametrize("which", ["choice", "numbers"])
def test_a_first_observation_forgets_state_belief_and_action(built: dict[str, System], which: str) -> None:
    """A6, T1, T2: a reset is a start from zeros and a zero action, not action 0; no gradient passes."""
    system = built[which]
    model, batch = system.world_model, trained(system)
    is_init = torch.zeros_like(batch["is_init"])
    is_init[:, 3] = True
    batch |= {"is_init": is_init}
    action = batch["previous_action"].clone().requires_grad_()
    start = (torch.randn(B, C * GROUPS).requires_grad_(), torch.randn(B, 32).requires_grad_())

    def seen(changed: Mapping[str, Any], latent: Any = None) -> Any:
        torch.manual_seed(1)
        return model.observe({**batch, "previous_action": action, **changed}, latent).latent

    whole = seen({}, Latent(*start))
    total = whole.belief[:, 3:].sum() + whole.state[:, 3:].square().sum()
    grads = torch.autograd.grad(total, (action, *start), allow_unused=True)
    assert all(grad is None or not grad.any() for grad in grads[1:])
    assert not grads[0][:, :4].any() and grads[0][:, 4:].any()
    blank = action.detach().clone()
    blank[:, 3] = 0
    other = {key: torch.cat([value[:, :3].flip(0), value[:, 3:]], 1) for key, value in batch.items()}
    again = seen(other | {"previous_action": blank, "is_init": is_init})  # another past, another start
    for x, y in ((whole.belief, again.belief), (whole.state, again.state)):
        torch.testing.assert_close(x[:, 3:], y[:, 3:], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(x[:, :3], y[:, :3])
    first = model.dynamics.initial(B)
    assert not first.state.any() and not first.belief.any()


def test_gates_of_a_block_are_reset_candidate_update(system: System) -> None:
    """A4, T16: update shut in the last third of every block keeps the belief; all at zero keep 0.731059."""
    model = system.world_model.dynamics
    latent = Latent(torch.zeros(B, C * GROUPS), torch.randn(B, 32))
    action, gates = torch.randn(B, 3), model.backbone.gates
    nn.init.zeros_(gates.weight)
    torch.testing.assert_close(model.step(latent, action).belief, 0.731059 * latent.belief, atol=2e-6, rtol=0)
    bias = gates.bias.data.view(8, 3, -1)
    bias[:, 1], bias[:, 2] = 1e4, -1e4
    assert torch.equal(model.step(latent, action).belief, latent.belief)
    bias[:, 2] = 1e4
    torch.testing.assert_close(model.step(latent, action).belief, torch.ones(B, 32))
    bias[:, 0] = -1e4  # the reset gate multiplies what becomes the candidate, not the belief
    torch.testing.assert_close(model.step(latent, action).belief, torch.zeros(B, 32))
    assert model.backbone.norm.weight.shape == (32,)  # the hidden layer's norm spans all blocks


def test_the_context_step_only_lends_its_latents(system: System) -> None:
    """T17: what a window shows at index 0 is never learned from; its stored latents start the window."""
    batch = system.example_batch()
    batch["is_init"][:, :2] = False
    batch["state"], batch["belief"] = torch.rand(B, T + 1, C * GROUPS), torch.randn(B, T + 1, 32)
    shown, stored = batch.clone(), batch.clone()
    for key in ("velocity", "pixels", "reward"):
        shown[key][:, 0] = shown[key][:, 0] + 1
    shown["terminated"][:, 0] = ~shown["terminated"][:, 0]
    stored["belief"][:, 0] += 1
    losses = []
    for each in (batch, shown, stored):
        torch.manual_seed(3)
        metrics = copy.deepcopy(system).update(each)
        assert metrics["replay_context", "belief"].shape == (B, T, 32)
        losses.append(metrics["loss_joint"].item())
    assert losses[0] == losses[1] != losses[2]


# -- latents ---------------------------------------------------------------------------------------------


def logits_apart(distance: float, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Posterior and prior logits ``[rows, 32, 4]`` whose KL is the same in every latent."""
    posterior = torch.zeros(rows, GROUPS, C)
    posterior[..., 0] = distance
    return posterior.requires_grad_(), torch.zeros(rows, GROUPS, C, requires_grad=True)


def test_free_nats_are_of_the_sum_over_latents(system: System) -> None:
    """T3: one nat for all 32 latents together, at each position, before the mean; below it no gradient."""
    kl = system.objectives["latents"].of
    sums = {}
    for distance in (0.3, 0.6):
        posterior, prior = logits_apart(distance)
        each = categorical_kl(*(unimix_probs(x, 0.01) for x in (posterior, prior)))
        sums[distance] = each.item()
        terms = kl(posterior, prior)
        assert each / GROUPS < 0.1  # of one latent: free nats per latent would give 32
        for name, x in (("kl_dynamics", prior), ("kl_representation", posterior)):
            (grad,) = torch.autograd.grad(terms[name].total, x)
            assert grad.any() == (distance == 0.6), name
            assert terms[name].value.item() == pytest.approx(max(1.0, sums[distance]), rel=1e-5)
    assert sums[0.3] < 1 < sums[0.6] and sums[0.3] + sums[0.6] < 3
    both = (torch.cat(pair) for pair in zip(logits_apart(0.3), logits_apart(0.6), strict=True))
    assert kl(*both)["kl_dynamics"].mean.item() == pytest.approx((1 + sums[0.6]) / 2, rel=1e-5)


@pytest.mark.parametrize(("free_nats", "unimix"), [(1.0, 0.01), (2.5, 0.01), (1.0, 0.1), (0.0, 0.0)])
def test_kl_terms_are_those_of_torchrl(free_nats: float, unimix: float) -> None:
    """A3, T3, T4: both terms and their gradients, at positions below the free nats and above them."""
    torch.manual_seed(0)
    near = torch.tensor([1e-3, 0.05, 0.3, 2.0]).view(-1, 1, 1, 1)
    logits = torch.randn(4, 6, GROUPS, C) + near * torch.randn(2, 4, 6, GROUPS, C)  # posterior, prior
    found, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    terms = KLBalance({}, free_nats=free_nats, unimix=unimix).of(*found)
    if free_nats:
        at = terms["kl_dynamics"].value == free_nats
        assert at.any() and not at.all()
    ours = [terms[name].total / 24 for name in ("kl_dynamics", "kl_representation")]
    for mine, theirs in zip(ours, categorical_kl_terms(*wanted, free_nats, unimix), strict=True):
        torch.testing.assert_close(mine, theirs)
        grads = [torch.autograd.grad(x, leaf)[0] for x, leaf in ((mine, found), (theirs, wanted))]
        torch.testing.assert_close(*grads, atol=1e-7, rtol=1e-4)
        assert grads[0].any()


def test_one_percent_of_uniform_is_in_divergence_and_sample(system: System) -> None:
    """A3, T4: no class is impossible, so that no KL exceeds ln(C / 0.01); samples carry that gradient."""
    kl, dynamics = system.objectives["latents"].of, system.world_model.dynamics
    extreme = [1e4 * F.one_hot(torch.full((1, GROUPS), k), C).float() for k in (0, 1)]
    sure, floor = 0.99 + 0.01 / C, 0.01 / C
    expected = GROUPS * (sure - floor) * math.log(sure / floor)
    found = kl(*extreme)["kl_dynamics"].value.item()
    assert found == pytest.approx(expected, rel=1e-5) and found < GROUPS * math.log(C / 0.01)
    p, q = torch.randn(2, B, GROUPS, C).unbind(0)
    mixed = (torch.distributions.Categorical(0.99 * x.softmax(-1) + 0.0025) for x in (p, q))
    oracle = torch.distributions.kl_divergence(*mixed).sum(-1)
    torch.testing.assert_close(kl(p, q)["kl_representation"].value, oracle.clamp(min=1), atol=1e-4, rtol=1e-5)
    p.requires_grad_()
    state, classes = dynamics.sample(p)
    torch.testing.assert_close(state.detach(), F.one_hot(classes, C).float().flatten(1))
    weight = torch.randn_like(state)
    probs = (0.99 * p.softmax(-1) + 0.0025).flatten(1)
    grads = [torch.autograd.grad((x * weight).sum(), p)[0] for x in (state, probs)]
    torch.testing.assert_close(*grads)


# -- heads -----------------------------------------------------------------------------------------------


def test_scalars_start_at_zero_and_are_coded_in_their_own_units(system: System) -> None:
    """A1, A2, T5: zero logits predict exactly zero at a loss of ln 255; halfway in raw units is half each."""
    heads: dict[str, Any] = {
        "reward": system.world_model.heads["reward"],
        "critic": system.critic,
        "slow": system.schedule.slow_critic,
    }
    feature, bins = (
        torch.randn(7, system.world_model.width(system.critic, "critic")),
        system.critic.distribution.bins,
    )
    assert bins[127] == 0 and bins[128].item() == pytest.approx(0.170558, abs=1e-6)
    for head in heads.values():
        assert not head.predict(feature).mean.any()
        cost = head.predict(feature).loss(torch.randn(7, 1) * 100)
        torch.testing.assert_close(cost, torch.full((7,), math.log(255)))
        assert torch.equal(head.distribution.bins, bins)
    half = (bins[200] + bins[201]) / 2
    constant(system.critic.out, only(200).maximum(only(201)))
    prediction = system.critic.predict(feature)
    torch.testing.assert_close(prediction.mean, half.expand(7, 1), rtol=1e-5, atol=0)
    torch.testing.assert_close(prediction.loss(half.expand(7, 1)), torch.full((7,), math.log(2)))


def test_the_discount_is_the_label_of_going_on(system: System) -> None:
    """T6, T18: one minus 1/333, zero at true ends only; a time limit is none."""
    head = system.world_model.heads["continuation"]
    ends = {"terminated": torch.tensor([[False], [True], [False]]), "done": torch.tensor([[0], [1], [1]])}
    torch.testing.assert_close(head.label(ends), torch.tensor([[DISCOUNT], [0.0], [DISCOUNT]]))
    assert float(system.controller.returns.gamma) == 1  # and is applied nowhere else


def test_numbers_are_drawn_and_scored_unclipped(steering: System) -> None:
    """A5, T11: std from 0.1 to 1, 0.892717 at zero; what is drawn may leave [-1, 1] and is remembered so."""
    actor, feature = steering.actor, torch.randn(64, steering.world_model.width(steering.actor, "actor"))
    constant(actor.mean, 0.0), constant(actor.std, 0.0)
    policy = actor.policy(feature)
    assert not policy.mean.any() and policy.std[0, 0].item() == pytest.approx(0.892717, abs=1e-6)
    assert policy.entropy[0].item() / 2 == pytest.approx(1.305453, abs=1e-6)
    drawn = policy.sample(actor.noise(64))
    normal = torch.distributions.Normal(policy.mean, policy.std)
    assert drawn.abs().max() > 1
    torch.testing.assert_close(policy.log_prob(drawn), normal.log_prob(drawn).sum(-1))
    constant(actor.mean, 9.0)
    td = TensorDict(
        {
            "velocity": torch.randn(64, 5),
            "is_init": torch.ones(64, 1, dtype=torch.bool),
            "state": torch.zeros(64, C * GROUPS),
            "belief": torch.zeros(64, 32),
            "previous_action": torch.zeros(64, 2),
        },
        [64],
    )
    with set_exploration_type(ExplorationType.RANDOM):
        acted = steering.policy(td)
    assert acted["action"].max() > 1
    assert torch.equal(acted["action"], acted["next", "previous_action"])
    dynamics = steering.world_model.dynamics  # only the model's reading of an action is bounded
    beliefs = [
        dynamics.step(dynamics.initial(1), torch.tensor([a])).belief for a in ([3.0, -0.5], [1.0, -0.5])
    ]
    torch.testing.assert_close(*beliefs)


def test_logits_of_lower_precision_are_computed_with_in_float32() -> None:
    """T21: softmax, logarithm and distributions round their logits, not what follows."""
    torch.manual_seed(0)
    logits, bins = (torch.randn(5, 255) * 4).bfloat16(), wmkit.functional.symexp_bins(20.0, 255)
    target, action = torch.randn(5, 1) * 9, F.one_hot(torch.arange(5), 255).float()
    few = logits[:, :2]

    def computed(cast: Any) -> list[Tensor]:
        x, y = cast(logits), cast(few)
        two_hot, choice, numbers = SymexpTwoHot(x, bins), OneHotCategorical(x, 0.01), BoundedNormal(y, y)
        p, q = unimix_probs(x.view(5, 5, 51), 0.01), unimix_probs(x.flip(0).view(5, 5, 51), 0.01)
        flag = Bernoulli(y[:, :1])
        return [
            *(two_hot.mean, two_hot.loss(target), choice.log_prob(action), choice.entropy),
            *(numbers.log_prob(target.expand(5, 2)), numbers.entropy, categorical_kl(p, q)),
            *(flag.mean, flag.loss(torch.full((5, 1), DISCOUNT))),
        ]

    for low, full in zip(computed(lambda x: x), computed(lambda x: x.float()), strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, full, rtol=0, atol=0)


# -- behaviour -------------------------------------------------------------------------------------------


def test_returns_and_weights_of_constant_predictions(system: System) -> None:
    """A7, T6 to T9: with reward r and continuation c everywhere, every number of the loss is known."""
    c, model, batch = 0.9, system.world_model, trained(system)
    constant(model.heads["continuation"].out, math.log(c / (1 - c)))
    constant(model.heads["reward"].out, only(190))
    constant(system.actor.out, 0.0)
    r = float(system.critic.distribution.bins[190])
    out = behave(system, batch)

    # 15 targets of 16 states, each of the reward and continuation arrived at; values are zero.
    returns = [r * sum((0.95 * c) ** j for j in range(H - i)) for i in range(H)]
    found = {name: value.item() for name, value in out.metrics.items()}
    assert found["imagined_return"] == pytest.approx(np.mean(returns), rel=1e-4)
    # Percentiles of all of them, unweighted; in use at once, from zero and without debias.
    low, high = np.percentile(np.repeat(returns, B * T), [5, 95])
    scale = 0.01 * (high - low)
    assert scale > 1
    assert found["return_scale"] == pytest.approx(scale, rel=1e-4)
    # The first weight is c, not one; means over 15 steps and all starts, not over the weights.
    weights = np.cumprod(np.full(H, c))
    assert found["loss_critic"] == pytest.approx(2 * math.log(255) * weights.mean(), rel=1e-4)
    log_prob, entropy = -math.log(3), math.log(3)  # of three equal actions, the share of uniform included
    actor = -(weights * (log_prob * np.array(returns) / scale + 3e-4 * entropy)).mean()
    assert found["loss_actor"] == pytest.approx(actor, rel=1e-4)

    constant(model.heads["continuation"].out, -1e4)  # no start goes on: nothing is learned from it
    out = behave(system, batch)
    assert out.metrics["loss_critic"] == 0 and out.metrics["loss_actor"] == 0
    assert out.metrics["imagined_return"].item() == pytest.approx(r, rel=1e-5)


def test_the_return_of_a_constant_reward_is_333_of_it(system: System) -> None:
    """A7: the page's estimator keeps 333 r where the critic says so, and finds it where λ is one."""
    estimator, reward = system.controller.returns.estimator, torch.full((1, 6000, 1), 0.5)
    following = {"reward": reward, "continuation": torch.full_like(reward, DISCOUNT)}
    for lmbda, value, length in ((0.95, 333 * reward, 1), (1.0, torch.zeros_like(reward), 3000)):
        estimator.lmbda.fill_(lmbda)
        batch = TensorDict({"next": {**following, "state_value": value}}, [1, 6000])
        found = estimator.value_estimate(batch)[:, : max(length, 1)]
        torch.testing.assert_close(found, 333 * reward[:, : found.shape[1]], rtol=2e-4, atol=0)


def test_the_slow_critic_only_regularises(system: System) -> None:
    """T12: neither targets nor baselines come from it; the critic's loss alone knows it."""
    batch = trained(system)
    nn.init.normal_(system.world_model.heads["reward"].out.weight)
    nn.init.normal_(system.critic.out.weight)
    outs = []
    for bin_ in (127, 160):
        constant(system.schedule.slow_critic.out, only(bin_))
        system.controller.return_norm.low.zero_(), system.controller.return_norm.high.zero_()
        torch.manual_seed(4)
        outs.append(behave(system, batch))
    for name in ("imagined_return", "loss_actor"):
        assert torch.equal(outs[0].metrics[name], outs[1].metrics[name])
    assert abs(outs[0].metrics["loss_critic"] - outs[1].metrics["loss_critic"]) > 0.1


def test_replay_values_are_averaged_over_all_but_the_last_record(system: System) -> None:
    """T2, T9: ends, also those that only the next first record shows, leave the mean and not its count."""
    batch = trained(system)
    for key in ("is_init", "terminated", "done"):
        batch[key] = torch.zeros_like(batch[key])
    batch["is_init"][0, 2] = True  # its predecessor was abandoned
    batch["done"][1, 3] = batch["done"][1, 5] = True  # a time limit; the window's last record counts no more
    counted = 1 - 2 / (B * (T - 1))
    found = behave(system, batch).metrics["loss_replay_critic"].item()
    assert found == pytest.approx(2 * math.log(255) * counted, rel=1e-5)


# -- learning --------------------------------------------------------------------------------------------


def test_the_first_update_moves_nothing_and_the_second_no_weight_by_more_than_its_rate(
    system: System,
) -> None:
    """A8, T19: the learning rate starts at zero and reaches 4e-8 at the second update of 1000."""
    before = {name: p.detach().clone() for name, p in system.named_parameters()}
    system.update(system.example_batch())
    assert all(torch.equal(p, before[name]) for name, p in system.named_parameters())
    system.update(system.example_batch(1))
    largest = 0.0
    for name, p in system.named_parameters():
        rounding = torch.finfo(torch.float32).eps * before[name].abs()
        moved = (p.detach() - before[name]).abs()
        assert (moved <= 5e-8 + rounding).all(), name
        largest = max(largest, float(moved.max()))
    assert largest > 0


def test_tensors_are_clipped_and_scaled_each_on_its_own(system: System) -> None:
    """T10: a huge gradient elsewhere changes nothing here, and a tiny one moves as far as any."""
    learner = system.schedule.learners["joint"]
    assert learner.clip is None
    torch.manual_seed(0)
    grads = [torch.randn_like(p) for p in learner.parameters]
    moves = []
    for scale, burst in ((1e-6, 1e-6), (1e-6, 1e6), (1e-12, 1e-12)):
        copied = copy.deepcopy(system).schedule.learners["joint"]
        before = [p.detach().clone() for p in copied.parameters]
        for group in copied.optimizer.param_groups:
            group["lr"].fill_(1.0)
        for first in (scale, burst):  # a burst at the second update: one norm for all would shrink the rest
            for i, (p, grad) in enumerate(zip(copied.parameters, grads, strict=True)):
                p.grad = grad * (scale if i else first)
            copied.optimizer.step()
        moves.append([p.detach() - x for p, x in zip(copied.parameters, before, strict=True)])
    for other in moves[1:]:
        for x, y in zip(moves[0][1:], other[1:], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    assert max(float(x.abs().max()) for x in moves[0]) > 1e-4
    for x in copied.optimizer.state.values():
        assert all(value.dtype == torch.float32 for value in x.values())


def test_every_weight_starts_as_the_original_draws_it() -> None:
    """T13: truncated normals of variance 1 / fan-in, over all blocks of a block layer; outputs scaled."""
    parameters = dreamerv3_jax_parameters(build(Bounded(-1, 1, (6,)), "size=1m", "preset=full", images=True))
    scales = {"rew": 0.0, "val": 0.0, "slowval": 0.0, "pol": 0.01}
    measured = 0
    for name, x in parameters.items():
        leaf = name.rpartition("/")[2]
        if leaf == "bias":
            assert not x.any(), name  # there is one in front of every norm too
        elif leaf == "scale":
            assert (x == 1).all(), name
        elif leaf == "kernel":
            scale = scales.get(name.split("/")[0], 1.0) if "/head/" in name else 1.0
            std = scale * math.sqrt(1 / np.prod(x.shape[:-1]))
            assert np.abs(x).max() <= 2 * 1.1369 * std, name
            if x.size >= 1000:
                assert x.std() == pytest.approx(std, rel=5 / math.sqrt(2 * x.size), abs=1e-12), name
                measured += 1
    assert measured > 25


def test_norms_are_rms_over_the_last_axis_with_their_own_eps(system: System) -> None:
    """T14: 1e-4 inside the root, a scale and no shift, in float32 also for lower precision."""
    norms = [m for m in system.modules() if isinstance(m, RMSNorm)]
    assert len(norms) > 25 and all(norm.eps == 1e-4 for norm in norms)
    assert all([name for name, _ in norm.named_parameters()] == ["weight"] for norm in norms)
    assert not [m for m in system.modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))]
    x = 1e-2 * torch.randn(3, 8)  # small enough for eps to matter
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt()
    torch.testing.assert_close(RMSNorm(8)(x), expected)
    low = x.bfloat16()
    assert torch.equal(RMSNorm(8)(low), RMSNorm(8)(low.float()).bfloat16())


def test_an_image_costs_the_sum_over_its_numbers(system: System) -> None:
    """T15: 12,288 squares without a half, of what a sigmoid says, the last convolution bare of a norm."""
    out, batch = system.world_model.decoder.image.out, trained(system)
    nn.init.zeros_(out.weight)
    assert not out.bias.any()
    expected = 12_288 * (0.5 - batch["pixels"]).square().mean()
    torch.testing.assert_close(scored(system, batch, "pixels").detach(), expected)
    nn.init.constant_(out.bias, 2.0)
    feature = torch.randn(2, system.world_model.width(system.critic, "critic"))
    shown = system.world_model.decoder.predict(feature)["pixels"].mean
    torch.testing.assert_close(shown, torch.sigmoid(torch.full_like(shown, 2.0)))
    assert system.objectives["reconstruction"].weights["pixels"] == 1


# -- counting and comparing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decisions", "updates"),
    [("dreamer_v3", 110_000, 0.25), ("twm", 100_000, 1.316), ("storm", 102_000, 1.0)],
)
def test_atari_100k_counts_decisions_of_four_frames(name: str, decisions: int, updates: float) -> None:
    """T22: its "400k steps" are frames; budget, replay and updates count decisions, time limits frames."""
    config = compose(name, ["preset=atari100k"])
    assert config.training.steps == decisions
    assert 400_000 <= decisions * config.env.options.action_repeat <= 440_000
    assert config.training.replay.capacity >= min(decisions, 100_000)
    records = {"dreamer_v3": 16 * 64, "twm": 100 * 18, "storm": 16 * 65}[name]
    assert UpdateRatio(config.training.train_ratio, records).per_step == pytest.approx(updates, rel=1e-3)
    assert config.env.options.max_frames == 30 * 60 * 60
    pytest.importorskip("ale_py")
    options = {**config.env.options, "max_frames": 40, "noops": 0, "fire": False}
    assert len(make_env("atari100k/pong", seed=0, **options).rollout(20)) == 10
