"""Actions in words that Minecraft understands: pure translation, nothing of MineDojo is needed.

    one of 12  ──Keyboard──▶  keys held for one step  ──to_dict──▶    MineDojo's dictionary of keys
                                                      ──to_vector──▶  MineDojo's eight numbers

Twelve actions, sticky jump and clamped pitch are LS-Imagine's, from its released code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from wmkit.arguments import check_range
from wmkit.envs.vizdoom.simulator import ACTIONS, TURN
from wmkit.errors import ConfigError, SpecError

KEYS = ("attack", "back", "drop", "forward", "jump", "left", "right", "sneak", "sprint", "use")
VECTOR = (3, 3, 4, 25, 25, 8, 244, 36)
"""Choices of MineDojo's eight numbers: forward or back; left or right; jump, sneak or sprint; pitch and yaw
from -180 in steps of 15 degrees; nothing, use, drop, attack, craft, equip, place or destroy; what to craft;
which slot."""

Keys = dict[str, Any]
"""Pressed keys (1), and ``camera``, degrees by which pitch (down) and yaw (right) change."""

_PRESSED: dict[str, Keys] = {
    "attack": {"attack": 1},
    "look up": {"camera": [-TURN, 0]},
    "look down": {"camera": [TURN, 0]},
    "turn left": {"camera": [0, -TURN]},
    "turn right": {"camera": [0, TURN]},
    "jump": {"jump": 1, "forward": 1},
    **{key: {key: 1} for key in ("forward", "back", "left", "right", "use")},
}
_MOVES = (("forward", "back"), ("left", "right"), ("jump", "sneak", "sprint"))
_DOES = {"use": 1, "drop": 2, "attack": 3}


class Keyboard:
    """The 12 actions as keys, with what is held on and how far the head is bent.

    Args:
        sticky_jump: steps for which a jump holds jump and forward; 1 is not sticky.
        pitch_limit: degrees up and down beyond which the camera does not go.

    >>> keyboard = Keyboard(sticky_jump=2, pitch_limit=10)
    >>> [keyboard.press(action) for action in (10, 1, 3, 3)]
    [{'jump': 1, 'forward': 1}, {'attack': 1, 'jump': 1, 'forward': 1}, {'camera': [10, 0]}, {}]
    """

    def __init__(self, sticky_jump: int = 10, pitch_limit: float = 70) -> None:
        check_range("sticky_jump", sticky_jump, 1)
        check_range("pitch_limit", pitch_limit, 0)
        self.sticky_jump, self.pitch_limit = sticky_jump, pitch_limit
        self.release()

    def release(self) -> None:
        """At the start of an episode: nothing held, looking straight ahead."""
        self.pitch, self._jumping = 0.0, 0

    def press(self, action: int) -> Keys:
        """Keys of one step.

        Raises:
            SpecError: there is no such action.
        """
        if not 0 <= action < len(ACTIONS):
            raise SpecError(f"action {action} is out of range: wanted 0 to {len(ACTIONS) - 1}; correct it")
        keys = copy.deepcopy(_PRESSED.get(ACTIONS[action], {}))
        if "jump" in keys:
            self._jumping = self.sticky_jump
        if self._jumping:
            self._jumping -= 1
            keys |= {"jump": 1, "forward": 1}
        if "camera" in keys:
            if abs(self.pitch + keys["camera"][0]) > self.pitch_limit:
                keys["camera"][0] = 0
            self.pitch += keys["camera"][0]
            if keys["camera"] == [0, 0]:
                del keys["camera"]
        return keys


def to_dict(keys: Keys, nothing: Mapping[str, Any]) -> dict[str, Any]:
    """MineDojo's dictionary for a keyboard and a mouse.

    Args:
        keys: pressed ones.
        nothing: the dictionary in which none is; its other entries stay.

    >>> to_dict({"forward": 1}, {"forward": 0, "back": 0, "craft": "none"})
    {'forward': 1, 'back': 0, 'craft': 'none'}
    """
    return {**nothing, **keys}


def to_vector(keys: Keys, interval: float = 15) -> list[int]:
    """The eight numbers of ``minedojo.make``; angles are rounded to its steps.

    Of keys that exclude each other there, the first counts: forward before back, jump before sneak; attack
    before use before drop.

    Args:
        keys: pressed ones.
        interval: degrees between two angles (``cam_interval``).

    >>> to_vector({"jump": 1, "forward": 1, "camera": [-15, 30]})
    [1, 0, 1, 11, 14, 0, 0, 0]
    """
    middle = -(-360 // interval) // 2
    moves = [next((i for i, key in enumerate(row, 1) if keys.get(key)), 0) for row in _MOVES]
    turns = [int(middle + round(angle / interval)) for angle in keys.get("camera", (0, 0))]
    does = next((_DOES[key] for key in ("attack", "use", "drop") if keys.get(key)), 0)
    return [*moves, *turns, does, 0, 0]


def check_vector(vector: Sequence[int]) -> list[int]:
    """Eight numbers, each a choice of :data:`VECTOR`.

    Raises:
        SpecError: they are not.

    >>> check_vector([1, 0, 0, 12, 12, 3, 0, 36])
    Traceback (most recent call last):
    wmkit.errors.SpecError: action [1, 0, 0, 12, 12, 3, 0, 36] is out of range: wanted 8 numbers below ...
    """
    found = [int(value) for value in vector]
    if len(found) != len(VECTOR) or any(not 0 <= found[i] < most for i, most in enumerate(VECTOR)):
        raise SpecError(f"action {found} is out of range: wanted 8 numbers below {list(VECTOR)}; correct it")
    return found


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """One of some words.

    Raises:
        ConfigError: another one.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}: wanted one of {', '.join(choices)}; correct {name}")
