"""Image halves of a codec made of convolutions of stride 2; four published codecs are arguments of these.

Down: convolutions, each followed by a norm and an activation. Back: a dense layer to the coarsest grid, then
transposed convolutions.

===================  =================  =============  ============  ============
argument             DreamerV3 of 2023  DreamerV1, V2  TWM           STORM
                     (defaults)         (Unpadded…)    (Unpadded…)   (BatchNorm…)
===================  =================  =============  ============  ============
padding              1                  0              0             1
sides down, from 64  32, 16, 8, 4       31, 14, 6, 2   31, 14, 6, 2  32, 16, 8, 4
kernels back         4, 4, 4, 4         5, 5, 6, 6     5, 5, 6, 6    4, 4, 4, 4
multipliers back     8, 4, 2, 1         32, 4, 2, 1    16, 4, 2, 1   8, 4, 2, 1
norm                 style              style          style         batch
centred              true               true           false         false
dense                linear             linear         activated     normed
===================  =================  =============  ============  ============

DreamerV1 arXiv:1912.01603, V2 arXiv:2010.02193, V3 of 2023 arXiv:2301.04104v1, TWM arXiv:2303.07109
(jrobine/twm), STORM arXiv:2310.09615.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmkit.codecs.frames import IMAGE_SIZE, Shapes, channels, check_patch, image_side
from wmkit.errors import ConfigError
from wmkit.nn import (
    STYLE_2023,
    Activation,
    BatchNorm,
    DoublingConv,
    HalvingConv,
    LayerStyle,
    Linear,
    UnpaddedConv,
    UnpaddedTransposedConv,
    channel_norm,
    init_hidden,
    init_output,
    patches,
)
from wmkit.nn.init import Init

Norm = Literal["style", "batch"]


class ConvolutionalImageEncoder(nn.Module):
    """Images ``[N, C, 64, 64]`` to ``[N, out_dim]``; by default as DreamerV3 of 2023 does.

    Args:
        shapes: ``[C, 64, 64]`` of each image key; C in what follows is their sum.
        depth: width of the first convolution, 32 to 96 as published.
        patch: read blocks of ``patch x patch`` pixels as one position of that many more channels,
            which saves the largest grids; 1 as published. Each doubling drops the last multiplier.
        kernel: side of every convolution.
        padding: of every convolution.
        multipliers: stage i has ``depth * multipliers[i]`` channels, finest first.
        norm: ``"style"`` is that of the style; ``"batch"`` is batch norm, with which convolutions have no
            bias: the batch's statistics in training mode, running ones otherwise.
        centred: read images as ``x - 0.5``.
        activation: another than the style's.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: a ``patch`` that does not fit the convolutions.

    >>> ConvolutionalImageEncoder({"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 1024])
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        depth: int,
        patch: int = 1,
        kernel: int = 4,
        padding: int = 1,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        norm: Norm = "style",
        centred: bool = True,
        activation: Literal["silu", "elu", "relu"] | None = None,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        kept = _stages(shapes, patch, padding, [kernel] * len(multipliers))
        style = style if activation is None else replace(style, activation=activation)
        self.patch, self.centred = patch, centred
        self.layers = nn.Sequential()
        side, widths = IMAGE_SIZE // patch, [depth * factor for factor in multipliers[:kept]]
        for before, after in pairwise([channels(shapes) * patch**2, *widths]):
            conv = _down(before, after, kernel, padding, style.bias and norm == "style")
            self.layers.extend([init_hidden(conv, style.init), *_norm_act(after, norm, style)])
            side = _halved(side, kernel, padding)
        self.out_dim = widths[-1] * side**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]; channels, rows and columns are flattened in this order."""
        image = patches(image, self.patch)
        return self.layers(image - 0.5 if self.centred else image).flatten(1)


class ConvolutionalImageDecoder(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, 64, 64]`` in [0, 1] units; by default as DreamerV3 of 2023 does.

    Args:
        in_dim: feature width F.
        shapes: ``[C, 64, 64]`` of each image key, as in the encoder.
        depth: width of the last hidden stage, as in the encoder.
        patch: side of the blocks of pixels written as one position. Each doubling drops the first multiplier.
        kernels: sides of the transposed convolutions, coarsest first.
        padding: of every one.
        multipliers: each of them reads ``depth * multipliers[i]`` channels, the first from the dense layer.
        dense: what leads to the coarsest grid: ``"linear"``, a layer initialised as an output;
            ``"activated"``, a hidden one and an activation; ``"normed"``, a hidden one without bias, whose
            channels come first, then norm and activation.
        norm: as in the encoder.
        centred: put back the half that the encoder takes off.
        activation: another than the style's.
        init: of the transposed convolutions, if not the style's. Released TWM has PyTorch's
            (``"default"``), as it initialises only convolutions and linear layers.
        last_bias: what the last bias starts with, if not as initialised.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: a ``patch`` that does not fit the convolutions, or kernels that do not lead to 64 pixels.

    >>> ConvolutionalImageDecoder(16, {"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 16)).shape
    torch.Size([2, 4, 64, 64])
    """

    def __init__(
        self,
        in_dim: int,
        shapes: Shapes,
        *,
        depth: int,
        patch: int = 1,
        kernels: Sequence[int] = (4, 4, 4, 4),
        padding: int = 1,
        multipliers: Sequence[int] = (8, 4, 2, 1),
        dense: Literal["linear", "activated", "normed"] = "linear",
        norm: Norm = "style",
        centred: bool = True,
        activation: Literal["silu", "elu", "relu"] | None = None,
        init: Init | None = None,
        last_bias: float | None = None,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        if dense not in ("linear", "activated", "normed"):
            raise ConfigError(f"dense is {dense!r}: wanted linear, activated or normed; correct dense")
        if len(kernels) != len(multipliers):
            raise ConfigError(f"kernels is {list(kernels)}: wanted {len(multipliers)}, as multipliers has")
        kept = _stages(shapes, patch, padding, kernels)
        kernels, widths = kernels[-kept:], [depth * factor for factor in multipliers[-kept:]]
        style = style if activation is None else replace(style, activation=activation)
        init = style.init if init is None else replace(style, init=init).init
        self.dense, self.side = dense, _coarsest(IMAGE_SIZE // patch, kernels, padding)
        linear = Linear(in_dim, self.side**2 * widths[0], bias=dense != "normed")
        self.linear: nn.Linear = (init_output if dense == "linear" else init_hidden)(linear, init=style.init)
        self.activation = Activation(style) if dense == "activated" else nn.Identity()
        self.layers = nn.Sequential(*(_norm_act(widths[0], norm, style) if dense == "normed" else ()))
        for (before, after), kernel in zip(pairwise(widths), kernels[:-1], strict=True):
            conv = _up(before, after, kernel, padding, style.bias and norm == "style")
            self.layers.extend([init_hidden(conv, init), *_norm_act(after, norm, style)])
        offset, shown = 0.5 if centred else 0.0, channels(shapes) * patch**2
        last = init_output(_up(depth, shown, kernels[-1], padding, True, offset, patch), init=init)
        self.offset = 0.0 if isinstance(last, DoublingConv) else offset  # that one adds it to its bias
        if last_bias is not None:
            nn.init.constant_(last.bias, last_bias)  # type: ignore[arg-type]
        self.layers.append(last)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, 64, 64]``."""
        grid = self.activation(self.linear(features))
        if self.dense == "normed":
            grid = grid.unflatten(-1, (-1, self.side, self.side))
        else:
            grid = grid.unflatten(-1, (self.side, self.side, -1)).permute(0, 3, 1, 2)
        image = self.layers(grid.contiguous(memory_format=torch.channels_last))
        return image + self.offset if self.offset else image


class UnpaddedImageEncoder(ConvolutionalImageEncoder):
    """Without padding, ``64 -> 31 -> 14 -> 6 -> 2`` (DreamerV1 and V2; TWM with ``centred=False``).

    >>> UnpaddedImageEncoder({"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 256])
    """

    def __init__(self, shapes: Shapes, **options: Any) -> None:
        super().__init__(shapes, **{"padding": 0, **options})


class UnpaddedImageDecoder(ConvolutionalImageDecoder):
    """Without padding, from one position, ``1 -> 5 -> 13 -> 30 -> 64`` (DreamerV1 and V2; TWM: see above).

    >>> UnpaddedImageDecoder(16, {"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 16)).shape
    torch.Size([2, 4, 64, 64])
    """

    def __init__(self, in_dim: int, shapes: Shapes, **options: Any) -> None:
        own = {"padding": 0, "kernels": (5, 5, 6, 6), "multipliers": (32, 4, 2, 1)}
        super().__init__(in_dim, shapes, **{**own, **options})


class BatchNormImageEncoder(ConvolutionalImageEncoder):
    """With batch norm, of images that are not centred (STORM).

    >>> BatchNormImageEncoder({"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 512])
    """

    def __init__(self, shapes: Shapes, **options: Any) -> None:
        super().__init__(shapes, **{"norm": "batch", "centred": False, **options})


class BatchNormImageDecoder(ConvolutionalImageDecoder):
    """With batch norm, also behind the dense layer, to images that are not centred (STORM).

    >>> BatchNormImageDecoder(16, {"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 16)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(self, in_dim: int, shapes: Shapes, **options: Any) -> None:
        super().__init__(in_dim, shapes, **{"norm": "batch", "centred": False, "dense": "normed", **options})


def _stages(shapes: Shapes, patch: int, padding: int, kernels: Sequence[int]) -> int:
    """How many stages are left where blocks of ``patch x patch`` pixels are one position."""
    image_side(shapes, lambda side: side == IMAGE_SIZE, f"[channels, {IMAGE_SIZE}, {IMAGE_SIZE}]")
    check_patch(patch)
    kept = len(kernels) + 1 - patch.bit_length()
    if patch > 1 and (padding != 1 or set(kernels) != {4} or kept < 1):
        how = "without padding" if padding == 0 else f"of padding {padding}"
        raise ConfigError(
            f"patch is {patch} with convolutions {how} and kernels {list(kernels)}: wanted 1, or enough "
            "kernels of 4 with a padding of 1; set patch to 1 or choose another size"
        )
    return kept


def _halved(side: int, kernel: int, padding: int) -> int:
    """The side that a convolution of stride 2 leaves.

    >>> [_halved(64, 4, padding) for padding in (0, 1)]
    [31, 32]
    """
    return (side + 2 * padding - kernel) // 2 + 1


def _coarsest(side: int, kernels: Sequence[int], padding: int) -> int:
    """The side from which transposed convolutions of stride 2 lead to ``side``.

    >>> _coarsest(64, (5, 5, 6, 6), 0), _coarsest(64, (4, 4, 4, 4), 1)
    (1, 4)
    """
    begin = side
    for kernel in reversed(kernels):
        after, begin = begin, _halved(begin, kernel, padding)
        if begin < 1 or 2 * (begin - 1) - 2 * padding + kernel != after:
            raise ConfigError(
                f"kernels is {list(kernels)} with a padding of {padding}: wanted kernels that lead from a "
                f"whole grid to {side} pixels, as [5, 5, 6, 6] do without padding; correct kernels"
            )
    return begin


def _norm_act(width: int, norm: Norm, style: LayerStyle) -> list[nn.Module]:
    if norm not in ("style", "batch"):
        raise ConfigError(f"norm is {norm!r}: wanted style or batch; correct norm")
    made = BatchNorm(width) if norm == "batch" else channel_norm(width, style)
    return [made, Activation(style)]


def _down(before: int, after: int, kernel: int, padding: int, bias: bool) -> nn.Conv2d:
    if padding == 0:
        return UnpaddedConv(before, after, kernel, bias=bias)
    if (kernel, padding) == (4, 1):
        return HalvingConv(before, after, bias=bias)
    return nn.Conv2d(before, after, kernel, 2, padding, bias=bias)


def _up(
    before: int,
    after: int,
    kernel: int,
    padding: int,
    bias: bool,
    offset: float = 0,
    patch: int | None = None,
) -> nn.ConvTranspose2d:
    if padding == 0:
        return UnpaddedTransposedConv(before, after, kernel, bias=bias)
    if (kernel, padding) == (4, 1):
        return DoublingConv(before, after, bias=bias, offset=offset, patch=patch)
    return nn.ConvTranspose2d(before, after, kernel, 2, padding, bias=bias)
