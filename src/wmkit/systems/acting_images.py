"""The image half of today's DreamerV3 encoder on a CPU, for one image at a time, in NumPy.

A convolution of few channels leaves most of a vector register empty, and pooling, norm and activation
cost more in calls than in arithmetic. Here each stage is one product:

* the four windows that max-pooling compares lie in one of 6 x 6, so that the product over such windows,
  two pixels apart, has their results as planes, and pooling is the largest of four planes;
* a stage that keeps the resolution is the same without the maximum; a strided one has windows of 5 x 5;
* results are planes, ``[D, pixels]``, over which norm and activation run in few long calls;
* bytes enter as they are: ``x / 255 - 0.5`` goes into the first weights and the border.

Products are cut so small that NumPy's library keeps each on the calling thread: beside other work, waiting
for a second one takes many times as long as the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from wmkit.codecs import PooledImageEncoder
from wmkit.nn import ConvStage, LayerStyle
from wmkit.nn.norms import ChannelRMSNorm

KNOWN = (nn.Sequential, ConvStage, nn.Conv2d, ChannelRMSNorm)
ALONE = 2**18  # multiplications up to which OpenBLAS takes no second thread
LARGEST = 2**16  # numbers in a stage's kernel; beyond, convolutions keep the registers full themselves
FEW = 2  # images up to which this is quicker
Array = np.ndarray


def usual(style: LayerStyle) -> bool:
    """Whether a layer has RMSNorm, SiLU and a bias, as all of today's DreamerV3 have."""
    return (style.norm, style.activation, style.bias) == ("rms", "silu", True)


def knows(image: Any) -> bool:
    """Whether :class:`ImageStep` can stand for this image half, and is the quicker one.

    >>> encoders = [PooledImageEncoder({"pixels": (3, 64, 64)}, depth=depth) for depth in (4, 64)]
    >>> [knows(encoder) for encoder in encoders]
    [True, False]
    """
    if type(image) is not PooledImageEncoder or not all(type(m) in KNOWN for m in image.stages.modules()):
        return False
    stages: list[Any] = list(image.stages)
    if not all(usual(stage.style) for stage in stages):
        return False
    return all(4 * 36 * stage.conv.in_channels * stage.conv.out_channels <= LARGEST for stage in stages)


class ImageStep:
    """An :class:`~wmkit.codecs.PooledImageEncoder` as a function of arrays; good until a weight changes.

    Its buffers are its own: one thread at a time.

    Args:
        image: what :func:`knows` accepts.

    >>> import torch
    >>> image = PooledImageEncoder({"pixels": (3, 64, 64)}, depth=4).requires_grad_(False)
    >>> pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    >>> torch.allclose(torch.from_numpy(ImageStep(image)([pixels.numpy()])), image(pixels / 255), atol=1e-5)
    True
    """

    def __init__(self, image: PooledImageEncoder) -> None:
        stages: list[Any] = list(image.stages)
        self._width = stages[-1].conv.out_channels
        self._grid = math.isqrt(image.out_dim // self._width)
        side = self._grid << sum(stage.down != "none" for stage in stages)
        self._stages = []
        for i, stage in enumerate(stages):
            self._stages.append(_Stage(stage, side, of_bytes=i == 0))
            side = self._stages[-1].side
        first, patch = self._stages[0].inside, image.patch
        # Channel c of an image, and row r and column s of its blocks: [C, r, s] one after the other.
        self._planes = [first[..., k] for k in range(first.shape[-1])]
        self._blocks = [np.s_[:, r::patch, s::patch] for r in range(patch) for s in range(patch)]

    def __call__(self, images: Sequence[Array]) -> Array:
        """Images ``[N, C, H, W]``, bytes or floats in [0, 1], joined along channels -> ``[N, E]``."""
        count = len(images[0])
        embed = np.empty((count, self._grid, self._grid, self._width), np.float32)
        targets = [stage.inside for stage in self._stages[1:]]
        for row in range(count):
            self._put([image[row] for image in images])
            for stage, target in zip(self._stages, [*targets, embed[row]], strict=True):
                stage(target)
        return embed.reshape(count, -1)

    def _put(self, images: Sequence[Array]) -> None:
        """Write images ``[C, H, W]`` where the first stage reads, in units of a byte."""
        planes = iter(self._planes)
        for image in images:
            blocks = [image[block] for block in self._blocks]  # [C, H/p, W/p] each
            for channel in zip(*blocks, strict=True):
                for plane in channel:
                    if image.dtype == np.uint8:
                        np.copyto(next(planes), plane)
                    else:
                        np.multiply(plane, np.float32(255.0), out=next(planes), casting="same_kind")


class _Stage:
    """One :class:`~wmkit.nn.ConvStage` for one image.

    Of P results per window, four or one, D channels each: the stage's output if it is one alone or if the
    four are neighbours, else their maximum.

    Args:
        stage: its weights are read.
        side: H of the input.
        of_bytes: the input is ``255 (x + 0.5)``.

    Attributes:
        inside: ``[H, H, C]``, where the input is to be written.
        side: of the output.
    """

    def __init__(self, stage: Any, side: int, *, of_bytes: bool) -> None:
        weight = stage.conv.weight.detach().permute(0, 2, 3, 1).numpy()  # [D, 5, 5, C]
        bias, border = stage.conv.bias.detach().numpy()[:, None], 0.0
        if of_bytes:
            bias = bias - 0.5 * weight.sum((1, 2, 3))[:, None]
            weight, border = weight / np.float32(255.0), 127.5
        width, channels = len(weight), weight.shape[-1]
        padded = np.full((side + 4, side + 4, channels), border, np.float32)
        self.inside = padded[2:-2, 2:-2]
        half = side // 2
        self._pools = stage.down == "pool"
        self._phases = 2 if stage.down == "none" else 1  # of the output in a window, along an axis
        self.side = half * self._phases
        if stage.down == "stride":
            kernel, size, windows = weight, 5, padded[1:, 1:]
        else:
            kernel, size, windows = _shifted(weight), 6, padded
        self._kernel = kernel.reshape(-1, size * size * channels)  # [P D, K], K = size² C
        rows, columns, inner = padded.strides
        self._windows = np.lib.stride_tricks.as_strided(
            windows, (half, half, size, size * channels), (2 * rows, 2 * columns, rows, inner)
        )
        self._copied = np.empty(self._windows.shape, np.float32)
        rows, pixels = len(self._kernel), half * half
        taken, part = _parts(rows, pixels, self._kernel.shape[1])
        out = np.empty((rows, pixels), np.float32)
        self._left = self._kernel.reshape(rows // taken, 1, taken, -1)
        self._right = self._copied.reshape(1, pixels // part, part, -1).transpose(0, 1, 3, 2)
        self._out = out.reshape(rows // taken, taken, -1, part).transpose(0, 2, 1, 3)
        self._planes = out.reshape(-1, width, pixels)  # [P, D, pixels]
        # x / sqrt(|x|²/D + eps) = sqrt(D) x / sqrt(|x|² + D eps)
        self._scale = stage.norm.weight.detach().numpy()[:, None] * np.float32(math.sqrt(width))
        self._floor = np.float32(width * stage.norm.eps)
        self._bias = bias

    def __call__(self, target: Array) -> None:
        """Read :attr:`inside`, write the output into ``target``, ``[side, side, D]``."""
        np.copyto(self._copied, self._windows)
        np.matmul(self._left, self._right, out=self._out)
        x = np.maximum.reduce(self._planes, 0, keepdims=True) if self._pools else self._planes
        x += self._bias
        squares = np.multiply(x, x)
        length = squares.sum(1, keepdims=True)  # [P, 1, pixels]
        length += self._floor
        np.sqrt(length, out=length)
        x /= length
        x *= self._scale
        np.negative(x, out=squares)
        np.exp(squares, out=squares)
        squares += 1.0
        x /= squares
        # [rows, p, columns, p, D], of p phases along an axis
        side, phases = self.side // self._phases, self._phases
        spread = target.reshape(side, phases, side, phases, -1).transpose(1, 3, 4, 0, 2)
        spread[...] = x.reshape(spread.shape)


def _shifted(weight: Array) -> Array:
    """Four kernels ``[2, 2, D, 6, 6, C]``, each at one place of a window by one pixel larger."""
    width, size, _, channels = weight.shape
    kernel = np.zeros((2, 2, width, size + 1, size + 1, channels), np.float32)
    for p in (0, 1):
        for q in (0, 1):
            kernel[p, q, :, p : p + size, q : q + size] = weight
    return kernel


def _parts(rows: int, pixels: int, numbers: int) -> tuple[int, int]:
    """How many rows of a kernel and how many pixels one product takes at most: both as large as may be."""
    rows = _divisor(rows, ALONE // (numbers * min(pixels, 16)))
    return rows, _divisor(pixels, ALONE // (numbers * rows))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``."""
    return next(divisor for divisor in range(max(1, min(number, most)), 0, -1) if number % divisor == 0)
