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

EVALUATION_SEED = 1_000_000  # evaluation worlds are the same in every run and never met in training
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
        noops: after a reset, 0 to so many frames in which nothing is done.
        fire: whether FIRE is pressed for the agent, after a reset and a lost life.
        lives: ``ignored`` or ``terminate``.
        frame_limit: frames after which an episode is cut off.
        step_limit: actions after which an episode is cut off.
        played: episodes that came to their end, where the evaluation was stopped before all had. Short ones
            are then more likely to be among them.

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
    fire: bool | None = None
    lives: str | None = None
    frame_limit: int | None = None
    step_limit: int | None = None
    played: int | None = None

    @classmethod
    def of(cls, config: DictConfig, episodes: int) -> EvaluationProtocol:
        """What a run's evaluation does, read from what its environment's constructor is given.

        Args:
            config: resolved; ``env``, ``training.evaluate_sampled``.
            episodes: how many are played.

        Raises:
            ConfigError: an unknown environment or option.

        >>> config = OmegaConf.create({"env": {"name": "CartPole-v1"}, "training": {}})
        >>> EvaluationProtocol.of(config, 10).step_limit
        500
        """
        from wmkit.envs import read_options

        name = str(config.env.name)
        options = read_options(name, **evaluation_options(config))
        return cls(
            env=name,
            episodes=episodes,
            sampled=bool(OmegaConf.select(config, "training.evaluate_sampled", default=False)),
            num_envs=int(config.env.get("num_envs", 1)),
            action_repeat=options.get("action_repeat"),
            sticky=options.get("sticky"),
            noops=options.get("noops"),
            fire=options.get("fire"),
            lives=options.get("lives"),
            frame_limit=options.get("max_frames"),
            step_limit=options.get("max_steps"),
        )

    def record(self) -> dict[str, Any]:
        """As written to ``metrics.jsonl``: only what applies."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> EvaluationProtocol:
        """Undo :meth:`record`."""
        return cls(**record)

    def __str__(self) -> str:
        rules = [
            f"{'' if self.played is None else f'{self.played} of '}"
            f"{self.episodes} episode{'s' * (self.episodes != 1)} of {self.env}",
            "sampled actions" if self.sampled else "mode of the policy",
        ]
        if self.action_repeat is not None:
            rules.append(f"action repeat {self.action_repeat}")
        if self.sticky is not None:
            rules.append(f"sticky actions {self.sticky:g}" if self.sticky else "no sticky actions")
        if self.noops is not None:
            rules.append(f"0 to {self.noops} no-ops" if self.noops else "no no-ops")
        if self.fire:
            rules.append("FIRE pressed for the agent")
        if self.lives is not None:
            rules.append(LIVES.get(self.lives, self.lives))
        if self.frame_limit is not None:
            rules.append(f"at most {self.frame_limit:,} frames")
        if self.step_limit is not None:
            rules.append(f"at most {self.step_limit:,} steps")
        rules.append(f"{self.num_envs} environment{'s' * (self.num_envs != 1)}")
        return ", ".join([*rules, f"seed {self.seed}"])


def frames_per_step(config: DictConfig) -> int:
    """For how many frames, or control steps, an action of training is held; 1 without an environment.

    >>> frames_per_step(OmegaConf.create({"env": {"name": "counting"}}))
    1
    """
    if config.get("env") is None:
        return 1
    from wmkit.envs import read_options

    options = OmegaConf.to_container(config.env.get("options") or OmegaConf.create(), resolve=True)
    assert isinstance(options, dict)
    known = read_options(str(config.env.name), **{str(name): value for name, value in options.items()})
    return int(known.get("action_repeat") or known.get("frame_skip") or 1)  # frame_skip: TorchRL's wrappers


def evaluation_options(config: DictConfig) -> dict[str, Any]:
    """``env.options``, and over them what ``env.evaluation`` changes.

    >>> env = {"options": {"noops": 30, "lives": "terminate"}, "evaluation": {"lives": "ignored"}}
    >>> evaluation_options(OmegaConf.create({"env": env}))
    {'noops': 30, 'lives': 'ignored'}
    """
    blocks = (config.env.get(name) for name in ("options", "evaluation"))
    plain = [OmegaConf.to_container(block, resolve=True) for block in blocks if block is not None]
    return {str(name): value for block in plain if isinstance(block, dict) for name, value in block.items()}
