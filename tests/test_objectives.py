"""Losses: what is averaged, where gradients flow and stop, the long branch, the estimator."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives.utils import _VALUE_ESTIMATOR_REGISTRY
from torchrl.objectives.value import TDLambdaEstimator

from support.images import build
from wmkit.dynamics import Latent, Observed
from wmkit.errors import ConfigError
from wmkit.functional import lambda_return_jumpy, symmetric_bins
from wmkit.nn import Bernoulli, SymlogTwoHot
from wmkit.objectives import (
    BatchMeanTargets,
    CrossEntropyLatents,
    LambdaReturnJumpy,
    PerSampleTargets,
    Scene,
    Term,
    WorldModelEstimators,
    check_weights,
)
from wmkit.optim import Learner


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


def test_masked_rows_have_no_gradient_and_no_share_of_the_mean() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    term = Term(x * x, torch.tensor([True, True, False]))
    assert term.mean.item() == 2.5 and term._replace(positions=10).loss.item() == 0.5
    term._replace(positions=10).loss.backward()
    assert x.grad is not None and x.grad.tolist() == pytest.approx([0.2, 0.4, 0])
    assert Term(torch.ones(3), torch.zeros(3, dtype=torch.bool)).mean == 0


def test_window_and_views_share_one_mean() -> None:
    """Positions of the window and the views there are, each as much as any other."""
    system = build("ls_imagine", "objectives.branches.capacity=1.0")
    batch = system.example_batch()
    batch["is_zoomed"] = torch.rand(batch["is_zoomed"].shape) < 0.3
    batch["jump_resolved"] = torch.ones_like(batch["is_zoomed"])
    views = int(batch["is_zoomed"].sum())
    scene = system.scene(batch)
    terms = system.objectives["branches"].terms(scene)
    weights = system.objectives["branches"].weights
    assert set(weights) == set(terms) and scene.metrics["zoomed_dropped"] == 0
    names = [name for name in terms if f"zoomed_{name}" in terms]
    assert {"pixels", "affordance", "reward", "continuation", "kl_dynamics"} <= set(names)
    for name in names:
        window, view = terms[name], terms[f"zoomed_{name}"]
        assert weights[name] == weights[f"zoomed_{name}"]
        every = torch.cat([window.value.flatten(), view.value[view.mask]])
        assert len(every) == 15 + views
        torch.testing.assert_close(window.loss + view.loss, every.mean())
    for name in ("jump_steps", "jump_return"):
        torch.testing.assert_close(terms[name].loss, terms[name].total / (15 + views))
    (start,) = scene.starts
    assert int(start.mask.sum()) == views and not start.latent.belief.requires_grad


def test_weights_must_match_terms() -> None:
    """Before there is a batch; and of terms alone."""
    for name, override in (
        ("ls_imagine", "+objectives.branches.weights.rewrd=1.0"),
        ("ls_imagine", "+objectives.branches.short.heads.weights.rewrd=1.0"),
        ("dreamer_v3_2023", "+objectives.latents.weights.rewrd=1.0"),
    ):
        with pytest.raises(ConfigError, match="'rewrd' has a weight but no term"):
            build(name, override)
    with pytest.raises(ConfigError, match="'reward' a term but no weight"):
        check_weights(["reward", "state"], {"rewrd": 1.0, "state": 1.0})


def test_targets_of_a_jump_are_its_own() -> None:
    torch.manual_seed(0)
    bins, mask = symmetric_bins(20.0, 255), torch.ones(6, dtype=torch.bool)
    logits, target = torch.randn(6, 255), torch.arange(6.0).unsqueeze(-1) * 9
    own, mean = PerSampleTargets(), BatchMeanTargets()
    many = SymlogTwoHot(logits, bins)
    assert not torch.allclose(own(many, target, mask), mean(many, target, mask))
    one = SymlogTwoHot(logits[:1], bins)
    torch.testing.assert_close(own(one, target[:1], mask[:1]), mean(one, target[:1], mask[:1]))
    flag = Bernoulli(torch.randn(6, 1))  # only two-hot heads were affected
    torch.testing.assert_close(own(flag, target > 9, mask), mean(flag, target > 9, mask))


def test_gradients_stay_in_their_part() -> None:
    system = build()
    scene = system.scene(system.example_batch())
    losses = system._score(scene, {})
    start = system.controller.starts(scene)
    assert not start.latent.state.requires_grad and not start.latent.belief.requires_grad
    learned = system.controller.learn(scene, system.schedule.slow)
    model = {id(p) for p in system.world_model.parameters()}
    owners = {name: {id(p) for p in getattr(system, name).parameters()} for name in ("actor", "critic")}
    trained = [p for p in system.parameters() if p.requires_grad]
    terms = {name: (term.loss, owners[name]) for name, term in learned.terms.items()}
    terms |= {name: (loss.value, model) for name, loss in losses.items()}
    for name, (loss, owner) in terms.items():
        grads = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
        reached = {id(p) for p, g in zip(trained, grads, strict=True) if g is not None}
        assert reached and (reached == owner if name in owners else reached <= owner), name


def test_jump_transitions_train_the_critic_and_not_the_actor() -> None:
    everywhere = (
        "controller.hooks.gate.threshold=-1",
        "controller.hooks.gate.prob=1.1",
        "controller.entropy=0",
    )
    system = build("ls_imagine", *everywhere)
    metrics = system.update(system.example_batch())
    assert metrics["jump_rate"] == 1
    assert metrics["grad_norm_actor"] == 0 and metrics["grad_norm_critic"] > 0


def test_branches_count_only_where_the_gate_opens() -> None:
    metrics = {}
    for name, threshold in (("closed", 2.0), ("open", -1.0)):
        gate = [f"controller.hooks.gate.threshold={threshold}", "controller.hooks.gate.prob=1.1"]
        for branches in (False, True):
            kind = ["controller.hooks.gate._target_=wmkit.dynamics.SecondBranch"] if branches else []
            system = build("ls_imagine", *gate, *kind)
            metrics[name, branches] = system.update(system.example_batch())
    # A branch itself never jumps: with the gate open everywhere, half of the roll-outs do.
    assert metrics["open", False]["jump_rate"] == 1
    assert metrics["open", True]["jump_rate"] == pytest.approx(0.5)
    torch.testing.assert_close(
        metrics["closed", True]["loss_critic"], metrics["closed", False]["loss_critic"]
    )


def test_imagined_returns_follow_the_formula() -> None:
    system = build("ls_imagine", "controller.hooks.gate.threshold=-1")
    start = TensorDict({"state": torch.zeros(7, 16), "belief": torch.randn(7, 16)}, [7])
    batch = system.imagine(start, 6)
    assert batch.batch_size == (7, 6) and batch["jump"].any() and not batch["jump"].all()
    assert (batch["next", "steps_to_next_obs"][~batch["jump"]] == 1).all()
    assert (batch["next", "jump_return"][~batch["jump"]] == 0).all()
    value = torch.randn(7, 6, 1)
    estimated = system.controller.returns.estimator.value_estimate(batch, next_value=value)
    following = batch["next"]
    expected = lambda_return_jumpy(
        following["reward"],
        value,
        batch["continuation"],
        following["steps_to_next_obs"],
        following["jump_return"],
        gamma=float(system.controller.returns.estimator.gamma),
        lmbda=0.95,
        continuation_at="current",
    )
    torch.testing.assert_close(estimated, expected)


def test_what_follows_a_step_under_autocast_reads_the_new_weights() -> None:
    layer, x = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    learner = Learner(layer.parameters(), lambda params: torch.optim.SGD(params, lr=1.0), None)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        learner.backward(before.sum())
        learner.step()  # autocast keeps what it has cast
        torch.testing.assert_close(layer(x), before - 1, rtol=0, atol=0.02)


@pytest.mark.parametrize("teacher", ["prior", "posterior"])
def test_either_order_of_consistency_moves_the_posterior_alone(teacher):
    """-sg(p) log q as TWM's code has it, or -q log sg(p) as its paper writes it."""
    torch.manual_seed(0)
    q, p = (torch.randn(1, 3, 2, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    latent = Latent(torch.zeros(1, 3, 8), torch.zeros(1, 3, 1))
    flags = {key: torch.zeros(1, 3, 1, dtype=torch.bool) for key in ("is_init", "terminated")}
    scene = Scene(None, flags, observed=Observed(latent, q, p, latent))
    objective = CrossEntropyLatents({}, teacher=teacher)
    consistency = objective.terms(scene)["consistency"].mean
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
