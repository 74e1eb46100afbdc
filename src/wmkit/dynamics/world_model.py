"""A world model: encoder, dynamics, decoder and heads, assembled.

It holds parts and says how they connect. What they are trained on is in
:mod:`wmkit.objectives`; which parts there are is on a system's page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from wmkit import fast
from wmkit.dynamics.dynamics import NEXT, Dynamics, Latent, Observed, read, to_record
from wmkit.errors import ConfigError
from wmkit.heads import first_weight, in_keys_of
from wmkit.heads.memory import MEMORY
from wmkit.nn import Feature
from wmkit.plug import Plug


class WorldModel(Plug):
    """Encoder, dynamics, decoder and named heads.

    What decoder and heads read is their ``in_keys``: any of the state and belief that the dynamics write,
    before and, under ``next``, after a transition; an actor's memory may read what the decoder shows.
    ``forward`` encodes and observes a window ``[B, T]``: it
    writes ``embed`` and what the dynamics write.

    Args:
        spaces: shape of one observation for each key.
        action_dim: width A of an action.
        encoder: called as ``encoder(spaces)``.
        dynamics: called as ``dynamics(action_dim, embed_dim)``.
        decoder: called as ``decoder(width, spaces)`` with the width of what it reads; none decodes nothing.
        heads: each called with the width of what it reads.

    Raises:
        ConfigError: a part reads a key that the dynamics do not write.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.codecs import Decoder, Encoder
    >>> from wmkit.dynamics import RSSM
    >>> from wmkit.heads import ContinueHead
    >>> codec = dict(images=["pixels"], vectors=[], depth=4, units=8, layers=1)
    >>> gru = partial(backbones.build, "gru")
    >>> world_model = WorldModel(
    ...     {"pixels": (3, 64, 64)}, 3, encoder=partial(Encoder, **codec), decoder=partial(Decoder, **codec),
    ...     dynamics=partial(RSSM, backbone=gru, deter=16, groups=4, classes=4, hidden=8),
    ...     heads={"continuation": partial(ContinueHead, units=8, layers=1)})
    >>> batch = {"pixels": torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8),
    ...          "previous_action": torch.zeros(2, 5, 3), "is_init": torch.zeros(2, 5, 1, dtype=torch.bool)}
    >>> world_model.observe(batch).latent.belief.shape
    torch.Size([2, 5, 16])
    """

    encoder: Any
    dynamics: Any
    decoder: Any
    _shown: dict[Any, tuple[Any, int]]  # by key: an observation, and how many numbers it has

    def __init__(
        self,
        spaces: Mapping[str, Sequence[int]],
        action_dim: int,
        *,
        encoder: Callable[..., nn.Module],
        dynamics: Callable[..., Dynamics],
        decoder: Callable[..., nn.Module] | None = None,
        heads: Mapping[str, Callable[..., nn.Module]],
    ) -> None:
        super().__init__()
        self._known_fields: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._shown = {}
        self.encoder = encoder(spaces)
        self.dynamics = dynamics(action_dim, self.encoder.out_dim)
        # In this order: a checkpoint holds an optimiser's moments by the parameters' place.
        self.decoder = None
        if decoder is not None:
            self.decoder = decoder(self.width(decoder, "decoder"), spaces)
            shown = zip(self.decoder.out_keys, self.decoder.targets, strict=True)
            self._shown = {key: (name, math.prod(spaces[name])) for key, name in shown}
        self.heads = nn.ModuleDict()
        for name, make in heads.items():
            head: Any = make(self.width(make, name))
            self.heads[name] = head.named(name)
        self.projections = nn.ModuleDict()
        self._noisy = any(map(_is_noisy, self.modules()))
        dynamics_in = [key for key in self.dynamics.in_keys if key not in self.encoder.out_keys]
        self.set_plug(
            [*self.encoder.in_keys, *dynamics_in], [*self.encoder.out_keys, *self.dynamics.out_keys]
        )

    def project(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A module that an objective reads this model through, trained with it; made when first asked for.

        Args:
            name: of it among ``projections``.
            make: gives the module.
        """
        if name not in self.projections:
            self.projections[name] = make().to(next(self.parameters()).device)
            self._noisy = any(map(_is_noisy, self.modules()))
        return self.projections[name]

    def width(self, maker: Callable[..., Any], name: str, actor: Any = None) -> int:
        """Width of what a part that ``maker`` makes is going to read, beside an ``actor`` with a memory."""
        memory = getattr(actor, "memory", None)
        total = 0
        for key in in_keys_of(maker):
            if key in self._shown:
                total += self._shown[key][1]
            elif key == MEMORY:
                if memory is None:
                    raise ConfigError(
                        f"{name} reads {MEMORY!r}: found no actor with a memory, wanted one; give the actor "
                        "a memory, or correct in_keys"
                    )
                total += memory.out_dim
            else:
                total += self.dynamics.width(*self._fields([key], name))
        return total

    def sources(self, part: Any) -> set[str]:
        """Fields of a latent that reading for a part needs in the end: of its memory, and of the decoder."""
        part = getattr(part, "memory", None) or part
        shown = [key for key in part.in_keys if key in self._shown]
        fields = set(self._fields([key for key in part.in_keys if key not in self._shown], "the actor"))
        return fields | (self.sources(self.decoder) if shown else set())

    def _fields(self, keys: Sequence[Any], name: str) -> tuple[str, ...]:
        found = self._known_fields.get(tuple(keys))  # asked at every step of a roll-out
        if found is not None:
            return found
        known = {**self.dynamics.fields, MEMORY: MEMORY}
        for key in keys:
            if key not in known:
                raise ConfigError(
                    f"{name} reads {key!r}, which the dynamics do not write: wanted some of "
                    f"{', '.join(map(repr, known))}; correct its in_keys"
                )
        self._known_fields[tuple(keys)] = tuple(known[key] for key in keys)
        return self._known_fields[tuple(keys)]

    # -- windows -------------------------------------------------------------------------

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Encode and observe a window ``[B, T]``."""
        return self.dynamics(self.encoder(tensordict))

    def record(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the dynamics read of a batch besides embeddings."""
        return to_record(batch, self.dynamics.conditions)

    def observe(self, batch: Mapping[str, Tensor], latent: Latent | None = None) -> Observed:
        """Take in a window of records.

        Args:
            batch: the sequence layout, ``[B, T, ...]``: the encoder's keys,
                ``previous_action`` and ``is_init``.
            latent: state before the window; the initial state if not given.
        """
        return self.dynamics.observe(self.encoder.encode(batch), self.record(batch), latent)

    @torch.no_grad()
    def open_loop(
        self, batch: Mapping[str, Tensor], context: int, vectors: bool = False
    ) -> tuple[dict[str, Tensor], Latent]:
        """Predictions of a window from its first steps and the real actions alone.

        Args:
            batch: the sequence layout ``[B, T, ...]``.
            context: steps that are observed.
            vectors: predict vector keys too.

        Returns:
            ``{image key: [B, T, ...]}``, and the latents behind them, leaves ``[B, T, ...]``.
        """
        with self.evaluating():
            seen = self.observe({key: value[:, :context] for key, value in batch.items()})
            steps, latent, latents = self.bind(), seen.last, _unbind(seen.latent)
            for action in batch["previous_action"][:, context:].float().unbind(1):
                latent = steps.step(latent, action)
                latents.append(latent)
            stacked = Latent.stack(latents, 1)
            predictions = (
                {} if self.decoder is None else self.decoder.predict(self.read(self.decoder, stacked))
            )
        keys = getattr(self.decoder, "targets" if vectors else "images", ())
        return {key: predictions[key].mean for key in keys}, stacked

    def evaluating(self) -> AbstractContextManager[None]:
        """Without dropout, and with running statistics, inside."""
        return _evaluating(self) if self._noisy else nullcontext()

    # -- predictions -----------------------------------------------------------------------

    def read(self, part: Any, latent: Latent, following: Latent | None = None) -> Any:
        """What a decoder, head, actor or critic reads of a latent, or of a transition's two."""
        if any(key in self._shown for key in part.in_keys):
            return self._look(part, latent)
        return read(latent, self._fields(part.in_keys, type(part).__name__), following)

    def _look(self, part: Any, latent: Latent) -> Feature:
        """What the decoder shows of a latent, flat, ``[*B, F]``."""
        seen = self.decoder.predict(self.read(self.decoder, latent))
        lead = latent.state.ndim - 1
        return Feature(*(seen[self._shown[key][0]].mean.flatten(lead) for key in part.in_keys))

    def first_layers(self, parts: Iterable[Any], latent: Latent) -> fast.FirstLayers | None:
        """First layers of those ``parts`` that read state and belief, for a roll-out from ``latent``."""
        fields = ("state", "belief")
        named = [(part, type(part).__name__) for part in parts if hasattr(part, "in_keys")]
        readers = [part for part, name in named if self._fields(part.in_keys, name) == fields]
        return fast.FirstLayers.of(map(first_weight, readers), latent.state, latent.classes)

    def reads_transition(self, part: Any) -> bool:
        """Whether a part reads the state after a transition too."""
        return any(field.startswith(NEXT) for field in self._fields(part.in_keys, type(part).__name__))

    def predict(self, name: str, latent: Latent, following: Latent | None = None) -> Any:
        """Prediction of the head ``name`` from a latent, or from a transition's two."""
        head: Any = self.heads[name]
        return head.predict(self.read(head, latent, following))

    def read_out(self, name: str, latent: Latent) -> Tensor:
        """What the head ``name`` says of a latent ``[*B, 1]``: as a rule the mean of its prediction."""
        head: Any = self.heads[name]
        return head.value(self.predict(name, latent))

    def continuation(self, latent: Latent) -> Tensor:
        """Probability, or discount, ``[*B, 1]`` of going on from a state; one without such a head."""
        if "continuation" not in self.heads:
            return torch.ones_like(latent.belief[..., :1])
        head: Any = self.heads["continuation"]
        return head.continuation(self.predict("continuation", latent))

    # -- steps -----------------------------------------------------------------------------

    def bind(self, *, one_hot: bool = False) -> ModelSteps:
        """The model made ready for a loop of imagined steps; good until its weights change."""
        return ModelSteps(self, self.dynamics.bind(one_hot=one_hot))

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """:meth:`Dynamics.step`, and what the heads say of the conditions of the next one."""
        return self.bind().step(latent, action, option, noise)


class ModelSteps(NamedTuple):
    """Imagined steps of a world model, see :meth:`WorldModel.bind`."""

    world_model: WorldModel
    steps: Any

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """See :meth:`WorldModel.step`."""
        after, model = self.steps.step(latent, action, option, noise), self.world_model
        if not model.dynamics.conditions:
            return after
        expected = {name: model.predict(name, after).mean for name in model.dynamics.conditions}
        return model.dynamics.told(after, expected)


def _unbind(latent: Latent) -> list[Latent]:
    """Leaves ``[B, T, ...]`` to T latents."""
    return [latent.map(lambda x, t=t: x[:, t]) for t in range(latent.belief.shape[1])]  # type: ignore[misc]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    learning = [part for part in module.modules() if part.training]
    for part in learning:
        part.training = False
    try:
        yield
    finally:
        for part in learning:
            part.training = True


def _is_noisy(module: nn.Module) -> bool:
    """Whether a module does something else in training: drops numbers out, or takes a batch's statistics."""
    rates = (getattr(module, "p", 0.0), getattr(module, "dropout", 0.0))
    drops = any(isinstance(rate, float) and rate > 0 for rate in rates)
    return drops or isinstance(module, nn.modules.batchnorm._NormBase)
