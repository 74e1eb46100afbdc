"""The worlds of alignment.py pay whoever is aligned, and nobody who is one step off."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from alignment import SYSTEMS, WORLDS, overrides

from wmkit.systems import compose

Player = Callable[[list[np.ndarray]], int]
PLAYERS: dict[str, tuple[Player, Player]] = {  # of the records so far: the right one, one that is a step off
    "sign": (lambda seen: int(seen[-1][0] > 0), lambda seen: int(seen[max(len(seen) - 2, 0)][0] > 0)),
    "bit": (lambda seen: int(seen[0][0]), lambda seen: int(seen[-1][0])),
}


def play(world: str, player: Player, episodes: int) -> np.ndarray:
    """Returns of episodes."""
    env = gymnasium.make(f"{WORLDS[world].__name__}-v0")
    returns = []
    for episode in range(episodes):
        shown, _ = env.reset(seed=0 if episode == 0 else None)
        seen, total, over = [shown], 0.0, False
        while not over:
            shown, reward, terminated, truncated, _ = env.step(player(seen))
            seen.append(shown)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return np.array(returns)


@pytest.mark.parametrize("world", WORLDS)
def test_only_the_aligned_and_the_remembering_are_paid(world: str) -> None:
    right, wrong = PLAYERS[world]
    best = WORLDS[world].best
    assert (play(world, right, 20) == best).all()
    returns = play(world, wrong, 400)
    assert abs(returns.mean()) < 5 * returns.std() / 20 + best / 16  # a sign's first step has no earlier one


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_run_composes(system: str, world: str) -> None:
    config = compose(system, overrides(system, world))
    assert config.env.name.endswith(f"{WORLDS[world].__name__}-v0")
