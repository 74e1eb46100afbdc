"""Improved CEM: noise that changes slowly, and elites that stay (Pinneri et al. 2020, arXiv:2008.06389).

As stable-worldmodel (addbab4) has it: each sequence of noise is divided by its own standard deviation over
the horizon, the constant part has the scale of the slowest wave, the best elites of an iteration are
candidates of the next, behind the mean; populations do not shrink and nothing but the mean goes on to the
next step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.control.planners.cem import CEM


class ICEM(CEM):
    """CEM with coloured noise and kept elites.

    Args:
        beta: exponent of the noise's spectrum, ``1 / f^beta``; zero is white.
        keep_elites: how many of an iteration's best are candidates of the next.
        momentum: see :class:`CEM`.
        **options: others of :class:`CEM`.

    >>> _ = torch.manual_seed(0)
    >>> noise = ICEM(samples=8, elites=2).shaped(torch.randn(1, 1, 8, 20, 1))
    >>> step = noise.diff(dim=3).square().mean() / noise.square().mean()  # 2 of white noise
    >>> bool(step < 0.5)
    True
    """

    def __init__(
        self, *, beta: float = 2.0, keep_elites: int = 5, momentum: float = 0.1, **options: Any
    ) -> None:
        super().__init__(momentum=momentum, **options)
        check_range("beta", beta, 0)
        check_range("keep_elites", keep_elites, 0)
        self.beta, self.kept = beta, min(keep_elites, self.elites)

    def shaped(self, noise: Tensor) -> Tensor:
        """``[I, E, N, H, A]``, coloured along the horizon."""
        return coloured(noise, self.beta)


def coloured(white: Tensor, beta: float) -> Tensor:
    """White noise ``[..., H, A]`` with a spectrum of ``1 / f^beta`` along H, and unit spread over it.

    >>> coloured(torch.ones(1, 1), 2.0)  # one step has no colour
    tensor([[1.]])
    """
    horizon = white.shape[-2]
    if horizon < 2:
        return white
    frequency = torch.fft.rfftfreq(horizon, device=white.device).to(white.dtype)
    frequency = torch.cat([frequency[1:2], frequency[1:]])  # of the constant part too
    waves = torch.fft.rfft(white, dim=-2) * frequency.pow(-beta / 2).unsqueeze(-1)
    noise = torch.fft.irfft(waves, n=horizon, dim=-2)
    return noise / noise.std(-2, keepdim=True).clamp(min=1e-8)
