"""Any gymnasium environment by its id, through TorchRL's wrapper; from its observations or from pictures.

Ends are the environment's own: what it calls terminated and truncated stays that, and its time limit is
the one it was registered with. Rewards are as given. It is made with the options that were given, no others.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Graph, OneOf, Sequence, Space, Tuple
from torchrl.envs import EnvBase, GymWrapper

from wmkit.envs.adapters import channels_first, fit_image, making
from wmkit.envs.episodes import episode_seed
from wmkit.envs.gymnasium_images import turned
from wmkit.envs.gymnasium_values import shown, taken
from wmkit.envs.names import register_ids
from wmkit.errors import ConfigError, SpecError

# Keys that TorchRL's specs and tensors have themselves.
TAKEN = (
    *("reward", "done", "terminated", "truncated", "next", "_reset"),
    *("self", "shape", "batch_size", "device", "data_cls", "step_mdp_static"),
)

NUMBER = "one number"


def gymnasium_env(
    env_id: str,
    *,
    seed: int = 0,
    pixels: bool = False,
    image_size: int = 64,
    resize: int | None = None,
    **options: Any,
) -> EnvBase:
    """A registered environment; keys as TorchRL names them.

    Pictures among the observations have channels first (:mod:`wmkit.envs.gymnasium_images`; a turned one that
    is the whole observation is called ``pixels``), float64 becomes float32, and an action is one choice or
    one vector wherever the space is that (:func:`wmkit.envs.gymnasium_values.taken`).

    Args:
        env_id: such as ``CartPole-v1``.
        seed: of its stream of episodes.
        pixels: replace the observation by ``pixels`` uint8 ``[3, side, side]``: what the environment
            draws, by a bilinear filter.
        image_size: side of the picture; without ``pixels``, nothing.
        resize: side of the pictures among the observations; None leaves them as they are.
        **options: of the environment.

    Raises:
        ConfigError: no such id, its package is missing, it does not take the options, it fails to begin, or
            its spaces are not arrays, classes or a Dict of them.
        SpecError: it is of an older API, or hands over what its spaces do not hold; later, too.

    >>> gymnasium_env("CartPole-v1", pixels=True).rollout(3)["pixels"].shape
    torch.Size([3, 3, 64, 64])
    """
    for option, side in (("image_size", image_size), ("resize", resize)):
        if side is not None and side < 1:
            raise ConfigError(f"{option} is {side}: wanted 1 pixel or more; correct {option}")
    if env_id not in gymnasium.registry:
        register_ids()
    name = f"gym/{env_id}"
    with making(name):
        if pixels:
            if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame wants a screen even for an array
            game = _make_drawn(name, env_id, options)
        else:
            game = gymnasium.make(env_id, disable_env_checker=True, **options)
        shown_game = HandedOver(game, name, image_size if pixels else None, resize)
        env = GymWrapper(shown_game)
        env._seed_calls_reset = True  # what TorchRL would find out by a reset that may fail for other reasons
        env.set_seed(seed)  # which resets
        env.enter = shown_game.enter
    return env


class HandedOver(gymnasium.Wrapper):
    """An environment whose observations, rewards and ends are checked and copied as they are handed over.

    Args:
        env: as gymnasium makes it.
        name: for messages.
        side: of the ``pixels`` that stand for its observation; None keeps the observation.
        resize: side of pictures among the observations; None leaves them.

    Raises:
        ConfigError: spaces that no tensor can hold.
    """

    def __init__(self, env: Any, name: str, side: int | None = None, resize: int | None = None) -> None:
        super().__init__(env)
        self._name, self._side = name, side
        self._seed: int | None = None
        self._next: int | None = None  # the seed of the next reset
        self.action_space, self._write = taken(env.action_space)
        _check_spaces(name, actions=self.action_space)
        if side is not None:
            self.observation_space = Dict(pixels=Box(0, 255, (3, side, side), np.uint8))
            return
        _check_spaces(name, observations=env.observation_space)
        self.observation_space, self._read = shown(env.observation_space, name, resize)
        if isinstance(env.observation_space, Box) and turned(env.observation_space, self.observation_space):
            read, self.observation_space = self._read, Dict(pixels=self.observation_space)
            self._read = lambda value: {"pixels": read(value)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As gymnasium's."""
        if seed is not None:
            self._seed = seed
        else:
            seed, self._next = self._next, None
        try:
            handed = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            if words := _old_reset(self.env.unwrapped):
                raise self._older(words, "reset(*, seed=None, options=None)") from error
            raise self._unpacked(error) from error
        except ValueError as error:
            raise self._unpacked(error) from error
        if not (isinstance(handed, tuple) and len(handed) == 2 and isinstance(handed[1], Mapping | None)):
            found = f"a reset that gives {_count(handed)}"
            raise self._older(found, TWO)
        return self._show(handed[0]), handed[1] or {}

    def enter(self, episode: int) -> None:
        """The next reset begins this episode of the stream of its seed (:mod:`wmkit.envs.episodes`)."""
        self._next = episode_seed(self._seed, episode)

    def step(self, action: Any) -> Any:
        """As gymnasium's."""
        try:
            handed = self.env.step(self._write(action))
        except (TypeError, ValueError) as error:
            raise self._unpacked(error) from error
        if not (isinstance(handed, tuple) and len(handed) == 5):
            raise self._older(f"a step that gives {_count(handed)}", FIVE)
        seen, reward, terminated, truncated, info = handed
        return (
            self._show(seen),
            float(self._one("reward", reward, NUMBER)),
            bool(self._one("terminated", terminated, "true or false")),
            bool(self._one("truncated", truncated, "true or false")),
            info,
        )

    def _show(self, value: Any) -> Any:
        return self._read(value) if self._side is None else {"pixels": self._draw(self._side)}

    def _draw(self, side: int) -> np.ndarray:
        try:
            image = self.env.render()
        except NotImplementedError as error:
            raise _undrawn(self._name, "no render()") from error
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            found = f"an array of {array.dtype} {list(array.shape)}" if array.ndim else type(image).__name__
            raise _undrawn(self._name, f"render() gives {found}")
        return channels_first(fit_image(array, side))

    def _one(self, what: str, value: Any, wanted: str) -> Any:
        """A number or flag, however it comes."""
        if type(value) is (float if wanted == NUMBER else bool):
            return value
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "fiub" and (wanted == NUMBER or array.item() in (0, 1)):
            return array.item()
        found = (
            repr(value) if array.size < 9 and len(repr(value)) < 60 else f"an array of {list(array.shape)}"
        )
        raise SpecError(f"env {self._name!r} handed over {what} {found}: wanted {wanted}; correct its step")

    def _unpacked(self, error: Exception) -> Exception:
        """An error of gymnasium's own, about values that it cannot unpack, in words; others as they are."""
        text, frame = str(error), error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        inside = frame is not None and str(frame.tb_frame.f_globals.get("__name__")).startswith("gymnasium.")
        if not inside or "unpack" not in text:
            return error
        return self._older(f"what gymnasium cannot unpack ({text})", f"{FIVE} from step, {TWO} from reset")

    def _older(self, found: str, wanted: str) -> SpecError:
        return SpecError(
            f"env {self._name!r} has an API older than gymnasium's (gym before 0.26): found {found}, wanted "
            f"{wanted}; correct the environment as gymnasium's migration guide says"
        )


FIVE, TWO = "observation, reward, terminated, truncated and info", "observation and info"


def _make_drawn(name: str, env_id: str, options: dict[str, Any]) -> Any:
    """The environment, ready to draw."""
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **options)
    except TypeError as error:
        if "render_mode" in str(error) or "takes no arguments" in str(error):
            raise _undrawn(name, f"no render_mode among its options ({error})") from error
        raise


def _undrawn(name: str, found: str) -> ConfigError:
    return ConfigError(
        f"env {name!r} cannot be seen as pixels: found {found}, wanted render_mode='rgb_array' and "
        "uint8 [H, W, 3] from render(); write env.pixels=false for its own observations, or let it draw"
    )


def _old_reset(env: Any) -> str:
    """A reset that does not take what gymnasium gives it; empty of one that does."""
    try:
        signature = inspect.signature(env.reset)
        signature.bind(seed=0, options=None)
    except TypeError:
        return f"reset{signature}"
    except ValueError:  # written in C
        pass
    return ""


def _count(handed: Any) -> str:
    return f"{len(handed)} values" if isinstance(handed, tuple) else f"{type(handed).__name__} alone"


def _check_spaces(name: str, **spaces: Space) -> None:
    """Refuse what an environment shows or takes that no tensor can hold, or not under such a name."""
    for role, space in spaces.items():
        seen = role == "observations"
        wanted = "arrays, classes or a Dict of them" if seen else "an array or classes"
        pixels = ", or set env.pixels=true to see what it draws" * seen
        if any(isinstance(part, (Graph, OneOf, Sequence, Tuple)) for _, part in _walk(space)):
            raise ConfigError(
                f"env {name!r} does not fit: found {role} {space}, wanted {wanted}; register it "
                f"with a wrapper that has such{pixels}"
            )
        if taken := sorted({key for key, _ in _walk(space) if key in TAKEN}):
            raise ConfigError(
                f"env {name!r} does not fit: found {role} with the key {taken[0]!r}, wanted others "
                f"than {', '.join(TAKEN)}, which TorchRL uses itself; register it with a wrapper that "
                f"renames it{pixels}"
            )


def _walk(space: Space, key: str = "") -> Iterator[tuple[str, Space]]:
    """A space and all inside it, with their keys."""
    yield key, space
    if isinstance(space, Dict):
        for name, part in space.items():
            yield from _walk(part, name)
