"""A run folder from elsewhere executes and tells nothing; settings that make no sense are refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from support.hostile import MODULE, SECRET, hostile_folders, write_module
from wmkit.cli import app
from wmkit.errors import ConfigError
from wmkit.registry import available
from wmkit.training import load_run
from wmkit.training.run import RunDirectory

TINY = ["env=gym", "env.name=counting", "preset=smoke", "threads=1", "training.report=false"]
SHORT = ["training.steps=32", "training.final_episodes=1", "training.prefill=16", "training.evaluate_every=0"]


def call(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


def sentence(result) -> str:
    """The one line on standard error of a call that went wrong."""
    assert result.exit_code == 2 and "Traceback" not in result.output, (result.output, result.exception)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("wmkit: ")
    return line


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "run"
    found = call("train", "dreamer_v3", *TINY, *SHORT, f"run_dir={path}")
    assert found.exit_code == 0, found.output
    return path


@pytest.fixture
def marks(tmp_path, monkeypatch) -> Path:
    """Where what executes leaves a file; the hostile module can be imported, and the secret is set."""
    write_module(tmp_path / "path", tmp_path / "marks")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv(SECRET, "opensesame")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "marks"
    sys.modules.pop(MODULE, None)


def ways(folder: Path):
    """Every command that opens a run folder."""
    resume = ("dreamer_v3", f"resume={folder}", "training.steps=33")
    return (
        ("report", folder),
        ("eval", folder, "--episodes", 1),
        ("imagine", folder),
        ("train", *resume),
        ("doctor", *resume),
    )


def test_a_strangers_run_folder_executes_and_tells_nothing(run, marks, tmp_path):
    folders = hostile_folders(tmp_path / "hostile", run, marks)
    assert len(folders) > 90
    for i, folder in enumerate(folders):
        before, modules = sorted(folder.rglob("*")), set(sys.modules)
        text = sentence(call(*ways(folder)[0])) + sentence(call(*ways(folder)[i % 4 + 1]))
        with pytest.raises(Exception, match="wanted"):
            load_run(folder)
        assert not list(marks.iterdir()) and sorted(folder.rglob("*")) == before, folder.name
        assert MODULE not in sys.modules and "opensesame" not in text, folder.name
        assert not {name for name in set(sys.modules) - modules if "wmkit" not in name}, folder.name


def test_trust_and_the_users_own_words_allow_it(run, marks, tmp_path):
    folders = {path.name: path for path in hostile_folders(tmp_path / "hostile", run, marks)}
    call("eval", folders["exploration_module"], "--trust", "--episodes", 1)
    assert {"imported", "called"} == {path.name for path in marks.iterdir()}
    opened = RunDirectory.open(folders["told_in_seed"], trust=True)
    assert opened.config.nobody == "opensesame"
    assert "would import a module" in sentence(call("eval", folders["env_module"]))
    beside = f"resume={folders['env_module_as_option']}"  # a mapping goes over what is there
    assert "would import a module" in sentence(call("train", "dreamer_v3", beside, "env.options={length: 5}"))
    resume = ("train", "dreamer_v3", f"resume={folders['env_module']}")
    found = call(*resume, "env.name=counting", "training.steps=36")
    assert found.exit_code == 0, found.output
    assert call("eval", folders["env_module"], "--episodes", 1).exit_code == 0  # the override was written


def test_every_command_on_a_run_takes_trust(run, marks, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    with (folder / "config.yaml").open("a") as file:
        file.write(f"nobody: ${{oc.env:{SECRET}}}\n")
    for command in (("data", "check"), ("imagine",), ("report",)):
        assert "--trust" in sentence(call(*command, folder))
        found = call(*command, folder, "--trust")
        assert found.exit_code == 0, found.output


def test_what_a_plugin_registers_or_names_on_its_pages_is_a_part(run, monkeypatch):
    config = OmegaConf.load(run / "config.yaml")
    config.world_model.heads.reward["_target_"] = f"{__name__}.Mine"
    OmegaConf.save(config, run.parent / "config.yaml")
    with pytest.raises(ConfigError, match="names what is no part"):
        RunDirectory.open(run.parent)
    monkeypatch.setattr(
        "wmkit.registry._targets", {**_targets(), "head": {**_targets()["head"], "mine": Mine}}
    )
    assert RunDirectory.open(run.parent)


class Mine:
    """A head of a plug-in."""


def _targets():
    from wmkit import registry

    available("head")
    return registry._targets


COUNTING = ["preset=smoke", "env=gym", "env.name=counting"]
NUMBERS = [
    *("training.steps", "training.check_every", "training.replay.capacity", "training.train_ratio"),
    *("batch.length", "controller.horizon", "seed", "env.num_envs", "discount", "size.units"),
]


@pytest.mark.parametrize(
    "override",
    [
        *(f"{name}={value}" for name in NUMBERS for value in ("-1", "1e20", "nan", "abc")),
        *(
            "resume=",
            "run_dir=",
            "hydra.run.dir=x",
            "+hydra.searchpath=[x]",
            "hydra/launcher=x",
            "defaults=[]",
        ),
        *(
            "@x=1",
            "a@b=1",
            "+@x=1",
            "=1",
            "+size.foo=1",
            "+labelling.margin=1",
            "+budget.foo=1",
            "+foo.bar=1",
        ),
        *("+env.foo=1", "+batch.foo=1", "+observations.foo=[x]", "+training.foo=1", "training..steps=1"),
        *("size.layers=-1", "size.units=1e9", "objectives.heads.weights.reward=-1", "learning_rate.joint=-1"),
        *(
            "actor=null",
            "controller.entropy=-1",
            "+training.replay.directory=/x",
            "+affordance.fit.checkpoint=x",
        ),
        *(
            "training.replay.capacity=1e15",
            "training.report={_target_: os.getpid}",
            "training.time_limit={_target_: os.getpid}",
            "+schedule.learners.joint.clip=[]",
            "+schedule.learners.joint.clip=x",
            "size.layers=${seed}",
            f"run_dir={'a' * 300}",
            f"resume={'a' * 300}",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence(call("train", "dreamer_v3", *COUNTING, override))
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_refuses_them_too(run):
    before = (run / "config.yaml").read_bytes()
    for override in (
        "+labelling.margin=1",
        "+foo=1",
        "training.check_every=1e20",
        "@x=1",
        "discount=-1",
        "resume=",
    ):
        sentence(call("train", "dreamer_v3", f"resume={run}", override))
    assert (run / "config.yaml").read_bytes() == before
