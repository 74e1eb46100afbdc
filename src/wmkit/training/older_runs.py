"""Configurations of runs made before objectives, controllers and schedules were lists of parts.

Weights kept their names, so such a run can be evaluated and resumed. What it says of the blocks that stayed
(sizes, environment, training, rates, ...) goes over today's page of its system; of the blocks that went, each
number that has a place today is put there.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

STAYED = (
    *("seed", "device", "threads", "run_dir", "resume", "discount", "learning_rate", "position_std"),
    *("size", "batch", "env", "training", "budget", "labelling"),
    *("observations.images", "observations.vectors"),
)
MOVED = {
    "behaviour.horizon": "controller.horizon",
    "behaviour.entropy": "controller.entropy",
    "behaviour.entropy_threshold": "controller.entropy_term.threshold",
    "behaviour.first_weight": "controller.returns.first",
    "behaviour.max_span": "controller.hooks.gate.max_span",
    "behaviour.gate.prob": "controller.hooks.gate.prob",
    "behaviour.gate.threshold": "controller.hooks.gate.threshold",
    "behaviour.restart": "controller.hooks.restart.threshold",
    "behaviour.restart_states": "controller.starts.restart_states",
    "behaviour.starts.count": "controller.starts.count",
    "behaviour.starts.context": "controller.starts.context",
    "behaviour.estimator.lmbda": "controller.returns.estimator.lmbda",
    "schedule.slow_fraction": "schedule.slow.critic.fraction",
    "schedule.slow_every": "schedule.slow.critic.every",
    "world_model_loss.long_branch.capacity": "objectives.branches.capacity",
    "policy.across_episodes": "policy.across_episodes",
}
RELEASED = ("same_layers", "own_value_return", "behaviour.branches")  # keys of compat=released


def upgraded(config: DictConfig) -> DictConfig:
    """Today's configuration of a run; one that is of today is returned as it is.

    Args:
        config: as the run's ``config.yaml`` has it.
    """
    if "world_model_loss" not in config:
        return config
    from wmkit.systems import compose

    system = config.system
    choices = ["preset=paper"]
    if any(OmegaConf.select(config, key) for key in RELEASED):
        choices.append("compat=released")
    if name := OmegaConf.select(config, "backbone.name"):
        choices.append(f"backbone={name}")
    today = compose(system, choices)
    OmegaConf.set_struct(today, False)
    old: Any = OmegaConf.to_container(config)  # interpolations stay
    for key in STAYED:
        if (value := _find(old, key)) is not None and (OmegaConf.select(today, key) is not None or value):
            OmegaConf.update(today, key, value, merge=isinstance(value, dict) and key != "env")
    backbone = old.get("backbone")
    for name, value in backbone.items() if isinstance(backbone, dict) else ():
        if not str(name).startswith("_") and name != "name":
            OmegaConf.update(today, f"backbone.{name}", value)
    for before, after in MOVED.items():
        value = _find(old, before)
        parent = OmegaConf.select(today, after.rpartition(".")[0])
        if value is not None and isinstance(parent, DictConfig):
            OmegaConf.update(today, after, value)
    for key in ("model", "scorer"):
        if (value := _find(old, f"affordance.{key}")) is not None and "affordance" in today:
            OmegaConf.update(today, f"affordance.{key}", value, merge=isinstance(value, dict))
    OmegaConf.set_struct(today, True)
    return today


def _find(node: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node
