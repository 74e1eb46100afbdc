"""AffordanceTransform: from the simulator's frame to everything LS-Imagine adds to a record.

LS-Imagine, arXiv:2410.03618, sections 3.1 to 3.3. The computation is in
:mod:`wmkit.affordance.labels.records`; here are keys, specs and the state of live environments.

    reads    frame uint8 [3, H, W], or goal_mask bool [1, H, W], or both: what the parts look at
             reward, terminated, is_init             each [1]; zeros where a record has none
    writes   affordance uint8 [1, 64, 64]            the map, 0..255
             intrinsic_reward float32 [1]            gated and weighted scores
             score float32 [1]                       un-gated; decides when a pending jump is reached
             jump_probability float32 [1]            P_jump
             jump, is_zoomed bool [1]                labels
             zoomed
               pixels uint8 [3, 64, 64]              the view after the jump
               affordance uint8 [1, 64, 64]          its map
               reward float32 [1]                    environment reward of this record
               intrinsic_reward float32 [1]          what arriving at the view pays
               score float32 [1]                     what a later record's score must beat

Everything below ``zoomed`` is zero where ``is_zoomed`` is false. All keys can be renamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, TensorSpec, Unbounded
from torchrl.envs import Transform

from wmkit.affordance.labels.gates import Gate, RecordGate
from wmkit.affordance.labels.jumps import JumpLabeller
from wmkit.affordance.labels.records import AffordanceModel, Mapper, Memory, RecordLabels, Records, blank
from wmkit.affordance.labels.video_score import ClipReward
from wmkit.errors import SpecError
from wmkit.plug import as_keys

SIDE = ("reward", "terminated", "is_init")  # what is read beside images
CHANNELS: dict[Any, int] = {"affordance": 1, ("zoomed", "pixels"): 3, ("zoomed", "affordance"): 1}
FLAGS = ("jump", "is_zoomed")
KEYS: tuple[Any, ...] = (
    *("affordance", "intrinsic_reward", "score", "jump_probability", "jump", "is_zoomed"),
    *(("zoomed", key) for key in ("pixels", "affordance", "reward", "intrinsic_reward", "score")),
)


class AffordanceMap(Transform):
    """Add the affordance map to every record: all that an agent needs to act.

    Args:
        model: makes the maps; see :class:`~wmkit.affordance.AffordanceModel`. It is shared, not copied: its
            weights stay out of ``state_dict`` and ``.to()``.
        text: features of the prompt ``[D]`` or ``[1, D]``, for models that need them.
        size: height and width of the map.
        in_keys: the images, uint8 or bool ``[*B, C, H, W]``; the model's ``reads`` if not given.
        out_keys: the map, uint8 ``[*B, 1, h, w]``.
        del_keys: drop the images that were read; the simulator's frames are large.

    Raises:
        SpecError: the images are not there, or not ``[C, H, W]``.

    >>> from tensordict import TensorDict
    >>> from wmkit.affordance.mask import MaskAffordance
    >>> mask = torch.zeros(2, 1, 160, 256, dtype=torch.bool)
    >>> AffordanceMap(MaskAffordance())(TensorDict({"goal_mask": mask}, [2]))["affordance"].shape
    torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        model: AffordanceModel,
        text: Tensor | None = None,
        *,
        size: tuple[int, int] = (64, 64),
        in_keys: Iterable[Any] | None = None,
        out_keys: Iterable[Any] = ("affordance",),
        del_keys: bool = False,
    ) -> None:
        mapper = Mapper(model, text, size=size)
        super().__init__(
            in_keys=as_keys([mapper.reads] if in_keys is None else in_keys, 1, "in_keys"),
            out_keys=as_keys(out_keys, 1, "out_keys"),
        )
        self.mapper, self.del_keys = mapper, del_keys

    def forward(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        """Records ``[*B]``, alive or from replay."""
        (key,), (out_key,) = self.in_keys, self.out_keys
        batch = next_tensordict.batch_size
        images = _image(next_tensordict, key)
        small = self.mapper.small(self.mapper(images.flatten(0, len(batch) - 1) if batch else images[None]))
        next_tensordict.set(out_key, small.view(*batch, *small.shape[1:]))
        return next_tensordict.exclude(key) if self.del_keys else next_tensordict

    _call = forward

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self(tensordict_reset)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Declare the map; drop the images with ``del_keys``."""
        return _declare(observation_spec, self, self.in_keys, {"affordance": self.out_keys[0]})


class AffordanceTransform(Transform):
    """Add the affordance map, the intrinsic reward, jump labels and the zoomed view to every record.

    Append it to an environment that emits ``frame`` (or ``goal_mask``), single or batched. Outside a
    ``ParallelEnv``, one call of the model serves all environments. Partial resets and partial steps
    touch only their own streams. How long jumps take is known only later: see
    :class:`~wmkit.data.JumpResolver`.

    Append it to a replay buffer, or call it, to label stored frames again: the last batch dimension is
    time, episodes are told apart by ``is_init``, memories start empty at the beginning of each sequence,
    and thresholds are those of the live environments as they stand; where there are none yet, each
    sequence runs its own.

    Args:
        model: makes the maps; see :class:`~wmkit.affordance.AffordanceModel`. It is shared, not copied: its
            weights stay out of ``state_dict`` and ``.to()``.
        text: features of the prompt ``[D]`` or ``[1, D]``, for models that need them.
        labeller: the affordance score, thresholds and zooms; holds the running statistics.
        gate: when scores are paid: ``RecordGate()`` (released), ``DenseGate()`` (paper), ``PotentialGate()``.
        video: the video score. Without it every video term is left out: of the reward, of ``score`` and of
            the zoomed view's.
        size: height and width of ``affordance`` and of the zoomed pixels.
        in_keys: the images that model, labeller and video score look at, in the order of their names
            (``frame``, ``goal_mask``); after them, if given, reward, terminated and is_init.
        out_keys: names for all of ``AffordanceTransform.KEYS``, in that order.
        del_keys: drop the images that were read; the simulator's frames are large.

    Raises:
        ConfigError: another number of keys.
        SpecError: the images are not there, or not ``[C, H, W]``.

    >>> from tensordict import TensorDict
    >>> from wmkit.affordance.mask import MaskAffordance
    >>> mask = torch.zeros(2, 1, 160, 256, dtype=torch.bool)
    >>> mask[..., 70:90, 120:140] = True
    >>> frame = torch.zeros(2, 3, 160, 256, dtype=torch.uint8)
    >>> records = TensorDict({"frame": frame, "goal_mask": mask}, [2])
    >>> records = AffordanceTransform(MaskAffordance())(records)
    >>> records["affordance"].shape, records["zoomed", "pixels"].shape
    (torch.Size([2, 1, 64, 64]), torch.Size([2, 3, 64, 64]))
    """

    KEYS = KEYS

    def __init__(
        self,
        model: AffordanceModel,
        text: Tensor | None = None,
        *,
        labeller: JumpLabeller | None = None,
        gate: Gate | None = None,
        video: ClipReward | None = None,
        size: tuple[int, int] = (64, 64),
        in_keys: Iterable[Any] | None = None,
        out_keys: Iterable[Any] = KEYS,
        del_keys: bool = False,
    ) -> None:
        core = RecordLabels(
            Mapper(model, text, size=size),
            JumpLabeller() if labeller is None else labeller,
            RecordGate() if gate is None else gate,
            video,
        )
        keys = as_keys(core.images if in_keys is None else in_keys, name="in_keys")
        if len(keys) == len(core.images):
            keys += SIDE
        keys = as_keys(keys, len(core.images) + len(SIDE), "in_keys")
        super().__init__(in_keys=keys, out_keys=as_keys(out_keys, len(KEYS), "out_keys"))
        self.core, self.del_keys = core, del_keys
        self.memory: Memory | None = None

    @property
    def labeller(self) -> JumpLabeller:
        """Thresholds and their running statistics."""
        return self.core.labeller

    # ---- the three ways in -------------------------------------------------------------------

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self._live(next_tensordict, tensordict.get("_step", None), initial=False)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self._live(next_tensordict, None, initial=False)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._live(tensordict_reset, tensordict.get("_reset", None), initial=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Label records ``[*B, T]``, or one record ``[]``, from replay; see the class."""
        batch = tensordict.batch_size
        shape = (batch[:-1].numel(), batch[-1]) if batch else (1, 1)
        records = self._records(tensordict, shape)
        out, _ = self.core(records, Memory.empty(shape[0], records.reward.device))
        return self._write(tensordict, out)

    def _live(self, record: TensorDictBase, active: Tensor | None, *, initial: bool) -> TensorDictBase:
        """One record per environment; ``active`` picks those that were stepped or reset."""
        streams = record.batch_size.numel()
        records = self._records(record, (streams, 1), initial=initial)
        memory, learn = self.memory, self.labeller.adapt
        if memory is None or len(memory.clip) != streams:
            memory = Memory.empty(streams, records.reward.device)
        if learn:
            self.labeller.statistics.resize(streams)
        if active is None or bool(active.all()):
            out, self.memory = self.core(records, memory, learn=learn)
            return self._write(record, out)
        rows = active.reshape(streams, -1).any(-1).nonzero()[:, 0].to(records.reward.device)
        some, changed = self.core(records.pick(rows), memory.pick(rows), rows=rows, learn=learn)
        self.memory = memory.put(rows, changed)
        return self._write(record, {k: blank(x, streams).index_copy(0, rows, x) for k, x in some.items()})

    # ---- keys and specs ----------------------------------------------------------------------

    def _records(
        self, record: TensorDictBase, shape: tuple[int, int], *, initial: bool | None = None
    ) -> Records:
        """The inputs of the core, ``[n, T, ...]``; ``initial`` overrules the record's own flags."""
        images = {}
        for name, key in zip(self.core.images, self.in_keys, strict=False):
            value = _image(record, key)
            images[name] = value.reshape(*shape, *value.shape[-3:])
        device = value.device

        def column(key: Any, dtype: torch.dtype, *, known: bool) -> Tensor:
            x = record.get(key, None) if known else None
            if x is None:
                return torch.zeros(shape, dtype=dtype, device=device)
            return x.reshape(shape).to(device, dtype)

        reward, terminated, is_init = self.in_keys[-len(SIDE) :]
        if initial is None:
            first = column(is_init, torch.bool, known=True)
        else:
            first = torch.full(shape, initial, device=device)
        return Records(
            images,
            column(reward, torch.float32, known=not initial),
            first,
            column(terminated, torch.bool, known=not initial),
        )

    def _write(self, record: TensorDictBase, out: dict[Any, Tensor]) -> TensorDictBase:
        """Set every output in the shape of its record, and drop the images."""
        for name, key in zip(KEYS, self.out_keys, strict=True):
            value = out[name]
            inner = value.shape[2:] if name in CHANNELS else (1,)
            record.set(key, value.reshape(*record.batch_size, *inner))
        return record.exclude(*self.in_keys[: -len(SIDE)]) if self.del_keys else record

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Declare the outputs; drop the images with ``del_keys``."""
        names = dict(zip(KEYS, self.out_keys, strict=True))
        return _declare(observation_spec, self, self.in_keys[: -len(SIDE)], names)


def _image(record: TensorDictBase, key: Any) -> Tensor:
    """Images ``[*B, C, H, W]`` of a record.

    Raises:
        SpecError: there are none, or they have another shape.
    """
    value = record.get(key, None)
    if value is None or value.ndim != record.ndim + 3:
        found = "nothing" if value is None else f"shape {list(value.shape)}"
        raise SpecError(
            f"an affordance transform reads {key!r}: found {found}, wanted {list(record.batch_size)} + "
            f"[C, H, W]; make the environment with frames and masks on, or store {key!r} in replay"
        )
    return value


def _declare(
    spec: TensorSpec, transform: AffordanceMap | AffordanceTransform, images: list[Any], names: dict[Any, Any]
) -> TensorSpec:
    """Add the outputs (our name to the user's) to an observation spec; drop the images with ``del_keys``.

    Raises:
        SpecError: an image that is read is not among the observations.
    """
    found = list(spec.keys(True, True))
    for key in images:
        if key not in found:
            raise SpecError(
                f"{type(transform).__name__} reads {key!r}: found only {', '.join(map(str, found))}, wanted "
                f"{key!r} among the observations; make the environment with frames and masks on"
            )
    mapper = transform.mapper if isinstance(transform, AffordanceMap) else transform.core.mapper
    lead, device = spec.shape, spec.device
    for name, key in names.items():
        leaf: TensorSpec
        if name in CHANNELS:
            shape = (*lead, CHANNELS[name], *mapper.size)
            leaf = Bounded(0, 255, shape=shape, dtype=torch.uint8, device=device)
        elif name in FLAGS:
            leaf = Binary(1, shape=(*lead, 1), dtype=torch.bool, device=device)
        else:
            leaf = Unbounded(shape=(*lead, 1), dtype=torch.float32, device=device)
        spec[key] = leaf
    if transform.del_keys:
        for key in images:
            del spec[key]
    return spec
