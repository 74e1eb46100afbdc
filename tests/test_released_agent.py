"""Published weights at work: an agent that is evaluated, a U-Net and a MineCLIP in the affordance stage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from support import published
from support.merges import write_merges
from wmkit.affordance import MineCLIP
from wmkit.cli.app import app
from wmkit.errors import ConfigError, MissingWeightsError
from wmkit.systems import compose, released_parameters
from wmkit.training.affordance_stage import oracle, prepare_affordance
from wmkit.training.collect import closing
from wmkit.training.parts import default_parts
from wmkit.training.progress import Stages
from wmkit.training.released import released_config

TINY = (
    *("size.deter=32", "size.hidden=24", "size.units=24", "size.groups=4", "size.classes=4", "size.depth=4"),
    *("threads=1", "env.num_envs=2", "budget.world=small", "budget.max_steps=6"),
)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def latest(tmp_path: Path) -> Path:
    """A file of the published layout, of a small agent for the environment of the page."""
    file = tmp_path / "latest.pt"
    file.touch()
    config = released_config(file, ["affordance.model=mask", *TINY])
    with closing(default_parts().make_env(config, oracle(), seed=0)) as env:
        system = default_parts().build(config, env, torch.device("cpu"))
    weights = {name: torch.from_numpy(x) for name, x in released_parameters(system).items()}
    torch.save({"agent_state_dict": published.copies(weights), "optims_state_dict": {}}, file)
    return file


def test_a_published_agent_plays_one_record_per_reset(latest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("affordance.model=mask", *TINY, f"run_dir={run}", "--episodes", "5")
    result = call("eval", "--released", str(latest), *options)
    assert result.exit_code == 0, result.output
    assert "5 episodes of vizdoom/harvest_log_in_plains, mode of the policy" in result.stdout
    episodes = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 5 and all(0 < one["length"] <= 6 for one in episodes)
    assert str(run) in result.stdout and not (run / "checkpoints").exists()


def test_what_does_not_fit_is_one_sentence_and_leaves_no_run(latest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    here = ("affordance.model=mask", *TINY, f"run_dir={run}")
    torn, hostile, mark = tmp_path / "torn.pt", tmp_path / "hostile.pt", tmp_path / "mark"
    torn.write_bytes(latest.read_bytes()[:-200])
    hostile.write_bytes(pickle.dumps(Touch(mark)))
    for arguments, words in (
        (("--released", str(tmp_path / "nowhere.pt"), *here), "do not exist"),
        (("--released", str(torn), *here), "cannot be read"),
        (("--released", str(hostile), *here), "nothing that executes"),
        (("--released", str(latest), *here, "size.units=16"), "instead of"),
        (("--released", str(latest), *here[1:]), "found 0 files swin_unet_checkpoint*.pth"),
        (("--released", str(latest), *here, "size.unit=16"), "size.unit"),
        (("one", "two"), "cannot be opened"),
    ):
        result = call("eval", *arguments)
        assert result.exit_code == 2 and "Traceback" not in result.output
        (line,) = result.stderr.strip().splitlines()
        assert words in line
    assert not run.exists() and not mark.exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_the_released_unet_and_mineclip_are_found_beside_the_agent(latest: Path, tmp_path: Path) -> None:
    unet = tmp_path / "swin_unet_checkpoint_log.pth"
    weights = published.light(published.swin_unet())
    torch.save({name: x for name, x in weights.items() if "index" not in name}, unet)
    (tmp_path / "mineclip_attn.pth").touch()
    config = released_config(latest, TINY)
    assert config.affordance.model == str(unet)
    assert config.affordance.scorer.path == str(tmp_path / "mineclip_attn.pth")

    sizes = dict(width=64, layers=1, heads=1, text_width=16, text_layers=1, text_heads=1, time_layers=1)
    scorer = MineCLIP(**sizes, time_heads=1)
    scorer.save(tmp_path / "mineclip")
    config.affordance.scorer.path = str(tmp_path / "mineclip")
    config.affordance.scorer.merges = str(write_merges(tmp_path / "merges.txt.gz"))
    run: Any = SimpleNamespace(path=tmp_path / "run")
    tools = prepare_affordance(config, run, Stages())
    assert tools is not None and tools.text is not None and tools.scorer is None
    assert tools.prompt == "Cut a tree" and tools.text.shape == (512,)
    maps = tools.model.predict(torch.zeros(1, 3, 160, 256, dtype=torch.uint8), tools.text)
    assert maps.shape == (1, 160, 256) and bool(maps.isfinite().all())


def test_weights_of_a_unet_are_for_the_swin_unet(tmp_path: Path) -> None:
    page = ["affordance=mineclip", "affordance.unet.name=small", "affordance.unet.fusion=null"]
    config = compose("ls_imagine", page)
    from wmkit.training.affordance_stage import make_unet

    config.affordance.unet = {"name": "small", "weights": "x.pth"}
    with pytest.raises(ConfigError, match=r"affordance\.unet\.name=swin"):
        make_unet(config.affordance, 512)
    config.affordance.unet = {"name": "swin", "fusion": "constant_query", "weights": str(tmp_path / "x.pth")}
    with pytest.raises(MissingWeightsError, match=r"x\.pth"):
        make_unet(config.affordance, 512)
