"""A system's observations and actions: checked once, when it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.data import Composite, TensorSpec

from wmkit.codecs.frames import IMAGE_SIZE
from wmkit.errors import SpecError
from wmkit.plug import Key
from wmkit.systems.actions import read_actions
from wmkit.systems.observations import check_picture, check_vector, count_classes, find_leaves


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

    def random_actions(self, *lead: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions ``[*lead, A]`` float: one-hot, or standard normals."""
        if self.actions == "continuous":
            return torch.randn(*lead, self.action_dim, generator=generator)
        drawn = torch.rand(*lead, generator=generator)
        return F.one_hot((drawn * self.action_dim).long(), self.action_dim).float()

    def example_batch(self, shape: tuple[int, int], seed: int) -> TensorDict:
        """A random valid batch in the sequence layout ``[B, L]``."""
        generator = torch.Generator().manual_seed(seed)

        def rand(*event: int) -> torch.Tensor:
            return torch.rand(*shape, *event, generator=generator)

        is_init = rand(1) < 0.05
        done = torch.cat([is_init[:, 1:], rand(1)[:, :1] < 0.05], 1)
        action = self.random_actions(*shape, generator=generator)
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
    classes: int | Sequence[str] | None = None,
    actions: Sequence[str] = ("discrete",),
) -> Spaces:
    """Find a system's observations and actions in an environment's specs.

    Args:
        observation_spec: of the environment; leading batch dimensions are ignored.
        action_spec: one-hot, or floats of shape ``[A]`` between finite bounds.
        images: keys of the page, or ``"auto"`` for all of three dimensions in alphabetical order.
        vectors: keys of the page, or ``"auto"`` for all others in alphabetical order.
        system: for messages.
        classes: up to how many values whole numbers from 0 are classes and not numbers (None: any number of
            them), or the keys of those that are.
        actions: kinds that the system can choose, of ``"discrete"`` and ``"continuous"``.

    Raises:
        SpecError: a key is missing or of the wrong rank or dtype, or the system cannot choose such actions.
    """
    lead = len(observation_spec.shape)
    leaves = find_leaves(observation_spec, lead, {"images": images, "vectors": vectors})
    found = {key: tuple(spec.shape[lead:]) for key, spec in leaves.items()}
    named = () if vectors == "auto" else tuple(vectors)
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
    if isinstance(classes, Sequence) and (unknown := sorted({*classes} - {*vectors})):
        raise SpecError(
            f"observations.classes names {', '.join(unknown)}: found {', '.join(vectors) or 'no vector'} as "
            "vectors, wanted some of these; correct observations.classes"
        )
    for key in images:
        check_picture(key, found[key], leaves.get(key))
    for key in vectors:
        check_vector(key, found[key], leaves.get(key), key in named)
    counts = {key: count_classes(key, leaves.get(key), found[key], classes) for key in vectors}
    shapes = {key: found[key] for key in (*images, *vectors)}
    kind, action_dim = read_actions(action_spec, lead, actions, system)
    return Spaces(
        shapes,
        tuple(images),
        tuple(vectors),
        action_dim,
        actions=kind,
        classes={key: count for key, count in counts.items() if count},
        dtypes={key: leaves[key].dtype for key in vectors if key in leaves},
    )
