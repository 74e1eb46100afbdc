"""Which actions a system can choose: one choice or one vector of numbers between finite bounds."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence

import torch
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    NonTensor,
    OneHot,
    TensorSpec,
)

from wmkit.errors import SpecError
from wmkit.registry import available, full_name
from wmkit.systems.observations import WIDEST, path_of
from wmkit.systems.page_files import find_page, load_whole

WANTED = {
    "discrete": "OneHot",
    "continuous": "Bounded floats of shape [A], low < high and finite",
}


def read_actions(spec: TensorSpec, lead: int, actions: Sequence[str], system: str) -> tuple[str, int]:
    """Kind and width of an action.

    Args:
        spec: of the environment, with ``lead`` batch dimensions.
        lead: how many.
        actions: kinds that the system can choose, of ``"discrete"`` and ``"continuous"``.
        system: for messages.

    Raises:
        SpecError: the system cannot choose such actions.

    >>> read_actions(OneHot(4), 0, ["discrete"], "any")
    ('discrete', 4)
    """
    if isinstance(spec, Composite):
        keys = list(spec.keys(True, True))
        if keys == ["action"]:
            return read_actions(spec["action"], lead, actions, system)
        if len(keys) == 1:
            raise SpecError(
                f"system {system} acts by the key 'action': found {'/'.join(path_of(keys[0]))!r}, wanted "
                "'action'; rename it in the environment (in gymnasium, an action space that is no Dict)"
            )
    if parts := _parts(spec, lead):
        raise SpecError(
            f"system {system} cannot take an action of several parts: found {parts}, wanted one action; join "
            "them in the environment (classes to one OneHot, in gymnasium one Discrete, of their "
            "combinations, floats to one vector)"
        )
    shape, found = spec.shape[lead:], _describe(spec, lead)
    if "discrete" in actions and isinstance(spec, OneHot) and int(spec.space.n) <= WIDEST:
        return "discrete", int(spec.space.n)
    if "continuous" in actions and isinstance(spec, Bounded) and spec.dtype.is_floating_point:
        largest = torch.finfo(spec.dtype).max
        low, high = spec.space.low, spec.space.high
        if len(shape) == 1 and shape[0] and bool(((low < high) & (high - low < largest)).all()):
            return "continuous", int(shape[0])
    floats = not isinstance(spec, NonTensor) and spec.dtype.is_floating_point
    kind = "discrete" if isinstance(spec, OneHot) else "continuous" if floats else ""
    if kind and kind not in actions:
        hint = f"choose a system that takes {kind} actions ({', '.join(_takers(kind))})"
    elif kind == "continuous":
        hint = "give them one dimension and finite bounds in the environment"
        hint += " (gymnasium.wrappers.TransformAction)"
    elif kind == "discrete":
        hint = f"leave it {WIDEST} values or fewer in the environment"
    elif isinstance(spec, Categorical):
        hint = "use discrete actions as one-hot (GymEnv(..., categorical_action_encoding=False))"
    else:
        hint = "make them so in the environment (gymnasium.wrappers.TransformAction)"
    raise SpecError(
        f"system {system} cannot take this action space: found {found}, wanted "
        f"{' or '.join(WANTED[kind] for kind in actions)}; {hint}"
    )


def _parts(spec: TensorSpec, lead: int) -> str:
    """What an action consists of, where it is not one alone; else nothing."""
    if isinstance(spec, Composite):
        return f"keys {', '.join('/'.join(path_of(key)) for key in spec.keys(True, True))}"
    if isinstance(spec, NonTensor):
        return ""
    shape = spec.shape[lead:]
    if isinstance(spec, MultiOneHot | MultiCategorical):
        counts = [str(int(n)) for n in torch.as_tensor(spec.nvec).flatten()]
    elif isinstance(spec, OneHot):
        counts = [str(int(spec.space.n))] * shape[:-1].numel()
    elif isinstance(spec, Categorical):
        counts = [str(int(spec.space.n))] * shape.numel()
    elif not spec.dtype.is_floating_point and shape.numel() > 1:
        return f"{shape.numel()} whole numbers ({spec.dtype})"
    else:
        return ""
    if len(counts) == 1 and not isinstance(spec, MultiOneHot | MultiCategorical):
        return ""
    return f"{len(counts)} choices of {', '.join(counts[:8])}{', ...' * (len(counts) > 8)} values"


def _describe(spec: TensorSpec, lead: int) -> str:
    """An action that is not of several parts, in words."""
    if isinstance(spec, NonTensor):
        return "text or another object"
    if isinstance(spec, OneHot | Categorical):
        kind = "Binary" if isinstance(spec, Binary) else type(spec).__name__
        return f"one choice of {spec.space.n} values ({kind})"
    kind = "floats" if spec.dtype.is_floating_point else "whole numbers"
    found = f"{kind} of shape {list(spec.shape[lead:])}"
    if not spec.shape[lead:].numel():
        return f"{found}: none at all"
    if not isinstance(spec, Bounded):
        return f"{found} without bounds"
    low, high = spec.space.low, spec.space.high
    largest = torch.finfo(spec.dtype).max if spec.dtype.is_floating_point else torch.inf
    least = "-inf" if low.min() <= -largest else f"{low.min():g}"
    most = "inf" if high.max() >= largest else f"{high.max():g}"
    return f"{found} from {least} to {most}{', some with low = high' * bool((low >= high).any())}"


def _takers(kind: str) -> list[str]:
    """The systems whose page has an actor for actions of a kind."""
    pages = {name: load_whole(path) for name in available("system") if (path := find_page(name))}
    actors = {name: str(page["actor"]["_target_"]) for name, page in pages.items() if page.get("actor")}
    found = {name: actor if "." in actor else full_name("head", actor) for name, actor in actors.items()}
    return [name for name, actor in found.items() if kind in pkgutil.resolve_name(actor).actions]
