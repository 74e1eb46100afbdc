"""Atari 2600 games under the two protocols in use, with nothing between wmkit and the emulator.

    reset       0 to 30 no-ops, each one frame, drawn uniformly
    step        the action is held for 4 frames; rewards are summed, not clipped
    image       maximum over the last two frames -> a square, by a bilinear filter -> grey (``atari`` only)
    end         the game is over: terminated; 108,000 frames (30 minutes): see below; lives are ignored,
                or with lives="terminate" the loss of one ends the episode, and the next goes on from there

                atari100k                    atari
    image       64 x 64, colour              96 x 96, grey
    sticky      no                           the emulator repeats the last action with probability 0.25
    actions     those the game uses          all 18
    limit       truncated                    terminated

``atari`` is Machado et al. 2018 (arXiv:1709.06009); ``atari100k`` is Kaiser et al. 2020
(arXiv:1903.00374); sizes, colours and filter are DreamerV3's (danijar/dreamerv3 e3f0224), whose limit
terminates under both: its ``preset=atari100k`` sets ``limit="terminate"``. TWM and STORM
resize by area (``filter="area"``). Where a game waits for FIRE, TWM presses it itself (``fire=True``)::

    reset       FIRE, then the game's next action, then 1 to 30 no-ops, each held for 4 frames
    lost life   FIRE within the same step, held for 4 frames; what it brings is added

gymnasium's ``AtariPreprocessing`` draws 1 to 30 no-ops: another protocol.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from wmkit.envs.adapters import (
    channels_first,
    ends,
    ends_spec,
    fit_image,
    fit_image_by_area,
    needs,
    unknown,
)
from wmkit.errors import ConfigError

LIVES = ("ignored", "terminate")
LIMITS = ("truncate", "terminate")
FILTERS = {"bilinear": fit_image, "area": fit_image_by_area}
GREY = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue


class AtariEnv(EnvBase):
    """One Atari game; the defaults are the protocol ``atari``.

    Keys: ``pixels`` uint8 ``[1 or 3, side, side]``, ``reward`` float32 ``[1]``, ``done``, ``terminated``,
    ``truncated`` bool ``[1]``; ``action`` one-hot int64 ``[A]``. The same seed gives the same episodes.

    Args:
        game: as the emulator spells it; ``MsPacman``, ``ms_pacman`` and ``mspacman`` are one game.
        seed: of the no-ops and the sticky actions.
        action_repeat: frames per step.
        sticky: probability with which the emulator ignores a frame's action and repeats the last one.
        noops: at most so many no-ops after a reset, one frame each; see above for games that wait for FIRE.
        all_actions: all 18 actions, instead of those that do something in this game.
        image_size: side of the image.
        grey: one channel instead of three.
        fire: press FIRE for the agent, see above; of no effect in games whose second action it is not.
        filter: by which the image is reduced: ``bilinear``, or ``area``, which averages what a pixel covers.
        lives: ``ignored``, or ``terminate``: losing one terminates, and the reset after it does nothing for
            one step and plays on; only when the game is over does it begin anew (TWM, STORM in training).
        max_frames: after which an episode ends, no-ops not counted; lives share them.
        limit: what that end is, ``truncate`` or ``terminate``; values end at a termination only.

    Raises:
        ConfigError: ale-py is missing, no such game, or an option out of range.

    >>> env = AtariEnv("pong")  # doctest: +SKIP
    >>> env.rollout(3)["pixels"].shape  # doctest: +SKIP
    torch.Size([3, 1, 96, 96])
    """

    def __init__(
        self,
        game: str,
        *,
        seed: int = 0,
        action_repeat: int = 4,
        sticky: float = 0.25,
        noops: int = 30,
        all_actions: bool = True,
        image_size: int = 96,
        grey: bool = True,
        fire: bool = False,
        filter: str = "bilinear",
        lives: str = "ignored",
        max_frames: int = 108_000,
        limit: str = "terminate",
    ) -> None:
        for option, found, known in (
            ("lives", lives, LIVES),
            ("filter", filter, tuple(FILTERS)),
            ("limit", limit, LIMITS),
        ):
            if found not in known:
                raise ConfigError(
                    f"Atari game {game!r} got {option}={found!r}: wanted one of {', '.join(known)}; correct "
                    f"{option}"
                )
        if action_repeat < 1 or not 0 <= sticky < 1 or noops < 0 or max_frames < 1 or image_size < 1:
            raise ConfigError(
                f"Atari game {game!r} got action_repeat={action_repeat}, sticky={sticky}, noops={noops}, "
                f"image_size={image_size} and max_frames={max_frames}: wanted at least 1 frame per step, a "
                "probability below 1, no negative numbers, and at least 1 pixel and frame; correct them"
            )
        with needs("atari", "Atari games"):
            import ale_py

        super().__init__(device="cpu", batch_size=torch.Size([]))
        self.game = find_game(game)
        self.action_repeat, self.noops, self.max_frames = action_repeat, noops, max_frames
        self.image_size, self.grey, self.lives, self.filter = image_size, grey, lives, filter
        self.limit = limit
        self._lives_left, self._between_lives = 0, False
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.emulator = ale_py.ALEInterface()
        self.emulator.setFloat("repeat_action_probability", float(sticky))
        self._set_seed(seed)
        ale = self.emulator
        self.actions = ale.getLegalActionSet() if all_actions else ale.getMinimalActionSet()
        self._set = "full" if all_actions else "minimal"
        self.fires = fire and self.actions[1] == ale_py.Action.FIRE
        height, width = ale.getScreenDims()
        self._frames = np.zeros((2, height, width, 3), np.uint8)  # the newest two, in turn
        self._newest = 0
        self._played = 0  # frames since the no-ops
        shape = (1 if grey else 3, image_size, image_size)
        self.observation_spec = Composite(pixels=Bounded(0, 255, shape, dtype=torch.uint8))
        self.action_spec = OneHot(len(self.actions), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = ends_spec()

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that the options alone do not name."""
        return {
            "fire": self.fires,
            "fewest_noops": min(int(self.fires), self.noops),
            "noop_frames": self.action_repeat if self.fires else 1,
            "actions": self._set,
            "filter": self.filter,
            "limit": self.limit,
        }

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        if not self._goes_on():
            self._begin()
        self._lives_left = self.emulator.lives()
        self._look()
        self._frames[1 - self._newest] = self._frames[self._newest]  # nothing of the last episode
        return TensorDict._new_unsafe({"pixels": self._image()} | ends(), batch_size=torch.Size([]))

    def _goes_on(self) -> bool:
        """After a lost life: a step without an action, unless that ends the game too."""
        if not self._between_lives:
            return False
        self._between_lives = False
        return not self._hold(self.actions[0])[1]

    def _begin(self) -> None:
        self.emulator.reset_game()
        self._played = 0
        if self.fires:
            pauses = int(self._random.integers(1, self.noops + 1)) if self.noops else 0
            for action in (*self.actions[1:3], *[self.actions[0]] * pauses):
                if self._hold(action, counted=False)[1]:
                    self.emulator.reset_game()
        else:
            for _ in range(int(self._random.integers(self.noops + 1))):
                self.emulator.act(0)
                if self._over():
                    self.emulator.reset_game()

    def _hold(self, action: Any, counted: bool = True) -> tuple[float, bool]:
        """Hold an action for a step's frames; the reward, and whether the game is over."""
        reward = 0.0
        for frame in range(self.action_repeat):
            reward += self.emulator.act(action)
            self._played += counted
            over = self._over()
            last = over or self._late()
            if frame >= self.action_repeat - 2 or last:
                self._look()
            if last:
                break
        return reward, over

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward, over = self._hold(self.actions[int(tensordict.get("action").argmax())])
        late = self._late()
        left = self.emulator.lives()
        lost, self._lives_left = left < self._lives_left and not over, left
        if lost and self.fires and not late:
            more, over = self._hold(self.actions[1], counted=False)
            reward += more
            self._lives_left = self.emulator.lives()
        ended = lost and self.lives == "terminate"
        self._between_lives = ended and not (over or late)
        out = {"pixels": self._image(), "reward": torch.tensor([reward], dtype=torch.float32)}
        terminated = over or ended or (late and self.limit == "terminate")
        return TensorDict._new_unsafe(out | ends(terminated, late), batch_size=torch.Size([]))

    def _late(self) -> bool:
        return self._played >= self.max_frames

    def _over(self) -> bool:
        return bool(self.emulator.game_over(with_truncation=False))

    def _look(self) -> None:
        self._newest = 1 - self._newest
        self.emulator.getScreenRGB(self._frames[self._newest])

    def _image(self) -> torch.Tensor:
        whole = np.maximum(self._frames[0], self._frames[1])
        image = FILTERS[self.filter](whole, self.image_size)  # [side, side, 3]
        if self.grey:
            image = (image @ GREY).astype(np.uint8)[..., None]
        return torch.from_numpy(channels_first(image))

    def _set_seed(self, seed: int | None) -> None:
        from ale_py import roms

        number = 0 if seed is None else int(seed) % 2**31
        self._between_lives = False
        self._random = np.random.default_rng(number)
        self.emulator.setInt("random_seed", number)  # read when a game is loaded
        self.emulator.loadROM(str(roms.get_rom_path(self.game)))


atari = AtariEnv
atari100k = partial(AtariEnv, sticky=0.0, all_actions=False, image_size=64, grey=False, limit="truncate")


def find_game(name: str) -> str:
    """The emulator's name of a game.

    Raises:
        ConfigError: ale-py is missing, or no such game.

    >>> find_game("MsPacman")  # doctest: +SKIP
    'ms_pacman'
    """
    with needs("atari", "Atari games"):
        from ale_py import roms

    games = roms.get_all_rom_ids()
    plain = {game.replace("_", ""): game for game in games}
    key = name.lower().replace("_", "").replace("-", "")
    if key not in plain:
        raise unknown("Atari game", name.lower(), games, "see ale_py.roms.get_all_rom_ids()")
    return plain[key]
