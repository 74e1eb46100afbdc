"""Dynamics and imagination: resets, alignment of loop and step, jumps by mask."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from wmkit import backbones
from wmkit.codecs import Decoder, Encoder
from wmkit.dynamics import RSSM, JumpGate, Latent, LongShortRSSM, WorldModel, imagine
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
    seen = dynamics.observe(embed, action, is_init, start).latent
    grads = torch.autograd.grad(seen.belief[0, 3:].sum() + seen.state[0, 3:].sum(), (embed, action))
    assert all(g[0, :3].abs().max() == 0 for g in grads)
    assert grads[1][0, 3].abs().max() == 0  # the action that led to a first observation is forgotten
    assert grads[1][0, 4].abs().max() > 0

    other = Latent(*(x + 1 for x in (start.state, start.belief, start.carry)))
    torch.manual_seed(1)
    again = dynamics.observe(embed, action, is_init, other).latent
    torch.testing.assert_close(again.belief[0, 3:], seen.belief[0, 3:])
    assert not torch.allclose(again.belief[1], seen.belief[1])


def test_observe_equals_filter_step_by_step() -> None:
    dynamics = rssm()(A, E)
    embed, action = torch.randn(2, 5, E), torch.randn(2, 5, A)
    is_init = torch.rand(2, 5) < 0.3
    torch.manual_seed(1)
    window = dynamics.observe(embed, action, is_init, dynamics.initial(2))
    noise = window.latent.state  # the samples of the window, to be met again below
    latent = dynamics.initial(2)
    for t in range(5):
        latent, logits = dynamics.filter(latent, action[:, t], embed[:, t], is_init[:, t])
        torch.testing.assert_close(logits, window.posterior_logits[:, t])
        torch.testing.assert_close(latent.belief, window.latent.belief[:, t])
        latent = latent._replace(state=noise[:, t])


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


def test_closed_gate_imagines_what_dreamer_imagines() -> None:
    long_short = small_world_model(jumps=True)
    plain = small_world_model(jumps=False)
    state = {k.replace("dynamics.short.", "dynamics."): v for k, v in long_short.state_dict().items()}
    state["dynamics.input.linear.weight"] = state["dynamics.input.linear.weight"][:, :-1]  # no jump bit
    plain.load_state_dict({k: v for k, v in state.items() if "heads.jump" not in k})
    actor = DiscreteActor(plain.dynamics.feature_dim, A, units=8, layers=1)
    start = plain.dynamics.initial(50)
    torch.manual_seed(3)
    expected = imagine(plain, actor, start, 15)
    for gate in (JumpGate(prob=0.0), JumpGate(prob=1.0, threshold=1.0)):
        torch.manual_seed(3)
        got = imagine(long_short, actor, start, 15, gate=gate)
        assert not got.jumps.any()
        assert torch.equal(got.actions, expected.actions)
        torch.testing.assert_close(got.states, expected.states, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.beliefs, expected.beliefs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.continuations, expected.continuations, atol=1e-5, rtol=1e-5)


def test_open_gate_jumps_everywhere_and_records_no_gradient() -> None:
    world_model = small_world_model(jumps=True)
    actor = DiscreteActor(world_model.dynamics.feature_dim, A, units=8, layers=1)
    for extra in (False, True):
        gate = JumpGate(prob=1.0, threshold=0.0, extra_step=extra)
        rollout = imagine(world_model, actor, world_model.dynamics.initial(5), 4, gate=gate)
        assert rollout.jumps.all() and rollout.features.dense.shape == (5, 5, 36)
        assert not rollout.features.dense.requires_grad
