"""Shared by the adapters of other packages: missing extras, unknown names, ends, images of one size."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchrl.data import Binary, Composite

from wmkit.errors import ConfigError, WmkitError


@contextmanager
def needs(extra: str, what: str, hint: str = "") -> Iterator[None]:
    """Turn a failed import inside the ``with`` block into a sentence with the command that helps.

    Args:
        extra: of wmkit, which brings the package.
        what: the environments, for the message.
        hint: more to say about the command.

    Raises:
        ConfigError: an import failed.

    >>> with needs("atari", "Atari games"):
    ...     import a_package_that_is_not_there
    Traceback (most recent call last):
    wmkit.errors.ConfigError: Atari games cannot be played: found no module
    'a_package_that_is_not_there', wanted the extra 'atari'; pip install "wmkit[atari]"
    """
    try:
        yield
    except ImportError as error:
        found = f"no module {error.name!r}" if isinstance(error, ModuleNotFoundError) else str(error)
        raise ConfigError(
            f"{what} cannot be played: found {found}, wanted the extra {extra!r}; "
            f'pip install "wmkit[{extra}]"{hint}'
        ) from error


@contextmanager
def making(name: str, options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn what goes wrong inside the ``with`` block, where an environment is made, into a sentence.

    It keeps the error's type and text, and says in which line of whose code it was raised.

    Args:
        name: of the environment.
        options: that it was made with, for the message.

    Raises:
        ConfigError: anything but wmkit's own errors, which stay as they are.

    >>> with making("rooms", {"doors": "many"}):
    ...     int("many")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: env 'rooms' with options {'doors': 'many'} could not be made: found ...
    """
    try:
        yield
    except WmkitError:
        raise
    except Exception as error:
        what = f"env {name!r}" + (f" with options {dict(options)}" if options else "")
        text = " ".join(str(error).split()).rstrip(".")
        line = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ConfigError(
            f"{what} could not be made: found {found} ({Path(line.filename).name}, line {line.lineno}), "
            f"wanted an environment; {_remedy(name, error)}"
        ) from error


def _remedy(name: str, error: Exception) -> str:
    """What to do about an error, by its kind."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ImportError) or "DependencyNotInstalled" in kinds:
        module = getattr(error, "name", None)
        missing = f"module {module!r}" if module else "module it names"
        return f"install the package that has the {missing}, or put its folder on PYTHONPATH"
    if "NamespaceNotFound" in kinds:
        return (
            "check the id, install the package that registers it, or name its module too (env.name=module:Id)"
        )
    if "UnregisteredEnv" in kinds or "NameNotFound" in kinds:
        return "check the id, or name the module that registers it too (env.name=module:Id)"
    if isinstance(error, TypeError) and "argument" in str(error):
        family, _, one = name.partition("gym/")
        page = f", and that its page was chosen (env=gymnasium env.name={one})" * (not family)
        return f"check its options{page}"
    return "correct the environment or its options"


def unknown(kind: str, found: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a name that is not there, with the nearest ones that are.

    Args:
        kind: of thing, for the message.
        found: what the user wrote.
        known: what there is.
        where: to look for all of them, when nothing is near.

    >>> unknown("Atari game", "pongg", ["pong", "breakout"], "see the list").args[0]
    "Atari game 'pongg' is unknown: wanted one of 2 names; did you mean 'pong'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(found, names, 3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else where
    return ConfigError(f"{kind} {found!r} is unknown: wanted one of {len(names)} names; {hint}")


def ends_spec() -> Composite:
    """``done``, ``terminated`` and ``truncated``, bool ``[1]``."""
    return Composite({key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")})


def ends(terminated: bool = False, late: bool = False) -> dict[str, torch.Tensor]:
    """The three flags of a step; what terminates at the limit is terminated.

    >>> ends(terminated=True, late=True)
    {'done': tensor([True]), 'terminated': tensor([True]), 'truncated': tensor([False])}
    """
    return {
        "done": torch.tensor([terminated or late]),
        "terminated": torch.tensor([terminated]),
        "truncated": torch.tensor([late and not terminated]),
    }


def fit_image(image: np.ndarray, side: int) -> np.ndarray:
    """A square image by Pillow's bilinear filter, which averages over all pixels it leaves out.

    Args:
        image: uint8 ``[H, W, C]``, C of 1 or 3.
        side: of the result, in pixels.

    Returns:
        uint8 ``[side, side, C]``.

    >>> fit_image(np.full((210, 160, 3), 7, np.uint8), 64).shape
    (64, 64, 3)
    """
    if image.shape[:2] == (side, side):
        return image
    flat = image[..., 0] if image.shape[2] == 1 else image
    return np.asarray(Image.fromarray(flat).resize((side, side), Image.Resampling.BILINEAR)).reshape(
        side, side, image.shape[2]
    )


def fit_image_by_area(image: np.ndarray, side: int) -> np.ndarray:
    """A square image whose pixels are the means of what they cover, parts of pixels by their share.

    Args:
        image: uint8 ``[H, W, C]``.
        side: of the result, in pixels; at most H and W.

    Returns:
        uint8 ``[side, side, C]``.

    >>> fit_image_by_area(np.array([[[0], [9], [3]], [[0], [9], [3]], [[0], [9], [3]]], np.uint8), 2)[0, :, 0]
    array([3, 5], dtype=uint8)
    """
    height, width, channels = image.shape
    rows = _cover(height, side) @ image.reshape(height, -1).astype(np.float32)  # [side, W*C]
    square = _cover(width, side) @ rows.reshape(side, width, channels)
    return np.rint(square).astype(np.uint8)


@lru_cache
def _cover(pixels: int, side: int) -> np.ndarray:
    """``[side, pixels]`` float32: which share of each new pixel every old one fills."""
    edges = np.arange(side + 1) * pixels / side
    old = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (overlap.clip(0) * side / pixels).astype(np.float32)


def channels_first(image: np.ndarray) -> np.ndarray:
    """``[H, W, C]`` to a contiguous ``[C, H, W]``."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))
