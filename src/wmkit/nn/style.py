"""The style of hidden layers: norm, activation, bias and initialisation, by generation; and its norms.

One value that a page writes once and every trunk and convolution of a system takes; a backbone has its own.
Norms are over the last dimension, or over the channels of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit import fast
from wmkit.errors import ConfigError
from wmkit.nn.init import Init

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "silu": F.silu,
    "elu": F.elu,
    "relu": F.relu,
    "mish": F.mish,
    "gelu": lambda x, inplace=False: F.gelu(x),
}


@dataclass(frozen=True)
class LayerStyle:
    """How hidden layers are built.

    Attributes:
        norm: ``"layer"`` (DreamerV3 of 2023), ``"rms"`` (since 2024), ``"batch"`` (over all rows, or all
            places of images, of a batch) or ``"none"``.
        eps: of the norm.
        activation: ``"silu"``, ``"elu"``, ``"relu"``, ``"gelu"`` or ``"mish"``.
        bias: whether linear maps and convolutions have one, also under a norm.
        init: see :mod:`wmkit.nn.init`.

    Raises:
        ConfigError: an unknown norm, activation or initialisation.

    >>> import torch
    >>> LayerStyle(norm="rms").make_norm(2)(torch.tensor([[3.0, 4.0]])).square().mean().round().item()
    1.0
    """

    norm: Literal["layer", "rms", "batch", "none"] = "layer"
    eps: float = 1e-3
    activation: Literal["silu", "elu", "relu", "gelu", "mish"] = "silu"
    bias: bool = False
    init: Init = "mean_fan"

    def __post_init__(self) -> None:
        for what, found, wanted in (
            ("norm", self.norm, ("layer", "rms", "batch", "none")),
            ("activation", self.activation, tuple(_ACTIVATIONS)),
            ("init", self.init, get_args(Init)),
        ):
            if found not in wanted:
                raise ConfigError(
                    f"layer style {what} is {found!r}: wanted {', '.join(wanted)}; correct style.{what}"
                )

    def make_norm(self, dim: int) -> nn.Module:
        """A norm over ``dim`` numbers."""
        if self.norm == "none":
            return nn.Identity()
        if self.norm == "batch":
            return RowsBatchNorm(dim, eps=self.eps)
        return nn.LayerNorm(dim, eps=self.eps) if self.norm == "layer" else RMSNorm(dim, self.eps)

    def activate(self, x: Tensor, *, fresh: bool = False) -> Tensor:
        """The activation, of any shape; a ``fresh`` tensor, which nobody else reads, may be overwritten."""
        return _ACTIVATIONS[self.activation](x, inplace=fresh and not torch.is_grad_enabled())


STYLE_2023 = LayerStyle()
STYLE_2024 = LayerStyle(norm="rms", eps=1e-4, bias=True, init="fan_in")


def channel_norm(channels: int, style: LayerStyle = STYLE_2023) -> nn.Module:
    """A style's norm over the channels of ``[N, C, H, W]``.

    >>> channel_norm(8, LayerStyle(norm="rms"))
    ChannelRMSNorm()
    """
    if style.norm in ("none", "batch"):
        return nn.Identity() if style.norm == "none" else BatchNorm(channels, eps=style.eps)
    return ChannelNorm(channels, style.eps) if style.norm == "layer" else ChannelRMSNorm(channels, style.eps)


class Activation(nn.Module):
    """A style's activation as a module.

    Args:
        style: names it.

    >>> import torch
    >>> Activation(LayerStyle(activation="relu"))(torch.tensor([-1.0, 1.0]))
    tensor([0., 1.])
    """

    def __init__(self, style: LayerStyle = STYLE_2023) -> None:
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.style.activate(x)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) * scale`` over the last dimension, in float32; no shift.

    Args:
        dim: width.
        eps: inside the root.

    >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]])).detach()
    tensor([[0.8485, 1.1314]])
    """

    def __init__(self, dim: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, dim] -> [*B, dim]``, in the dtype of ``x``."""
        return fast.rms_norm(x, self.weight, self.eps)


class RowsBatchNorm(nn.BatchNorm1d):
    """Batch norm of the last dimension over all others, time and batch alike.

    >>> RowsBatchNorm(8)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, dim] -> [*B, dim]``."""
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[N, C, H, W]``.

    >>> ChannelNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are exact on a CPU, too.

    There PyTorch adds up a batch in channels-last memory one number after the other, in float32: off by 1e-4
    for 128 grids of 32 x 32. Here each position of the grid is added up over the images first; the time is
    the same.

    >>> BatchNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        rows = x.permute(0, 2, 3, 1)
        batch = self.training and x.device.type == "cpu" and x.dtype == torch.float32 and len(x) > 0
        if not (batch and rows.is_contiguous()) or torch.compiler.is_compiling():
            return super().forward(x)
        mean, var = _statistics(rows.detach())
        count, share = rows[..., 0].numel(), self.momentum
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, share)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(var * (count / max(count - 1, 1)), share)  # type: ignore[union-attr, arg-type]
        return _Normalised.apply(x, self.weight, self.bias, mean, var, self.eps)


def _statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances ``[C]`` of ``[N, H, W, C]``: of each position, and then of all."""
    means, variances = torch.ops.aten.batch_norm_update_stats(rows.flatten(1), None, None, 0.0)
    means, variances = means.view(-1, rows.shape[-1]), variances.view(-1, rows.shape[-1])
    between, mean = torch.var_mean(means, 0, correction=0)
    return mean, variances.mean(0) + between


class _Normalised(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` where mean and variance are those of ``x``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.eps = eps
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, scale = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, scale, True, ctx.eps, wanted
        )
        return (*grads, None, None, None)


class ChannelRMSNorm(RMSNorm):
    """RMSNorm over the channels of ``[N, C, H, W]``.

    >>> ChannelRMSNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
