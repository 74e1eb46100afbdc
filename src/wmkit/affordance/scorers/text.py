"""A small text tower: known words by a fixed vocabulary, all others by hashing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wmkit.affordance.scorers.scorer import words

VOCABULARY = tuple(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "with",
        "from",
        "and",
        "for",
        "over",
        "under",
        "into",
        "near",
        "far",
        "cut",
        "chop",
        "obtain",
        "get",
        "collect",
        "gather",
        "mine",
        "dig",
        "shear",
        "harvest",
        "find",
        "fight",
        "kill",
        "break",
        "use",
        "hold",
        "tree",
        "log",
        "wood",
        "leaves",
        "water",
        "bucket",
        "sand",
        "wool",
        "sheep",
        "cow",
        "pig",
        "iron",
        "ore",
        "stone",
        "coal",
        "gold",
        "diamond",
        "cave",
        "hill",
        "plains",
        "forest",
        "desert",
        "river",
        "lake",
        "grass",
        "ground",
        "sky",
        "sun",
        "wall",
        "block",
        "flower",
        "bush",
        "rock",
        "animal",
        "walk",
        "run",
        "go",
        "look",
        "turn",
        "stand",
        "still",
        "move",
        "jump",
        "swim",
        "climb",
        "around",
        "ahead",
        "away",
        "back",
        "forward",
        "left",
        "right",
        "up",
        "down",
        "explore",
        "widest",
        "possible",
        "area",
        "red",
        "green",
        "blue",
        "yellow",
        "white",
        "black",
        "brown",
    ]
)
LENGTH = 16  # words kept of a prompt
BUCKETS = 256  # for words outside the vocabulary
_INDEX = {word: 1 + i for i, word in enumerate(VOCABULARY)}  # 0 is padding


def tokenize(prompts: Sequence[str]) -> Tensor:
    """Prompts to word numbers, 0 where a prompt is over.

    Args:
        prompts: any text; case and punctuation do not matter, words after the 16th are dropped.

    Returns:
        ``[P, 16]`` int64.

    >>> tokenize(["Cut a tree", "cut, a TREE!"])[:, :4].unique(dim=0).shape
    torch.Size([1, 4])
    """
    tokens = torch.zeros(len(prompts), LENGTH, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        for column, word in enumerate(words(prompt)[:LENGTH]):
            unknown = 1 + len(VOCABULARY) + zlib.crc32(word.encode()) % BUCKETS
            tokens[row, column] = _INDEX.get(word, unknown)
    return tokens


class TextTower(nn.Module):
    """Mean of word and position embeddings, then a two-layer network.

    Args:
        dim: width of the result.
        width: width of the word embeddings.

    Shapes: ``[P, 16] int64 -> [P, dim]``.

    >>> TextTower(512)(tokenize(["Cut a tree"])).shape
    torch.Size([1, 512])
    """

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.word = nn.Embedding(1 + len(VOCABULARY) + BUCKETS, width, padding_idx=0)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[P, 16] -> [P, dim]``."""
        present = (tokens > 0).unsqueeze(-1)  # [P, 16, 1]
        total = ((self.word(tokens) + self.position) * present).sum(1)  # [P, width]
        return self.out(total / present.sum(1).clamp_min(1))
