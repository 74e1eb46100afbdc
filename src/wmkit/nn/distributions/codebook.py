"""A state of several tokens: vectors, each of which is a row of one table.

Vector quantisation (van den Oord et al. 2017, arXiv:1711.00937), as IRIS has it (arXiv:2209.00588).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.functional import sample_index, straight_through


class CodebookLatent(nn.Module):
    """``G`` tokens, each one of ``C`` learned vectors of ``Z`` numbers; the nearest is taken.

    What the posterior predicts is vectors, what the prior predicts is logits over the table. A state is the
    chosen vectors side by side; its classes are their rows.

    Args:
        groups: tokens G of a state, 16 in IRIS.
        rows: C of the table, 512 there.
        width: numbers Z of a row, 512 there.

    Attributes:
        state_dim: width of a state, G * Z.
        stats_dim: numbers of the posterior, G * Z.
        prior_dim: numbers of the prior, G * C.
        table: ``[C, Z]``, at first uniform within 1/C.

    >>> latent = CodebookLatent(groups=2, rows=3, width=1)
    >>> latent.table.data = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> latent.nearest(latent.statistics(torch.tensor([[0.6, -0.4]])))
    (tensor([[1., 0.]]), tensor([[2, 1]]))
    """

    unimix = 0.0

    def __init__(self, groups: int = 16, rows: int = 512, width: int = 512) -> None:
        super().__init__()
        for name, number in (("groups", groups), ("rows", rows), ("width", width)):
            check_range(name, number, 1)
        self.groups, self.rows, self.width = groups, rows, width
        self.state_dim = self.stats_dim = groups * width
        self.prior_dim = groups * rows
        self.table = nn.Parameter(torch.empty(rows, width).uniform_(-1 / rows, 1 / rows))

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Uniforms ``[*lead, G, 1]``."""
        return torch.rand(*lead, self.groups, 1, device=device)

    def statistics(self, x: Tensor) -> Tensor:
        """``[*B, G*Z] -> [*B, G, Z]`` vectors."""
        return x.unflatten(-1, (self.groups, self.width))

    def nearest(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """The rows nearest to vectors ``[*B, G, Z]``: state ``[*B, G*Z]`` and classes ``[*B, G]``.

        A state's gradient goes to the vectors, straight through; the table has none of it.
        """
        with torch.no_grad():
            vectors, table = statistics.float().flatten(0, -2), self.table.float()
            distance = torch.addmm(
                table.square().sum(1), vectors, table.T, alpha=-2
            )  # [N, C], less |vector|²
            classes = distance.argmin(1).view(statistics.shape[:-1])
        state = F.embedding(classes, self.table.detach())
        if torch.is_grad_enabled():
            state = straight_through(state, statistics)
        return state.flatten(-2), classes

    def sample(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A state ``[*B, G*Z]`` of logits ``[*B, G, C]``, without gradient, and its classes ``[*B, G]``."""
        classes = sample_index(torch.softmax(logits.detach(), -1), noise)
        return self.of(classes), classes

    def mode(self, statistics: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
        """:meth:`nearest`: nothing is drawn."""
        return self.nearest(statistics)

    def of(self, classes: Tensor) -> Tensor:
        """Classes ``[*B, G]`` to states ``[*B, G*Z]``, without gradient."""
        return F.embedding(classes, self.table.detach()).flatten(-2)

    def one_hot(self, classes: Tensor) -> Tensor:
        """:meth:`of`, under the name that categoricals have for it."""
        return self.of(classes)

    def classes_of(self, state: Tensor) -> Tensor | None:
        """States ``[*B, G*Z]`` to classes ``[*B, G]``."""
        with torch.no_grad():
            return self.nearest(self.statistics(state))[1]
