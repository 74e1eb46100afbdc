"""Under which rules a score was made: one object that plays by them and is written beside every score.

Published scores of one game differ in sticky actions, no-ops, lives, time limits, in whether the
policy's mode acts or a sample, and in how many episodes are averaged (Machado et al. 2018,
arXiv:1709.06009). Two scores compare only where these agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wmkit.arguments import check_arguments
from wmkit.errors import ConfigError

EVALUATION_SEED = 1_000_000  # evaluation worlds are the same in every run and never met in training
NO_WORLD = (
    "this run has no environment: found recorded data alone, wanted an environment to play in; begin a run "
    "with env=NAME beside data=PATH"
)
FOUND = ("fire", "fewest_noops", "noop_frames", "actions", "filter", "limit")  # by the made environment
LIMITS = {"truncate": ", then truncated", "terminate": ", then terminated"}
LIVES = {"ignored": "lives ignored", "terminate": "the loss of a life ends the episode"}


@dataclass(frozen=True)
class EvaluationProtocol:
    """The rules of one evaluation.

    What an environment does not have is None, and is not mentioned.

    Attributes:
        env: full name of the environment, such as ``atari100k/pong``.
        episodes: played to their end, each counted once.
        sampled: the policy draws its actions, as in training, instead of taking its mode.
        num_envs: environments that share the episodes out evenly.
        seed: of the first environment; the others follow.
        action_repeat: frames, or control steps, for which an action is held.
        sticky: probability with which a frame repeats the action before.
        noops: after a reset, at most so many times nothing is done.
        fewest_noops: and at least so many times; not known of older scores.
        noop_frames: for so many frames each; not known of older scores.
        fire: whether FIRE is pressed for the agent, after a reset and a lost life.
        lives: ``ignored`` or ``terminate``.
        actions: ``full``, all that there are, or ``minimal``, those of the game.
        filter: by which images are reduced.
        frame_limit: frames after which an episode is cut off.
        limit: what that end is, ``truncate`` or ``terminate``.
        step_limit: actions after which an episode is cut off.
        controller: what planned the actions, where that was not the system itself.
        played: episodes that came to their end, where the evaluation was stopped before all had. Short ones
            are then more likely to be among them.
        cut: episodes that did not come to their own end: an environment failed, or the evaluation did not
            wait any longer (``training.evaluate_limit``).

    >>> print(EvaluationProtocol("counting", episodes=5, step_limit=7))
    5 episodes of counting, mode of the policy, at most 7 steps, 1 environment, seed 1000000
    """

    env: str
    episodes: int
    sampled: bool = False
    num_envs: int = 1
    seed: int = EVALUATION_SEED
    action_repeat: int | None = None
    sticky: float | None = None
    noops: int | None = None
    fewest_noops: int | None = None
    noop_frames: int | None = None
    fire: bool | None = None
    lives: str | None = None
    actions: str | None = None
    filter: str | None = None
    frame_limit: int | None = None
    limit: str | None = None
    step_limit: int | None = None
    controller: str | None = None
    played: int | None = None
    cut: int | None = None

    @classmethod
    def of(cls, config: DictConfig, episodes: int) -> EvaluationProtocol:
        """The protocol of a run's evaluation, read from its environment and its constructor's arguments.

        Args:
            config: resolved; ``env``, ``training.evaluate_sampled``.
            episodes: how many are played.

        Raises:
            ConfigError: an unknown environment or option.

        >>> config = OmegaConf.create({"env": {"name": "CartPole-v1"}, "training": {}})
        >>> EvaluationProtocol.of(config, 10).step_limit
        500
        """
        sampled = bool(OmegaConf.select(config, "training.evaluate_sampled", default=False))
        return cls._of(config, evaluation_options(config), episodes=episodes, sampled=sampled)

    @classmethod
    def of_training(cls, config: DictConfig, episodes: int) -> EvaluationProtocol:
        """The same of a run's training, where the policy always samples."""
        seed = int(config.get("seed", 0))
        return cls._of(config, training_options(config), episodes=episodes, sampled=True, seed=seed)

    @classmethod
    def _of(cls, config: DictConfig, given: Mapping[str, Any], **own: Any) -> EvaluationProtocol:
        from wmkit.envs import read_options, read_rules

        name = str(config.env.name)
        options = read_options(name, **given)
        rules = {"fire": options.get("fire")} | read_rules(name, **given)
        found: dict[str, Any] = {rule: rules.get(rule) for rule in FOUND}
        return cls(
            env=name,
            num_envs=int(config.env.get("num_envs", 1)),
            action_repeat=options.get("action_repeat"),
            sticky=options.get("sticky"),
            noops=options.get("noops"),
            lives=options.get("lives"),
            frame_limit=options.get("max_frames"),
            step_limit=options.get("max_steps"),
            **found,
            **own,
        )

    def record(self) -> dict[str, Any]:
        """As written to ``metrics.jsonl``: only what applies."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def fits(cls, record: Any) -> bool:
        """Whether :meth:`read` can take it."""
        if not isinstance(record, dict) or not record.keys() >= {"env", "episodes"}:
            return False
        try:
            check_arguments(cls, record, "protocol")
        except ConfigError:
            return False
        return True

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> EvaluationProtocol:
        """Undo :meth:`record`."""
        return cls(**record)

    def __str__(self) -> str:
        played = "" if self.played is None else f"{self.played} of "
        first = f"{played}{self.episodes} episode{'s' * (self.episodes != 1)} of {self.env}"
        if self.cut is not None:
            first += f" ({self.cut} cut before their end)"
        envs = f"{self.num_envs} environment{'s' * (self.num_envs != 1)}"
        return ", ".join([first, *self._rules(), envs, f"seed {self.seed}"])

    def beside(self, other: EvaluationProtocol) -> str:
        """Its rules that are not those of ``other``; empty where all are.

        >>> one, two = (EvaluationProtocol("counting", 5, sampled=sampled) for sampled in (True, False))
        >>> one.beside(two)
        'sampled actions'
        """
        theirs = other._rules()
        return ", ".join(rule for rule in self._rules() if rule not in theirs)

    def _rules(self) -> list[str]:
        rules = ["sampled actions" if self.sampled else "mode of the policy"]
        if self.controller is not None:
            rules = [f"planned by {self.controller}"]
        if self.action_repeat is not None:
            rules.append(f"action repeat {self.action_repeat}")
        if self.sticky is not None:
            rules.append(f"sticky actions {self.sticky:g}" if self.sticky else "no sticky actions")
        if self.noops is not None:
            fewest = "up" if self.fewest_noops is None else self.fewest_noops
            each = f" of {self.noop_frames} frames" if (self.noop_frames or 1) > 1 else ""
            rules.append(f"{fewest} to {self.noops} no-ops{each}" if self.noops else "no no-ops")
        if self.fire:
            rules.append("FIRE pressed for the agent")
        if self.lives is not None:
            rules.append(LIVES.get(self.lives, self.lives))
        if self.actions is not None:
            rules.append(f"{self.actions} action set")
        if self.filter is not None:
            rules.append(f"{self.filter} filter")
        if self.frame_limit is not None:
            rules.append(f"at most {self.frame_limit:,} frames{LIMITS.get(self.limit or '', '')}")
        if self.step_limit is not None:
            rules.append(f"at most {self.step_limit:,} steps")
        return rules


def frames_per_step(config: DictConfig) -> int:
    """For how many frames, or control steps, an action of training is held; 1 without an environment.

    >>> frames_per_step(OmegaConf.create({"env": {"name": "counting"}}))
    1
    """
    if config.get("env") is None:
        return 1
    from wmkit.envs import read_options

    known = read_options(str(config.env.name), **training_options(config))
    return int(known.get("action_repeat") or known.get("frame_skip") or 1)  # frame_skip: TorchRL's wrappers


def evaluation_options(config: DictConfig) -> dict[str, Any]:
    """``env.options``, and over them what ``env.evaluation`` changes.

    >>> env = {"options": {"noops": 30, "lives": "terminate"}, "evaluation": {"lives": "ignored"}}
    >>> evaluation_options(OmegaConf.create({"env": env}))
    {'noops': 30, 'lives': 'ignored'}
    """
    return _options(config, "options", "evaluation")


def training_options(config: DictConfig) -> dict[str, Any]:
    """``env.options``."""
    return _options(config, "options")


def _options(config: DictConfig, *names: str) -> dict[str, Any]:
    if config.get("env") is None:
        raise ConfigError(NO_WORLD)
    blocks = (config.env.get(name) for name in names)
    plain = [OmegaConf.to_container(block, resolve=True) for block in blocks if block is not None]
    return {str(name): value for block in plain if isinstance(block, dict) for name, value in block.items()}
