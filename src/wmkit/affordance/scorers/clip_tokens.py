"""CLIP's byte-pair tokens without network: all that is needed is the published list of merges.

The list (``bpe_simple_vocab_16e6.txt.gz``, Radford et al. 2021) comes with the packages ``open_clip_torch``
and ``clip-anytorch``; it is read from their folder, nothing of them is imported. Numbers are 256 letters,
the same at the end of a word, one for each of the first 48,894 merges, then begin (49406) and end (49407).
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from wmkit.errors import ConfigError, MissingWeightsError

FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip", "clip")  # of open_clip_torch and clip-anytorch
MERGES = 48_894
BEGIN, END = 512 + MERGES, 513 + MERGES
LENGTH = 77
_MOST_BYTES = 2**25  # the list has 3 million
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


class ClipTokens:
    """Prompts to the numbers that CLIP's text towers read.

    Args:
        merges: path of the list, packed or not; that of an installed package if not given.

    Raises:
        MissingWeightsError: no such file, and no package that has it.
        ConfigError: the file is no list of merges.

    Shapes: P prompts to ``[P, 77]`` int64: begin, at most 75 tokens, end, zeros.
    """

    def __init__(self, merges: str | PathLike | None = None) -> None:
        self.ranks = _read(str(find_merges(merges)))
        self._letters = _letters()
        letters = list(self._letters.values())
        parts = [*letters, *(x + "</w>" for x in letters), *map("".join, self.ranks)]
        self.vocabulary = {part: number for number, part in enumerate(parts)}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Tokens of prompts; case and white space do not matter."""
        rows = torch.zeros(len(prompts), LENGTH, dtype=torch.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            numbers = [BEGIN, *self.numbers(prompt)[: LENGTH - 2], END]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def numbers(self, prompt: str) -> list[int]:
        """Tokens of one prompt, without begin and end."""
        text = unicodedata.normalize("NFC", " ".join(prompt.split())).lower()
        return [number for word in pieces(text) for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        """Join the pair whose merge comes first in the list, until there is none."""
        parts = [self._letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, MERGES))
            if best not in self.ranks:
                break
            joined, i = list[str](), 0
            while i < len(parts):
                here = tuple(parts[i : i + 2]) == best
                joined.append("".join(best) if here else parts[i])
                i += 2 if here else 1
            parts = joined
        return [self.vocabulary[part] for part in parts]


def find_merges(path: str | PathLike | None = None) -> Path:
    """The file of merges: the one given, or that of an installed package.

    Raises:
        MissingWeightsError: there is none.
    """
    if path is not None:
        if Path(path).is_file():
            return Path(path)
        raise MissingWeightsError(
            f"merges of CLIP's tokens {str(path)!r} do not exist: wanted {FILE}; correct the path, or leave "
            "it out and install wmkit[mineclip], whose open_clip_torch brings the file"
        )
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (found := Path(folder) / FILE).is_file():
                return found
    raise MissingWeightsError(
        f"merges of CLIP's tokens are not there: found no {FILE} in open_clip_torch or clip-anytorch, wanted "
        "one of these installed; pip install 'wmkit[mineclip]', or give the file's path with "
        "affordance.scorer.merges=PATH"
    )


def pieces(text: str) -> Iterator[str]:
    """Words as CLIP cuts them: runs of letters, single digits, runs of other signs, and English endings.

    >>> list(pieces("don't cut 12 trees!!"))
    ['don', "'t", 'cut', '1', '2', 'trees', '!!']
    """
    i = 0
    while i < len(text):
        ending = next((one for one in _ENDINGS if text.startswith(one, i)), None)
        kind = _kind(text[i])
        j = i + 1
        if ending is not None:
            j = i + len(ending)
        elif kind in ("letter", "sign"):
            while j < len(text) and _kind(text[j]) == kind:
                j += 1
        if kind != "space":
            yield text[i:j]
        i = j


def _kind(sign: str) -> str:
    if sign.isspace():
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(sign)[0], "sign")


@lru_cache(maxsize=1)
def _letters() -> dict[int, str]:
    """Bytes to letters that can be printed, in the order of their numbers: printable ones, then the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


@lru_cache(maxsize=4)
def _read(path: str) -> dict[tuple[str, str], int]:
    """Pairs to their places in the list."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            lines = file.read(_MOST_BYTES).decode().split("\n")[1 : 1 + MERGES]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _no_merges(path, type(error).__name__) from error
    ranks = {(left, right): rank for rank, (left, _, right) in enumerate(x.partition(" ") for x in lines)}
    if len(ranks) != MERGES or not all(left and right for left, right in ranks):
        raise _no_merges(path, f"{len(ranks):,} pairs")
    return ranks


def _no_merges(path: str, found: str) -> ConfigError:
    return ConfigError(
        f"{path!r} is no list of merges: found {found}, wanted CLIP's {FILE} with {MERGES:,} pairs or more; "
        "copy it again, or install wmkit[mineclip]"
    )
