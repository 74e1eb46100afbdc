"""What a run learned, in one sentence that numbers decide.

The newest evaluation stands against the episodes of the run's own prefill, in which actions were drawn at
random, or by the untrained policy where ``training.prefill_actions`` says so. A difference counts where it
is beyond chance at the 5 % level: of means by Welch's test, of success rates by Agresti and Caffo's interval
(The American Statistician 54, 2000), which holds for few episodes and for rates of 0 and 1 too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean, variance
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from wmkit.training.protocol import EvaluationProtocol, evaluation_options, training_options
from wmkit.training.run import RunDirectory

FEWEST = 4  # episodes of either kind; fewer show nothing
# Student's t at 97.5 % for 1, 2, ... degrees of freedom.
_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
_BEYOND = 2.23


class Verdict(NamedTuple):
    """What was learned.

    Attributes:
        sentence: to be read first.
        grounds: by which episodes and numbers it was decided; empty where there was nothing to decide.
    """

    sentence: str
    grounds: str = ""


def verdict(run: RunDirectory) -> Verdict:
    """Read a run's files and say whether it learned; where that was not shown, say what is missing."""
    lines = list(run.metrics())
    scores = [line for line in lines if "eval/return" in line]
    if not scores:
        return Verdict("Whether it learned is not shown: no evaluation came to its end.")
    # `wmkit imagine` adds evaluations of two episodes: of the newest step the largest decides.
    score = max(
        scores, key=lambda line: (line["step"], line.get("eval/episodes") or 0, line.get("wall") or 0)
    )
    if not any(line.get("updates") for line in lines if line["stage"] == "train"):
        return Verdict("Nothing was learned: no update was made.")
    if score["eval/return"] is None:  # as infinity and NaN are written
        return Verdict("Whether it learned is not shown: the return of its evaluation is not finite.")
    count = int(score.get("eval/episodes") or 0)
    rows = [e for e in run.episodes(score["stage"]) if e["step"] == score["step"]]
    played = _last_of(rows, score, count)
    by_policy = OmegaConf.select(run.config, "training.prefill_actions", default="random") == "policy"
    before = [] if _other_rules(run) else list(run.episodes("prefill"))
    unit = "steps" if run.config.get("data") is None else run.unit
    succeeds = score.get("eval/success_rate") is not None
    key = "success" if succeeds else "return"
    here, there = _values(played, key), _values(before, key)
    if succeeds:
        policy = f"the policy succeeds in {_percent(score['eval/success_rate'])} of {count} episodes"
        chance = "untrained it succeeds in" if by_policy else "acting at random it succeeds in"
        shown = f"{chance} {_percent(fmean(there))}" if there else ""
        joined = f"{policy}; {shown}"
    else:
        policy = f"after {score['step']:,} {unit} the return is {_number(score['eval/return'])}"
        actor = "the untrained policy makes" if by_policy else "random actions make"
        shown = f"where {actor} {_number(fmean(there))}" if there else ""
        joined = f"{policy}, {shown}"
    first = "untrained" if by_policy else "random"
    if len(here) < FEWEST:
        found = f"{count} episode{'s are' if count != 1 else ' is'} too few to show whether it learned"
        if count >= FEWEST:
            found = "its episodes are not on record, so that whether it learned is not shown"
        return Verdict(f"{_capital(policy)}: {found}.")
    if len(there) < FEWEST:
        why = _other_rules(run) or (
            f"{len(there)} {first} episode{'s' * (len(there) != 1)} came to an end, {FEWEST} are wanted"
        )
        what = "the untrained policy" if by_policy else "acting at random"
        return Verdict(f"{_capital(policy)}; what {what} achieves was not measured ({why}).")
    difference, error = (_of_rates if succeeds else _of_means)(here, there)
    write = _percent if succeeds else _number
    grounds = (
        f"Decided by {len(here)} evaluation and {len(there)} {first} episodes: at the 5 % level chance "
        f"explains a difference of up to {write(error)}."
    )
    than = "untrained" if by_policy else "chance"
    if abs(difference) <= error:
        return Verdict(f"It does not yet play better than {than}: {joined}.", grounds)
    if difference < 0:
        return Verdict(f"It plays worse than {than}: {joined}.", grounds)
    return Verdict(f"{_capital(joined)}: it learned.", grounds)


def learned(run: RunDirectory) -> str:
    """:func:`verdict`'s sentence; what goes wrong while it is looked for is said instead."""
    try:
        return verdict(run).sentence
    except Exception as error:
        return f"Whether it learned is not shown: {' '.join(str(error).split())}."


def _of_means(here: Sequence[float], there: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and what chance explains of it.

    >>> _of_means([5.0, 5.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0])
    (4.0, 0.0)
    """
    parts = [variance(values) / len(values) for values in (here, there)]
    spread = sum(parts)
    shares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (here, there), strict=True))
    freedom = int(spread**2 / shares) if shares else 0  # Welch and Satterthwaite's
    quantile = _QUANTILES[freedom - 1] if 1 <= freedom <= len(_QUANTILES) else _BEYOND
    return fmean(here) - fmean(there), quantile * math.sqrt(spread)


def _of_rates(here: Sequence[float], there: Sequence[float]) -> tuple[float, float]:
    """Difference of two success rates, one success and one failure added to each, and what chance explains.

    >>> difference, error = _of_rates([1.0] * 4, [0.0] * 4)
    >>> round(difference, 2), round(error, 2)
    (0.67, 0.42)
    """
    rates = [(sum(values) + 1) / (len(values) + 2) for values in (here, there)]
    counts = [len(values) + 2 for values in (here, there)]
    spread = sum(rate * (1 - rate) / count for rate, count in zip(rates, counts, strict=True))
    return rates[0] - rates[1], 1.96 * math.sqrt(spread)


def _last_of(rows: list[dict[str, Any]], score: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The episodes of one evaluation among all of its step and stage: those whose mean is the score's."""
    for end in range(len(rows), count - 1, -1):
        found = rows[end - count : end]
        values = _values(found, "return")
        if len(values) == count and math.isclose(
            fmean(values), score["eval/return"], rel_tol=1e-6, abs_tol=1e-9
        ):
            return found
    return []


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    found = [row.get(key) for row in rows]
    numbers = [float(value) for value in found if isinstance(value, (bool, int, float))]
    return numbers if all(map(math.isfinite, numbers)) else []


def _other_rules(run: RunDirectory) -> str:
    """By which rules training episodes were played, where the evaluation's are others; else empty."""
    config = run.config
    if config.get("env") is None or training_options(config) == evaluation_options(config):
        return ""
    theirs = ""
    with suppress(Exception):  # the environment may not be installed where a report is written
        one, other = EvaluationProtocol.of_training(config, 1), EvaluationProtocol.of(config, 1)
        theirs = replace(one, sampled=other.sampled).beside(other)
        if not theirs:
            return ""
    return "training plays by other rules" + f": {theirs}" * bool(theirs)


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _number(value: float) -> str:
    """A number to be read.

    >>> _number(-1250.4), _number(0.9321), _number(7.0)
    ('-1,250', '0.93', '7')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
