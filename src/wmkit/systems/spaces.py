"""A system's observations and actions: checked once, when it is built."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
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

from wmkit.codecs.frames import IMAGE_SIZE, check_image
from wmkit.data.layout import LOG
from wmkit.errors import SpecError
from wmkit.plug import Key
from wmkit.registry import available, full_name
from wmkit.systems.page_files import find_page, load_whole

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


@dataclass
class Spaces:
    """Shapes and labels a system works with.

    Attributes:
        shapes: shape of one observation for every key the encoder reads.
        images: image keys.
        vectors: vector keys.
        action_dim: width A of an action.
        needs: batch keys that parts need beyond these, reward and flags (:class:`~wmkit.plug.Key`); nested
            ones of every record that has the whole group.
        actions: ``"discrete"``, one-hot, or ``"continuous"``, floats of the order of [-1, 1], unclipped.
        classes: of vector keys that hold classes, how many; they are read as one-hot.
        dtypes: of vector keys, as the environment shows them.
    """

    shapes: dict[str, tuple[int, ...]]
    images: tuple[str, ...]
    vectors: tuple[str, ...]
    action_dim: int
    needs: dict[Any, Key] = field(default_factory=dict)
    actions: str = "discrete"
    classes: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @property
    def observations(self) -> tuple[str, ...]:
        """Every key the encoder reads."""
        return (*self.images, *self.vectors)

    def example_batch(self, shape: tuple[int, int], seed: int) -> TensorDict:
        """A random valid batch in the sequence layout ``[B, L]``."""
        generator = torch.Generator().manual_seed(seed)

        def rand(*event: int) -> torch.Tensor:
            return torch.rand(*shape, *event, generator=generator)

        is_init = rand(1) < 0.05
        done = torch.cat([is_init[:, 1:], rand(1)[:, :1] < 0.05], 1)
        if self.actions == "continuous":
            action = torch.randn(*shape, self.action_dim, generator=generator)
        else:
            action = F.one_hot((rand() * self.action_dim).long(), self.action_dim).float()
        batch = {
            "previous_action": action * ~is_init,
            "reward": rand(1).round() * ~is_init,
            "is_init": is_init,
            "terminated": done & (rand(1) < 0.5),
            "done": done,
        }
        for key in self.images:
            batch[key] = (rand(*self.shapes[key]) * 255).to(torch.uint8)
        for key in self.vectors:
            value = rand(*self.shapes[key])
            if key in self.classes:
                value = (value * self.classes[key]).to(self.dtypes.get(key, torch.int64))
            batch.setdefault(key, value)
        plain = {key: need for key, need in self.needs.items() if isinstance(key, str)}
        for key, need in plain.items():
            batch[key] = (rand(*need.shape) < 0.15) if need.dtype == torch.bool else rand(*need.shape)
        whole = TensorDict(batch, shape)
        for key, need in self.needs.items():
            if key not in plain:
                value = rand(*need.shape)
                whole[key] = (value * 255).to(torch.uint8) if need.dtype == torch.uint8 else value
        for key, need in plain.items():
            if need.default:  # a count, not a share
                whole[key] = need.default + (50 * rand(*need.shape)).floor()
        return whole


def read_spaces(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    images: str | Sequence[str],
    vectors: str | Sequence[str],
    system: str,
    actions: Sequence[str] = ("discrete",),
) -> Spaces:
    """Find a system's observations and actions in an environment's specs.

    Args:
        observation_spec: of the environment; leading batch dimensions are ignored.
        action_spec: one-hot, or floats of shape ``[A]`` between finite bounds.
        images: keys of the page, or ``"auto"`` for all of three dimensions in alphabetical order.
        vectors: keys of the page, or ``"auto"`` for all others in alphabetical order.
        system: for messages.
        actions: kinds that the system can choose, of ``"discrete"`` and ``"continuous"``.

    Raises:
        SpecError: a key is missing or of the wrong rank or dtype, or the system cannot choose such actions.
    """
    lead = len(observation_spec.shape)
    leaves = _find_leaves(observation_spec, lead, {"images": images, "vectors": vectors})
    found = {key: tuple(spec.shape[lead:]) for key, spec in leaves.items()}
    if images == "auto":
        images = sorted(k for k, shape in found.items() if len(shape) == 3)
    if vectors == "auto":
        vectors = sorted(k for k, shape in found.items() if len(shape) != 3)
    if not images and not vectors:
        raise SpecError(
            f"system {system} has no observation to read: found "
            f"{', '.join(sorted(observation_spec.keys())) or 'no key at all'}, wanted an image or a vector; "
            "show one in the environment, or name one in observations.images or observations.vectors"
        )
    found.setdefault("reward", (1,))  # every sequence carries it
    if "affordance" in images:  # AffordanceTransform adds it
        found.setdefault("affordance", (1, IMAGE_SIZE, IMAGE_SIZE))
    for key in (*images, *vectors):
        if key not in found:
            raise SpecError(
                f"system {system} reads {key!r}, which the environment does not show: found "
                f"{', '.join(sorted(found))}, wanted {', '.join((*images, *vectors))}; rename the key in "
                "the environment or set observations.images and observations.vectors"
            )
    for key in images:
        check_image(key, found[key])
        dtype = leaves[key].dtype if key in leaves else torch.uint8
        if dtype not in (torch.uint8, torch.float32):
            raise SpecError(
                f"image {key!r} has dtype {dtype}: wanted torch.uint8 (or torch.float32 in [0, 1]); "
                "convert it in the environment"
            )
    for key in vectors:
        if len(found[key]) > 2:
            raise SpecError(
                f"vector {key!r} has shape {list(found[key])}: wanted at most two dimensions; flatten it "
                "(torchrl.envs.FlattenObservation) or name the vectors to read in observations.vectors"
            )
        is_bytes = key in leaves and leaves[key].dtype == torch.uint8
        if len(found[key]) == 2 and is_bytes and not isinstance(leaves[key], Categorical | OneHot):
            raise SpecError(
                f"vector {key!r} looks like an image without channels: found shape {list(found[key])} of "
                "torch.uint8, wanted [C, H, W], or a Categorical; unsqueeze it "
                "(torchrl.envs.UnsqueezeTransform) or name the vectors to read in observations.vectors"
            )
    classes = {key: count for key in vectors if (count := _classes(key, leaves.get(key)))}
    shapes = {key: found[key] for key in (*images, *vectors)}
    kind, action_dim = _read_actions(action_spec, lead, actions, system)
    return Spaces(
        shapes,
        tuple(images),
        tuple(vectors),
        action_dim,
        actions=kind,
        classes=classes,
        dtypes={key: leaves[key].dtype for key in vectors if key in leaves},
    )


def _find_leaves(
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
        return f"nested keys ({', '.join('/'.join(_path(name)) for name in spec.keys(True, True))})"
    if isinstance(spec, NonTensor):
        return "text or another object"
    return f"{type(spec).__name__} of shape {list(spec.shape[lead:])}"


def _path(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _classes(key: str, spec: TensorSpec | None) -> int | None:
    """How many classes each element of an observation is one of; None where it holds numbers.

    A one-hot observation is a vector of numbers already.
    """
    if spec is None or spec.dtype.is_floating_point or isinstance(spec, OneHot):
        return None
    counts: set[int] = set()
    if isinstance(spec, MultiCategorical):
        counts = set(spec.nvec.flatten().tolist())
    elif isinstance(spec, Categorical):
        counts = {int(spec.space.n)}
    elif isinstance(spec, Bounded) and not spec.space.low.any():
        counts = set((spec.space.high + 1).flatten().tolist())
    if len(counts) == 1 and (count := counts.pop()) > 0:
        return count
    found = f"{type(spec).__name__} of {spec.dtype}" + (f" with {sorted(counts)} classes" if counts else "")
    raise SpecError(
        f"vector {key!r} holds integers that cannot be read as classes: found {found}, wanted Categorical "
        "with one number of classes; split it into several keys, read it as numbers "
        f"(torchrl.envs.DTypeCastTransform), or let its name start with {LOG!r} if it is none of the agent's"
    )


def _read_actions(spec: TensorSpec, lead: int, actions: Sequence[str], system: str) -> tuple[str, int]:
    """Kind and width of an action, after ``lead`` batch dimensions."""
    if isinstance(spec, Composite):
        keys = list(spec.keys(True, True))
        if keys == ["action"]:
            return _read_actions(spec["action"], lead, actions, system)
        if len(keys) == 1:
            raise SpecError(
                f"system {system} acts by the key 'action': found {'/'.join(_path(keys[0]))!r}, wanted "
                "'action'; rename it in the environment (in gymnasium, an action space that is no Dict)"
            )
    if isinstance(spec, Composite | MultiOneHot | MultiCategorical):
        if isinstance(spec, Composite):
            found = f"keys {', '.join('/'.join(_path(key)) for key in spec.keys(True, True))}"
        else:
            found = f"{type(spec).__name__} of {torch.as_tensor(spec.nvec).tolist()} values"
        raise SpecError(
            f"system {system} cannot take an action of several parts: found {found}, wanted one action; join "
            "them in the environment (classes to one OneHot of their combinations, floats to one vector)"
        )
    if "discrete" in actions and isinstance(spec, OneHot):
        return "discrete", int(spec.space.n)
    found = f"{type(spec).__name__} of shape {list(spec.shape)}"
    if "continuous" in actions and isinstance(spec, Bounded) and spec.dtype.is_floating_point:
        shape, largest = spec.shape[lead:], torch.finfo(spec.dtype).max
        low, high = spec.space.low, spec.space.high
        if len(shape) == 1 and bool(((-largest < low) & (low < high) & (high < largest)).all()):
            return "continuous", int(shape[0])
        found = f"{found} from {low.min():g} to {high.max():g}"
    if isinstance(spec, Categorical):
        found = f"Categorical with {spec.space.n} values"
    wanted = {"discrete": "OneHot", "continuous": "Bounded floats of shape [A], low < high and finite"}
    kind = "discrete" if isinstance(spec, OneHot) else "continuous" if spec.dtype.is_floating_point else ""
    if kind and kind not in actions:
        hint = f"choose a system that takes {kind} actions ({', '.join(_takers(kind))})"
    else:
        hints = {
            "discrete": "use discrete actions as one-hot (GymEnv(..., categorical_action_encoding=False))",
            "continuous": "flatten and bound continuous ones in the environment",
        }
        hint = ", ".join(hints[kind] for kind in actions)
    raise SpecError(
        f"system {system} cannot take this action space: found {found}, wanted "
        f"{' or '.join(wanted[kind] for kind in actions)}; {hint}"
    )


def _takers(kind: str) -> list[str]:
    """The systems whose page has an actor for actions of a kind."""
    pages = {name: load_whole(path) for name in available("system") if (path := find_page(name))}
    actors = {name: str(page["actor"]["_target_"]) for name, page in pages.items() if "actor" in page}
    found = {name: actor if "." in actor else full_name("head", actor) for name, actor in actors.items()}
    return [name for name, actor in found.items() if kind in pkgutil.resolve_name(actor).actions]
