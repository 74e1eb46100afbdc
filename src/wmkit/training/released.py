"""Evaluate weights that were published: a page, its original's file, episodes, one record each.

LS-Imagine's agent also needs its U-Net, and the U-Net the text of the task from MineCLIP. Where the
configuration names neither, they are looked for beside the agent's file under their published names.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from omegaconf import DictConfig

from wmkit.errors import MissingWeightsError
from wmkit.systems import compose, load_released
from wmkit.training.collect import closing
from wmkit.training.evaluate import Evaluation
from wmkit.training.parts import Parts, default_parts
from wmkit.training.progress import Stages
from wmkit.training.protocol import EVALUATION_SEED, EvaluationProtocol
from wmkit.training.reopen import play
from wmkit.training.run import RunDirectory
from wmkit.training.settings import set_up

CHOICES = ("preset=paper", "compat=released")
STEPS = 1_000_000  # that the published agents learned from
BESIDE = {"model": "swin_unet_checkpoint*.pth", "path": "mineclip_attn.pth"}


def released_config(path: str | PathLike, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of LS-Imagine as published, and over it what the user says.

    Args:
        path: of ``latest.pt``; U-Net and MineCLIP are taken from its folder unless overrides say another.
        overrides: Hydra strings, ``env=...`` among them.

    Raises:
        ConfigError: see :func:`wmkit.systems.compose`.
        MissingWeightsError: no such file, or none of a U-Net.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(
            f"released weights {str(path)!r} do not exist: wanted LS-Imagine's latest.pt; correct the path"
        )
    config = compose("ls_imagine", [*CHOICES, *overrides])
    block = config.affordance
    if block.get("model") is None:
        found = sorted(path.parent.glob(BESIDE["model"]))
        if len(found) != 1:
            raise MissingWeightsError(
                f"the released agent {str(path)!r} sees affordance maps: found {len(found)} files "
                f"{BESIDE['model']} beside it, wanted one; give its U-Net with affordance.model=PATH"
            )
        block.model = str(found[0])
    text = path.parent / BESIDE["path"]
    if "path" in block.scorer and block.scorer.path is None and text.is_file():
        block.scorer.path = str(text)
    block.video_score = False  # nothing is rewarded here
    return config


def evaluate_released(
    path: str | PathLike,
    overrides: Sequence[str] = (),
    *,
    episodes: int,
    parts: Parts | None = None,
    stages: Stages | None = None,
) -> tuple[Evaluation, RunDirectory]:
    """Play episodes with LS-Imagine's published agent, one record per reset.

    Args:
        path: of ``latest.pt``.
        overrides: Hydra strings, such as ``env=...`` and ``run_dir=...``.
        episodes: how many.
        parts: stand-ins for tests.
        stages: draws the progress bar.

    Returns:
        The evaluation, and the run directory that holds its episodes.

    Raises:
        MissingWeightsError: a file is not there.
        CheckpointError: a file does not fit.
        ConfigError: an override does not fit.
    """
    config, parts, stages = released_config(path, overrides), parts or default_parts(), stages or Stages()
    device, _ = set_up(config)
    with RunDirectory.creating(config) as run:
        affordance = parts.prepare_affordance(config, run, stages)
        with closing(parts.make_env(config, affordance, seed=0)) as env:
            system = parts.build(config, env, device)
        load_released(system, path)
        base = parts.make_env(config, affordance, seed=EVALUATION_SEED, evaluation=True)
        result = play(
            run,
            system.policy,
            parts.carry(base, system),
            EvaluationProtocol.of(run.config, episodes),
            STEPS,
            stages,
        )
    run.close()
    return result, run
