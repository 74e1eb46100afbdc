"""Training from records: updates alone, and then, where a run is told so, on in the environment.

    records    data set -> replay                              (once; see wmkit.training.records)
    offline    updates from replay -> log, evaluate, save      (evaluate where there is an environment)
    train      as every run, ``data.live=true``

In such a run a step is an update as long as there are records alone; steps in the environment count on from
there. Intervals (``log_every`` and so on) are in steps of an environment, of which an update stands for as
many as ``training.train_ratio`` says.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from wmkit.errors import ConfigError
from wmkit.training import keeping
from wmkit.training.evaluate import Evaluation
from wmkit.training.parts import Parts, default_parts
from wmkit.training.progress import Stage, Stages
from wmkit.training.records import Records, recorded_episodes
from wmkit.training.run import RunDirectory
from wmkit.training.schedule import Every
from wmkit.training.trainer import Trainer


class OfflineTrainer(Trainer):
    """Trains one system from recorded data.

    Args:
        config: with a ``data`` block; ``env`` may be null.
        run: where everything is written.
        parts: as of :class:`~wmkit.training.trainer.Trainer`.
        stages: draws the progress bars.
    """

    def __init__(
        self,
        config: DictConfig,
        run: RunDirectory,
        *,
        parts: Parts | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.records = Records(config, run)
        super().__init__(config, run, parts=self.records.parts(parts or default_parts()), stages=stages)
        self.offline = 0  # updates from records alone

    def _open_worlds(self) -> None:
        super()._open_worlds()
        self.records.write(self, self.stages)
        told, ratio = self.records.settings.updates, self.ratio.per_step
        if told is None and not ratio:
            raise ConfigError(
                "training.train_ratio is 0: wanted a number above, or how many updates are made from "
                "records; set data.updates"
            )
        self.offline = told if told is not None else math.ceil(self.settings.steps * ratio)
        self._each = 1 / ratio if ratio else 1.0  # steps of an environment that an update stands for
        live = self.settings.steps if self.records.settings.live else 0
        self._live_settings = replace(self.settings, steps=self.offline + live, prefill=0, pretrain=0)

    def _check_room(self) -> None:
        """Replay is as large as the data set, and no update waits for more."""

    def _learn(self) -> None:
        if not self.updates:
            self.step = 0  # what replay holds was not played
        if self.updates < self.offline:
            self._learn_offline()
        elif self.step >= self._live_settings.steps:
            self.stages.say(
                f"nothing is left to learn: found {self.updates:,} updates, wanted {self.offline:,}; set "
                "data.updates higher to go on"
            )
            return
        if self.records.settings.live and not self._stopping():
            self.settings = self._live_settings
            super()._learn()

    def _learn_offline(self) -> None:
        settings = self.settings

        def steps() -> int:
            return int(self.updates * self._each)

        log, evaluation, save = (
            Every(every, steps())
            for every in (settings.log_every, settings.evaluate_every, settings.checkpoint_every)
        )
        self._logged_wall, self._logged_at, self._logged_updates = self.run.wall, self.step, self.updates
        self.ratio.take_left()  # of an interrupt: what is left is counted here
        if not self.updates:
            keeping.save(self)
        with self.stages.stage("offline", self.offline, "updates", self.deadline.learning_left) as bar:
            bar.start_at(self.updates)
            while self.updates < self.offline and not self._stopping():
                before = self.updates
                self._update(1)
                self.step += self.updates - before
                bar.advance(self.updates - before)
                if log(steps()):
                    self._log()
                if evaluation(steps()) and self.updates < self.offline and not self._stopping():
                    self._evaluate(settings.evaluate_episodes, "evaluate")
                if save(steps()):
                    keeping.save(self)
            if self._logged_at != self.step:
                self._log(keep=True)

    def _evaluate(self, episodes: int, stage: str, record: int = 0, bar: Stage | None = None) -> Evaluation:
        if self.records.has_env:
            return super()._evaluate(episodes, stage, record, bar)
        shown: Any = recorded_episodes(self.memory, record)
        return Evaluation(trajectories=shown)

    def _finish(self) -> Evaluation:
        if self.records.has_env:
            return super()._finish()
        evaluation = self._evaluate(0, "final", record=2)
        keeping.save(self)
        if self.settings.report and not self.interrupt.requested:
            from wmkit.training.report import make_report

            shown = (evaluation, self.memory, self.device, self.affordance)
            make_report(self.run, self.system, *shown, say=self.stages.say)
        return evaluation
