"""The contract of all dynamics: what a state is, and how it moves when something is seen, done or imagined.

At step t the agent sees ``o_t`` and picks ``a_t``; ``u_t`` is the output of the sequence model after it has
consumed everything up to ``(z_t, a_t)``::

    prior       p(z_{t+1} | u_t)
    posterior   q(z_{t+1} | o_{t+1}, u_t)  filtering: RSSM       q(z_{t+1} | o_{t+1})  myopic: TokenDynamics
    state       s_{t+1} = (z_{t+1}, u_t)   the keys ``state`` and ``belief`` of record t+1

A *record* is what is known of each step besides its observation: ``previous_action`` ``[*B, A]`` float,
``is_init`` ``[*B]`` bool, and the ``conditions`` of the dynamics (:func:`to_record`). A :class:`Latent` is
what a roll-out owns at one step, an :class:`Observed` what observing a window returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torch.utils._pytree import tree_map

from wmkit import fast
from wmkit.errors import SpecError
from wmkit.functional import check_shape
from wmkit.nn import Feature
from wmkit.plug import Plug, as_keys, has_all

Carry = Any
NEXT = "next_"  # before a field: that of the state after a transition
Record = Mapping[str, Tensor]
IN_KEYS = ("embed", "previous_action", "is_init")
OUT_KEYS = ("state", "belief", "posterior_logits", "prior_logits")
BEFORE = "before"  # where a TensorDict holds the state before its window


class Latent(NamedTuple):
    """State of a model at one step of ``B`` roll-outs; the fields are the keys.

    Attributes:
        state: ``[*B, S]`` float, stochastic part z: one-hot per categorical, or numbers.
        belief: ``[*B, U]`` float, deterministic part: the output of the sequence model before ``z`` is known.
        carry: what else the sequence model needs to go on (a pytree); ``None`` where the belief is all.
        classes: ``[*B, G]`` int64, class of each categorical of ``state`` where known.
        products: what first layers make of state and belief, where a roll-out knows (:mod:`wmkit.fast`).
        memory: ``[*B, M]`` what an actor's own memory gives, this state seen; where a roll-out has one.

    >>> Latent(torch.ones(2, 3), torch.ones(2, 4)).map(lambda x: x[:1]).belief.shape
    torch.Size([1, 4])
    """

    state: Tensor
    belief: Tensor
    carry: Carry = None
    classes: Tensor | None = None
    products: fast.Products | None = None
    memory: Tensor | None = None

    @property
    def feature(self) -> Feature:
        """State and belief side by side."""
        return read(self, ("state", "belief"))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Latent:
        """Apply a tensor function to every part."""
        return Latent(*(map_carry(fn, part) for part in self))

    def detach(self) -> Latent:
        """The same values without gradient history."""
        return self.map(Tensor.detach)

    def light(self) -> Latent:
        """Without the carry, which may be large and only the next step needs, and without products."""
        return self._replace(carry=None, products=None)

    def where(self, mask: Tensor, other: Latent) -> Latent:
        """Rows of ``self`` where ``mask [B]`` is set, of ``other`` elsewhere.

        >>> a, b = (Latent(x, x) for x in (torch.ones(2, 1), torch.zeros(2, 1)))
        >>> a.where(torch.tensor([True, False]), b).state.tolist()
        [[1.0], [0.0]]
        """

        def pick(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y)

        return _merge(pick, self, other)

    @staticmethod
    def cat(latents: Sequence[Latent]) -> Latent:
        """Join along the batch."""
        return _merge(lambda *parts: torch.cat(parts), *latents)

    @staticmethod
    def stack(latents: Sequence[Latent], dim: int) -> Latent:
        """Latents of T steps as one with a dimension of T."""
        return _merge(lambda *parts: torch.stack(parts, dim), *latents)


class Observed(NamedTuple):
    """Posterior over a window.

    Attributes:
        latent: state at every step, leaves ``[B, T, ...]``; with its carry only where that has a value at
            each.
        posterior_logits: ``[B, T, G, C]``, or whatever statistics describe the latent (:mod:`wmkit.nn`).
        prior_logits: of the same shape, what the model expected before seeing each step.
        last: state after the window, leaves ``[B, ...]``, to go on from.
    """

    latent: Latent
    posterior_logits: Tensor
    prior_logits: Tensor
    last: Latent


def read(latent: Latent, fields: Sequence[str], following: Latent | None = None) -> Feature:
    """What a head reads: some fields side by side.

    Args:
        latent: where a transition starts, or the only state.
        fields: of ``state``, ``belief``, ``next_state``, ``next_belief``.
        following: where it ends; needed for the last two.

    >>> before, after = (Latent(torch.full((1, 1), x), torch.full((1, 1), x + 1)) for x in (0.0, 2.0))
    >>> read(before, ["belief", "next_state"], after).dense
    tensor([[1., 2.]])
    """
    parts, classes = [], []
    for field in fields:
        source = following if field.startswith(NEXT) else latent
        assert source is not None, "a transition is read, but only one state is given"
        name = field.removeprefix(NEXT)
        parts.append(getattr(source, name))
        classes.append(source.classes if name == "state" else None)
    products = latent.products if tuple(fields) == ("state", "belief") else None
    return Feature(*parts, classes=classes, products=products)


def map_carry(fn: Callable[..., Tensor], *carries: Any) -> Any:
    """``fn`` of the tensors of pytrees of one form; parts that are ``None`` stay so.

    >>> map_carry(lambda x: x + 1, (torch.zeros(1), None))
    (tensor([1.]), None)
    """
    return tree_map(lambda *parts: None if parts[0] is None else fn(*parts), *carries)


def _merge(fn: Callable[..., Tensor], *latents: Latent) -> Latent:
    """One latent of several; a part that one of them lacks is left out."""
    parts = (
        None if any(part is None for part in field) else map_carry(fn, *field)
        for field in zip(*latents, strict=True)
    )
    return Latent(*parts)  # type: ignore[arg-type]


class Dynamics(Plug):
    """Base of all dynamics: a Plug over a window, with tensor methods for loops and losses.

    ``forward`` filters a window ``[B, T]``: it reads ``embed`` ``[B, T, E]``, ``previous_action``,
    ``is_init`` and the conditions, and writes ``state``, ``belief``, ``posterior_logits`` and
    ``prior_logits``. The window starts from ``("before", "state")`` and ``("before", "belief")`` (and
    ``("before", "carry")``), of which the first step is read, where they are there, and from the initial
    state where they are not.

    A subclass implements :meth:`initial`, :meth:`observe`, :meth:`filter`, :meth:`bind`, :meth:`pack`,
    :meth:`unpack` and :attr:`pack_shapes`.

    Attributes:
        action_dim: width A of an action.
        state_dim: width S of a state.
        belief_dim: width U of a belief.
        latent: what a state is made of (:mod:`wmkit.nn`): its statistics, chance and samples.
        myopic: whether the posterior looks at the observation alone.
        conditions: keys of a record that the dynamics read beyond action and ``is_init``.
        resumable: whether a stored state and belief are enough to start a window from.
        options: how many kinds of transition :meth:`step` knows besides an ordinary step.
    """

    action_dim: int
    state_dim: int
    belief_dim: int
    latent: Any
    myopic = False
    conditions: tuple[str, ...] = ()
    resumable = True
    options = 0

    def name_keys(self, in_keys: Iterable[NestedKey] | None, out_keys: Iterable[NestedKey] | None) -> None:
        """Name what :meth:`forward` reads and writes; None for the usual names."""
        usual = (*IN_KEYS, *self.conditions)
        found = as_keys(usual if in_keys is None else in_keys, len(usual), "in_keys")
        self.set_plug(found, as_keys(OUT_KEYS if out_keys is None else out_keys, len(OUT_KEYS), "out_keys"))

    @property
    def fields(self) -> dict[Any, str]:
        """From the keys that heads read to the fields of a :class:`Latent`."""
        state, belief = self.out_keys[:2]
        here = {state: "state", belief: "belief"}
        return here | {as_keys([("next", key)])[0]: f"next_{field}" for key, field in here.items()}

    def width(self, field: str) -> int:
        """Width of one of :attr:`fields`."""
        return self.state_dim if field.endswith("state") else self.belief_dim

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Filter a window ``[B, T]``."""
        embed, *values = (tensordict.get(key) for key in self.in_keys)
        record = to_record(dict(zip((*IN_KEYS[1:], *self.conditions), values, strict=True)), self.conditions)
        before = {name: (BEFORE, name) for name in self.pack_shapes if name in ("state", "belief", "carry")}
        latent = None
        if before and has_all(tensordict, before.values()):
            latent = self.unpack({name: tensordict.get(key)[:, 0] for name, key in before.items()})
        seen = self.observe(embed, record, latent)
        written = (seen.latent.state, seen.latent.belief, seen.posterior_logits, seen.prior_logits)
        for key, value in zip(self.out_keys, written, strict=True):
            tensordict.set(key, value)
        return tensordict

    # -- what a subclass implements --------------------------------------------------------

    def initial(self, batch: int) -> Latent:
        """Latent of ``batch`` roll-outs that have seen nothing, leaves ``[batch, ...]``."""
        raise NotImplementedError

    def observe(self, embed: Tensor, record: Record, latent: Latent | None = None) -> Observed:
        """Take in a window ``[B, T]``.

        Args:
            embed: ``[B, T, E]`` embeddings of ``o_t``.
            record: leaves ``[B, T, ...]``; where ``is_init`` is set, what was before is forgotten.
            latent: state before the window, leaves ``[B, ...]``; the initial one if not given.
        """
        raise NotImplementedError

    def filter(self, latent: Latent, embed: Tensor, record: Record) -> Latent:
        """Take in one observation while acting: ``embed [B, E]``, record leaves ``[B, ...]``."""
        raise NotImplementedError

    def bind(self, *, one_hot: bool = False) -> Any:
        """These dynamics made ready for a loop of steps; good until the weights change.

        Args:
            one_hot: promises that every action of the loop is; what it adds may then be looked up.

        Returns:
            An object with ``step(latent, action, option, noise)``, see :meth:`step`.
        """
        raise NotImplementedError

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """What a policy carries from step to step, by key, each ``[B, N]`` float."""
        raise NotImplementedError

    def unpack(self, tensors: Mapping[str, Tensor]) -> Latent:
        """Undo :meth:`pack`; a carry that is missing is that of a sequence model that has seen nothing."""
        raise NotImplementedError

    @property
    def pack_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each tensor of :meth:`pack`."""
        raise NotImplementedError

    # -- what follows from it --------------------------------------------------------------

    @property
    def dream_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each tensor of :meth:`pack` for a latent that is imagined from."""
        return self.pack_shapes

    @property
    def latent_spec(self) -> Any:
        """:attr:`pack_shapes` as a TorchRL ``Composite``, for primers and replay."""
        from torchrl.data import Composite, Unbounded

        return Composite({key: Unbounded(shape) for key, shape in self.pack_shapes.items()})

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """Imagine one transition per row, to a sample of the prior.

        Args:
            latent: where it starts, leaves ``[B, ...]``.
            action: ``[B, A]`` float.
            option: ``[B]`` bool, rows that take the option instead; only where there is one.
            noise: of :meth:`noise`, ``[B, ...]``; drawn here if not given.
        """
        where, rows = f"{type(self).__name__}.step", len(latent.state)
        check_shape(where, "action", action, (rows, self.action_dim), "[B, A]")
        if option is not None:
            check_shape(where, "option", option, (rows,), "[B]")
        return self.bind().step(latent, action, option, noise)

    def check_window(self, embed: Tensor, record: Record, latent: Latent | None) -> None:
        """What :meth:`observe` reads: nothing is broadcast.

        Raises:
            SpecError: a record or a state before the window of another batch or length.
        """
        where, lead = f"{type(self).__name__}.observe", embed.shape[:-1]
        if len(lead) != 2:
            raise SpecError(f"{where} got embed of shape {list(embed.shape)}: wanted [B, T, E]; reshape it")
        check_shape(where, "is_init", record["is_init"], lead, "[B, T]")
        action = record["previous_action"]
        check_shape(where, "previous_action", action, (*lead, self.action_dim), "[B, T, A]")
        for name in self.conditions:
            check_shape(where, name, record[name], (*lead, 1), "[B, T, 1]")
        if latent is not None:
            check_shape(where, "state", latent.state, (lead[0], self.state_dim), "[B, S]")
            check_shape(where, "belief", latent.belief, (lead[0], self.belief_dim), "[B, U]")

    def restart(self, latent: Latent, mask: Tensor, start: Latent) -> Latent:
        """Rows ``mask [B]`` begin anew from the states of ``start``, leaves ``[B, ...]``."""
        return start.where(mask, latent)

    def told(self, latent: Latent, conditions: Mapping[str, Tensor]) -> Latent:
        """A latent that knows what a world model expects on arriving there (the conditions)."""
        return latent

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """The chance that ``lead`` samples of a state take, for :meth:`step` and :meth:`sample`."""
        return self.latent.noise(*lead, device=device)

    def sample(self, statistics: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Sample ``[*B, S]`` of statistics ``[*B, G, C]``, and its classes ``[*B, G]`` if it has any."""
        if noise is None:
            noise = self.noise(*statistics.shape[:-2], device=statistics.device)
        return self.latent.sample(statistics, noise)

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``: what is expected; statistics of the latent, logits unless it is
        Gaussian.
        """
        raise NotImplementedError


def to_record(batch: Mapping[str, Tensor], conditions: Sequence[str] = ()) -> dict[str, Tensor]:
    """What dynamics read of the sequence layout ``[*B, ...]`` besides the embedding.

    >>> batch = {"previous_action": torch.zeros(2, 5, 3), "is_init": torch.zeros(2, 5, 1, dtype=torch.bool)}
    >>> {key: tuple(value.shape) for key, value in to_record(batch).items()}
    {'previous_action': (2, 5, 3), 'is_init': (2, 5)}
    """
    record = {"previous_action": batch["previous_action"].float(), "is_init": batch["is_init"].squeeze(-1)}
    return record | {key: batch[key].float() for key in conditions}
