"""Whether the episode goes on, and what a prediction of it means for values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.heads.head import Head
from wmkit.heads.outputs import Distribution, Prediction
from wmkit.nn import STYLE_2023, LayerStyle

Label = Literal["continue", "end", "discount"]
Readout = Literal["mean", "mode", "sample"]
Initial = Literal["style", "discount", "value"]


class ContinueHead(Head):
    """A Bernoulli over going on (:class:`~wmkit.heads.Head`); ``forward`` writes its :meth:`continuation`.

    Args:
        in_dim: width of all that is read, together.
        label: what the Bernoulli stands for: ``"continue"`` (DreamerV3 of 2023, STORM), ``"end"`` (the
            released LS-Imagine), or ``"discount"``, a continue flag whose soft target is ``discount``
            instead of one (DreamerV2, DreamerV3 since 2024 with 1 - 1/333, TWM).
        discount: of a transition. ``label="discount"`` learns it; with the others, a discount below one
            is multiplied to what is read out.
        readout: what :meth:`continuation` is: the probability (``"mean"``), or ``discount`` where going on
            is the likelier and zero elsewhere (``"mode"``, STORM), or
            where a draw says that it goes on (``"sample"``, IRIS).
        initial: the output layer's bias: the logit of ``discount`` (``"discount"``), ``discount`` itself,
            which as a logit means a probability of 0.73 and not of 0.99 (``"value"``, the released
            TWM), or what ``style`` gives (``"style"``).
        target: key of the termination flag in a batch.
        units: width of the trunk.
        layers: depth of the trunk.
        trunk: see :class:`~wmkit.heads.Head`.
        distribution: another code of the flag than one logit, as ``"two_logits"`` (IRIS).
        outscale: scale of the output layer.
        style: norm, activation, bias and initialisation.
        in_keys: what is read, side by side; state and belief if not given.
        out_keys: where it is written; ``("predicted", "continuation")`` if not given.

    Raises:
        ConfigError: an unknown label, readout or initial value, a discount outside [0, 1], or one whose
            logit is not finite where that is the initial bias.

    >>> import torch
    >>> from wmkit.nn import Bernoulli
    >>> head = ContinueHead(16, label="end", units=8, layers=1)
    >>> head.continuation(Bernoulli(torch.full((1, 1), -100.0))).item()
    1.0
    >>> head = ContinueHead(4, label="discount", discount=0.99, initial="discount", units=8, layers=0)
    >>> head.label({"terminated": torch.tensor([[True], [False]])})
    tensor([[0.0000],
            [0.9900]])
    >>> head.predict(torch.zeros(1, 4)).mean.item()
    0.99...
    """

    default_out_keys = (("predicted", "continuation"),)
    default_target = "terminated"
    default_distribution = "bernoulli"

    def __init__(
        self,
        in_dim: int,
        *,
        label: Label = "continue",
        discount: float = 1.0,
        readout: Readout = "mean",
        initial: Initial = "style",
        target: str | None = None,
        units: int,
        layers: int,
        trunk: Callable[..., nn.Module] | None = None,
        distribution: Distribution | None = None,
        outscale: float | None = None,
        style: LayerStyle = STYLE_2023,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        for name, found, wanted in (
            ("label", label, Label),
            ("readout", readout, Readout),
            ("initial", initial, Initial),
        ):
            if found not in get_args(wanted):
                raise ConfigError(
                    f"{name} is {found!r}: wanted one of {', '.join(get_args(wanted))}; correct {name}"
                )
        check_range("discount", discount, 0, 1)
        super().__init__(
            in_dim,
            target=target,
            units=units,
            layers=layers,
            trunk=trunk,
            distribution=distribution,
            readout=readout,
            outscale=outscale,
            bias=_bias(initial, label, discount),
            style=style,
            in_keys=in_keys,
            out_keys=out_keys,
        )
        self.kind, self.discount = label, discount

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        assert self.target is not None
        terminated = batch[self.target].float()
        if self.kind == "end":
            return terminated
        return (1 - terminated) * (self.discount if self.kind == "discount" else 1.0)

    def continuation(self, prediction: Prediction) -> Tensor:
        """Probability or discount of going on ``[*B, 1]`` that a prediction of this head means."""
        going_on = super().value(prediction).float()
        if self.kind == "end":
            going_on = 1 - going_on
        learned = self.kind == "discount" and self.readout == "mean"
        return going_on if learned or self.discount == 1 else going_on * self.discount

    value = continuation


def _bias(initial: Initial, label: Label, discount: float) -> float | None:
    """The output layer's bias; None where the style decides."""
    if initial == "style":
        return None
    if label == "end" or (initial == "discount" and not 0 < discount < 1):
        raise ConfigError(
            f"initial is {initial!r} with label {label!r} and discount {discount}: wanted a label of going "
            "on and a discount between zero and one; correct initial"
        )
    return discount if initial == "value" else math.log(discount / (1 - discount))
