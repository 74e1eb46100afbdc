"""One training run from the first frame to the report, readable from top to bottom.

    affordance   scorer, random frames, labels, U-Net        (systems with an ``affordance`` block)
    prefill      steps into the replay, random ones or the untrained policy's
    train        collect k steps -> replay -> updates by ratio -> log, evaluate, save
    final        evaluation, report

Everything the run leaves behind lies in its :class:`~wmkit.training.run.RunDirectory`. The replay
holds every step that was taken; a checkpoint holds the rest. A run killed at any moment goes
on with ``resume=RUN``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wmkit.errors import (
    ConfigError,
    EnvironmentCrashError,
    NonFiniteLossError,
    SpecError,
)
from wmkit.fast import keep_freed_memory
from wmkit.optim.captured import make_update
from wmkit.training import keeping
from wmkit.training.checkpoints import CheckpointStore, rng_state, set_rng_state
from wmkit.training.collect import Collection, EpisodeTracker, ProlongEpisodes, came
from wmkit.training.evaluate import Episode, Evaluation, evaluate, headline, means
from wmkit.training.faults import Faults
from wmkit.training.guard import FiniteGuard, scalars
from wmkit.training.owed import Owed, owing
from wmkit.training.parts import Parts, default_parts
from wmkit.training.progress import Stage, Stages
from wmkit.training.protocol import EVALUATION_SEED, EvaluationProtocol
from wmkit.training.run import RunDirectory
from wmkit.training.schedule import Deadline, Every, Interrupt, UpdateRatio
from wmkit.training.settings import Settings, set_up
from wmkit.training.summary import Summary, summarise
from wmkit.training.worlds import Worlds


class Trainer:
    """Trains one system on one environment.

    Args:
        config: the whole configuration; ``training``, ``env`` and ``affordance`` blocks are read here.
        run: where everything is written. A run that has checkpoints is continued.
        parts: how the system, the environments and the replay are made; tests pass small stand-ins.
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
        self.config, self.run, self.settings = config, run, Settings.read(config)
        self.parts = parts or default_parts()
        self.stages = stages or Stages()
        self.deadline = Deadline(self.settings.time_limit)
        self.interrupt = Interrupt()
        self.faults = Faults(self.settings.on_bad_value, self.stages.say, lambda: self.interrupt.requested)
        self.interrupt.busy = self.faults.busy
        self.checkpoints = CheckpointStore(run.path / "checkpoints")
        self.step = 0  # environment steps, over all environments and sessions
        self.updates = 0
        self.score: float | None = None  # of the newest evaluation: success rate, or return without flags
        self.due: dict[str, Every] = {}  # what comes now and then, from the first update on
        self.since: dict[str, int] = {}  # when each of it was last due, in the session before
        self._evaluation_env: Any = None
        self._opened: list[Any] = []

    # ------------------------------------------------------------------------------------------ the recipe

    def train(self) -> Summary:
        """Run every stage that is not done yet.

        Raises:
            NonFiniteLossError: a loss term became NaN or infinite; the last good state was saved.
        """
        with self.run.held():
            return self._train()

    def _train(self) -> Summary:
        self._set_up()
        self.affordance = self.parts.prepare_affordance(self.config, self.run, self.stages)
        try:
            self._open_worlds()
            keeping.restore(self)
            self.run.write_config()  # a resumed run's may have changed, and now it is known to fit
            with self.interrupt.watching():
                self._learn()
                keeping.save(self)
                if not (self.updates or self._stopping()):
                    self._say_nothing_was_learned()
                evaluation = None if self.interrupt.requested else self._finish()
            self.faults.sum_up()
        finally:
            self._close()
        return summarise(self, evaluation)

    def _set_up(self) -> None:
        keep_freed_memory()
        self.device, self.seed = set_up(self.config)

    def _open_worlds(self) -> None:
        base = self.parts.make_env(self.config, self.affordance, seed=self.seed)
        self._opened.append(base)
        base.set_seed(self.seed)
        self.faults.watch(base)
        self.transform = self.parts.find_transform(base)
        self.system = self.parts.build(self.config, base, self.device)
        self.update = make_update(self.system, vars(self.settings))
        self.env = self.parts.carry(base, self.system)
        self.num_envs = self.env.batch_size[0]
        self.prolong: ProlongEpisodes | None = None
        if self.settings.pairs.get("prolong", False):
            self.prolong = ProlongEpisodes(self.num_envs)
            self.env.append_transform(self.prolong)
        ahead = self.settings.collect_ahead
        if ahead and (self.prolong is not None or self.transform is not None):
            raise ConfigError(
                "training.collect_ahead=true does not fit this system: found an environment that learns "
                "from what is collected (labels of jumps, prolonged episodes), wanted one that does not; "
                "leave it false"
            )
        self.worlds = Worlds(self.env, self.transform, self.seed)
        self.collection = Collection(self.env, self.system.policy, self.settings.collect_length, ahead)
        self._opened.append(self.collection)
        self.memory = self.parts.make_memory(self.config, self.run, self.system, self.num_envs)
        self.tracker = EpisodeTracker(self.num_envs, self.settings.success_window)
        batch, length = self.system.batch_shape
        replayed = batch * (length - int(getattr(self.system, "context", 0)))
        self.ratio = UpdateRatio(self.settings.train_ratio, replayed)
        windows = self.settings.prefill_windows
        self._windows = replayed if windows == "batch" else windows
        self._check_room()
        self.guard = FiniteGuard(lambda: keeping.state_of(self), self.settings.check_every)

    def _check_room(self) -> None:
        """Refuse a replay that never holds the windows which the first update waits for."""
        rows, length = self.memory.streams.capacity, self.memory.length
        found, wanted = self.num_envs * (rows - length + 1), self._windows
        if found < wanted:
            enough = self.num_envs * (-(-wanted // self.num_envs) + length - 1)
            raise ConfigError(
                f"replay has no room for the windows that learning waits for: found {found} of {length} "
                f"records in {self.num_envs} x {rows}, wanted {wanted} (training.prefill_windows); set "
                f"training.replay.capacity={enough} or more"
            )

    def _learn(self) -> None:
        settings = self.settings
        prefill, steps = min(settings.prefill, settings.steps), settings.steps
        random = settings.prefill_actions == "random"
        if self.updates and self.step >= steps and not self.ratio.left:
            self.stages.say(
                f"nothing is left to learn: found {self.step:,} steps, wanted {steps:,}; set training.steps "
                "higher to go on"
            )
        if self._filling(prefill, steps):
            records = self._windows + self.num_envs * (self.memory.length - 1) if self._windows else 0
            wanted = min(max(prefill, records), steps)
            with self.stages.stage("prefill", wanted, limit=self.deadline.learning_left) as bar:
                bar.start_at(self.step)
                while self._filling(prefill, steps) and not self._stopping():
                    self._collect(bar, "prefill", random=random)
        if (self.step >= steps and not self.ratio.left) or self._stopping():
            return
        for name in ("log", "evaluate", "checkpoint"):
            self.due[name] = Every(getattr(settings, f"{name}_every"), self.since.get(name, self.step))
        self._logged_wall, self._logged_at, self._logged_updates = self.run.wall, self.step, self.updates
        if settings.compile:
            self.stages.say("compile: the first update is compiled before it runs, which takes minutes")
        if not self.updates:
            keeping.save(self)  # there is a good state from here on
        self._pretrain()
        with self.stages.stage("train", steps, limit=self.deadline.learning_left) as bar:
            bar.start_at(self.step)
            self._learn_from(self.ratio.take_left())  # what an interrupt left
            while self.step < steps and not self._stopping():
                self._learn_from(self.ratio.due(self._collect(bar, "train")))
            if self._logged_at != self.step:
                self._log(keep=True)

    def _learn_from(self, updates: int) -> None:
        """Updates, and what is due after them; what an interrupt leaves is due in the next session."""
        self._update(updates)
        if not self.ratio.left and self.due["log"](self.step):
            self._log()
        if not self._stopping() and self.step < self.settings.steps and self.due["evaluate"](self.step):
            self._evaluate(self.settings.evaluate_episodes, "evaluate")
        if not self._stopping() and self.due["checkpoint"](self.step):
            keeping.save(self)

    def _say_nothing_was_learned(self) -> None:
        length, settings = self.memory.length, self.settings
        self.stages.say(
            f"nothing was learned in {self.step:,} steps, which hold "
            f"{self.memory.streams.num_windows(length):,} windows of {length} records: the first update "
            f"waits for {settings.prefill:,} steps (training.prefill) and {max(self._windows, 1):,} windows "
            "(training.prefill_windows), then for those steps that training.train_ratio asks for; set "
            "training.steps higher"
        )

    def _pretrain(self) -> None:
        """Updates before the first step that the policy chooses; a resumed run makes those that are left."""
        told = getattr(self.system, "pretraining", None)  # the system may know better
        total = self.settings.pretrain if told is None else told
        if self.updates >= total:
            return
        save = Every(self.settings.checkpoint_every, self.updates)
        with self.stages.stage("pretrain", total, "updates", self.deadline.learning_left) as bar:
            bar.start_at(self.updates)
            while self.updates < total and self.memory.ready() and not self._stopping():
                self._update(1, uniform=told is not None)
                bar.advance(1)
                if save(self.updates):
                    self._log()
                    keeping.save(self)

    def _filling(self, prefill: int, steps: int) -> bool:
        """Whether the first update still has to wait, for steps or for windows to draw from."""
        if self.step >= steps or self.updates:
            return self.step < prefill
        return self.step < prefill or not self.memory.ready(self._windows)

    def _collect(self, bar: Stage, stage: str, random: bool = False) -> int:
        try:
            batch = self.collection.collect(random=random)
        except EnvironmentCrashError as error:
            if self.interrupt.requested:  # Ctrl-C ended the first reset
                return 0
            raise keeping.stopped(self, error) from None
        with owing(self.run, self._lines(batch, stage)):
            self.memory.write(batch)
        if self.prolong is not None:
            self.prolong.waiting = self.memory.waiting()
        collected = batch.numel()
        self.step += collected
        bar.advance(collected, **self._note(self.tracker.recent))
        self._look_for_faults()
        return collected

    def _lines(self, batch: Any, stage: str) -> list[Owed]:
        """Lines of the episodes that end in a batch, for when their records are in replay."""
        ended, steps = self.tracker.add(batch), self.memory.streams.stream_steps()
        records = came(batch).cumsum(1)  # [N, k] so far
        return [
            Owed(
                env,
                steps[env] + int(records[env, t]),
                self.run.episode_line(self.step + (t + 1) * self.num_envs, stage, episode.line()),
            )
            for env, (t, episode) in zip(self.tracker.ended_in, ended, strict=True)
        ]

    def _look_for_faults(self) -> None:
        try:
            self.faults.look()
        except (EnvironmentCrashError, SpecError) as error:
            raise keeping.stopped(self, error) from None

    def _update(self, count: int, uniform: bool = False) -> None:
        for made in range(count):
            if self.interrupt.requested:
                self.ratio.left += 0 if uniform else count - made  # a resumed run pays first
                return
            if not self.memory.ready():
                return
            batch = self.memory.sample(uniform)
            if getattr(self.update, "records_next", False):
                self.collection.settle()
            metrics = self.update(batch, *self.memory.sample_dreams())
            self.updates += 1
            self.deadline.aside = getattr(self.update, "compiling", 0.0)
            context = metrics.get("replay_context", None)
            if context is not None:
                self.memory.write_back(batch, context)
            try:
                self.guard.add(scalars(metrics.exclude("replay_context")))
            except NonFiniteLossError as error:
                raise keeping.rescued(self, error) from None

    # ------------------------------------------------------------------------------------------ bookkeeping

    def _stopping(self) -> bool:
        return self.interrupt.requested or self.deadline.learning_over()

    def _log(self, keep: bool = False) -> None:
        """Means since the last line; one with ``keep`` is beside the others, which stay as they would be."""
        wall, updates = self.run.wall, self.updates
        numbers = {**self._checked_means(keep), **self.tracker.numbers(keep), **self.memory.numbers(keep)}
        numbers |= self.faults.numbers()
        seconds = max(wall - self._logged_wall, 1e-9)
        numbers["speed/steps_per_second"] = (self.step - self._logged_at) / seconds
        numbers["speed/updates_per_second"] = (updates - self._logged_updates) / seconds
        numbers["updates"] = updates
        self._logged_wall, self._logged_at, self._logged_updates = wall, self.step, updates
        self.run.log(self.step, "train", numbers)

    def _checked_means(self, keep: bool) -> dict[str, float]:
        try:
            return self.guard.means(keep)
        except NonFiniteLossError as error:
            raise keeping.rescued(self, error) from None

    def _evaluate(self, episodes: int, stage: str, record: int = 0, bar: Stage | None = None) -> Evaluation:
        self.collection.settle()  # TorchRL keeps one kind of exploration for all threads
        states = rng_state()  # evaluations do not change what training draws, nor does making their worlds
        if not self._open_evaluation():
            set_rng_state(states)
            return Evaluation()
        done: list[Episode] = []

        def count(episode: Episode) -> None:
            done.append(episode)
            if bar is not None:
                bar.advance(1, **self._note(done))

        protocol = EvaluationProtocol.of(self.config, episodes)
        torch.manual_seed(self.seed)
        result = Evaluation()
        try:
            result = evaluate(
                self.system.policy,
                self._evaluation_env,
                protocol,
                record=record,
                limit=self.settings.evaluate_limit,
                stop=lambda: self.interrupt.requested or self.deadline.playing_over() or self.faults.ending(),
                on_episode=count,
            )
        except EnvironmentCrashError as error:
            if not self.interrupt.requested:
                raise keeping.stopped(self, error) from None
        finally:
            set_rng_state(states)
        for episode in result.episodes:
            self.run.episode(self.step, stage, episode.line())
        if result.episodes:
            if result.whole:  # by one stopped early no checkpoint is called the best
                self.score = (headline(result.numbers()) or (None, None))[1]
            assert result.protocol is not None
            self.run.score(self.step, stage, result.numbers(), result.protocol.record())
        self._look_for_faults()
        return result

    def _open_evaluation(self) -> bool:
        """Make the environments of evaluations, once; false if Ctrl-C came first."""
        if self._evaluation_env is None:
            try:
                with self.interrupt.at_once():
                    base = self.parts.make_env(
                        self.config, self.affordance, seed=EVALUATION_SEED, evaluation=True
                    )
                    self._opened.append(base)
                    base.set_seed(EVALUATION_SEED)
            except KeyboardInterrupt:
                return False
            self.faults.watch(base)
            self._evaluation_env = self.parts.carry(base, self.system)
            self._opened[-1] = self._evaluation_env
        return True

    @staticmethod
    def _note(episodes: Sequence[Episode]) -> dict[str, float]:
        """The text behind a progress bar."""
        found = headline(means(episodes))
        return {} if found is None else {found[0]: found[1]}

    def _finish(self) -> Evaluation:
        episodes = self.settings.final_episodes
        limit = self.deadline.playing_left
        with self.stages.stage("final evaluation", episodes, "episodes", limit) as bar:
            evaluation = self._evaluate(episodes, "final", record=2, bar=bar)
        keeping.save(self)
        if self.settings.report and not self.interrupt.requested:
            from wmkit.training.report import make_report

            shown = (evaluation, self.memory, self.device, self.affordance)
            make_report(self.run, self.system, *shown, say=self.stages.say)
        return evaluation

    def _close(self) -> None:
        for opened in reversed(self._opened):  # the collection closes its environments itself
            with contextlib.suppress(Exception):  # an environment that died must not hide the first error
                opened.close()
        self.run.close()


def train(config: DictConfig, *, parts: Parts | None = None, stages: Stages | None = None) -> Summary:
    """Start a run, or continue the one that ``config.resume`` names.

    Args:
        config: see :class:`Trainer`.
        parts: stand-ins for tests.
        stages: draws the progress bars.
    """
    resume = OmegaConf.select(config, "resume")
    make: Any = Trainer
    if config.get("data") is not None:
        from wmkit.training.offline import OfflineTrainer as make
    if resume:
        run = RunDirectory.open(resume, config=config)
        return make(config, run, parts=parts, stages=stages).train()
    with RunDirectory.creating(config) as run:
        return make(config, run, parts=parts, stages=stages).train()
