"""What an environment shows, leaf by leaf: which keys are read, as an image, as numbers or as classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torchrl.data import (
    Binary,
    Categorical,
    Composite,
    MultiCategorical,
    NonTensor,
    OneHot,
    TensorSpec,
)

from wmkit.codecs.frames import as_vector, check_image, looks_grey
from wmkit.data.layout import LOG
from wmkit.errors import SpecError

WIDEST = 65_536  # inputs of one key that holds classes, and values of one choice
# What a run itself puts beside an environment's observations; these names are no environment's.
TAKEN = {
    *("action", "index", "next", "done", "terminated", "truncated", "collector", "over", "over_terminated"),
    *("state", "belief", "carry", "previous_action", "recent_frames", "recent_steps", "arrival_reward"),
    *("jump_steps", "jump_return", "jump_resolved"),
}
# What an environment may show that no encoder reads, and in which form.
FLAG = "one flag, torch.bool of shape [1]"
MAPS = "what AffordanceTransform adds"
NEEDED = {  # a run reads them
    "reward": "one number",
    "success": FLAG,
    "is_init": FLAG,
    "achievements": "Crafter's 22 flags",
    "zoomed": MAPS,
}
SIDE = {
    **NEEDED,
    "is_first": FLAG,
    "is_last": FLAG,
    "is_terminal": FLAG,
    "step_count": "one whole number",
    "frame": "torch.uint8 of shape [3, 160, 256]",
    "goal_mask": "torch.bool of shape [1, 160, 256]",
    **dict.fromkeys(("intrinsic_reward", "score", "jump_probability", "jump", "is_zoomed"), MAPS),
}


def find_leaves(
    observation_spec: Composite, lead: int, lists: Mapping[str, str | Sequence[str]]
) -> dict[str, TensorSpec]:
    """What can be read, by its key; what cannot is refused, unless it is the library's own or left out.

    Args:
        observation_spec: of the environment.
        lead: its batch dimensions.
        lists: the page's ``images`` and ``vectors``.
    """
    specs = {key: spec for key, spec in observation_spec.items() if not key.startswith(LOG)}
    leaves = {
        key: spec
        for key, spec in specs.items()
        if not (key in TAKEN or key in SIDE or _odd(key) or isinstance(spec, Composite | NonTensor))
    }
    for key, spec in specs.items():
        listed = key != "reward" and any(keys != "auto" and key in keys for keys in lists.values())
        if key in leaves or (key in SIDE and _fits(key, spec, lead, specs) and not listed):
            continue
        parts = list(spec.values(True, True)) if isinstance(spec, Composite) else [spec]
        auto = {kind for kind in map(partial(_kind, lead), parts) if lists[kind] == "auto"}
        leave = [
            f"observations.{kind}=[{', '.join(sorted(k for k in leaves if _kind(lead, leaves[k]) == kind))}]"
            for kind in sorted(auto)
        ]
        must = listed or key in TAKEN or key in NEEDED or _odd(key)
        if not leave and not must:
            continue  # the lists leave it out
        do = "rename it in the environment (a gymnasium wrapper, or torchrl.envs.RenameTransform)"
        if key in TAKEN:
            what, wanted = "has a name that a run uses itself", "another one"
        elif _odd(key):
            what, wanted = "has a name that pages and files cannot hold", "one without / and ${"
        elif key in SIDE:
            what = "has a name with a meaning"
            wanted = "another one for what is read" if listed else f"{SIDE[key]}, or another name"
        else:
            what, wanted = "cannot be read", "an array or classes"
            do = "flatten it in the environment (gymnasium.wrappers.FlattenObservation)"
            if isinstance(spec, NonTensor):
                do = "make it classes or numbers in the environment"
        if leaves and not must:
            do += f", or leave it out by {' '.join(leave)}"
        raise SpecError(f"observation {key!r} {what}: found {_describe(spec, lead)}, wanted {wanted}; {do}")
    return leaves


def _odd(key: str) -> bool:
    """Whether files or pages would read a name as something else."""
    return "/" in key or "${" in key or key == "???"


def _kind(lead: int, spec: TensorSpec) -> str:
    return "images" if len(spec.shape) - lead == 3 else "vectors"


def _fits(key: str, spec: TensorSpec, lead: int, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether what stands under one of ``SIDE`` is what its name says."""
    if SIDE[key] == MAPS:
        maps = specs.get("zoomed")
        return isinstance(maps, Composite) and "affordance" in maps.keys()
    if isinstance(spec, Composite | NonTensor):
        return False
    shape, flags = spec.shape[lead:], spec.dtype == torch.bool or isinstance(spec, Binary)
    forms = {
        "reward": shape.numel() == 1 and spec.dtype.is_floating_point,
        "step_count": shape.numel() == 1 and not spec.dtype.is_floating_point,
        "achievements": shape.numel() == 22 and flags,
        "frame": shape == (3, 160, 256) and spec.dtype == torch.uint8,
        "goal_mask": shape == (1, 160, 256) and spec.dtype == torch.bool,
    }
    return forms.get(key, shape.numel() == 1 and flags)


def _describe(spec: TensorSpec, lead: int) -> str:
    """A spec in words, without its ``lead`` batch dimensions."""
    if isinstance(spec, Composite):
        return f"nested keys ({', '.join('/'.join(path_of(name)) for name in spec.keys(True, True))})"
    if isinstance(spec, NonTensor):
        return "text or another object"
    return f"{type(spec).__name__} of shape {list(spec.shape[lead:])}"


def path_of(key: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names of a key, nested or not."""
    return (key,) if isinstance(key, str) else key


def check_picture(key: str, shape: Sequence[int], spec: TensorSpec | None) -> None:
    """Raise :class:`SpecError` unless a key can be read as an image, ``[C, H, W]`` of bytes or 0 to 1."""
    check_image(key, shape)
    if spec is None or spec.dtype == torch.uint8:
        return
    space = spec.space
    if spec.dtype != torch.float32:
        found = f"has dtype {spec.dtype}"
    elif space.low.min() < 0 or space.high.max() > 1:
        low, high = space.low.min(), space.high.max()
        bounded = high - low < torch.finfo(spec.dtype).max
        found = f"holds floats from {low:g} to {high:g}" if bounded else "holds floats without bounds"
    else:
        return
    raise SpecError(
        f"image {key!r} {found}: wanted torch.uint8 (or torch.float32 in [0, 1]); state its bounds in the "
        "environment's space (gymnasium's are then scaled), convert it there (torchrl.envs.ToTensorImage), "
        f"or read it as a vector, {as_vector(key)}"
    )


def check_vector(key: str, shape: Sequence[int], spec: TensorSpec | None, named: bool) -> None:
    """Raise :class:`SpecError` where what nobody named a vector rather looks like something else."""
    if 0 in shape:
        raise SpecError(
            f"vector {key!r} is empty: found shape {list(shape)}, wanted a number at least; leave it out of "
            "the environment's space, or name the vectors to read in observations.vectors"
        )
    if named:
        return
    if len(shape) > 2:
        raise SpecError(
            f"vector {key!r} has shape {list(shape)}: wanted at most two dimensions; flatten it "
            "(torchrl.envs.FlattenObservation), or name the vectors to read, of any shape, in "
            f"observations.vectors=[{key}]"
        )
    is_bytes = spec is not None and spec.dtype == torch.uint8 and not isinstance(spec, Categorical | OneHot)
    if is_bytes and looks_grey(shape):
        raise SpecError(
            f"vector {key!r} looks like an image without channels: found shape {list(shape)} of "
            "torch.uint8, wanted [C, H, W], or a Categorical; unsqueeze it "
            f"(torchrl.envs.UnsqueezeTransform) or name the vectors to read in observations.vectors=[{key}]"
        )


def count_classes(
    key: str, spec: TensorSpec | None, shape: Sequence[int], few: int | Sequence[str] | None
) -> int | None:
    """How many classes each element of an observation is one of; None where it holds numbers.

    Whole numbers that count from 0 are classes where they have few values, or are named. A one-hot
    observation is a vector of numbers already.

    Args:
        key: of the observation.
        spec: its spec.
        shape: of one observation.
        few: up to how many values are few (None: any number), or the keys that hold classes.

    Raises:
        SpecError: more classes than can be inputs, or a named key that holds none.

    >>> from torchrl.data import Bounded
    >>> count_classes("squares", Bounded(0, 9, (3,), dtype=torch.int64), (3,), 255)
    10
    >>> count_classes("gold", Bounded(0, 10_000, (3,), dtype=torch.int64), (3,), 255)
    """
    named = isinstance(few, Sequence) and key in few
    count = None if spec is None else _count(spec)
    if count is None:
        if named:
            raise SpecError(
                f"vector {key!r} is named in observations.classes: found no whole numbers from 0 to a limit, "
                "wanted such; leave it out there, or state its bounds in the environment"
            )
        return None
    wide = math.prod(shape) * (1 if isinstance(spec, OneHot) else count)
    if not named and not isinstance(spec, OneHot | Categorical):  # the environment does not say classes
        many = count > few if isinstance(few, int) else few is not None
        if many or wide > WIDEST:
            return None
    if wide > WIDEST:
        raise SpecError(
            f"vector {key!r} holds classes: found {wide} of them in all, wanted at most {WIDEST}, as each is "
            "an input of the networks; show it as several choices (MultiDiscrete) or as numbers (Box) in the "
            "environment"
        )
    return None if isinstance(spec, OneHot) else count


def _count(spec: TensorSpec) -> int | None:
    """How many values whole numbers from 0 to a limit have; None of others."""
    if isinstance(spec, MultiCategorical):
        return int(torch.as_tensor(spec.nvec).max())
    if isinstance(spec, OneHot | Categorical):
        return int(spec.shape[-1] if isinstance(spec, OneHot) else spec.space.n)
    if spec.dtype.is_floating_point:
        return None
    if spec.dtype == torch.bool:
        return 2
    space = spec.space
    if space is None or not space.low.numel() or space.low.any():
        return None
    return int(space.high.max()) + 1
