"""Laws of token dynamics under each layout: memory is the full pass, and episodes are kept apart."""

from __future__ import annotations

import copy
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from support import storm, transdreamer, twm
from support.tokens import cut, known, record, steps
from wmkit.dynamics import Steps, TokenDynamics

EXACT = {"atol": 1e-5, "rtol": 0}
TOKENS = [
    pytest.param(twm, (), id="transformer_xl"),
    pytest.param(twm, ("backbone=gru",), id="gru"),
    pytest.param(twm, ("backbone=s5",), id="s5"),
    pytest.param(storm, (), id="gpt"),
    pytest.param(storm, ("world_model.dynamics.separate_episodes=true",), id="gpt-apart"),
    pytest.param(transdreamer, (), id="stacked"),
]


@cache
def built(page: ModuleType, *overrides: str) -> TokenDynamics:
    return page.build(*overrides).world_model.eval().dynamics


def make(page: ModuleType, *overrides: str) -> TokenDynamics:
    """Without dropout, with samples that are certain: what is drawn is known."""
    dynamics = copy.deepcopy(built(page, *overrides))
    torch.manual_seed(0)
    with torch.no_grad():
        for part in (dynamics.posterior, dynamics.prior):
            list(part.parameters())[-2].mul_(1e5)
    dynamics.latent.unimix = 0.0
    return dynamics


def window(dynamics: Any, rows: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    embed = torch.randn(rows, count, next(dynamics.posterior.parameters()).shape[1])
    return embed, record(dynamics, rows, count, torch.rand(rows, count) < 0.2)


def same(one: Any, other: Any) -> None:
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize(("page", "overrides"), TOKENS)
def test_a_cached_walk_is_the_full_pass(page: ModuleType, overrides: tuple[str, ...]) -> None:
    """One step at a time with a memory equals all tokens at once, episodes that begin anywhere included."""
    dynamics = make(page, *overrides)
    walk = steps(dynamics, 6, 16, torch.rand(6, 16) < 0.2)
    full, _ = dynamics.advance(walk, None)
    carry, beliefs, loop = None, [], dynamics.bind().loop
    for t in range(16):
        belief, carry = dynamics.advance(cut(walk, t, t + 1), carry, loop)
        beliefs.append(belief)
    torch.testing.assert_close(torch.cat(beliefs, 1), full, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("page", "overrides"), TOKENS)
def test_two_halves_are_the_whole(page: ModuleType, overrides: tuple[str, ...]) -> None:
    """A window, or its first part and the rest from there: states, beliefs, and a step beyond."""
    dynamics = make(page, *overrides)
    embed, told = window(dynamics, 5, 12)
    whole = dynamics.observe(embed, told)
    action, noise = torch.eye(dynamics.action_dim)[:1].expand(5, -1), dynamics.noise(5)
    beyond = dynamics.step(whole.last, action, noise=noise)
    for half in (1, 7):
        first = dynamics.observe(embed[:, :half], cut(told, 0, half))
        rest = dynamics.observe(embed[:, half:], cut(told, half, 12), first.last)
        belief = torch.cat([first.latent.belief, rest.latent.belief], 1)
        torch.testing.assert_close(belief, whole.latent.belief, **EXACT)
        torch.testing.assert_close(rest.prior_logits, whole.prior_logits[:, half:], atol=1.0, rtol=1e-4)
        same(rest.last.light(), whole.last.light())
        after = dynamics.step(rest.last, action, noise=noise)
        torch.testing.assert_close(after.belief, beyond.belief, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("page", "overrides"), TOKENS)
def test_to_remember_is_to_observe_what_is_known(page: ModuleType, overrides: tuple[str, ...]) -> None:
    dynamics = make(page, *overrides)
    embed, told = window(dynamics, 4, 7)
    seen = dynamics.observe(embed, told)
    same(dynamics.remember(seen.latent, told), seen.last)
    alone = dynamics.remember(seen.latent.map(lambda x: x[:, :1]), cut(told, 0, 1))
    assert alone.carry.memory is None and not alone.belief.any()


@torch.no_grad()
@pytest.mark.parametrize(("page", "overrides"), TOKENS)
def test_acting_with_a_memory_is_observing(page: ModuleType, overrides: tuple[str, ...]) -> None:
    """Observation by observation through what a policy packs: the window's beliefs, but zero at beginnings.

    Episodes are kept apart in acting, also by a model that is trained across them.
    """
    acting = () if page is twm else ("world_model.dynamics.acting_window=null",)
    dynamics = make(page, *overrides, *acting)
    embed, told = window(dynamics, 5, 12)
    apart, dynamics.separate_episodes = dynamics.separate_episodes, True
    whole = dynamics.observe(embed, told)
    dynamics.separate_episodes = apart
    packed = {key: torch.zeros(5, *shape) for key, shape in dynamics.pack_shapes.items()}
    told["is_init"][:, 0] = True
    for t in range(12):
        here = {key: value[:, t] for key, value in told.items()}
        latent = dynamics.filter(dynamics.unpack(packed), embed[:, t], here)
        begins = here["is_init"].unsqueeze(-1)
        torch.testing.assert_close(latent.belief, whole.latent.belief[:, t].masked_fill(begins, 0), **EXACT)
        torch.testing.assert_close(latent.state, whole.latent.state[:, t])
        packed = dynamics.pack(latent)
        assert {key: tuple(x.shape[1:]) for key, x in packed.items()} == dynamics.pack_shapes
        again = dynamics.unpack(packed)
        assert again.classes.equal(latent.classes)
        same(again, latent._replace(carry=again.carry if latent.carry.memory is None else latent.carry))


@torch.no_grad()
@pytest.mark.parametrize("page", [storm, transdreamer])
def test_a_window_of_recent_steps_is_a_memory_of_as_many(page: ModuleType) -> None:
    """Run anew each time, it gives what a memory gives until the oldest step is forgotten."""
    overrides = ["world_model.dynamics.separate_episodes=true"] if page is storm else []
    remade = make(page, *overrides, "world_model.dynamics.acting_window=4")
    kept = make(page, *overrides, "world_model.dynamics.acting_window=null")
    kept.load_state_dict(remade.state_dict())
    embed, told = window(kept, 3, 7)
    told["is_init"][:] = (
        torch.tensor([[1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1, 0]]) > 0
    )
    packed = [{k: torch.zeros(3, *shape) for k, shape in d.pack_shapes.items()} for d in (remade, kept)]
    beliefs: list[list[Tensor]] = [[], []]
    for t in range(7):
        here = {key: value[:, t] for key, value in told.items()}
        for i, dynamics in enumerate((remade, kept)):
            latent = dynamics.filter(dynamics.unpack(packed[i]), embed[:, t], here)
            packed[i] = dynamics.pack(latent)
            beliefs[i].append(latent.belief)
    one, other = (torch.stack(x, 1) for x in beliefs)
    torch.testing.assert_close(one[1:], other[1:], **EXACT)
    torch.testing.assert_close(one[0, :5], other[0, :5], **EXACT)
    assert not torch.allclose(one[0, 5:], other[0, 5:], **EXACT)  # it began more than four steps ago


@pytest.mark.parametrize("page", [twm, storm, transdreamer])
def test_nothing_seen_packs_as_nothing(page: ModuleType) -> None:
    """A start without a memory is one whose model consumed nothing."""
    dynamics = make(page)
    nothing = dynamics.unpack(dynamics.pack(dynamics.initial(3)))
    start, action = known(dynamics, 3, 1).map(lambda x: x[:, 0]), torch.eye(dynamics.action_dim)[:3]
    noise = dynamics.noise(3)
    with torch.no_grad():
        fresh = dynamics.step(start, action, noise=noise)
        packed = dynamics.step(start._replace(carry=nothing.carry), action, noise=noise)
        torch.testing.assert_close(packed.belief, fresh.belief, **EXACT)
        first = torch.zeros(3, 1, dtype=torch.bool)
        arrived = dynamics.remember(known(dynamics, 3, 1), record(dynamics, 3, 1, first))
        direct, again = (
            dynamics.step(latent, action, noise=noise)
            for latent in (arrived, dynamics.unpack(dynamics.pack(arrived)))
        )
    torch.testing.assert_close(again.belief, direct.belief, **EXACT)


def test_a_reward_is_late_and_an_episode_sees_nothing_before_it() -> None:
    dynamics = make(twm)
    init = torch.zeros(1, 9, dtype=torch.bool)
    init[0, 5] = True
    walk = steps(dynamics, 1, 9, init)

    def beliefs(reward_at: int | None = None, state_at: int | None = None) -> Tensor:
        arrival, classes = walk.arrival.clone(), walk.classes.clone()
        if reward_at is not None:
            arrival[:, reward_at] += 3
        if state_at is not None:
            classes[:, state_at] = (classes[:, state_at] + 1) % 4
        return dynamics.advance(
            Steps(dynamics.latent.one_hot(classes), classes, walk.action, arrival, init), None
        )[0]

    base = beliefs()
    changed = (beliefs(reward_at=2) != base).any(-1)[0]  # received on arriving at step 2: known from there on
    assert changed.tolist() == [False] * 2 + [True] * 3 + [False] * 4
    changed = (beliefs(state_at=4) != base).any(-1)[0]
    assert changed.tolist() == [False] * 4 + [True] + [False] * 4
    assert torch.equal(beliefs(reward_at=5), base)  # an episode's first record was not arrived at
    assert torch.equal(beliefs(reward_at=0), base)  # nor a window's


@pytest.mark.parametrize("separate", [False, True])
def test_attention_crosses_episodes_unless_told_not_to(separate: bool) -> None:
    dynamics = make(storm, f"world_model.dynamics.separate_episodes={separate}")
    init = torch.zeros(1, 8, dtype=torch.bool)
    init[0, 4] = True
    walk = steps(dynamics, 1, 8, init)
    classes = walk.classes.clone()
    classes[:, 2] = (classes[:, 2] + 1) % 4
    base, _ = dynamics.advance(walk, None)
    other, _ = dynamics.advance(walk._replace(state=dynamics.latent.one_hot(classes), classes=classes), None)
    assert (base != other).any(-1)[0].tolist() == [False, False, True, True] + [not separate] * 4
