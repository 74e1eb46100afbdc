"""World models without a decoder: they learn, act, dream and are saved; nothing leaks or collapses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from wmkit.errors import ConfigError
from wmkit.functional import sigreg
from wmkit.objectives import MaskedTeacher
from wmkit.objectives.joint_embedding import block_masks
from wmkit.optim import AnnealedAdam, Learner
from wmkit.systems import System

SPEC = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8), speed=Unbounded((2,)))
SIZES = {
    "dreamer_v3": ("size=tiny",),
    "storm": ("size=micro", "controller.starts.count=2", "controller.starts.context=1"),
}
CHOICES = {"joint_embedding": "barlow", "vicreg": "vicreg", "masked_teacher": "teacher"}


def build(name: str, choice: str, *overrides: str) -> System:
    torch.manual_seed(0)
    usual = (f"objectives={choice}", *SIZES[name], "batch.size=3", "batch.length=6")
    overrides = (*usual, "controller.horizon=2", *overrides)
    return wmkit.build(name, observation_spec=SPEC, action_spec=OneHot(3), overrides=overrides)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", SIZES)
def test_without_a_decoder_a_system_learns_acts_dreams_and_is_saved(name: str, choice: str) -> None:
    warm = ("schedule.learners.joint.optimizer.warmup=0",) if name == "dreamer_v3" else ()
    system = build(name, choice, *warm)
    projection = system.world_model.projections[CHOICES[choice]]
    before = [p.clone() for p in projection.parameters()]
    metrics = system.update(*system.example_batches())
    assert all(bool(x.isfinite().all()) for x in metrics.values(True, True))
    assert system.world_model.decoder is None and "loss_pixels" not in metrics
    assert not any(map(torch.equal, before, projection.parameters()))
    start = system.example_batch()[:, 0].select("is_init")
    width = system.world_model.dynamics
    start["state"], start["belief"] = torch.zeros(3, width.state_dim), torch.zeros(3, width.belief_dim)
    assert system.imagine(start, 4)["next", "reward"].shape == (3, 4, 1)
    assert not set(system.open_loop(system.example_batch(), 2)) & {"pixels", "speed"}
    again = build(name, choice)
    again.load_state_dict(system.state_dict())
    assert all(map(torch.equal, system.parameters(), again.parameters()))


def test_the_embedding_is_a_constant_to_barlow_twins() -> None:
    """R2-Dreamer: the encoder learns through the posterior alone."""
    system = build("dreamer_v3", "joint_embedding")
    scene = system.scene(system.example_batch())
    loss = system.objectives["embedding"].terms(scene)["barlow"].loss
    own = torch.autograd.grad(loss, scene.embed, retain_graph=True)[0]
    scene.world_model.dynamics.requires_grad_(False)
    scene = system.scene(system.example_batch())
    scene._observed = scene.observed._replace(latent=scene.observed.latent.detach())
    cut = system.objectives["embedding"].terms(scene)["barlow"].loss
    parameters = list(system.world_model.encoder.parameters())
    assert own.abs().sum() > 0
    assert all(g is None for g in torch.autograd.grad(cut, parameters, allow_unused=True))


def test_a_teacher_follows_and_does_not_learn() -> None:
    system = build("storm", "masked_teacher")
    slow, encoder = system.schedule.slow["world_model_encoder"], system.world_model.encoder
    before = [p.clone() for p in slow.parameters()]
    system.update(*system.example_batches())
    for old, new, ours in zip(before, slow.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(new, torch.lerp(old, ours, 0.004))
        assert not new.requires_grad
    other = build("storm", "reconstruction")
    objective = MaskedTeacher({"teacher": 1.0}, in_keys=["state"], world_model=other.world_model)
    with pytest.raises(ConfigError, match=r"schedule\.slow"):
        objective.terms(other.scene(other.example_batch()))


def test_blocks_hide_what_they_say() -> None:
    torch.manual_seed(0)
    masks = block_masks(200, 64, 48, 4, (0.15, 0.2), (0.75, 1.5))
    share = masks.float().mean((1, 2))
    assert masks.shape == (200, 64, 48) and share.min() > 0.1 and share.max() < 0.8
    assert masks.any(0).float().mean() > 0.95 and not masks.all(0).any()
    assert not block_masks(2, 8, 8, 0, (0.1, 0.2), (1.0, 1.0)).any()


def test_sigreg_makes_a_normal_of_points_on_a_line() -> None:
    torch.manual_seed(0)
    z = (0.01 * torch.randn(1, 128, 1) * torch.ones(3) + 1e-3 * torch.randn(1, 128, 3)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sigreg(z, torch.randn(3, 64)).backward()
        optimizer.step()
    covariance = torch.cov(z[0].detach().T)
    torch.testing.assert_close(covariance, torch.eye(3), atol=0.2, rtol=0)
    assert z.detach().mean(1).abs().max() < 0.1


PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))


def embedded(name: str, *overrides: str, seed: int = 0) -> System:
    """A system of embeddings alone, over pictures and numbers for actions."""
    torch.manual_seed(seed)
    usual = ("size=tiny", "batch.size=4", "updates=100", "learning_rate.world_model=1e-3")
    overrides = (*usual, *overrides)
    return wmkit.build(
        name, observation_spec=PIXELS, action_spec=Bounded(-1.0, 1.0, (2,)), overrides=overrides
    )


@pytest.mark.parametrize(
    ("name", "override"),
    [
        *(("le_wm", f"objectives={choice}") for choice in ("sigreg", "vicreg", "slow_teacher", "none")),
        ("le_wm", "backbone=s5"),
        ("pldm", "batch.length=6"),
        ("pldm", "backbone=block_gru"),
    ],
)
def test_a_system_without_a_controller_learns_dreams_plays_and_is_saved(name: str, override: str) -> None:
    system = embedded(name, override)
    before = {key: p.clone() for key, p in system.world_model.named_parameters()}
    batch = system.example_batch()
    for _ in range(3):  # gates that start closed open with the first update, at a rate that rises from zero
        metrics = system.update(batch)
    assert all(bool(x.isfinite().all()) for x in metrics.values(True, True))
    same = [key for key, p in system.world_model.named_parameters() if torch.equal(p, before[key])]
    assert same == []
    with torch.no_grad(), system.world_model.evaluating():
        seen = system.world_model.observe(system.fill(batch))
    packed = system.world_model.dynamics.pack(seen.last)
    start = TensorDict(packed | {"action": torch.rand(4, 5, 2)}, [4])
    given, drawn = system.imagine(start, 5), system.imagine(start.exclude("action"), 5)
    assert torch.equal(given["action"], start["action"]) and not torch.equal(drawn["action"], given["action"])
    assert given["next", "state"].shape == (4, 5, system.world_model.dynamics.state_dim)
    assert system.dream_env([2]).rollout(3)["next", "reward"].shape == (2, 3, 1)
    action = system.policy(TensorDict({"is_init": torch.ones(7, 1, dtype=torch.bool)}, [7]))["action"]
    assert action.shape == (7, 2) and action.abs().max() <= 1
    again = embedded(name, override, seed=1)
    again.load_state_dict(system.state_dict())
    following = [one.update(batch) for one in seeded(system, again)]
    assert all(torch.equal(following[0][key], following[1][key]) for key in following[0].keys())


def seeded(*systems: System) -> Iterator[System]:
    for system in systems:
        torch.manual_seed(7)
        yield system


def test_pldm_learns_from_open_loops() -> None:
    """The prediction of record t is made of the first state and the actions up to t, also behind a reset."""
    system = embedded("pldm", "batch.length=6")
    model, batch = system.world_model, system.example_batch()
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    batch["is_init"][:, 3] = True
    scene = system.scene(batch)
    value = system.objectives["prediction"].terms(scene)["prediction"]
    z, actions = scene.represented.state, batch["previous_action"]
    expected, state = [], z[:, 0]
    for t in range(1, 6):
        state = model.dynamics.norm(model.dynamics.transition.backbone.gru(actions[:, t], state))
        expected.append((state - z[:, t]).square().mean(-1))
        state = z[:, t] if t == 3 else state
    torch.testing.assert_close(value.value, torch.stack(expected, 1))
    assert value.mask is not None and value.mask[0].tolist() == [True, True, False, True, True]
    with pytest.raises(ConfigError, match="backbone"):
        embedded("pldm", "backbone=s5")


def test_a_rate_goes_on_where_a_checkpoint_left_it_and_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(updates: int) -> Learner:
        weight = torch.nn.Parameter(torch.ones(1))
        return Learner([weight], partial(AnnealedAdam, lr=1.0, updates=updates, warmup=0.0), None)

    one, other = made(10), made(20)
    for _ in range(4):
        one.backward(one.parameters[0].sum())
        one.step()
    other.load_state_dict(one.state_dict())
    other.backward(other.parameters[0].sum())
    other.step()
    assert other.optimizer.param_groups[0]["lr"] == other.optimizer.rate(4) != one.optimizer.rate(4)
