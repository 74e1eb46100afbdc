"""The example scripts run."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from support.pages import TREE
from wmkit.systems import compose
from wmkit.training import train


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TREE / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plugin_script_is_short() -> None:
    assert len((TREE / "examples" / "torchrl_plugin.py").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("backbone", ["ln_gru", "transformer_xl"])
def test_the_plugin_script_learns(backbone: str) -> None:
    totals = example("torchrl_plugin").main(["--steps", "200", "--backbone", backbone])
    assert len(totals) == 2 and totals[1] < totals[0]


def test_ppo_and_cem_run_inside_a_model_that_was_trained(tmp_path, monkeypatch, capsys) -> None:
    tiny = ["preset=smoke", "size=tiny", "env=gymnasium", "env.name=Pendulum-v1", "training.steps=160"]
    config = compose("dreamer_v3", [*tiny, "training.final_episodes=1", "+env.options.max_episode_steps=10"])
    config.run_dir = str(tmp_path / "run")
    train(config)
    script = example("dream_ppo")
    small = ["--batches", "1", "--episodes", "1", "--steps", "5", "--candidates", "20"]
    monkeypatch.setattr(sys, "argv", ["dream_ppo", config.run_dir, *small])
    script.main()
    shown = capsys.readouterr().out
    assert "PPO, learned in dreams" in shown and "CEM, plans in dreams" in shown


def test_parts_are_composed_by_hand(capsys) -> None:
    example("compose_by_hand").main(updates=2)
    assert "one dream" in capsys.readouterr().out
