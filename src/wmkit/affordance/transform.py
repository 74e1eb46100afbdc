"""AffordanceTransform: from the simulator's frame to everything LS-Imagine adds to a record.

LS-Imagine, arXiv:2410.03618, sections 3.1 to 3.3; the computation is in
:mod:`wmkit.affordance.labels`, here are keys, specs and the state of live environments.

    reads    frame uint8 [3, H, W], or goal_mask bool [1, H, W], or both; reward, terminated
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

Everything below ``zoomed`` is zero where ``is_zoomed`` is false.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import Transform

from wmkit.affordance.jumps import JumpLabeller
from wmkit.affordance.labels import Memory, RecordLabels, Records, blank
from wmkit.affordance.rewards import ClipReward, Gate, make_gate
from wmkit.errors import ConfigError, SpecError

SCALARS = ("intrinsic_reward", "score", "jump_probability")
FLAGS = ("jump", "is_zoomed")
ZOOMED_SCALARS = ("reward", "intrinsic_reward", "score")
LARGE = ("frame", "goal_mask")
IMAGES = ("affordance", ("zoomed", "pixels"), ("zoomed", "affordance"))


class AffordanceTransform(Transform):
    """Add the affordance map, the intrinsic reward, jump labels and the zoomed view to every record.

    Append it to an environment that emits ``frame`` (or ``goal_mask``), single or batched. Outside a
    ``ParallelEnv``, one call of the model serves all environments. Partial resets and partial steps
    touch only their own streams.

    Append it to a replay buffer, or call it, to label stored frames again: the last batch dimension is
    time, episodes are told apart by ``is_init``, memories start empty at the beginning of each sequence,
    and thresholds are those of the live environments as they stand; where there are none yet, each
    sequence runs its own.

    Args:
        model: ``predict(images [B, C, H, W], text) -> maps [B, H, W]`` in [0, 1]; its attribute
            ``reads`` says which key the images come from (``frame`` by default, or ``goal_mask``).
            The model is shared, not copied, and stays out of ``state_dict`` and of ``.to()``.
        text: features of the prompt ``[D]`` or ``[1, D]``, for models that need them.
        gating: ``record`` (released), ``dense`` (paper), ``potential``, or a
            :class:`~wmkit.affordance.rewards.Gate`.
        scorer: adds the video score (:class:`~wmkit.affordance.rewards.ClipReward`) of ``prompt``. Without
            it every video term is left out: of the reward, of ``score`` and of the zoomed view's.
        prompt: the task in words; needed with ``scorer``.
        weight: of the affordance score in reward and score.
        clip_weight: of the video score.
        alpha: further factor of the affordance score in the rewards (not in the scores).
        gamma: discount of ``potential``.
        size: height and width of ``affordance`` and of the zoomed pixels.
        kurtosis: ``excess`` (released) or ``raw`` (paper).
        sigma: of the score's Gaussian, as fractions of width and height.
        normalise: divide the score by the Gaussian's mean (released) or not (paper).
        decay: of the running statistics; 1 is lifetime (released).
        margin: standard deviations above its mean that P_jump must exceed (1 released).
        rise: standard deviations by which the zoomed score must exceed the current one (2 released).
        adapt: let live steps update the statistics; switch off for evaluation.
        labels: compute rewards, labels and zoomed views; without it only ``affordance`` is added,
            which is all an agent needs to act.
        keep_frame: leave ``frame`` and ``goal_mask`` in the output.
        save_model: put the model's weights in ``state_dict`` after all.
        chunk: images per call of the model.

    Raises:
        ConfigError: an option is unknown or missing.
        SpecError: the images the model reads are not there, or not ``[C, H, W]``.

    >>> from wmkit.affordance.mask import MaskAffordance
    >>> mask = torch.zeros(2, 1, 160, 256, dtype=torch.bool)
    >>> mask[..., 70:90, 120:140] = True
    >>> frame = torch.zeros(2, 3, 160, 256, dtype=torch.uint8)
    >>> records = TensorDict({"frame": frame, "goal_mask": mask}, [2])
    >>> records = AffordanceTransform(MaskAffordance())(records)
    >>> records["affordance"].shape, records["zoomed", "pixels"].shape
    (torch.Size([2, 1, 64, 64]), torch.Size([2, 3, 64, 64]))
    """

    def __init__(
        self,
        model: Any,
        text: Tensor | None = None,
        *,
        gating: str | Gate = "record",
        scorer: Any | None = None,
        prompt: str | None = None,
        weight: float = 0.01,
        clip_weight: float = 0.01,
        alpha: float = 1.0,
        gamma: float = 0.997,
        size: tuple[int, int] = (64, 64),
        kurtosis: Literal["excess", "raw"] = "excess",
        sigma: tuple[float, float] = (0.5, 0.5),
        normalise: bool = True,
        decay: float = 1.0,
        margin: float = 1.0,
        rise: float = 2.0,
        adapt: bool = True,
        labels: bool = True,
        keep_frame: bool = False,
        save_model: bool = False,
        chunk: int = 64,
    ) -> None:
        if scorer is not None and prompt is None:
            raise ConfigError(
                "the video score of AffordanceTransform has no prompt: found a scorer and prompt=None, "
                "wanted the task in words; pass prompt="
            )
        core = RecordLabels(
            model,
            text,
            make_gate(gating, gamma=gamma),
            JumpLabeller(
                kurtosis=kurtosis,
                sigma=sigma,
                normalise=normalise,
                decay=decay,
                margin=margin,
                rise=rise,
                chunk=chunk,
            ),
            None if scorer is None or prompt is None else ClipReward(scorer, prompt),
            weight=weight,
            clip_weight=clip_weight,
            alpha=alpha,
            size=size,
            labels=labels,
            chunk=chunk,
            save_model=save_model,
        )
        out_keys: list[Any] = ["affordance"]
        if labels:
            out_keys += [*SCALARS, *FLAGS, *IMAGES[1:], *(("zoomed", key) for key in ZOOMED_SCALARS)]
        super().__init__(in_keys=core.keys, out_keys=out_keys)
        self.core = core
        self.adapt, self.keep_frame = adapt, keep_frame
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
        memory, learn = self.memory, self.adapt and self.core.labels
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
        """What the core reads, ``[n, T, ...]``; ``initial`` overrules the record's own flags."""
        images = {}
        for key in self.in_keys:
            value = record.get(key, None)
            if value is None or value.ndim < 3:
                found = "nothing" if value is None else f"shape {list(value.shape)}"
                raise SpecError(
                    f"AffordanceTransform reads {key!r}: found {found}, wanted [..., C, H, W]; "
                    f"make the environment with frames and masks on, or store {key!r} in replay"
                )
            images[key] = value.reshape(*shape, *value.shape[-3:])
        device = value.device

        def column(key: str, dtype: torch.dtype) -> Tensor:
            x = None if initial and key != "is_init" else record.get(key, None)
            return (
                torch.zeros(shape, dtype=dtype, device=device)
                if x is None
                else x.reshape(shape).to(device, dtype)
            )

        if initial is None:
            is_init = column("is_init", torch.bool)
        else:
            is_init = torch.full(shape, initial, device=device)
        return Records(images, column("reward", torch.float32), is_init, column("terminated", torch.bool))

    def _write(self, record: TensorDictBase, out: dict[Any, Tensor]) -> TensorDictBase:
        """Set every output in the shape of its record, and drop the large inputs."""
        batch = record.batch_size
        zoomed = {}
        for key, value in out.items():
            value = value.reshape(*batch, *(value.shape[2:] if key in IMAGES else (1,)))
            if isinstance(key, tuple):
                zoomed[key[1]] = value
            else:
                record.set(key, value)
        if zoomed:
            record.set("zoomed", TensorDict(zoomed, batch, device=record.device))
        return record if self.keep_frame else record.exclude(*LARGE)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Declare the outputs; drop the inputs unless ``keep_frame``."""
        lead, device = observation_spec.shape, observation_spec.device
        found = [str(key) for key in observation_spec.keys()]
        for key in self.in_keys:
            if key not in found:
                raise SpecError(
                    f"AffordanceTransform reads {key!r}: found only {', '.join(found)}, wanted {key!r} among "
                    "the observations; make the environment with frames and masks on"
                )

        def image(channels: int) -> Bounded:
            shape = (*lead, channels, *self.core.size)
            return Bounded(0, 255, shape=shape, dtype=torch.uint8, device=device)

        def scalar() -> Unbounded:
            return Unbounded(shape=(*lead, 1), dtype=torch.float32, device=device)

        observation_spec["affordance"] = image(1)
        if self.core.labels:
            for key in SCALARS:
                observation_spec[key] = scalar()
            for key in FLAGS:
                observation_spec[key] = Binary(1, shape=(*lead, 1), dtype=torch.bool, device=device)
            zoomed = {"pixels": image(3), "affordance": image(1)} | {key: scalar() for key in ZOOMED_SCALARS}
            observation_spec["zoomed"] = Composite(zoomed, shape=lead, device=device)
        if not self.keep_frame:
            for key in set(LARGE) & set(found):
                del observation_spec[key]
        return observation_spec
