"""The headline numbers of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmkit.training.evaluate import Evaluation, means
from wmkit.training.protocol import EvaluationProtocol

if TYPE_CHECKING:
    from wmkit.training.trainer import Trainer


@dataclass
class Summary:
    """Headline numbers of a run, printed at its end."""

    run: str
    steps: int
    updates: int
    minutes: float
    success_rate: float | None
    episode_return: float | None
    episodes: int
    training_success_rate: float | None
    interrupted: bool
    training_return: float | None = None
    protocol: str = ""
    frames: int | None = None  # steps times action repeat, where that is not 1
    crafter_score: float | None = None
    training_episodes: int = 0  # that the means in training are of
    training_rules: str = ""  # by which they were played, where these are not the evaluation's
    learned: str = ""  # what was, in words
    offline: int = 0  # updates from recorded data alone, where there are some


def summarise(trainer: Trainer, evaluation: Evaluation | None) -> Summary:
    """What a trainer has done, and how it was judged."""
    from wmkit.training.report import learned

    offline = getattr(trainer, "offline", 0)
    numbers = evaluation.numbers() if evaluation is not None else {}
    recent = trainer.tracker.recent
    rules = ""
    if recent:
        of_training = EvaluationProtocol.of_training(trainer.config, len(recent))
        rules = of_training.beside(EvaluationProtocol.of(trainer.config, len(recent)))
    return Summary(
        run=str(trainer.run.path),
        steps=max(trainer.step - min(offline, trainer.updates), 0),
        updates=trainer.updates,
        minutes=trainer.run.wall / 60,
        success_rate=numbers.get("success_rate"),
        episode_return=numbers.get("return"),
        episodes=int(numbers.get("episodes", 0)),
        training_success_rate=trainer.tracker.success_rate,
        interrupted=trainer.interrupt.requested,
        training_return=means(recent).get("return"),
        training_episodes=len(recent),
        training_rules=rules,
        protocol=str(evaluation.protocol) if evaluation is not None and evaluation.protocol else "",
        frames=trainer.run.frames(trainer.step).get("frames"),
        crafter_score=numbers.get("crafter_score"),
        offline=min(offline, trainer.updates),
        learned=learned(trainer.run) if evaluation is not None else "",
    )
