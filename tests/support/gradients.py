"""Two computations of one thing: values and gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float) -> None:
    """Fail unless values and the gradients of a random projection of them are equal."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weight).sum(), inputs, retain_graph=True)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, retain_graph=True)
    for grad, want in zip(grads, wanted, strict=True):
        scale = max(want.abs().max().item(), 1.0)
        torch.testing.assert_close(grad, want, atol=tolerance * scale, rtol=tolerance)
