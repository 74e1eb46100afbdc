"""Two rooms: a dot in one of two rooms is to go where a second picture shows it, through one door.

Our own making of a well-known test of planning (the geometry of stable-worldmodel's TwoRoom). Lengths are in
pixels of a picture of 224 a side, whatever the size that is drawn::

    ┌──────────┬──────────┐     border    free from 14 to 210, dot of radius 7
    │          door       │     wall      x = 112, 5 thick on each side; door at y = 49, 14 to each side
    │          ├          │     dot       red, Gaussian, deviation 7
    │    o     │     x    │     step      action in [-1, 1], at most 5 in x and in y
    └──────────┴──────────┘     success   nearer than 16

A crossing takes 40 steps and more. Goals that lie where a noisy walker comes within 25 steps are mostly in
the same room; what a random policy reaches, and what is solved at the start, are to be printed beside every
score (``docs/howto/data.md`` has both).
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from wmkit.envs.adapters import ends, ends_spec
from wmkit.errors import ConfigError

SIDE, FREE, RADIUS, SPEED, NEAR = 224.0, (14.0, 210.0), 7.0, 5.0, 16.0
WALL, HALF, DOOR, OPENING, SLACK = 112.0, 5.0, 49.0, 14.0, 1.75
FINE = 7  # points a side of each pixel of the background
GOALS = ("expert", "uniform")


def move(position: Tensor, action: Tensor) -> Tensor:
    """One step of dots, float ``[*B, 2]`` in pixels of 224; actions ``[*B, 2]``, clipped to [-1, 1].

    >>> move(torch.tensor([50.0, 50.0]), torch.tensor([1.0, -3.0]))
    tensor([55., 45.])
    >>> move(torch.tensor([98.0, 150.0]), torch.tensor([1.0, 0.0]))  # the wall
    tensor([ 99.5000, 150.0000])
    """
    new = position + SPEED * action.clamp(-1.0, 1.0)
    new = new.clamp(FREE[0] + RADIUS, FREE[1] - RADIUS)
    face = HALF + RADIUS
    x, y, before = new[..., 0], new[..., 1], position[..., 0]
    fits = OPENING - SLACK
    in_door = (before - WALL).abs() <= face
    y = torch.where(in_door & ((x - WALL).abs() <= face), y.clamp(DOOR - fits, DOOR + fits), y)
    blocked = ~in_door & ((x - WALL).abs() <= face) & ((y - DOOR).abs() > fits)
    x = torch.where(blocked, torch.where(before < WALL, WALL - face - 0.5, WALL + face + 0.5), x)
    return torch.stack([x, y], -1)


def expert(position: Tensor, target: Tensor) -> Tensor:
    """The action of a walker that knows the door; ``[*B, 2]`` each, in pixels and in [-1, 1].

    >>> expert(torch.tensor([50.0, 150.0]), torch.tensor([180.0, 150.0]))  # up to the door first
    tensor([ 1., -1.])
    """
    face = HALF + RADIUS + 1.0
    side = torch.where(position[..., :1] < WALL, -1.0, 1.0)
    across = (position[..., :1] < WALL) != (target[..., :1] < WALL)
    aligned = (position[..., 1:] - DOOR).abs() < OPENING - SLACK - SPEED
    door = torch.full_like(position[..., 1:], DOOR)
    before = torch.cat([WALL + side * face, door], -1)
    behind = torch.cat([WALL - side * face, door], -1)
    way = torch.where(across, torch.where(aligned, behind, before), target)
    inside = ~across & ((position[..., :1] - WALL).abs() < face)  # out of the door before it turns
    way = torch.where(inside, torch.cat([WALL + side * face, door], -1), way)
    return ((way - position) / SPEED).clamp(-1.0, 1.0)


class TwoRooms(EnvBase):
    """Go where the picture ``goal`` shows the dot.

    Keys: ``pixels`` and ``goal`` uint8 ``[3, size, size]``, ``success`` bool ``[1]``, ``reward`` float32
    ``[1]``, 1 on success and else 0; ``log/position`` and ``log/goal`` float32 ``[2]`` in pixels of 224, not
    seen by systems; action float32 ``[2 * block]`` in [-1, 1]. Success terminates, ``max_steps`` truncates.

    Args:
        seed: of the stream of starts and goals.
        max_steps: steps of 5 pixels until an episode is truncated.
        image_size: side of the pictures.
        goals: ``expert``, where a noisy walker towards anywhere comes within ``ahead`` steps, or ``uniform``.
        ahead: see there.
        noise: deviation of the noise of scripted actions, and of that walker's.
        block: actions that are taken in one step, one after another.

    Raises:
        ConfigError: an option is out of range.

    >>> env = TwoRooms(seed=1)
    >>> env.rollout(3)["pixels"].shape
    torch.Size([3, 3, 64, 64])
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        max_steps: int = 50,
        image_size: int = 64,
        goals: str = "expert",
        ahead: int = 25,
        noise: float = 0.5,
        block: int = 1,
    ) -> None:
        if goals not in GOALS:
            raise ConfigError(
                f"option goals={goals!r} of two_rooms is unknown: wanted {' or '.join(GOALS)}; pick one"
            )
        if min(max_steps, ahead, block) < 1 or not 16 <= image_size <= 512 or noise < 0:
            raise ConfigError(
                f"two_rooms got max_steps={max_steps}, ahead={ahead}, block={block}, image_size={image_size} "
                f"and noise={noise}: wanted steps of at least 1, 16 to 512 pixels and noise of at least 0; "
                "correct them"
            )
        super().__init__(device="cpu", batch_size=torch.Size([]))
        self.max_steps, self.size, self.goals, self.ahead = max_steps, image_size, goals, ahead
        self.noise, self.block = noise, block
        self._set_seed(seed)
        self._background = _draw_background(image_size)  # [3, S, S]
        self._pixel = (torch.arange(image_size) + 0.5) * SIDE / image_size
        self._position = self._target = torch.full((2,), 50.0)
        self._goal = self._background.to(torch.uint8)
        self._t = 0
        image = Bounded(0, 255, (3, image_size, image_size), dtype=torch.uint8)
        self.observation_spec = Composite(
            pixels=image, goal=image.clone(), success=Binary(1, dtype=torch.bool)
        )
        for key in ("log/position", "log/goal"):
            self.observation_spec[key] = Unbounded((2,))
        self.action_spec = Bounded(-1.0, 1.0, (2 * block,))
        self.reward_spec = Unbounded((1,))
        self.done_spec = ends_spec()

    def draw(self, position: Tensor) -> Tensor:
        """The picture of a dot at ``[2]``: uint8 ``[3, size, size]``."""
        x, y = ((self._pixel - p).square() for p in position)
        dot = torch.exp(-(x[None, :] + y[:, None]) / (2 * RADIUS**2))  # [S, S]
        red = torch.tensor([255.0, 0.0, 0.0]).view(3, 1, 1)
        return (self._background * (1 - dot) + red * dot).round().to(torch.uint8)

    def scripted_action(self) -> Tensor:
        """What a noisy walker to the goal does here; ``[2 * block]``."""
        position, taken = self._position, []
        for _ in range(self.block):
            taken.append(self._noisy(expert(position, self._target)))
            position = move(position, taken[-1])
        return torch.cat(taken)

    def _noisy(self, action: Tensor) -> Tensor:
        return (action + self.noise * torch.randn(2, generator=self._chance)).clamp(-1.0, 1.0)

    def _anywhere(self) -> Tensor:
        low, high = FREE[0] + RADIUS, FREE[1] - RADIUS
        while True:
            found = low + (high - low) * torch.rand(2, generator=self._chance)
            if (found[0] - WALL).abs() > HALF + RADIUS:
                return found

    def _shown(self) -> dict[str, Tensor]:
        near = torch.linalg.vector_norm(self._position - self._target) < NEAR
        return {
            "pixels": self.draw(self._position),
            "goal": self._goal.clone(),
            "success": near.view(1),
            "log/position": self._position.clone(),
            "log/goal": self._target.clone(),
        }

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        self._t, self._position = 0, self._anywhere()
        self._target = self._anywhere()
        if self.goals == "expert":
            there = self._position
            for _ in range(self.ahead):
                there = move(there, self._noisy(expert(there, self._target)))
            self._target = there
        self._goal = self.draw(self._target)
        return TensorDict(self._shown() | ends(), batch_size=[])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        success = False
        for action in tensordict.get("action").float().split(2):
            self._position = move(self._position, action)
            self._t += 1
            success = bool(torch.linalg.vector_norm(self._position - self._target) < NEAR)
            if success or self._t >= self.max_steps:
                break
        over = ends(success, success or self._t >= self.max_steps)
        reward = torch.tensor([float(success)])
        return TensorDict({**self._shown(), "reward": reward, **over}, batch_size=[])

    def _set_seed(self, seed: int | None) -> None:
        self._chance = torch.Generator().manual_seed(0 if seed is None else int(seed))


def _draw_background(size: int) -> Tensor:
    """White, with black lines around and between the rooms; float ``[3, size, size]``."""
    fine = (torch.arange(size * FINE) + 0.5) * SIDE / (size * FINE)
    x, y = fine[None, :], fine[:, None]
    inside = (x >= FREE[0] - 4) & (x < FREE[1] + 4) & (y >= FREE[0] - 4) & (y < FREE[1] + 4)
    free = (x >= FREE[0]) & (x < FREE[1]) & (y >= FREE[0]) & (y < FREE[1])
    wall = ((x - WALL).abs() < HALF) & ((y - DOOR).abs() > OPENING) & free
    white = ~((inside & ~free) | wall)
    return 255.0 * white.float().view(1, size, FINE, size, FINE).mean((2, 4)).expand(3, -1, -1).clone()
