"""A list of merges in the format of CLIP's, in which those that five prompts need are at their places.

Every merge whose result is part of a word of the prompts is here, so that these words are cut as with the
whole list; all other places are taken.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from wmkit.affordance.scorers.clip_tokens import MERGES

PROMPTS = {
    "Cut a tree": [3032, 320, 2677],
    "Obtain water": [26555, 1573],
    "Obtain sand": [26555, 5094],
    "Obtain wool": [26555, 13283],
    "Mine iron ore": [3347, 5391, 1423],
}
"""LS-Imagine's prompts, and the tokens that the original finds in them."""

# fmt: off
PLACES = {
    0: "i n", 2: "a n", 3: "r e", 5: "e r", 9: "o n", 11: "o r", 13: "o n</w>", 15: "a t", 16: "e r</w>",
    18: "i n</w>", 20: "r o", 25: "an d</w>", 45: "n e", 50: "o l", 62: "o o", 70: "i r", 88: "t e",
    123: "t r", 136: "t a", 140: "t er</w>", 160: "an d", 192: "t er", 202: "m i", 203: "in e</w>",
    217: "c u", 259: "m in", 262: "s a", 288: "w at", 298: "r e</w>", 343: "in e", 357: "w a",
    417: "oo l</w>", 463: "t re", 480: "at e", 899: "o b", 907: "u t", 910: "n e</w>", 911: "or e</w>",
    977: "s an", 1061: "wat er</w>", 1101: "w o", 1252: "n d</w>", 1355: "w oo", 1396: "ta in</w>",
    1502: "a i", 1635: "s and", 1698: "a in</w>", 1881: "r on", 1993: "wat er", 2132: "e e",
    2165: "tre e</w>", 2329: "ta in", 2473: "o l</w>", 2520: "cu t</w>", 2805: "b t", 2835: "m ine</w>",
    2860: "r on</w>", 3068: "o re", 3129: "u t</w>", 4196: "e e</w>", 4582: "s and</w>", 4879: "ir on</w>",
    5113: "n d", 5301: "re e</w>", 5365: "at er</w>", 5999: "ta i", 7187: "ir on", 7814: "a in",
    8770: "re e", 9455: "wo ol", 9999: "cu t", 12771: "w ool</w>", 12842: "tre e", 18085: "at er",
    19637: "min e", 22697: "i ro", 26043: "ob tain</w>", 37190: "o ol",
}
# fmt: on


def write_merges(path: Path) -> Path:
    """The list, packed."""
    lines = [PLACES.get(place, f"<{place} >") for place in range(MERGES)]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["#version: 0.2", *lines, ""]))
    return path
