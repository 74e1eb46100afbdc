"""Atari 2600 games under the two protocols in use, with nothing between wmkit and the emulator.

    reset       0 to 30 no-ops, each one frame, drawn uniformly
    step        the action is held for 4 frames; rewards are summed, not clipped
    image       maximum over the last two frames -> bilinear to a square -> grey (``atari`` only)
    end         the game is over: terminated; 108,000 frames (30 minutes): truncated; lives are ignored,
                or with lives="terminate" the loss of one ends the episode, and the next goes on from there

                atari100k                    atari
    image       64 x 64, colour              96 x 96, grey
    sticky      no                           the emulator repeats the last action with probability 0.25
    actions     those the game uses          all 18

``atari`` is Machado et al. 2018 (arXiv:1709.06009); ``atari100k`` is Kaiser et al. 2020
(arXiv:1903.00374); sizes, colours and filter are DreamerV3's (danijar/dreamerv3 e3f0224). gymnasium's
``AtariPreprocessing`` draws 1 to 30 no-ops and resizes by area: other protocols.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from wmkit.envs.adapters import channels_first, ends, ends_spec, fit_image, needs, unknown
from wmkit.errors import ConfigError

LIVES = ("ignored", "terminate")
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
        noops: at most so many no-ops after a reset.
        all_actions: all 18 actions, instead of those that do something in this game.
        image_size: side of the image.
        grey: one channel instead of three.
        lives: ``ignored``, or ``terminate``: losing one terminates, and the reset after it does nothing for
            one step and plays on; only when the game is over does it begin anew (TWM, STORM in training).
        max_frames: after which an episode is truncated, no-ops not counted; lives share them.

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
        lives: str = "ignored",
        max_frames: int = 108_000,
    ) -> None:
        if lives not in LIVES:
            raise ConfigError(
                f"Atari game {game!r} got lives={lives!r}: wanted one of {', '.join(LIVES)}; correct "
                "env.options.lives"
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
        self.image_size, self.grey, self.lives = image_size, grey, lives
        self._lives_left, self._between_lives = 0, False
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.emulator = ale_py.ALEInterface()
        self.emulator.setFloat("repeat_action_probability", float(sticky))
        self._set_seed(seed)
        ale = self.emulator
        self.actions = ale.getLegalActionSet() if all_actions else ale.getMinimalActionSet()
        height, width = ale.getScreenDims()
        self._frames = np.zeros((2, height, width, 3), np.uint8)  # the newest two, in turn
        self._newest = 0
        self._played = 0  # frames since the no-ops
        shape = (1 if grey else 3, image_size, image_size)
        self.observation_spec = Composite(pixels=Bounded(0, 255, shape, dtype=torch.uint8))
        self.action_spec = OneHot(len(self.actions), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = ends_spec()

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
        for _ in range(self.action_repeat):
            self.emulator.act(0)
            self._played += 1
        return not self._over()

    def _begin(self) -> None:
        self.emulator.reset_game()
        for _ in range(int(self._random.integers(self.noops + 1))):
            self.emulator.act(0)
            if self._over():
                self.emulator.reset_game()
        self._played = 0

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = self.actions[int(tensordict.get("action").argmax())]
        reward, over, late, lost = 0.0, False, False, False
        for frame in range(self.action_repeat):
            reward += self.emulator.act(action)
            self._played += 1
            over, late = self._over(), self._played >= self.max_frames
            if frame >= self.action_repeat - 2 or over or late:
                self._look()
            if over or late:
                break
        if self.lives == "terminate" and not over:
            left = self.emulator.lives()
            lost, self._lives_left = left < self._lives_left, left
            self._between_lives = lost and not late
        out = {"pixels": self._image(), "reward": torch.tensor([reward], dtype=torch.float32)}
        return TensorDict._new_unsafe(out | ends(over or lost, late), batch_size=torch.Size([]))

    def _over(self) -> bool:
        return bool(self.emulator.game_over(with_truncation=False))

    def _look(self) -> None:
        self._newest = 1 - self._newest
        self.emulator.getScreenRGB(self._frames[self._newest])

    def _image(self) -> torch.Tensor:
        image = fit_image(np.maximum(self._frames[0], self._frames[1]), self.image_size)  # [side, side, 3]
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
atari100k = partial(AtariEnv, sticky=0.0, all_actions=False, image_size=64, grey=False)


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
