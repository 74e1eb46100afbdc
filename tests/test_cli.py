"""The command line: one sentence and exit code 2 for what does not fit, and a run from end to end."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchrl.data import Composite, OneHot, Unbounded
from typer.testing import CliRunner

import wmkit.training
from wmkit.cli import app
from wmkit.cli.app import read_config
from wmkit.errors import ConfigError, NonFiniteLossError
from wmkit.registry import available
from wmkit.systems import build_from, compose
from wmkit.systems.system import System
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.evaluate import Evaluation
from wmkit.training.keeping import restore_system
from wmkit.training.run import RunDirectory
from wmkit.training.trainer import Summary

SMALL = (
    "preset=smoke",
    "threads=1",
    "affordance.model=mask",
    "training.steps=96",
    "training.prefill=48",
    "training.checkpoint_every=48",
    "budget.max_steps=16",
)


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def sentence(result) -> str:
    """The one line on standard error of a call that went wrong."""
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("wmkit: ")
    return line


def test_the_command_line_starts_without_torch():
    code = "import sys, wmkit.cli; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_train_without_a_system_lists_the_systems():
    result = call("train")
    assert result.exit_code == 0 and {"dreamer_v3_2023", "ls_imagine"} <= set(result.stdout.split())
    assert call("list", "scorer").stdout.split() == sorted(call("list", "scorer").stdout.split())


@pytest.mark.parametrize(
    ("kind", "name"),
    [("preset", "quick"), ("size", "paper"), ("domain", None), ("backbone", "lstm")],
)
def test_choices_are_listed_by_the_systems_that_have_them(kind: str, name: str | None):
    rows = [line.split() for line in call("list", kind).stdout.splitlines()]
    found = {system: names for system, *names in rows}
    every = available("system")
    groups = {  # the others' pages have no such group
        "domain": ["dreamer_v1", "dreamer_v2", "dreamer_v3_2024"],
        "backbone": [system for system in every if system != "td_mpc2"],
    }
    assert list(found) == groups.get(kind, every)
    for system, names in found.items():
        assert name in (None, *names) or (kind, system) == ("size", "td_mpc2")  # named by millions there
        assert len(set(names)) == len(names) and not any("/" in each for each in names)
    if kind == "size":  # a system's own
        assert found["twm"] == found["storm"] == ["micro", "paper", "tiny"]
        assert "micro" not in found["dreamer_v3"]
        # Of its one class there is nothing to choose.
        assert [system for system, names in found.items() if "dreamer_v1" in names] == ["dreamer_v1"]


def test_environments_are_listed_as_they_are_chosen():
    rows = dict(line.split(maxsplit=1) for line in call("list", "env").stdout.splitlines())
    assert rows["gymnasium"] == "env=gymnasium env.name=CartPole-v1"
    assert rows["harvest_sand"] == "env=harvest_sand" and rows["counting"] == "env=gym env.name=counting"
    for text in rows.values():
        compose("dreamer_v3", text.split())
    registered = {name.rpartition("/")[2] for name in available("env")}
    assert registered <= rows.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "ls_imagin"], ["'ls_imagin'", "did you mean 'ls_imagine'"]),
        (["train", "ls_imagine", "size=huge"], ["size 'huge'", "tiny"]),
        (["train", "ls_imagine", "trainnig.steps=3"], ["trainnig"]),
        (["train", "ls_imagine", "resume=/nowhere"], ["'/nowhere'", "no config.yaml"]),
        (
            ["doctor", "dreamer_v3", "env=gym", "env.name=counting", "batch.size=0"],
            ["batch.size is 0"],
        ),
        (["train", "ls_imagine", "preset=smoke", "affordance.unet.name=big"], ["'big' is unknown", "swin"]),
        (
            ["train", "ls_imagine", "preset=smoke", "affordance.fit.iterations=abc"],
            ["affordance.fit.iterations is 'abc': wanted a whole number"],
        ),
        (["affordance", "fit", "preset=smoke", "affordance.frames=1"], ["affordance.frames is 1: wanted 2"]),
        (
            ["affordance", "fit", "preset=smoke", "+affordance.scorer.colour=red"],
            ["affordance.scorer.colour is 'red', which EmbeddedScorer does not take: wanted one of widths"],
        ),
        (["affordance", "fit", "preset=smoke", "affordance.scorer.path=no"], ["no config.json in 'no'"]),
        (["doctor", "dreamer_v3", "env=gym", "env.num_envs=abc"], ["env.num_envs is 'abc'"]),
        (["list", "flavour"], ["'flavour'", "backbone", "preset"]),
        (["eval", "/nowhere"], ["'/nowhere'"]),
        (["imagine", "/nowhere"], ["'/nowhere'"]),
        (["report", "/nowhere"], ["'/nowhere'"]),
        (["affordance", "fit", "--system", "dreamer_v3_2023"], ["dreamer_v3_2023", "no affordance block"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2 and not list(tmp_path.iterdir())
    for word in words:
        assert word in sentence(result)


def test_resuming_checks_the_system_and_the_overrides(tmp_path):
    (tmp_path / "config.yaml").write_text("system: ls_imagine\nenv: {}\ntraining: {steps: 5}\n")
    found = call("train", "dreamer_v3_2023", f"resume={tmp_path}")
    assert found.exit_code == 2 and "cannot be resumed as 'dreamer_v3_2023'" in sentence(found)
    found = call("train", "ls_imagine", f"resume={tmp_path}", "size=small")
    assert found.exit_code == 2 and "'size=small' does not fit a resumed run" in sentence(found)
    found = call("train", "ls_imagine", f"resume={tmp_path}", "training.stepz=6")
    assert found.exit_code == 2 and "did you mean training.steps?" in sentence(found)


def in_use(system: System) -> dict[str, tuple[float, ...]]:
    """Options of every optimiser, of the returns and of the actor."""
    found = {
        name: (float(group["lr"]), group["eps"], group.get("warmup", 0))
        for name, learner in system.schedule.learners.items()
        for group in learner.optimizer.param_groups
    }
    estimator = system.controller.returns.estimator
    returns = (estimator.gamma.item(), estimator.lmbda.item())
    return found | {"returns": returns, "actor": (system.actor.unimix,)}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "dreamer_v3",
            [
                "learning_rate.joint=1e-3",
                "schedule.learners.joint.optimizer.warmup=10",
                "actor.discrete.unimix=0",
            ],
        ),
        ("dreamer_v3_2023", ["learning_rate.actor=1e-3", "discount=0.9", "actor.unimix=0.5"]),
    ],
)
def test_an_override_of_a_resumed_run_reaches_what_reads_it(tmp_path, name, overrides):
    """What was learned comes from the checkpoint, and every option from the page."""

    def build(config):
        return build_from(config, Composite(observation=Unbounded((2,))), OneHot(3))

    overrides = [*overrides, "controller.returns.estimator.lmbda=0.5"]
    page = compose(name, [f"run_dir={tmp_path / 'run'}", "size=tiny", "preset=paper"])
    RunDirectory.create(page)
    first, resume = build(page), f"resume={tmp_path / 'run'}"
    batch = first.example_batch()[:2, :4]
    first.update(batch)
    state = copy.deepcopy(first.state_dict())
    older = {f"behaviour.estimator.{key}": torch.tensor(0.25) for key in ("gamma", "lmbda")}
    older |= {name.replace("controller.", "behaviour."): value for name, value in state.items()}
    older |= {"actor._extra_state": {"unimix": first.actor.unimix}}
    for saved in (state, older):  # which kept options, and not what the actor was built with
        same, other = build(read_config(name, [resume])), build(read_config(name, [resume, *overrides]))
        wanted = in_use(other)
        for system in (same, other):
            restore_system(system, copy.deepcopy(saved), "run")
        assert in_use(same) == in_use(first) and in_use(other) == wanted
        assert not set(wanted.values()) <= set(in_use(first).values())
        for key, learner in other.schedule.learners.items():
            found, kept = learner.state_dict(), first.schedule.learners[key].state_dict()
            assert found["param_groups"][0].get("step") == kept["param_groups"][0].get("step")
            assert found["state"].keys() == kept["state"].keys() and found["state"]
            for i, moments in kept["state"].items():
                assert all(torch.equal(found["state"][i][moment], moments[moment]) for moment in moments)
    for system in (first, same):
        torch.manual_seed(0)
        system.update(batch)
    assert all(map(torch.equal, first.parameters(), same.parameters()))


def test_what_a_resumed_run_cannot_take_is_refused(tmp_path):
    RunDirectory.create(compose("dreamer_v3", [f"run_dir={tmp_path / 'run'}"]))
    resume = f"resume={tmp_path / 'run'}"
    assert read_config("dreamer_v3", [resume, "+critic.outscale=0.25"]).critic.outscale == 0.25
    for override, words in (
        ("critic.style.norm=layer", "override that, or critic.style as a whole"),
        ("learning_rate=1e-4", "'learning_rate=1e-4' does not fit run .*`learning_rate` is not a container"),
        ("training.steps=[", "cannot be read"),
        ("system=twm", "would only rename the system"),
        (f"run_dir={tmp_path / 'other'}", "wanted it to stay there"),
        ("resume=other", "resume is given 2 times"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_config("dreamer_v3", [resume, override])
    named = str(tmp_path / "my run, täglich")
    (tmp_path / "run").rename(named)
    assert read_config("dreamer_v3", [f"resume='{named}'", f"run_dir={named}"]).run_dir == named


@pytest.mark.parametrize("place", ["open", "evaluate"])
def test_a_termination_is_an_interrupt_wherever_it_comes(place, tmp_path, monkeypatch):
    """Of the command alone: processes that it forked end by it."""

    def terminated(*_, **__):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        return Evaluation()

    target = {"open": "wmkit.envs.make_env", "evaluate": "wmkit.training.trainer.evaluate"}[place]
    monkeypatch.setattr(target, terminated)
    run = tmp_path / "run"
    smoke = ("preset=smoke", "env=gymnasium", "training.steps=40", "training.evaluate_every=0")
    result = call("train", "dreamer_v3", *smoke, f"run_dir={run}")
    assert result.exit_code == 130
    assert place == "evaluate" or result.stderr.strip().splitlines()[-1] == "wmkit: interrupted"
    assert run.exists() == (place == "evaluate")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_disk_refuses_is_one_sentence(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")

    monkeypatch.setattr("wmkit.training.train", full)
    result = call("train", "dreamer_v3", f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 2 and "'runs/a/metrics.jsonl' cannot be used: found No space" in sentence(
        result
    )


def test_losses_interrupts_and_good_ends_have_their_exit_codes(monkeypatch):
    summary = {
        "run": "runs/a",
        "steps": 1000,
        "updates": 5,
        "minutes": 1.0,
        "success_rate": 0.25,
        "episode_return": 1.0,
        "episodes": 20,
        "training_success_rate": None,
        "protocol": "20 episodes of somewhere",
        "training_episodes": 37,
    }

    def fail(config):
        raise NonFiniteLossError("loss term 'loss_reward' is not finite")

    rules = {"training_success_rate": 0.5, "training_rules": "sampled actions"}
    bare = Summary(**{**summary, "success_rate": None, "training_return": 0.75}, interrupted=False)
    for behaviour, code, words in (
        (
            lambda config: bare,
            0,
            ["1.00, mean of 20 episodes", "0.75, mean of the last 37", "20 episodes of"],
        ),
        (
            lambda config: Summary(**{**summary, **rules}, interrupted=False),
            0,
            ["50 % of the last 37 episodes: sampled actions"],
        ),
        (lambda config: bare, 0, ["of the last 37 episodes, by the evaluation's rules"]),
        (lambda config: Summary(**summary, interrupted=False), 0, ["runs/a", "25 % of 20", "of somewhere"]),
        (
            lambda config: Summary(**summary, interrupted=False, frames=4000),
            0,
            ["1,000 (4,000 frames) in 1.0"],
        ),
        (lambda config: Summary(**summary, interrupted=True), 130, ["resume=runs/a"]),
        (fail, 1, ["loss_reward"]),
    ):
        monkeypatch.setattr(wmkit.training, "train", behaviour, raising=False)
        result = call("train", "ls_imagine")
        assert result.exit_code == code
        assert all(word in result.output for word in words)


def test_doctor_says_what_is_there():
    result = call("doctor")
    assert result.exit_code == 0
    for name in ("python", "torchrl extension", "pandas", "vizdoom", "triton", "processors"):
        assert name in result.stdout


def test_doctor_counts_what_replay_stores():
    """Five stored latents beside a number, three actions, a reward and three flags."""
    sizes = ("size.deter=16", "size.groups=4", "size.classes=4", "size.hidden=8", "size.units=8")
    options = ["env=gym", "env.name=counting", *sizes, "training.replay.capacity=1000"]
    result = call("doctor", "dreamer_v3", *options, "training.replay.latents=bfloat16")
    assert result.exit_code == 0, result.output
    found = {line[:24].strip(): line[24:].strip() for line in result.stdout.splitlines()}
    assert found["replay state"] == "4.00 bytes per step (float32 [16] as uint8 [4])"
    assert found["replay belief"] == "32.00 bytes per step (float32 [16] as bfloat16 [16])"
    assert found["replay previous_action"] == "12.00 bytes per step"
    each = {name: float(text.split()[0]) for name, text in found.items() if "bytes per step" in text}
    total = each.pop("replay")
    assert total == pytest.approx(sum(each.values()), abs=0.05)
    assert total == pytest.approx(4 + 32 + 12 + 4 + 4 + 3, abs=0.5)  # and what says which records are valid
    assert "steps in" in found["replay fits memory"] and found["replay"].endswith("for 1,000 steps")


@pytest.mark.slow
def test_train_resume_eval_and_imagine_end_to_end(tmp_path):
    run = tmp_path / "run"
    first = call("train", "ls_imagine", *SMALL, f"run_dir={run}")
    assert first.exit_code == 0, first.output
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "episodes.jsonl",
        "report.html",
        "checkpoints",
        "tensorboard",
        "replay",
    ):
        assert (run / name).exists(), name
    assert str(run) in first.stdout and "success rate" in first.stdout
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<h2>Affordance maps</h2>" in page and "<h2>Imagined and real</h2>" in page

    again = call("train", "ls_imagine", f"resume={run}", "training.steps=128")
    assert again.exit_code == 0, again.output
    assert lines(run)[-1]["step"] == 128
    taken = call("train", "ls_imagine", *SMALL, f"run_dir={run}")
    assert taken.exit_code == 2 and "is taken" in sentence(taken)

    assert call("eval", str(run), "--episodes", "2").exit_code == 0
    assert lines(run)[-1]["stage"] == "evaluate"
    (run / "report.html").unlink()
    assert call("imagine", str(run)).exit_code == 0 and (run / "report.html").exists()


COUNTING = (
    *("env=gym", "env.name=counting", "env.num_envs=2", "threads=1", "batch.size=4", "batch.length=10"),
    *("controller.horizon=3", "controller.starts.count=4", "training.steps=80", "training.prefill=40"),
    *("training.pretrain=10", "training.train_ratio=8", "training.evaluate_every=0"),
    *("training.final_episodes=2", "training.checkpoint_every=1000", "training.report=false"),
)
PHASES = ["representation"] * 6 + ["dynamics"] * 3 + ["behaviour"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "phases", "visits"),
    [("twm", [*PHASES, *["together"] * 16], [None, 32, 64]), ("storm", ["together"] * 26, None)],
)
def test_a_run_stopped_in_its_pretraining_goes_on(tmp_path, monkeypatch, system, phases, visits):
    """Every phase once over all commands; sampling goes on from the visits that it had counted."""
    seen, update = [], System.update

    def stopped(self, *batches):
        seen.append(self.schedule.now.name)
        if len(seen) == 8:
            signal.raise_signal(signal.SIGTERM)
        return update(self, *batches)

    monkeypatch.setattr(System, "update", stopped)
    run, found = tmp_path / "run", []
    store = CheckpointStore(run / "checkpoints")
    for arguments, code, counts in (
        ([f"size={system}/micro", *COUNTING, f"run_dir={run}"], 130, (40, 8)),
        ([f"resume={run}"], 0, (80, 10 + 8)),
        ([f"resume={run}", "training.steps=120"], 0, (120, 10 + 16)),
    ):
        result = call("train", system, *arguments)
        assert result.exit_code == code, result.output
        state = store.load(store.latest())
        assert (state["counters"]["step"], state["counters"]["updates"]) == counts
        found.append(state["memory"]["streams"]["sampler"].get("visits"))
    assert seen == phases
    assert visits is None or [None if v is None else int(v.sum()) for v in found] == visits
    assert lines(run)[-1]["eval/return"] == 28.0


@pytest.mark.slow
def test_a_window_of_its_own_memory_trains_and_goes_on(tmp_path):
    """LS-Imagine over Transformer-XL, whose carry is more than its output."""
    run = tmp_path / "run"
    overrides = [*SMALL, "backbone=transformer_xl", "training.report=false", f"run_dir={run}"]
    for arguments, steps in ((overrides, 96), ([f"resume={run}", "training.steps=112"], 112)):
        result = call("train", "ls_imagine", *arguments)
        assert result.exit_code == 0, result.output
        store = CheckpointStore(run / "checkpoints")
        counters = store.load(store.latest())["counters"]
        assert (counters["step"], counters["updates"]) == (steps, (steps - 48) // 8)
        assert lines(run)[-1]["eval/episodes"] == 2


@pytest.mark.slow
def test_affordance_fit_reports_agreement_and_its_model_can_be_used(tmp_path):
    overrides = [
        "preset=smoke",
        "threads=1",
        "affordance=labels",
        "budget.frames=12",
        f"run_dir={tmp_path / 'fit'}",
    ]
    result = call("affordance", "fit", *overrides)
    assert result.exit_code == 0, result.output
    assert "agreement mae" in result.stdout and "truth window hit rate" in result.stdout
    assert (tmp_path / "fit" / "affordance" / "model" / "model.safetensors").exists()


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
