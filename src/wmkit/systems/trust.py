"""What the configuration of a run folder may name: parts, and nothing else that executes.

A run folder may come from anywhere, and its ``config.yaml`` is text that becomes objects. Before anything
that it names is imported, the whole of it is held against one list: parts of wmkit, names of PyTorch and
TorchRL that pages use, parts that installed plug-ins registered and what their pages name. Environments whose
module would be imported, and resolvers that read what is outside of it, are refused as well. A page of the
user's own, and his overrides, are his: :func:`~wmkit.systems.compose` asks nothing.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wmkit.errors import ConfigError
from wmkit.registry import available, full_name
from wmkit.systems.page_files import find_pages, load

ROOMS = ("backbones", "codecs", "control", "dynamics", "heads", "nn", "objectives", "optim")
"""Rooms whose public classes are parts: they make networks and numbers, and read no file but tensors."""

KINDS = ("backbone", "codec", "controller", "dynamics", "head", "objective")
"""Kinds of registered parts that a page puts behind ``_target_``."""

NAMES = frozenset(
    (
        *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")),
        *("torchrl.modules.PercentileValueNorm", "torchrl.modules.PopArtValueNorm"),
        *(f"wmkit.affordance.{n}" for n in ("AffordanceTransform", "DenseGate", "JumpLabeller")),
        *("wmkit.affordance.PotentialGate", "wmkit.affordance.RecordGate"),
        *("wmkit.backbones.shared_start.same_layers", "wmkit.optim.adam", "wmkit.plug.as_keys"),
    )
)
"""Other names that pages use."""


MOST_BYTES, MOST_VALUES = 2**20, 100_000
_HYDRA = ("_target_", "_partial_")  # of what Hydra takes, what pages use
_READ = re.compile(r"\$\{\s*(?:oc\.select:)?(\.*[A-Za-z_][\w.\[\]]*)\s*(?:,[\w.+-]*)?\}")
_MODULE = re.compile(r"[^:/\\]+:[^:]*", re.DOTALL)  # gymnasium imports what stands before, whatever follows


def read_untrusted(text: str) -> Any:
    """A run's ``config.yaml`` as OmegaConf reads it; no anchor in it multiplies without end.

    Raises:
        ConfigError: it has no configuration's size.

    >>> read_untrusted("a: 1").a
    1
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(_large(f"{len(text):,} letters"))
    if _count(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
        raise ConfigError(_large("anchors that repeat each other"))
    return OmegaConf.create(text)


def check_references(config: DictConfig, what: str, given: Collection[str] = ()) -> None:
    """Refuse what reads more than keys of the configuration, before anything in it is followed.

    Raises:
        ConfigError: a resolver other than ``oc.select``, or references that multiply without end.

    >>> check_references(OmegaConf.create({"seed": "${oc.env:HOME}"}), "run 'x'")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: run 'x' reads more than its own keys: found '${oc.env:HOME}' at seed, wanted ...
    """
    written: Any = OmegaConf.to_container(config, resolve=False)
    if strange := [key for key in ("defaults", "hydra") if key in written]:
        raise ConfigError(
            f"{what} speaks to Hydra: found {strange[0]} in its config.yaml, wanted the configuration of a "
            "run; take it out"
        )
    for path, value in _walk(written, ""):
        if isinstance(value, str) and not _is_plain(value) and not _is_given(path, given):
            raise ConfigError(
                f"{what} reads more than its own keys: found {value!r} at {path}, wanted text or ${{KEY}}; "
                f"{_remedy(path, 'VALUE')}"
            )
    try:
        _check_size(written, what)
    except RecursionError as error:
        raise ConfigError(f"{what} cannot be read: {_large('references that go too deep')}") from error


def check_trust(config: DictConfig, what: str, given: Collection[str] = ()) -> None:
    """Refuse a configuration that names more than known parts.

    Args:
        config: the whole of a run's configuration.
        what: begins the sentence.
        given: keys that the user overrides now: what stands there is his.

    Raises:
        ConfigError: a ``_target_`` that is no part, another key of Hydra's own, or an environment whose
            module would be imported.

    >>> check_trust(OmegaConf.create({"actor": {"_target_": "os.system", "command": "ls"}}), "run 'x'")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: run 'x' names what is no part: found 'os.system' at actor._target_, wanted ...
    """
    _check_targets(OmegaConf.to_container(config, resolve=False), what, given)
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(
            f"{what} cannot be read: found {' '.join(str(error).split())}, wanted references to keys that "
            "are there; correct its config.yaml"
        ) from error
    _check_targets(resolved, what, given)
    for path, value in _walk(resolved.get("env"), "env"):
        if not isinstance(value, str) or _is_given(path, given):
            continue
        if (":" in value) if path == "env.name" else _MODULE.fullmatch(value):
            raise ConfigError(
                f"{what} would import a module: found {value!r} at {path}, wanted an environment that is "
                f"registered; {_remedy(path, value)}"
            )


def is_part(target: str) -> bool:
    """Whether a ``_target_`` is a known part; nothing but wmkit's rooms and plug-ins is imported to say so.

    >>> [is_part(name) for name in ("wmkit.nn.MLP", "wmkit.nn.torch.hub.load", "os.system")]
    [True, False, False]
    """
    if target in NAMES:
        return True
    match target.split("."):
        case ["wmkit", room, name] if room in ROOMS:
            module = importlib.import_module(f"wmkit.{room}")
            if name in module.__all__ and inspect.isclass(getattr(module, name)):
                return True
    if any(target == full_name(kind, name) for kind in KINDS for name in available(kind)):
        return True
    return target in {
        value
        for page in find_pages("**/*")
        for path, value in _walk(load(page), "")
        if path.rpartition(".")[2] == "_target_" and "." in str(value)
    }


def _check_targets(node: Any, what: str, given: Collection[str]) -> None:
    """Every key of plain containers that Hydra would act upon."""
    for path, value in _walk(node, ""):
        key = path.rpartition(".")[2]
        if not key.startswith("_") or _is_given(path, given):
            continue
        if key == "_partial_" and isinstance(value, bool):
            continue
        if key not in _HYDRA:
            raise ConfigError(
                f"{what} has {path}, which no page uses: wanted {' and '.join(_HYDRA)} alone; {_remedy(path)}"
            )
        if key == "_partial_":
            raise ConfigError(f"{what} has {value!r} at {path}: wanted true or false; correct it")
        if not isinstance(value, str) or not is_part(value):
            raise ConfigError(
                f"{what} names what is no part: found {value!r} at {path}, wanted one of wmkit's or of a "
                f"plug-in that is installed; {_remedy(path)}"
            )


def _is_plain(text: str) -> bool:
    """Whether a text refers to keys at most, also once it is joined with others and read again."""
    left = _READ.sub("", text)
    if left != text:
        return not {"$", "\\", "{", "}"} & set(left)
    return "${" not in text and not text.endswith("$")


def _check_size(page: Any, what: str) -> None:
    """Refuse references that multiply, before one of them is followed."""
    known = dict[str, int]()

    def size(node: Any, path: str) -> int:
        if isinstance(node, Mapping):
            return 1 + sum(size(value, f"{path}.{key}".lstrip(".")) for key, value in node.items())
        if isinstance(node, list):
            return 1 + sum(size(value, f"{path}[{i}]") for i, value in enumerate(node))
        if not isinstance(node, str):
            return 1
        return 1 + len(node) // 100 + sum(follow(read, path) for read in _READ.findall(node))

    def follow(read: str, path: str) -> int:
        up = len(read) - len(read.lstrip("."))
        base = _parts(path)[:-up] if up else []
        parts = [*base, *_parts(read.lstrip("."))]
        key = ".".join(parts)
        if key not in known:
            known[key], found = 1, page  # of a circle, OmegaConf says that it is one
            for part in parts:
                if isinstance(found, list):
                    index = int(part) if part.isdecimal() and len(part) < 10 else len(found)
                    found = found[index] if index < len(found) else None
                else:
                    found = found.get(part) if isinstance(found, Mapping) else None
            known[key] = min(size(found, key), MOST_VALUES + 1)
        return known[key]

    if size(page, "") > MOST_VALUES:
        raise ConfigError(f"{what} cannot be read: {_large('references that repeat each other')}")


def _count(node: Any, known: dict[int, int]) -> int:
    """Values under a node of YAML, those behind anchors as often as they are named."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_VALUES + 1  # of a node inside itself
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
    known[id(node)] = min(1 + sum(_count(part, known) for part in parts), MOST_VALUES + 1)
    return known[id(node)]


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every place in plain containers and what stands there, containers before their contents."""
    if isinstance(node, Mapping):
        inner = [(f"{path}.{key}".lstrip("."), value) for key, value in node.items()]
    elif isinstance(node, list):
        inner = [(f"{path}[{i}]", value) for i, value in enumerate(node)]
    else:
        inner = []
    for here, value in inner:
        yield here, value
        yield from _walk(value, here)


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[.\[\]]", path) if part]


def _is_given(path: str, given: Collection[str]) -> bool:
    return any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in given)


def _remedy(path: str, value: str = "") -> str:
    override = f", or resume with {path}={value} of your own" if value else ""
    return (
        f"install the package that brings it, or allow what you have read with --trust (trust=True){override}"
    )


def _large(found: str) -> str:
    return f"found {found}, wanted what `wmkit train` wrote; restore it"
