"""What other packages add: parts and pages by name, and what a page may call by a name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torchrl.data import Bounded, Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from wmkit import registry
from wmkit.cli.listing import listing
from wmkit.errors import ConfigError
from wmkit.systems import compose
from wmkit.systems.page_files import choices, find_pages
from wmkit.systems.pages import name_targets

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"
VECTOR = {"observation_spec": Composite(observation=Unbounded((3,))), "action_spec": OneHot(3)}


@pytest.fixture
def plugins(monkeypatch):
    """Registered parts and pages are forgotten afterwards."""
    wmkit.available()
    monkeypatch.setattr(registry, "_folders", list(registry._folders))
    monkeypatch.setattr(
        registry, "_targets", {kind: dict(names) for kind, names in registry._targets.items()}
    )


def write(folder: Path, pages: dict[str, str]) -> Path:
    for name, text in pages.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# ---- the example --------------------------------------------------------------------------------------


def install(site: Path) -> None:
    """Lay ``examples/plugin`` into ``site`` as an installer would: its package and its metadata."""
    shutil.copytree(PLUGIN / "leaky_dreamer", site / "leaky_dreamer")
    info = site / "leaky_dreamer-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky-dreamer\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[wmkit.plugins]\nleaky_dreamer = leaky_dreamer:register\n")


def run(*arguments: str, cwd: Path) -> str:
    source = Path(wmkit.__file__).parent.parent
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join((str(cwd / "site"), str(source))))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_system_of_another_package_is_listed_built_and_trained(tmp_path):
    install(tmp_path / "site")
    code = """
import torch, wmkit
from torchrl.data import Composite, OneHot, UnboundedDiscrete
spec = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
torch.manual_seed(0)
cases = {"leaky_dreamer": [], "ls_imagine": ["size=tiny", "size.depth=4", "backbone=leaky"]}
for name, rest in cases.items():
    small = [*rest, "batch.size=2", "batch.length=4", "learning_rate.world_model=3.0e-3"]
    system = wmkit.build(name, observation_spec=spec, action_spec=OneHot(3), overrides=small)
    batch, backbone = system.example_batch(), list(system.world_model.dynamics.modules())
    losses = [system.update(batch) for _ in range(10)]
    assert losses[-1]["loss_world_model"] < losses[0]["loss_world_model"] - 2
    assert "LeakyIntegrator" in [type(module).__name__ for module in backbone]
    print(*[name for name in losses[0].keys() if "rewarded" in name])
"""
    assert run("-c", code, cwd=tmp_path).split() == ["loss_rewarded"]
    assert "leaky_dreamer" in run("-m", "wmkit", "list", "system", cwd=tmp_path).split()
    few = ["preset=smoke", "env=gym", "env.name=counting", "training.steps=40", "training.prefill=24"]
    run("-m", "wmkit", "train", "leaky_dreamer", *few, "run_dir=run", "threads=1", cwd=tmp_path)
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "leaky_dreamer" not in wmkit.available()  # it was installed for that interpreter only


# ---- pages --------------------------------------------------------------------------------------------


def test_every_group_of_pages_can_be_added(tmp_path, plugins):
    pages = {
        "walker": "defaults: [dreamer_v3, _self_]\nsystem: walker\ndiscount: 0.5\n",
        "size/wee": "{deter: 32, groups: 4, classes: 4, hidden: 8, units: 8, layers: 1, depth: 2, patch: 1}",
        "size/twm/wee": "{deter: 32, groups: 4, classes: 4, hidden: 8, units: 8, layers: 1, depth: 2,"
        " blocks: 1, heads: 2, patch: 1}",
        "preset/brief": "# @package _global_\ndefaults: [smoke, _self_]\ntraining: {steps: 7}\n",
        "backbone/broad": "{_target_: gpt, _partial_: true, width: 8, layers: 1, heads: 2, window: 4}",
        "env/count": "{name: counting, num_envs: 2, parallel: false, options: {length: 3}}",
    }
    registry.add_pages(write(tmp_path, pages))
    registry.add_pages(tmp_path)  # twice is once
    assert "walker" in wmkit.available() and "wee" in choices("size", "twm")
    for kind, name in {"system": "walker", "size": "wee", "preset": "brief", "backbone": "broad"}.items():
        assert any(name in line.split() for line in listing(kind)), kind
    assert any(line.split() == ["count", "env=count"] for line in listing("env"))
    config = compose("walker", ["size=wee", "preset=brief", "backbone=broad", "env=count"])
    found = config.size.deter, config.training.steps, config.backbone.window, config.env.options.length
    assert (*found, config.discount) == (32, 7, 4, 3, 0.5)
    assert compose("twm", ["size=wee"]).size.blocks == 1
    overrides = ["size=wee", "backbone=broad", "batch.size=2", "batch.length=3"]
    system = wmkit.build("walker", overrides=overrides, **VECTOR)
    assert system.update(system.example_batch())["loss_actor"].isfinite()
    folder = find_pages("size/*")[0].parent.parent
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(registry.GROUPS)


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        (None, "no folder of that name"),
        ({}, "no page in it"),
        ({"sizes/wee": "{}"}, "sizes/wee.yaml"),
        ({"size/tiny": "{}"}, "size/tiny.yaml, which is there already"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path, plugins, pages, words):
    folder, before = tmp_path / "pages", registry.page_folders()
    if pages is not None:
        folder.mkdir()
        write(folder, pages)
    with pytest.raises(ConfigError, match=words) as error:
        registry.add_pages(folder)
    assert "\n" not in str(error.value) and registry.page_folders() == before


def test_a_plugin_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    info = tmp_path / "broken-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[wmkit.plugins]\nbroken = broken_wmkit_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    with pytest.raises(ConfigError, match="plug-in 'broken' cannot be loaded"):
        wmkit.available()


# ---- parts by name ------------------------------------------------------------------------------------


def test_every_listed_part_is_found_by_the_page_that_names_it():
    """A ``_target_`` without a dot, in the block of its kind."""

    blocks = {"head": "heads", "codec": "encoder", "objective": "objectives"}
    for kind in set(registry.KINDS) - {"env", "sampler", "scorer"}:
        for name in wmkit.available(kind):
            page = OmegaConf.create({blocks.get(kind, kind): {"x": {"_target_": name}}})
            name_targets(page)
            target = page[blocks.get(kind, kind)].x["_target_"]
            assert target == registry.full_name(kind, name) and "." in target
    for kind in registry.KINDS:
        for name in wmkit.available(kind):
            assert callable(registry.resolve(kind, name)), (kind, name)


def test_a_registered_part_is_used_by_its_name_and_a_wrong_name_suggests_its_neighbour(plugins):
    class Half(torch.nn.Linear):
        pass

    registry.register("backbone", "half", Half)
    assert compose("dreamer_v3", ["backbone=half"]).backbone["_target_"].endswith("Half")
    reward = "world_model.heads.reward._target_"
    assert compose("dreamer_v3", [f"{reward}=reward"]).world_model.heads.reward["_target_"].endswith("Head")
    for override, words in (
        (f"{reward}=rewrd", rf"{reward} is 'rewrd'.*did you mean 'reward'"),
        ("style._target_=reward", "style._target_ is 'reward': wanted the full name"),
        ("backbone=gruu", "did you mean 'gru'"),
    ):
        with pytest.raises(ConfigError, match=words):
            compose("dreamer_v3", [override])
    with pytest.raises(ConfigError, match="add_pages"):
        registry.register("system", "mine", Half)


# ---- published numbers --------------------------------------------------------------------------------

PUBLISHED = {  # parameters of world model, actor and critic with 18 actions
    "dreamer_v1": (5_299_220, 580_818, 413_601),
    "dreamer_v2": (28_445_957, 1_308_018, 1_301_201),
    "dreamer_v3": (140_509_187, 12_607_506, 12_850_431),
    "dreamer_v3_2023": (181_570_947, 9_465_874, 9_708_799),
    "dreamer_v3_2024": (140_909_443, 12_607_506, 12_850_431),
    "iris": (12_478_600, 3_224_626, 513),  # 4,027,523 of it the tokenizer's; 8,451,077; 3,225,139
    "le_wm": (18_034_478, 0, 0),  # of 224 x 224 pixels and ten numbers of an action
    "ls_imagine": (235_889_794, 9_465_874, 6_556_927),
    "pldm": (2_498_898, 0, 0),
    "storm": (16_513_155, 1_059_858, 1_181_439),
    "td_mpc2": (1_538_405, 545_828, 2_941_945),  # of 64 numbers; actions are numbers too
    "transdreamer": (41_027_723, 2_338_418, 2_331_601),  # of one grey channel
    "twm": (19_016_998, 1_322_002, 1_313_281),  # 21,652,281 together
}


def numbers(part):
    return 0 if part is None else sum(p.numel() for p in part.parameters())


@pytest.mark.parametrize("name", wmkit.available())
def test_built_without_choices_a_system_has_its_published_size(name):
    """A quick run, and what a preset or a size chooses, stay small."""
    channels = 1 if name in ("twm", "transdreamer") else 3
    side, own_actions = (224, 10) if name == "le_wm" else (64, 18)
    seen = Composite(pixels=UnboundedDiscrete((channels, side, side), dtype=torch.uint8))
    actions = OneHot(own_actions)
    if name == "td_mpc2":
        seen, actions = Composite(observation=Unbounded((64,))), Bounded(-1.0, 1.0, (18,))
    with torch.device("meta"):
        system = wmkit.build(name, observation_spec=seen, action_spec=actions)
    parts = system.world_model, system.actor, system.critic
    assert tuple(map(numbers, parts)) == PUBLISHED[name]
    if name == "le_wm":
        own = system.world_model.encoder, system.world_model.dynamics.backbone
        assert tuple(map(numbers, own)) == (5_501_376, 10_791_360)
    assert "published" not in compose(name)
    if not name.startswith(("dreamer_v1", "dreamer_v2")):
        size = compose(name).size
        assert size.get("deter", size.get("latent")) < system.world_model.dynamics.belief_dim
