"""The contract of every sequence model.

Four laws hold for each registered backbone, with resets anywhere (one parametrised test):

1. ``scan`` equals a loop over ``step``.
2. Nothing before a reset influences anything after it, gradients included.
3. ``scan(x[:, :k])`` and then ``scan(x[:, k:])`` equal ``scan(x)``.
4. Causality: no output depends on a later input.

A carry is a value (any pytree of tensors with a leading batch dimension). It belongs to a
rollout and is never stored on the module.

A sequence model is also a TensorDict module (:class:`~wmkit.plug.Plug`). A window ``[*B, T]`` is one
``scan``; one step is one ``step``, with the carry as one row of numbers that a collector takes along::

    x, is_init (, carry before the window)  ->  u                     a window
    x, is_init (, carry)                    ->  u, ("next", "carry")  one step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase, unravel_key
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wmkit.backbones.carries import Carry, carry_width, flatten_carry, unflatten_carry
from wmkit.errors import ConfigError, SpecError
from wmkit.functional import check_shape
from wmkit.plug import Plug, as_keys

Keys = Sequence[NestedKey]
IN_KEYS: Keys = ("x", "is_init")
OUT_KEYS: Keys = ("u", ("next", "carry"))


class SequenceModel(Plug):
    """Base of every backbone: what dynamics ask of it, and its TensorDict face.

    A subclass implements :meth:`initial`, :meth:`output` and :meth:`step`. Where something can be made once
    for a whole loop, or a window needs no loop, it also has a :class:`Loop` and a :meth:`bind` that gives it.

    Args:
        in_dim: width D of an input.
        out_dim: width U of an output.
        in_keys: of the input ``[*B, D]`` and of ``is_init`` ``[*B]`` or ``[*B, 1]`` bool. A third one says
            where the carry before is read; else it is the second of ``out_keys`` without its ``"next"``.
        out_keys: of the output ``[*B, U]`` and of the carry after one step, ``[*B, carry_dim]``.

    Attributes:
        carry_is_output: the carry is exactly the last output, so that a stored output can
            be resumed from (true of plain recurrent cells).

    Raises:
        ConfigError: another number of keys.

    >>> from tensordict import TensorDict
    >>> from wmkit import backbones
    >>> gru = backbones.build("gru", 3, 8, in_keys=["observation", "is_init"])
    >>> window = TensorDict(observation=torch.zeros(2, 5, 3), is_init=torch.zeros(2, 5, 1, dtype=torch.bool))
    >>> gru(window)["u"].shape
    torch.Size([2, 5, 8])
    >>> one = TensorDict(observation=torch.zeros(2, 3), is_init=torch.ones(2, 1, dtype=torch.bool))
    >>> gru(one)["next", "carry"].shape
    torch.Size([2, 8])
    """

    carry_is_output = False

    def __init__(
        self, in_dim: int, out_dim: int, *, in_keys: Keys = IN_KEYS, out_keys: Keys = OUT_KEYS
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        read, written = as_keys(in_keys), as_keys(out_keys, 2, "out_keys")
        if len(read) not in (2, 3):
            raise ConfigError(
                f"in_keys are {read}: wanted those of the input and of is_init, and perhaps of the carry; "
                "name as many"
            )
        self.set_plug(read, written)

    # -- the contract ----------------------------------------------------------------------

    def initial(self, batch: int) -> Carry:
        """Carry of ``batch`` rollouts that have seen nothing."""
        raise NotImplementedError

    def output(self, carry: Carry) -> Tensor:
        """The last output ``[B, U]`` that led to this carry (initial: what stands for it)."""
        raise NotImplementedError

    def step(self, x: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """One step: ``x [B, D]``, ``reset [B]`` bool -> ``u [B, U]`` and the new carry."""
        raise NotImplementedError

    def scan(
        self, x: Tensor, carry: Carry | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, Carry]:
        """Many steps.

        Args:
            x: ``[B, T, D]``.
            carry: what went before; ``None`` knows nothing, as :meth:`initial` does.
            reset: ``[B, T]`` bool, the step begins a segment and forgets the rest; ``None`` where none does.
            read: of which steps outputs are wanted, the last among them; ``None`` is all.

        Returns:
            ``[B, T, U]``, or as many as are read, and the carry after the last step.

        Raises:
            SpecError: input, resets or carry of another shape.
        """
        check_input(self, x, carry, reset, 3)
        loop, nothing, outputs = self.bind(self.in_dim), x[:, 0, :0], []
        carry = self.initial(len(x)) if carry is None else carry
        per_step = [None] * x.shape[1] if reset is None else reset.unbind(1)
        for ahead, reset_t in zip(loop.ahead(x).unbind(1), per_step, strict=True):
            u, carry = loop.step(nothing, carry, reset_t, ahead)
            outputs.append(u)
        return torch.stack(outputs[read or slice(None)], 1), carry

    def bind(self, known: int = 0, tokens: int = 1) -> Loop:
        """The model made ready for a time loop; good until the weights change.

        Args:
            known: how many of the last columns of every input go through :meth:`Loop.ahead`; the others are
                given step by step.
            tokens: the most steps that :meth:`Loop.scan` is to take at once.
        """
        return Loop(self)

    # -- its TensorDict face ---------------------------------------------------------------

    @property
    def carry_dim(self) -> int:
        """Numbers in a row of a carry under its key (:func:`~wmkit.backbones.carries.flatten_carry`)."""
        return carry_width(self.initial(1))

    @property
    def carry_key(self) -> NestedKey:
        """Where the carry before a step or a window is read."""
        if len(self.in_keys) == 3:
            return self.in_keys[2]
        after = self.out_keys_source[1]
        return unravel_key(after[1:]) if isinstance(after, tuple) and after[0] == "next" else after

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """One step where the input has at most one batch dimension; else a window, time last.

        Of a window the carry is read at its first step alone, as TorchRL's recurrent modules do; without one
        nothing is known.
        """
        x, is_init = (tensordict[key] for key in self.in_keys[:2])
        carry = tensordict.get(self.carry_key, None)
        lead, (out_key, carry_out) = x.shape[:-1], self.out_keys_source
        reset = is_init.reshape(lead)
        if len(lead) < 2:
            x = x.reshape(-1, self.in_dim)
            before = self.initial(len(x)) if carry is None else self._unflat(carry)
            u, after = self.step(x, before, reset.reshape(-1))
            tensordict.set(carry_out, flatten_carry(after).reshape(*lead, -1))
        else:
            before = None if carry is None else self._unflat(carry[..., 0, :])
            u, _ = self.scan(x.flatten(0, -3), before, reset.flatten(0, -2))
        return tensordict.set(out_key, u.reshape(*lead, self.out_dim))

    def make_tensordict_primer(self) -> Any:
        """The transform that puts an empty carry into what an environment's reset gives.

        It goes behind :class:`~torchrl.envs.transforms.InitTracker`, whose ``is_init`` makes the model
        forget whatever the carry holds.

        >>> from torchrl.envs import GymEnv, InitTracker, TransformedEnv
        >>> from wmkit import backbones
        >>> gru = backbones.build("gru", 4, 8, in_keys=["observation", "is_init"])
        >>> env = TransformedEnv(GymEnv("CartPole-v1"), InitTracker())
        >>> env = env.append_transform(gru.make_tensordict_primer())
        >>> gru(env.reset())["next", "carry"].shape
        torch.Size([8])
        """
        from torchrl.data import Composite, Unbounded
        from torchrl.envs.transforms import TensorDictPrimer

        spec = Composite()
        spec[self.carry_key] = Unbounded((self.carry_dim,))
        return TensorDictPrimer(spec, expand_specs=True)

    def _unflat(self, rows: Tensor) -> Carry:
        """The carry of rows ``[*B, carry_dim]``, batch in one dimension."""
        return unflatten_carry(rows.reshape(-1, rows.shape[-1]), self.initial(1))


@dataclass(frozen=True)
class Loop:
    """A sequence model made ready for a time loop (:meth:`SequenceModel.bind`); this one only concatenates.

    Attributes:
        model: whose weights these are.

    >>> from wmkit import backbones
    >>> gru, x = backbones.build("gru", 6, 16), torch.randn(2, 5, 6)
    >>> loop = gru.bind(known=4)
    >>> ahead = loop.ahead(x[..., 2:])  # all five steps at once
    >>> u, _ = loop.step(x[:, 0, :2], gru.initial(2), None, ahead[:, 0])
    >>> torch.allclose(u, gru.scan(x)[0][:, 0], atol=1e-6)
    True
    """

    model: Any  # a SequenceModel

    def ahead(self, x: Tensor) -> Tensor:
        """The share of the last columns ``[*B, known]`` of inputs: ``[*B, P]``."""
        return x

    def step(
        self, x: Tensor, carry: Carry, reset: Tensor | None = None, ahead: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """One step.

        Args:
            x: ``[B, D - known]``, the other columns.
            carry: before the step.
            reset: ``[B]`` bool; ``None`` where nothing is reset.
            ahead: ``[B, P]`` of :meth:`ahead`; ``None`` where no column is known.

        Returns:
            ``u [B, U]`` and the new carry.
        """
        x = joined(x, ahead)
        return self.model.step(x, carry, resets(reset, x))

    def scan(
        self, x: Tensor, carry: Carry | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, Carry]:
        """See :meth:`SequenceModel.scan`; ``x`` has all columns."""
        return self.model.scan(x, carry, reset, read)


class RecurrentCell(SequenceModel):
    """Base of cells whose carry is their output: the learned start, and a step.

    A subclass implements :meth:`cell`.

    Args:
        in_dim: input width D.
        out_dim: state width U.
        learned_initial: start from ``tanh`` of a learned vector (zero at first) instead of zeros.
        in_keys: see :class:`SequenceModel`.
        out_keys: see :class:`SequenceModel`.
    """

    carry_is_output = True

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        learned_initial: bool = False,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, in_keys=in_keys, out_keys=out_keys)
        start = torch.zeros(out_dim)
        if learned_initial:
            self.start: Tensor = nn.Parameter(start)
        else:
            self.register_buffer("start", start, persistent=False)

    def cell(self, x: Tensor, belief: Tensor) -> Tensor:
        """``x [B, D]``, ``belief [B, U]`` -> the next belief ``[B, U]``."""
        raise NotImplementedError

    def initial(self, batch: int) -> Tensor:
        """See :meth:`SequenceModel.initial`."""
        return torch.tanh(self.start).expand(batch, -1)

    def output(self, carry: Tensor) -> Tensor:
        """The carry itself."""
        return carry

    def step(self, x: Tensor, carry: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`SequenceModel.step`."""
        check_input(self, x, carry, reset, 2)
        belief = self.cell(x, torch.where(reset.unsqueeze(-1), torch.tanh(self.start), carry))
        return belief, belief


def check_input(model: Any, x: Tensor, carry: Carry, reset: Tensor | None, dims: int) -> None:
    """What a step (two dimensions) or a scan (three) reads: nothing is broadcast.

    Raises:
        SpecError: input, resets or carry of another shape.
    """
    layout, name = ("[B]", "step") if dims == 2 else ("[B, T]", "scan")
    where = f"{type(model).__name__}.{name}"
    lead = x.shape[:-1]
    if x.ndim != dims or x.shape[-1] != model.in_dim:
        raise SpecError(
            f"{where} got x of shape {list(x.shape)}: wanted {layout[:-1]}, {model.in_dim}]; reshape it"
        )
    if reset is not None:
        check_shape(where, "reset", reset, lead, layout)
    for leaf in tree_leaves(carry):
        if leaf is not None and len(leaf) != len(x):
            raise SpecError(
                f"{where} got a carry of {len(leaf)} rows: wanted {len(x)}, as x has; expand it or take "
                "initial(batch)"
            )


def stack(count: int, make: Callable[[], nn.Module]) -> nn.ModuleList:
    """``count`` layers, each made by itself.

    Raises:
        ConfigError: not one layer.

    >>> len(stack(2, nn.Identity))
    2
    """
    if count < 1:
        raise ConfigError(f"the sequence model has {count} layers: wanted 1 or more; set layers")
    return nn.ModuleList(make() for _ in range(count))


def resets(reset: Tensor | None, x: Tensor) -> Tensor:
    """``reset``, or for none a ``[*B]`` bool for ``x [*B, D]`` in which no row starts an episode."""
    return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device) if reset is None else reset


def joined(x: Tensor, ahead: Tensor | None) -> Tensor:
    """Columns that arrive step by step and columns known ahead, side by side; either may be missing.

    >>> joined(torch.zeros(2, 3), torch.ones(2, 1))
    tensor([[0., 0., 0., 1.],
            [0., 0., 0., 1.]])
    """
    if ahead is None or not ahead.shape[-1]:
        return x
    return torch.cat([x, ahead], -1) if x.shape[-1] else ahead
