"""Losses: what is averaged, where gradients flow and stop, the long branch, the estimator."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives.utils import _VALUE_ESTIMATOR_REGISTRY
from torchrl.objectives.value import TDLambdaEstimator
from wmkit.objectives.token_latents import Spans

from support.images import TINY, build
from wmkit.dynamics import imagine
from wmkit.errors import ConfigError
from wmkit.functional import lambda_return_jumpy
from wmkit.nn import Bernoulli, Feature, FirstLayers, SymlogTwoHot
from wmkit.objectives import (
    BatchMeanTargets,
    CrossEntropyLatents,
    LambdaReturnJumpy,
    Learner,
    PerSampleTargets,
    Term,
    WorldModelEstimators,
    reduce_terms,
)


def transitions() -> TensorDict:
    torch.manual_seed(0)
    b, t = 3, 8
    return TensorDict(
        {
            "state_value": torch.randn(b, t, 1),
            "next": {
                "reward": torch.randn(b, t, 1),
                "state_value": torch.randn(b, t, 1),
                "done": torch.rand(b, t, 1) < 0.2,
                "terminated": torch.zeros(b, t, 1, dtype=torch.bool),
                "steps_to_next_obs": torch.randint(1, 9, (b, t, 1)),
            },
        },
        [b, t],
    )


def test_estimator_equals_torchrl_when_nothing_jumps() -> None:
    batch = transitions()
    batch["next", "steps_to_next_obs"] = torch.ones_like(batch["next", "steps_to_next_obs"])
    batch["next", "terminated"] = batch["next", "done"] & (torch.rand(3, 8, 1) < 0.5)
    oracle = TDLambdaEstimator(gamma=0.97, lmbda=0.95, value_network=None)
    expected = oracle.value_estimate(batch.clone(), next_value=batch["next", "state_value"])
    got = LambdaReturnJumpy(gamma=0.97, lmbda=0.95).value_estimate(batch)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_estimator_discounts_durations_as_torchrl_does() -> None:
    batch = transitions()
    batch["next", "done"] = torch.zeros_like(batch["next", "done"])
    steps = batch["next", "steps_to_next_obs"].float()
    scaled = batch.clone()  # TorchRL takes the reward of a transition as already discounted
    scaled["next", "reward"] = batch["next", "reward"] * 0.97 ** (steps - 1)
    oracle = TDLambdaEstimator(gamma=0.97, lmbda=0.95, value_network=None)
    scaled["steps_to_next_obs"] = scaled["next", "steps_to_next_obs"]
    expected = oracle.value_estimate(scaled, next_value=batch["next", "state_value"])
    got = LambdaReturnJumpy(gamma=0.97, lmbda=0.95).value_estimate(batch)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_estimator_is_registered_and_reads_nested_keys() -> None:
    assert _VALUE_ESTIMATOR_REGISTRY[WorldModelEstimators.LambdaReturnJumpy].cls is LambdaReturnJumpy
    batch = transitions()
    nested = TensorDict({"next": {"agent": {"reward": batch["next", "reward"]}}}, batch.batch_size)
    nested["next"].update(batch["next"].exclude("reward"))
    estimator = LambdaReturnJumpy(gamma=0.97, lmbda=0.95)
    expected = estimator.value_estimate(batch)
    estimator.set_keys(reward=("agent", "reward"))
    torch.testing.assert_close(estimator.value_estimate(nested), expected)
    written = LambdaReturnJumpy(gamma=0.97, lmbda=0.95)(batch)
    torch.testing.assert_close(written["advantage"], written["value_target"] - batch["state_value"])


def test_terms_share_one_mean_and_masked_rows_have_no_gradient() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    long = Term(x * x, torch.tensor([True, True, False]))
    loss = reduce_terms({"a": Term(torch.ones(4)), "b": long}, {"a": 1.0, "b": 2.0}, 4 + 2)
    assert loss.item() == pytest.approx((4 + 2 * 5) / 6)
    loss.backward()
    assert x.grad is not None and x.grad[2] == 0
    assert Term(torch.ones(3), torch.zeros(3, dtype=torch.bool)).mean == 0


def test_weights_must_match_terms() -> None:
    """Before there is a batch; in the loss itself, where a KL does not name its terms."""
    with pytest.raises(ConfigError, match="found weights for rewrd"):
        build("ls_imagine", "+world_model_loss.weights.rewrd=1.0")
    system = build("ls_imagine")
    system.world_model_loss.weights["rewrd"] = 1.0
    with pytest.raises(ConfigError, match="found weights for rewrd"):
        system.update(system.example_batch())


def test_targets_of_a_jump_are_its_own() -> None:
    torch.manual_seed(0)
    from wmkit.functional import symmetric_bins

    bins, mask = symmetric_bins(20.0, 255), torch.ones(6, dtype=torch.bool)
    logits, target = torch.randn(6, 255), torch.arange(6.0).unsqueeze(-1) * 9
    own, mean = PerSampleTargets(), BatchMeanTargets()
    many = SymlogTwoHot(logits, bins)
    assert not torch.allclose(own(many, target, mask), mean(many, target, mask))
    one = SymlogTwoHot(logits[:1], bins)
    torch.testing.assert_close(own(one, target[:1], mask[:1]), mean(one, target[:1], mask[:1]))
    flag = Bernoulli(torch.randn(6, 1))  # only two-hot heads were affected
    torch.testing.assert_close(own(flag, target > 9, mask), mean(flag, target > 9, mask))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("dreamer_v3", []), ("ls_imagine", ["behaviour.branches=true", "behaviour.gate.threshold=0.0"])],
)
def test_first_layers_taken_on_the_way_change_nothing(monkeypatch, name: str, overrides: list[str]) -> None:
    tiny = [x for x in TINY if name == "ls_imagine" or not x.startswith("size.")]
    system = build(name, *(["size=tiny"] if name == "dreamer_v3" else []), *tiny, *overrides)
    learned = system.world_model_loss(system.world_model, system.fill(system.example_batch()))
    start = learned.starts, learned.start_mask, learned.start_continuation
    for parameter in (*system.actor.parameters(), *system.critic.parameters()):
        torch.nn.init.normal_(parameter, std=0.5)

    def score() -> tuple:
        torch.manual_seed(5)
        ours = copy.deepcopy(system)  # the range of returns is moved
        out = ours.behaviour(ours.world_model, ours.actor, ours.critic, ours.schedule.slow_critic, *start)
        losses, learners = (out.actor_loss, out.critic_loss), (ours.actor, ours.critic)
        weights = [p for module in learners for p in module.parameters()]
        return *losses, out.start_return, torch.autograd.grad(sum(losses), weights)

    widths = []
    make = FirstLayers.of
    monkeypatch.setattr(FirstLayers, "of", lambda *args: widths.append(made := make(*args)) or made)
    on_the_way = score()
    # actor, continuation, critic, slow critic, reward, and for LS-Imagine jump and intrinsic reward
    assert len(widths[0].weights) == (5 if name == "dreamer_v3" else 7)
    rollout = imagine(system.world_model, system.actor, learned.starts, 3, readers=[system.critic])
    bare = Feature(rollout.states, rollout.beliefs, rollout.classes)
    assert rollout.products is not None
    for _ in range(2):  # products of weights that have changed since are not used
        with torch.no_grad():
            torch.testing.assert_close(system.critic(rollout.features).logits, system.critic(bare).logits)
            system.critic.trunk[0].linear.weight.mul_(3)
    monkeypatch.setattr(FirstLayers, "of", lambda *args: None)
    system.critic.trunk[0].linear.weight.data.div_(9)
    torch.testing.assert_close(on_the_way, score(), rtol=1e-4, atol=1e-5)


def test_gradients_stay_in_their_part() -> None:
    system = build()
    learned = system.world_model_loss(system.world_model, system.fill(system.example_batch()))
    assert not learned.starts.state.requires_grad
    out = system.behaviour(
        system.world_model,
        system.actor,
        system.critic,
        system.schedule.slow_critic,
        learned.starts,
        learned.start_mask,
        learned.start_continuation,
    )
    trained = [p for p in system.parameters() if p.requires_grad]
    for loss, owner in ((out.actor_loss, system.actor), (out.critic_loss, system.critic)):
        grads = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
        reached = {id(p) for p, g in zip(trained, grads, strict=True) if g is not None}
        assert reached == {id(p) for p in owner.parameters()}


def test_jump_transitions_train_the_critic_and_not_the_actor() -> None:
    everywhere = ("behaviour.gate.threshold=-1", "behaviour.gate.prob=1.1", "behaviour.entropy=0")
    system = build("ls_imagine", *everywhere)
    metrics = system.update(system.example_batch())
    assert metrics["jump_rate"] == 1
    assert metrics["grad_norm_actor"] == 0 and metrics["grad_norm_critic"] > 0


def test_branches_count_only_where_the_gate_opens() -> None:
    metrics = {}
    for name, threshold in (("closed", 2.0), ("open", -1.0)):
        gate = [f"behaviour.gate.threshold={threshold}", "behaviour.gate.prob=1.1"]
        for branches in (False, True):
            system = build("ls_imagine", *gate, f"behaviour.branches={branches}")
            metrics[name, branches] = system.update(system.example_batch())
    # A branch itself never jumps: with the gate open everywhere, half of the roll-outs do.
    assert metrics["open", False]["jump_rate"] == 1
    assert metrics["open", True]["jump_rate"] == pytest.approx(0.5)
    torch.testing.assert_close(
        metrics["closed", True]["loss_critic"], metrics["closed", False]["loss_critic"]
    )


def test_imagined_returns_follow_the_formula() -> None:
    system = build("ls_imagine", "behaviour.gate.threshold=-1")
    start = TensorDict({"state": torch.zeros(7, 16), "belief": torch.randn(7, 16)}, [7])
    batch = system.imagine(start, 6)
    assert batch.batch_size == (7, 6) and batch["jump"].any() and not batch["jump"].all()
    assert (batch["next", "steps_to_next_obs"][~batch["jump"]] == 1).all()
    assert (batch["next", "jump_return"][~batch["jump"]] == 0).all()
    value = torch.randn(7, 6, 1)
    estimated = system.behaviour.estimator.value_estimate(batch, next_value=value)
    following = batch["next"]
    expected = lambda_return_jumpy(
        following["reward"],
        value,
        batch["continuation"],
        following["steps_to_next_obs"],
        following["jump_return"],
        gamma=float(system.behaviour.estimator.gamma),
        lmbda=0.95,
        continuation_at="current",
    )
    torch.testing.assert_close(estimated, expected)


def test_what_follows_a_step_under_autocast_reads_the_new_weights() -> None:
    layer, x = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    learner = Learner(layer.parameters(), lambda params: torch.optim.SGD(params, lr=1.0), None)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        learner.step(before.sum())  # autocast keeps what it has cast
        torch.testing.assert_close(layer(x), before - 1, rtol=0, atol=0.02)


@pytest.mark.parametrize("teacher", ["prior", "posterior"])
def test_either_order_of_consistency_moves_the_posterior_alone(teacher):
    """-sg(p) log q as TWM's code has it, or -q log sg(p) as its paper writes it."""
    torch.manual_seed(0)
    q, p = (torch.randn(1, 3, 2, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    flags = torch.ones(1, 3, dtype=torch.bool)
    spans = Spans(slice(1, 2), slice(2, 3), flags, flags)
    consistency = CrossEntropyLatents(teacher=teacher)(q, p, spans)[0]["consistency"].mean
    weigh, weighed = (p, q) if teacher == "prior" else (q, p)
    by_hand = -sum(
        weigh[0, 1, g].softmax(-1)[c] * weighed[0, 1, g].log_softmax(-1)[c]
        for g in range(2)
        for c in range(4)
    )
    torch.testing.assert_close(consistency, by_hand)
    wanted = torch.autograd.grad(by_hand, q)[0]
    torch.testing.assert_close(torch.autograd.grad(consistency, q, retain_graph=True)[0], wanted)
    assert torch.autograd.grad(consistency, p, allow_unused=True)[0] is None
