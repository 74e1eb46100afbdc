"""Where on its page a part stands that objects to something.

A part speaks of its own arguments: "horizon is 0". What makes it from a page knows the path and puts it in
front: "controller.horizon is 0". So a part can be used without a page, and a page's reader finds the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from wmkit.errors import ConfigError, WmkitError

_REFUSALS: tuple[type[Exception], ...] = (TypeError, ValueError, ArithmeticError, RuntimeError)
_MADE_ONCE = (torch.nn.Module, torch.optim.Optimizer)
_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+|\[\d+\])*")
_FULL_KEY = re.compile(r"^full_key: (\S+)$", re.MULTILINE)


@contextmanager
def made(what: str, *also: type[Exception], origin: Callable[[str], str] = str) -> Iterator[None]:
    """Turn errors of a constructor into a ConfigError about ``what``.

    A part speaks of its own arguments. Where ``what`` is the path of a part on a page, a ConfigError gets it
    in front (once: of nested ones the innermost counts). Other errors of wmkit's stay as they are.

    Args:
        what: begins the sentence.
        *also: exceptions that count too, beside those of wrong types and values.
        origin: from a path to the key that its value comes from, where another's is read.

    >>> with made("critic"):
    ...     torch.nn.Linear(2, -1)
    Traceback (most recent call last):
    wmkit.errors.ConfigError: critic cannot be made: found RuntimeError: Trying to create ...
    >>> with made("controller"):
    ...     raise ConfigError("horizon is 0: wanted 1 or more; correct horizon")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: controller.horizon is 0: wanted 1 or more; correct controller.horizon
    """
    try:
        yield
    except WmkitError as error:
        raise _placed(error, what, origin) from error.__cause__
    except _REFUSALS + also as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, WmkitError):
            cause = cause.__cause__
        inner = _FULL_KEY.findall(str(error))  # hydra's: the part that it was about to make
        if isinstance(cause, WmkitError):
            raise _placed(cause, inner[-1] if inner else what, origin) from None
        text = " ".join(str(cause).split())
        raise ConfigError(
            f"{what} cannot be made: found {type(cause).__name__}: {text}; wanted values that its "
            "constructor takes; correct them"
        ) from error


@contextmanager
def placing(path: str, origin: Callable[[str], str] = str) -> Iterator[None]:
    """Put a part's place on its page in front of its complaint: of all that :func:`made` does, this alone.

    >>> with placing("env"):
    ...     raise ConfigError("options.noops is -1: wanted 0 or more; correct options.noops")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: env.options.noops is -1: wanted 0 or more; correct env.options.noops
    """
    try:
        yield
    except ConfigError as error:
        raise _placed(error, path, origin) from error.__cause__


def placed(part: Any, path: str, origin: Callable[[str], str] = str) -> Any:
    """A part of a page, or a mapping or list of them, whose later complaints say where on the page it stands.

    Modules and optimisers that are made later (in a :class:`functools.partial`) are made under :func:`made`.
    What is called again and again, such as an activation or a prediction, becomes a plain partial.

    >>> later = placed({"style": partial(torch.nn.Linear, 2)}, "actor")
    >>> later["style"](out_features=-1)
    Traceback (most recent call last):
    wmkit.errors.ConfigError: actor.style cannot be made: found RuntimeError: Trying to create ...
    """
    if isinstance(part, dict):
        return {key: placed(value, f"{path}.{key}", origin) for key, value in part.items()}
    if isinstance(part, list):
        return [placed(value, f"{path}[{i}]", origin) for i, value in enumerate(part)]
    if not isinstance(part, partial):
        held = {} if isinstance(part, torch.nn.Module) else getattr(part, "__dict__", {})
        for key, value in list(held.items()):  # a choice of parts
            if isinstance(value, partial):
                setattr(part, key, placed(value, f"{path}.{key}", origin))
        return part
    path = origin(path)
    keywords = placed(part.keywords, path, origin)
    if not (isinstance(part.func, type) and issubclass(part.func, _MADE_ONCE)):
        return partial(part.func, *part.args, **keywords)
    later = _Later(part.func, *part.args, **keywords)
    later.path, later.origin = path, origin
    return later


class _Later(partial):
    """A part that is made later and knows where on the page it stands."""

    path: str
    origin: Callable[[str], str]

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        with made(self.path, origin=self.origin):
            return super().__call__(*args, **keywords)


def _placed(error: WmkitError, path: str, origin: Callable[[str], str]) -> WmkitError:
    """A part's sentence with its place in front; one that speaks of the page already, as it is."""
    text = str(error)
    if not isinstance(error, ConfigError) or error.path or not _PATH.fullmatch(path):
        return error
    named = re.match(r"([A-Za-z_][\w.\[\]]*) is (?=.*?: wanted)", text)
    if text.startswith(path) or (named and named[1].partition(".")[0] in path.split(".")):
        found = ConfigError(text)
    elif named:
        where = f"{path}.{named[1]}"
        source = origin(where)
        said, wanted, rest = text[named.end(1) :].partition(": wanted")
        read = "" if source == where else f", read from {source}"
        rest = re.sub(rf"\b(correct|set) {re.escape(named[1])}\b", rf"\1 {source}", rest)
        found = ConfigError(f"{where}{said}{read}{wanted}{rest}")
    else:
        found = ConfigError(f"{path}: {text}")
    found.path = path
    return found
