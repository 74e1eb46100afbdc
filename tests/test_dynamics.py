"""Dynamics and roll-outs: resets, alignment of loop and step, jumps by mask, hooks that do nothing."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from wmkit import backbones
from wmkit.codecs import Decoder, Encoder
from wmkit.dynamics import (
    RSSM,
    JumpGate,
    Latent,
    LongShortRSSM,
    Restart,
    Rollout,
    SecondBranch,
    WorldModel,
    rollout,
)
from wmkit.errors import SpecError
from wmkit.heads import ContinueHead, DiscreteActor, JumpFlagHead

A, E = 3, 7


def rssm(**options: int) -> partial:
    return partial(
        RSSM,
        backbone=partial(backbones.build, "ln_gru", learned_initial=True),
        deter=16,
        groups=4,
        classes=5,
        hidden=8,
        **options,
    )


def small_world_model(jumps: bool) -> WorldModel:
    torch.manual_seed(0)
    codec = dict(images=[], vectors=["observation"], depth=4, units=8, layers=1)
    heads = {"continuation": partial(ContinueHead, units=8, layers=1)}
    if jumps:
        heads["jump"] = partial(JumpFlagHead, target="jump", units=8, layers=1)
    dynamics = partial(LongShortRSSM, dynamics=rssm()) if jumps else rssm()
    return WorldModel(
        {"observation": (2,)},
        A,
        encoder=partial(Encoder, **codec),
        decoder=partial(Decoder, **codec),
        dynamics=dynamics,
        heads=heads,
    )


@pytest.mark.parametrize("wrap", [False, True])
def test_a_reset_forgets_everything_before_it(wrap: bool) -> None:
    torch.manual_seed(0)
    dynamics = LongShortRSSM(A, E, dynamics=rssm()) if wrap else rssm()(A, E)
    embed, action = torch.randn(2, 6, E, requires_grad=True), torch.randn(2, 6, A, requires_grad=True)
    is_init = torch.zeros(2, 6, dtype=torch.bool)
    is_init[0, 3] = True
    start = dynamics.initial(2)
    torch.manual_seed(1)
    record = {"previous_action": action, "is_init": is_init}
    seen = dynamics.observe(embed, record, start).latent
    grads = torch.autograd.grad(seen.belief[0, 3:].sum() + seen.state[0, 3:].sum(), (embed, action))
    assert all(g[0, :3].abs().max() == 0 for g in grads)
    assert grads[1][0, 3].abs().max() == 0  # the action that led to a first observation is forgotten
    assert grads[1][0, 4].abs().max() > 0

    other = Latent(start.state + 1, start.belief + 1)
    torch.manual_seed(1)
    again = dynamics.observe(embed, record, other).latent
    torch.testing.assert_close(again.belief[0, 3:], seen.belief[0, 3:])
    assert not torch.allclose(again.belief[1], seen.belief[1])


def test_observe_equals_filter_step_by_step() -> None:
    dynamics = rssm()(A, E)
    embed = torch.randn(2, 5, E)
    record = {"previous_action": torch.randn(2, 5, A), "is_init": torch.rand(2, 5) < 0.3}
    window = dynamics.observe(embed, record)
    latent = dynamics.initial(2)
    for t in range(5):
        latent = dynamics.filter(latent, embed[:, t], {key: value[:, t] for key, value in record.items()})
        torch.testing.assert_close(latent.belief, window.latent.belief[:, t])
        torch.testing.assert_close(dynamics.prior_logits(latent.belief), window.prior_logits[:, t])
        latent = latent._replace(state=window.latent.state[:, t])  # the window's own sample to go on from


def test_jumps_are_a_mask_over_rows() -> None:
    torch.manual_seed(0)
    dynamics = LongShortRSSM(A, E, dynamics=rssm())
    start, action = dynamics.initial(4), torch.randn(4, A)
    noise = torch.rand(4, 4, 1)
    jump = torch.tensor([True, False, True, False])
    mixed = dynamics.step(start, action, jump, noise)
    steps = dynamics.step(start, action, None, noise)
    jumps = dynamics.step(start, torch.randn(4, A), torch.ones(4, dtype=torch.bool), noise)
    torch.testing.assert_close(mixed.belief[1::2], steps.belief[1::2])
    torch.testing.assert_close(mixed.belief[::2], jumps.belief[::2])  # the action does not matter
    assert not torch.allclose(steps.belief, jumps.belief)


def actor_of(world_model: WorldModel) -> DiscreteActor:
    return DiscreteActor(
        world_model.dynamics.state_dim + world_model.dynamics.belief_dim, A, units=8, layers=1
    )


def assert_same(got: Rollout, expected: Rollout, **tolerance: float) -> None:
    for x, y in zip(
        (*got.latent[:2], got.actions, *got.last[:2]),
        (*expected.latent[:2], expected.actions, *expected.last[:2]),
        strict=True,
    ):
        torch.testing.assert_close(x, y, **(tolerance or {"rtol": 0, "atol": 0}))


CLOSED = {
    "never": lambda start: JumpGate(prob=0.0),
    "unlikely": lambda start: JumpGate(prob=1.0, threshold=1.0),
    "extra step": lambda start: JumpGate(prob=0.0, extra_step=True),
    "no restart": lambda start: Restart(threshold=0.0).of(start.map(lambda x: x + 1)),
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_hook_that_does_nothing_is_none_bit_for_bit(name: str, gradient: bool) -> None:
    world_model = small_world_model(jumps=True)
    actor, start = actor_of(world_model), world_model.dynamics.initial(50)
    found = []
    for hooks in ((), (CLOSED[name](start),)):
        torch.manual_seed(3)
        found.append(rollout(world_model, start, actor, 15, hooks=hooks, gradient=gradient))
    plain, hooked = found
    assert not hooked.options.any() and not hooked.restarts.any()
    assert_same(hooked, plain)
    assert torch.equal(hooked.rows, torch.arange(50)) and hooked.valid.all()


def test_closed_gate_imagines_what_dreamer_imagines() -> None:
    long_short = small_world_model(jumps=True)
    plain = small_world_model(jumps=False)
    state = {k.replace("dynamics.short.", "dynamics."): v for k, v in long_short.state_dict().items()}
    state["dynamics.input.linear.weight"] = state["dynamics.input.linear.weight"][:, :-1]  # no jump bit
    plain.load_state_dict({k: v for k, v in state.items() if "heads.jump" not in k})
    actor, start = actor_of(plain), plain.dynamics.initial(50)
    torch.manual_seed(3)
    expected = rollout(plain, start, actor, 15)
    torch.manual_seed(3)
    got = rollout(long_short, start, actor, 15, hooks=[JumpGate(prob=0.0)])
    assert torch.equal(got.actions, expected.actions)
    assert_same(got, expected, atol=1e-5, rtol=1e-5)


def test_open_gate_jumps_everywhere_and_records_no_gradient() -> None:
    world_model = small_world_model(jumps=True)
    actor, start = actor_of(world_model), world_model.dynamics.initial(5)
    found = []
    for extra in (False, True):
        torch.manual_seed(0)
        gate = JumpGate(prob=1.0, threshold=0.0, extra_step=extra)
        found.append(rollout(world_model, start, actor, 4, hooks=[gate]))
        assert found[-1].options.all() and found[-1].latent.feature.dense.shape == (5, 5, 36)
        assert not found[-1].latent.feature.dense.requires_grad
    assert not torch.allclose(found[0].latent.belief[1:], found[1].latent.belief[1:])


def test_a_second_branch_sets_off_at_the_likeliest_state_the_last_included(monkeypatch) -> None:
    world_model, horizon = small_world_model(jumps=True), 4
    actor, start, looks, left = actor_of(world_model), world_model.dynamics.initial(5), iter(range(9)), []

    def predict(name: str, latent: Latent) -> SimpleNamespace:  # row n expects its jump at state n
        likeliest = torch.arange(5) == next(looks)
        return SimpleNamespace(mean=torch.where(likeliest, 0.9, 0.1).unsqueeze(1))

    def step(latent: Latent, *args: torch.Tensor) -> Latent:
        left.append(latent)
        return WorldModel.step(world_model, latent, *args)

    monkeypatch.setattr(world_model, "predict", predict)
    monkeypatch.setattr(world_model, "step", step)
    monkeypatch.setattr(world_model, "continuation", lambda latent: torch.ones(5, 1))
    found = rollout(world_model, start, actor, horizon, hooks=[SecondBranch(prob=1.0)])
    assert found.valid.all() and found.latent.belief.shape[:2] == (horizon + 1, 10)
    rows = torch.arange(5)
    assert torch.equal(left[0].belief, found.latent.belief[rows, rows])
    assert torch.equal(left[0].state, found.latent.state[rows, rows])


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_the_start_has_the_gradient_of_its_log_probabilities_only_where_asked(unimix: float) -> None:
    """In the original's code the mode of a one-hot carries that of its (mixed) log-probabilities."""
    off, on = (rssm(initial_gradient=flag, unimix=unimix)(A, E) for flag in (False, True))
    on.load_state_dict(off.state_dict())
    learned = [*on.prior.parameters(), on.backbone.start]
    weights = torch.randn(20)
    state = on.initial(1).state
    torch.testing.assert_close(state, off.initial(1).state)
    probs = on.prior_logits(torch.tanh(on.backbone.start)[None]).softmax(-1)
    log_probs = (probs * (1 - unimix) + unimix / 5).log()
    expected = torch.autograd.grad((log_probs.flatten(-2) * weights).sum(), learned)
    got = torch.autograd.grad((state * weights).sum(), learned)
    torch.testing.assert_close(got, expected)

    embed, action, is_init = torch.randn(2, 6, E), torch.randn(2, 6, A), torch.zeros(2, 6, dtype=torch.bool)
    is_init[1, 3] = True
    record, before = (
        {"previous_action": action, "is_init": is_init},
        Latent(torch.zeros(2, 20), torch.zeros(2, 16)),
    )
    for start, reached in ((None, True), (before, True), (before, False)):
        for dynamics in (off, on):
            record["is_init"] = is_init if reached else torch.zeros_like(is_init)
            seen = dynamics.observe(embed, record, start).latent.belief.sum()
            grads = torch.autograd.grad(seen, list(dynamics.prior.parameters()), allow_unused=True)
            # of a window's start, or of a reset inside
            assert any(g is not None and g.any() for g in grads) == (dynamics is on and reached)


def test_a_rollout_is_its_steps_whatever_acts() -> None:
    world_model = small_world_model(jumps=False)
    start, actions = world_model.dynamics.initial(6), torch.randn(6, 4, A)
    torch.manual_seed(2)
    planned = rollout(world_model, start, actions, 4)
    torch.manual_seed(2)
    chosen = rollout(world_model, start, lambda latent, t: actions[:, t], 4)
    torch.manual_seed(2)
    noise, latent, steps = world_model.dynamics.noise(4, 6), start, [start]
    with torch.no_grad():
        for t in range(4):
            latent = world_model.step(latent, actions[:, t], None, noise[t])
            steps.append(latent)
    assert_same(chosen, planned)
    torch.testing.assert_close(planned.latent.belief, torch.stack([step.belief for step in steps]))
    torch.testing.assert_close(planned.latent.state, torch.stack([step.state for step in steps]))
    assert torch.equal(planned.before.belief[1:], planned.after.belief[:-1])
    with pytest.raises(SpecError, match=r"\[6, 3, 3\].* \[6, 4, A\]"):
        rollout(world_model, start, actions[:, :3], 4)
