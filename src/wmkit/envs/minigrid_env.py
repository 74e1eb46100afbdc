"""MiniGrid (Chevalier-Boisvert et al. 2023, arXiv:2306.13831): small rooms, keys, doors, and a goal.

    step        one of 7 actions, no repeat
    reward      1 - 0.9 * steps / limit on success, 0 otherwise
    end         success or failure: terminated; the room's own limit: truncated

The agent sees 7 x 7 squares ahead of it, as classes or drawn. Words are not read: where a room has
several missions, which of them it is comes as a class.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from wmkit.envs.adapters import channels_first, ends, ends_spec, fit_image, needs, unknown
from wmkit.envs.episodes import episode_seed

TILE = 16  # pixels per square, before the image is made smaller


class MinigridEnv(EnvBase):
    """One mission.

    Keys: ``objects``, ``colors``, ``states`` classes uint8 ``[7, 7]`` and ``direction`` (0 east, 1
    south, 2 west, 3 north) uint8 ``[1]``, or with ``pixels=True`` only ``pixels`` uint8 ``[3, side,
    side]``; ``mission`` uint8 ``[1]`` where there are several; ``success`` bool ``[1]``; ``reward``
    float32 ``[1]``; ``done``, ``terminated``, ``truncated`` bool ``[1]``; ``action`` one-hot int64
    ``[7]``. The same seed gives the same rooms.

    Args:
        env_id: such as ``MiniGrid-DoorKey-5x5-v0``.
        seed: of the stream of rooms.
        pixels: draw what the agent sees.
        image_size: side of the picture.
        **options: of the environment, such as ``max_steps``.

    Raises:
        ConfigError: minigrid is missing, no such mission, or it does not take the options.

    >>> MinigridEnv("MiniGrid-Empty-5x5-v0").rollout(3)["objects"].shape  # doctest: +SKIP
    torch.Size([3, 7, 7])
    """

    def __init__(
        self, env_id: str, *, seed: int = 0, pixels: bool = False, image_size: int = 64, **options: Any
    ) -> None:
        with needs("minigrid", "MiniGrid missions"):
            import gymnasium
            import minigrid
            from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        if env_id not in gymnasium.registry:
            ids = [name for name in gymnasium.registry if name.startswith(("MiniGrid", "BabyAI"))]
            raise unknown("mission", env_id, ids, f"see {minigrid.__name__}'s documentation")
        super().__init__(device="cpu", batch_size=torch.Size([]))
        self._game = _make(env_id, options)
        self._missions = _missions(self._game.observation_space["mission"])
        self._stream: int | None = seed
        self._seed: int | None = seed
        self.pixels, self.image_size = pixels, image_size
        spec: dict[str, TensorSpec] = {"success": Binary(1, dtype=torch.bool)}
        if pixels:
            spec["pixels"] = Bounded(0, 255, (3, image_size, image_size), dtype=torch.uint8)
        else:
            table = self._game.observation_space["image"].shape[:2]
            layers = {"objects": OBJECT_TO_IDX, "colors": COLOR_TO_IDX, "states": STATE_TO_IDX}
            for key, names in layers.items():
                spec[key] = Categorical(len(names), shape=table, dtype=torch.uint8)
            spec["direction"] = Categorical(4, shape=(1,), dtype=torch.uint8)
        if len(self._missions) > 1:
            spec["mission"] = Categorical(len(self._missions), shape=(1,), dtype=torch.uint8)
        self.observation_spec = Composite(spec)
        self.action_spec = OneHot(int(self._game.action_space.n), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = ends_spec()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        seed, self._seed = self._seed, None
        seen, _ = self._game.reset(seed=seed)
        return TensorDict._new_unsafe(self._observation(seen, False) | ends(), batch_size=torch.Size([]))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = int(tensordict.get("action").argmax())
        seen, reward, terminated, truncated, _ = self._game.step(action)
        out = self._observation(seen, reward > 0)
        out["reward"] = torch.tensor([reward], dtype=torch.float32)
        return TensorDict._new_unsafe(
            out | ends(bool(terminated), bool(truncated)), batch_size=torch.Size([])
        )

    def _observation(self, seen: dict[str, Any], success: bool) -> dict[str, torch.Tensor]:
        out = {"success": torch.tensor([bool(success)])}
        if self.pixels:
            frame = self._game.unwrapped.get_frame(tile_size=TILE, agent_pov=True)
            out["pixels"] = torch.from_numpy(channels_first(fit_image(frame, self.image_size)))
        else:
            layers = np.ascontiguousarray(seen["image"].transpose(2, 0, 1), dtype=np.uint8)  # [3, 7, 7]
            for key, layer in zip(("objects", "colors", "states"), layers, strict=True):
                out[key] = torch.from_numpy(layer)
            out["direction"] = torch.tensor([seen["direction"]], dtype=torch.uint8)
        if len(self._missions) > 1:
            out["mission"] = torch.tensor([self._missions[seen["mission"]]], dtype=torch.uint8)
        return out

    def _set_seed(self, seed: int | None) -> None:
        self._stream = self._seed = 0 if seed is None else int(seed)  # used by the next reset

    def enter(self, episode: int) -> None:
        """The next reset begins this episode of the stream of its seed (:mod:`wmkit.envs.episodes`)."""
        self._seed = episode_seed(self._stream, episode)


def _make(env_id: str, options: dict[str, Any]) -> Any:
    import gymnasium

    return gymnasium.make(env_id, disable_env_checker=True, **options)


def _missions(space: Any) -> dict[str, int]:
    """All sentences of a mission space, numbered; none where they cannot be listed (BabyAI) or are many."""
    choices = getattr(space, "ordered_placeholders", None)
    if choices is None or np.prod([len(words) for words in choices]) > 255:
        return {}
    sentences = dict.fromkeys(space.mission_func(*words) for words in product(*choices))
    return {sentence: number for number, sentence in enumerate(sentences)}
