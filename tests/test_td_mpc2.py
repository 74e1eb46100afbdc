"""TD-MPC2: the published sizes, whom its losses teach, and what a window's seams cut off."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded

import wmkit
from wmkit.errors import ConfigError
from wmkit.systems import System

SIZES = {  # encoder, its layers, hidden, latent, values
    "1m": (256, 2, 384, 128, 2),
    "5m": (256, 2, 512, 512, 5),
    "19m": (1024, 3, 1024, 768, 5),
    "48m": (1792, 4, 1792, 768, 5),
    "317m": (4096, 5, 4096, 1376, 8),
}
MILLIONS = {"1m": 1, "5m": 5, "19m": 19, "48m": 48, "317m": 317}  # of 1.4, 5.4, 19.0, 48.8 and 317.4


def build(*overrides: str, observation: int = 5, action: int = 2) -> System:
    torch.manual_seed(0)
    spec, actions = Composite(observation=Unbounded((observation,))), Bounded(-1.0, 1.0, (action,))
    tiny = ("size=micro", "batch.size=6", "batch.length=5", *overrides)
    return wmkit.build("td_mpc2", observation_spec=spec, action_spec=actions, overrides=tiny)


def count(*parts: nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


def stack(*widths: int, normed: bool = False) -> int:
    """Parameters of linear maps, each but the last with a layer norm; the last too if ``normed``."""
    pairs = pairwise(widths)
    norms = widths[1:] if normed else widths[1:-1]
    return sum((n + 1) * m for n, m in pairs) + 2 * sum(norms)


def formula(size: str, observation: int, action: int, task: int = 0, tasks: int = 0) -> tuple[int, ...]:
    """Encoder, dynamics, reward, policy, values and task embeddings, as the original's configuration says."""
    encoder, layers, units, latent, members = SIZES[size]
    read = latent + action + task
    return (
        stack(observation + task, *[encoder] * (layers - 1), latent, normed=True),
        stack(read, units, units, latent, normed=True),
        stack(read, units, units, 101),
        stack(latent + task, units, units, 2 * action),
        members * stack(read, units, units, 101),
        tasks * task,
    )


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_published_ones(size: str) -> None:
    """Named by their millions with 80 tasks; a single task has no embeddings."""
    all_tasks = formula(size, 39, 6, task=96, tasks=80)
    assert abs(sum(all_tasks) / 1e6 - MILLIONS[size]) < 1
    if size == "5m":  # the paper prints it part by part
        assert all_tasks == (167_936, 843_264, 631_397, 582_668, 3_156_985, 7_680)
    spec, actions = Composite(observation=Unbounded((24,))), Bounded(-1.0, 1.0, (6,))
    with torch.device("meta"):
        options = {"observation_spec": spec, "action_spec": actions, "overrides": [f"size={size}"]}
        system = wmkit.build("td_mpc2", **options)
    model = system.world_model
    encoder = count(model.encoder, model.dynamics.posterior)
    found = (
        encoder,
        count(model.dynamics.prior),
        count(model.heads),
        count(system.actor),
        count(system.critic),
    )
    assert found == formula(size, 24, 6)[:-1]


def test_losses_are_those_of_the_paper() -> None:
    """Spelled out with the networks alone: eq. 3 to 5, in an unbroken window."""
    system = build("critic.dropout=0", "batch.size=3", "batch.length=4")
    for part in (system.world_model.heads["reward"], system.critic):  # which start at zero
        nn.init.normal_(part.out.weight if part.out is not None else part.trunk.out.weight, std=0.3)
    slow, model, critic = system.schedule.slow["critic"], system.world_model, system.critic
    slow.load_state_dict(critic.state_dict())
    batch = system.example_batch()
    for key in ("is_init", "terminated"):
        batch[key] = torch.zeros_like(batch[key])
    batch["is_init"][:, 0] = True
    batch["terminated"][0, -1] = True
    scene = system.scene(batch)
    torch.manual_seed(3)
    terms = {}
    for objective in system.objectives.values():
        terms |= {name: objective.weights[name] * t.loss for name, t in objective.terms(scene).items()}
    terms |= {name: t.loss for name, t in system.controller.learn(scene, {"critic": slow}).terms.items()}

    torch.manual_seed(3)
    rows, length, rho, gamma = 3, 4, 0.5, 0.99
    norm = lambda x: x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2)  # noqa: E731
    z = [norm(model.dynamics.posterior(model.encoder.encode({"observation": batch["observation"]})))]
    seen, imagined = z[0].detach(), [z[0][:, 0]]
    actions = batch["previous_action"][:, 1:]
    for t in range(length - 1):
        imagined.append(norm(model.dynamics.prior(torch.cat([imagined[-1], actions[:, t]], -1))))
    pairs = [torch.cat([imagined[t], actions[:, t]], -1) for t in range(length - 1)]
    consistency = sum(rho**t * F.mse_loss(imagined[t + 1], seen[:, t + 1]) for t in range(3)) / 3
    reward = sum(
        rho**t * model.heads["reward"].predict(pairs[t]).loss(batch["reward"][:, t + 1]).mean()
        for t in range(3)
    )
    with torch.no_grad():
        noise = torch.randn(rows, 3, 2)
        action = system.actor.policy(seen[:, 1:]).sample(noise)
        both = critic.predict(torch.cat([seen[:, 1:], action], -1)).mean
        lowest = both[torch.randperm(3)[:2]].amin(0)
        target = batch["reward"][:, 1:] + gamma * (1 - batch["terminated"][:, 1:].float()) * lowest
    value = torch.zeros(())
    for t in range(3):
        found = critic.predict(pairs[t])
        value = value + rho**t * found.loss(target[:, t].expand(3, rows, 1)).mean()
    torch.testing.assert_close(terms["consistency"], 20 * consistency)
    torch.testing.assert_close(terms["reward"], 0.1 * reward / 3)
    torch.testing.assert_close(terms["critic"], 0.1 * value / 3)

    states = torch.stack(imagined, 1)
    policy = system.actor.policy(states)
    action = policy.rsample(torch.randn(rows, 4, 2))
    q = critic.predict(torch.cat([states, action], -1)).mean[torch.randperm(3)[:2]].mean(0).squeeze(-1)
    edges = torch.quantile(q[:, 0], torch.tensor([0.05, 0.95]))
    scale = 0.99 + 0.01 * (edges[1] - edges[0]).clamp(min=1)
    climbed = (1e-4 * 2 * policy.entropy + q / scale).mean(0) * rho ** torch.arange(4)
    torch.testing.assert_close(terms["actor"], -climbed.mean())


def test_each_learner_teaches_its_own_and_the_slow_values_follow() -> None:
    system = build()
    before = {name: p.clone() for name, p in system.named_parameters()}
    calls = []
    learn = system.controller.learn
    system.controller.learn = lambda *a: calls.append(learn(*a)) or calls[-1]
    metrics = system.update(system.example_batch())
    assert all(value.isfinite().all() for value in metrics.values(True, True))
    assert [set(found.terms) for found in calls] == [{"critic"}, {"actor"}]
    moved = {name for name, p in system.named_parameters() if not torch.equal(p, before[name])}
    for part in ("world_model.encoder", "world_model.dynamics", "world_model.heads", "actor", "critic"):
        assert any(name.startswith(part) for name in moved), part
    slow, fast = (dict(part.named_parameters()) for part in (system.schedule.slow["critic"], system.critic))
    for name, p in slow.items():
        torch.testing.assert_close(p, before[f"critic.{name}"].lerp(fast[name], 0.01))
    rates = sorted(g["lr"] for g in system.schedule.learners["model"].optimizer.param_groups)
    assert rates == pytest.approx([9e-5, 3e-4])
    slower = next(g for g in system.schedule.learners["model"].optimizer.param_groups if g["lr"] < 1e-4)
    model = system.world_model
    wanted = {*model.encoder.parameters(), *model.dynamics.posterior.parameters()}
    assert set(slower["params"]) == wanted
    system.schedule.learners["model"].load_state_dict(system.schedule.learners["model"].state_dict())


def test_nothing_behind_a_seam_is_learned() -> None:
    system = build("critic.dropout=0")
    batch = system.example_batch()
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    batch["is_init"][:, 3] = True
    other = batch.clone()
    for key in ("observation", "reward"):
        other[key][:, 3:] = torch.randn_like(other[key][:, 3:])
    found = []
    for one in (batch, other):
        fresh = build("critic.dropout=0")
        torch.manual_seed(1)
        found.append(fresh.update(one))
    for name in ("loss_consistency", "loss_reward", "loss_critic", "grad_norm_model", "grad_norm_policy"):
        torch.testing.assert_close(found[0][name], found[1][name])


def test_it_runs_over_another_backbone() -> None:
    gru = "{_target_: wmkit.backbones.gru.GRU, _partial_: true}"
    system = build(f"world_model.dynamics.backbone={gru}", "world_model.dynamics.deter=12")
    metrics = system.update(system.example_batch())
    assert all(value.isfinite().all() for value in metrics.values(True, True))
    model = system.world_model
    plan = system.controller.plan(model, model.dynamics.initial(2))
    assert plan.actions.shape == (2, 3, 2)
    with pytest.raises(ConfigError, match="deter"):
        build("world_model.dynamics.deter=12")
    with pytest.raises(ConfigError, match="wanted a multiple of 8"):
        build("size.latent=12")
