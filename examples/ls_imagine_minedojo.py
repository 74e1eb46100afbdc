"""LS-Imagine's published pipeline in Minecraft, stage by stage: frames, labels, U-Net, agent.

    python examples/ls_imagine_minedojo.py FOLDER env=minedojo/harvest_log_in_plains \\
        affordance.scorer.path=mineclip_attn.pth affordance.unet.weights=swin_unet_checkpoint.pth device=auto
    python examples/ls_imagine_minedojo.py FOLDER env=... affordance.scorer.path=... --stages label fit

`wmkit train ls_imagine preset=paper` with the same overrides does it all in one run. Here each stage reads
what the one before left in FOLDER, so that one can be done alone, on another machine or by other means. A
stage that was killed goes on where it was; one that is done does nothing.

    collect  FOLDER/data-*/frames-*.npy   uint8 [n, 3, 160, 256], a random agent's
    label    FOLDER/data-*/labels-*.npy   uint8 [n, 160, 256], by virtual exploration with MineCLIP
    fit      FOLDER/unet                  the Swin-UNet, in LS-Imagine's recipe
    train    FOLDER/run                   1e6 steps, 100 episodes, replay, checkpoints, report.html
    test     FOLDER/run/report.html       100 episodes once more, one record per reset

docs/howto/reproduce_ls_imagine.md says how long they take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from wmkit.affordance import VirtualExploration, fit_affordance, save_affordance
from wmkit.cli.app import read_config
from wmkit.envs import task_prompt
from wmkit.training import revisit, train
from wmkit.training.affordance_frames import follow, label, place, walk
from wmkit.training.affordance_stage import find_scorer, make_unet
from wmkit.training.progress import Stages
from wmkit.training.settings import find_device, set_up


class Pipeline:
    """The stages over one folder.

    Args:
        folder: holds everything.
        overrides: as `wmkit train ls_imagine` takes them, over those of the preset.
    """

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder, self.overrides, self.stages = folder, ["preset=paper", *overrides], Stages()
        self.config = read_config("ls_imagine", self.overrides)
        self.block = self.config.affordance
        self.data = place(folder, self.config)
        self.prompt = self.block.prompt or task_prompt(self.config.env.name)

    def collect(self) -> Tensor:
        """Frames; those that are there are read, and no game is started where none is missing."""
        return walk(self.config, self.stages, self.block.frames, "frame", self.data)[0]

    def label(self) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, labels, and MineCLIP's vector ``[D]`` of the prompt."""
        scorer, frames = find_scorer(self.config, self.folder / "scorer"), self.collect()
        explore = VirtualExploration(scorer, **self.block.exploration)
        with self.stages.stage("label frames", len(frames), "frames") as bar:
            labels = label(frames, lambda part: explore(part, [self.prompt])[:, 0], bar, self.data)
        return frames, labels, scorer.text_features([self.prompt])[0].detach().float().cpu()

    def fit(self) -> None:
        """The U-Net, which gives in one pass what the labels took 1,216 for."""
        if (self.folder / "unet" / "config.json").is_file():
            return
        frames, labels, text = self.label()
        model = make_unet(self.block, len(text)).to(find_device(self.config))
        with self.stages.stage("fit affordance", 1, "updates") as bar:
            how = dict(self.block.fit, checkpoint=self.folder / "fit.pt", progress=follow(bar))
            report = fit_affordance(model, frames, labels, text, **how)
        save_affordance(self.folder / "unet", model, text, self.prompt)
        print({name: round(value, 3) for name, value in report.agreement.items() if value is not None})

    def train(self) -> None:
        """The agent; a run that is there is gone on with."""
        run, unet = self.folder / "run", self.folder / "unet"
        new = [*self.overrides, f"run_dir={run}", f"affordance.model={unet}"]
        summary = train(
            read_config("ls_imagine", [f"resume={run}"] if (run / "config.yaml").is_file() else new)
        )
        print(f"{summary.steps} steps, success {summary.success_rate}, {run / 'report.html'}")

    def test(self) -> None:
        """As many episodes as the run's end has."""
        print(revisit(self.folder / "run", episodes=self.config.training.final_episodes).numbers())


def main(arguments: list[str] | None = None) -> None:
    """Go through the stages that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=["collect", "label", "fit", "train", "test"],
        default=["collect", "label", "fit", "train"],
    )
    given = parser.parse_args(arguments)
    pipeline = Pipeline(given.folder.absolute(), given.overrides)
    set_up(pipeline.config)
    for name in given.stages:
        stage: Callable[[], Any] = getattr(pipeline, name)
        stage()


if __name__ == "__main__":
    main()
