"""A toy whose every number says when it was made: the off-by-one test of every system.

Observation and reward both equal t, the number of steps since the reset, and the episode
ends at t = ``length``. A record in which ``observation != reward`` (other than an initial
record, where the reward is 0 = t as well) has been shifted somewhere.

    t            0      1      2    ...    7 = length
    observation  0      1      2           7
    reward       -      1      2           7      received on arriving at t
    done         no     no     no          yes
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from wmkit.errors import ConfigError


class CountingEnv(EnvBase):
    """Counts its own steps.

    Keys: ``observation`` float32 ``[1]`` = t; with ``pixels=True`` also ``pixels`` uint8
    ``[3, 64, 64]`` filled with t; ``reward`` float32 ``[1]`` = t. Actions have no effect.

    Args:
        length: steps per episode.
        action: ``"discrete"`` for a one-hot float32 of ``num_actions``, ``"continuous"`` for a float32
            vector of that width in [-1, 1].
        num_actions: width of the action.
        pixels: add the image.
        truncate: end episodes by ``truncated`` (a time limit) instead of ``terminated``.
        seed: accepted for uniformity; nothing here is random.

    Raises:
        ConfigError: an option is out of range.

    >>> env = CountingEnv(length=7)
    >>> rollout = env.rollout(100)
    >>> rollout["next", "reward"].flatten().tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    >>> rollout["observation"].flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """

    def __init__(
        self,
        *,
        length: int = 7,
        action: str = "discrete",
        num_actions: int = 3,
        pixels: bool = False,
        truncate: bool = False,
        seed: int = 0,
    ) -> None:
        if action not in ("discrete", "continuous"):
            raise ConfigError(
                f"option action={action!r} of the counting env is unknown: "
                "wanted discrete or continuous; pick one of them"
            )
        if not 1 <= length <= 255 or num_actions < 1:
            raise ConfigError(
                f"the counting env got length={length} and num_actions={num_actions}: wanted a length of "
                "1 to 255 (pixels hold t) and at least one action; change them"
            )
        super().__init__(device="cpu", batch_size=torch.Size([]))
        self.length, self.pixels, self.truncate = length, pixels, truncate
        self._t = 0
        self.observation_spec = Composite(observation=Unbounded((1,)))
        if pixels:
            self.observation_spec["pixels"] = Bounded(0, 255, (3, 64, 64), dtype=torch.uint8)
        if action == "discrete":
            self.action_spec = OneHot(num_actions, dtype=torch.float32)
        else:
            self.action_spec = Bounded(-1.0, 1.0, (num_actions,))
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite(
            {key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        )

    def _observation(self) -> dict[str, torch.Tensor]:
        out = {"observation": torch.full((1,), float(self._t))}
        if self.pixels:
            out["pixels"] = torch.full((3, 64, 64), self._t, dtype=torch.uint8)
        return out

    def _done(self) -> dict[str, torch.Tensor]:
        done = torch.tensor([self._t >= self.length])
        truncated = done if self.truncate else torch.zeros_like(done)
        return {"done": done, "terminated": done & ~truncated, "truncated": truncated.clone()}

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        self._t = 0
        return TensorDict({**self._observation(), **self._done()}, batch_size=[])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._t += 1
        reward = torch.full((1,), float(self._t))
        return TensorDict({**self._observation(), "reward": reward, **self._done()}, batch_size=[])

    def enter(self, episode: int) -> None:
        """All episodes are alike (:mod:`wmkit.envs.episodes`)."""

    def _set_seed(self, seed: int | None) -> None:
        return None
