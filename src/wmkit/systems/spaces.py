"""What a system sees and does: checked once, when it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.data import Categorical, Composite, OneHot, TensorSpec

from wmkit.codecs.encoder import IMAGE_SIZE, check_image
from wmkit.errors import SpecError

# Keys an environment carries beside its observations.
BOOKKEEPING = {
    "state",
    "belief",
    "previous_action",
    "is_init",
    "arrival_reward",
    "frame",
    "goal_mask",
    "success",
    "step_count",
    "intrinsic_reward",
    "jump_probability",
    "jump",
    "is_zoomed",
    "score",
    "zoomed",
}


@dataclass
class Spaces:
    """Shapes and labels a system works with.

    Attributes:
        shapes: shape of one observation for every key the encoder reads.
        images: image keys.
        vectors: vector keys.
        action_dim: width A of an action.
        optional: scalar labels beyond reward and flags, with their dtypes; filled with zeros where
            a batch does not carry them.
        zoomed: whether batches carry zoomed views.
    """

    shapes: dict[str, tuple[int, ...]]
    images: tuple[str, ...]
    vectors: tuple[str, ...]
    action_dim: int
    optional: dict[str, torch.dtype] = field(default_factory=dict)
    zoomed: bool = False

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
        index = (rand() * self.action_dim).long()
        batch = {
            "previous_action": F.one_hot(index, self.action_dim).float() * ~is_init,
            "reward": rand(1).round() * ~is_init,
            "is_init": is_init,
            "terminated": done & (rand(1) < 0.5),
            "done": done,
        }
        for key in self.images:
            batch[key] = (rand(*self.shapes[key]) * 255).to(torch.uint8)
        for key in self.vectors:
            batch.setdefault(key, rand(*self.shapes[key]))
        for key, dtype in self.optional.items():
            batch[key] = (rand(1) < 0.15) if dtype == torch.bool else rand(1).to(dtype)
        if self.zoomed:
            views: dict[str, Any] = {k: (rand(*self.shapes[k]) * 255).to(torch.uint8) for k in self.images}
            views |= {"reward": rand(1), "intrinsic_reward": rand(1)}
            batch["zoomed"] = TensorDict(views, shape)
            batch["jump_steps"] = 1 + (50 * rand(1)).floor()
        return TensorDict(batch, shape)


def read_spaces(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    images: str | Sequence[str],
    vectors: str | Sequence[str],
    system: str,
) -> Spaces:
    """Find a system's observations and actions in an environment's specs.

    Args:
        observation_spec: of the environment; leading batch dimensions are ignored.
        action_spec: one-hot or categorical.
        images: keys of the page, or ``"auto"`` for all of them in alphabetical order.
        vectors: likewise.
        system: for messages.

    Raises:
        SpecError: a key is missing or of the wrong rank or dtype, or the actions are not discrete.
    """
    lead = len(observation_spec.shape)
    leaves = {k: v for k, v in observation_spec.items() if isinstance(k, str) and k not in BOOKKEEPING}
    found = {k: tuple(v.shape[lead:]) for k, v in leaves.items() if not isinstance(v, Composite)}
    if images == "auto":
        images = sorted(k for k, shape in found.items() if len(shape) == 3)
    if vectors == "auto":
        vectors = sorted(k for k, shape in found.items() if len(shape) == 1)
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
        if len(found[key]) != 1:
            raise SpecError(
                f"vector {key!r} has shape {list(found[key])}: wanted one dimension; flatten it with "
                "torchrl.envs.FlattenObservation"
            )
    shapes = {key: found[key] for key in (*images, *vectors)}
    return Spaces(shapes, tuple(images), tuple(vectors), _action_dim(action_spec, system))


def _action_dim(spec: TensorSpec, system: str) -> int:
    if isinstance(spec, Composite):
        leaves = list(spec.values(True, True))
        if len(leaves) == 1:
            return _action_dim(leaves[0], system)
    if isinstance(spec, OneHot):
        return int(spec.space.n)
    found = f"{type(spec).__name__} of shape {list(spec.shape)}"
    if isinstance(spec, Categorical):
        found = f"Categorical with {spec.space.n} values"
    raise SpecError(
        f"system {system} cannot take this action space: found {found}, wanted OneHot; "
        "use discrete actions as one-hot (GymEnv(..., categorical_action_encoding=False))"
    )
