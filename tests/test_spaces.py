"""What an environment shows and takes: read, or refused in one sentence, and never dropped without a word."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple
from torchrl.data import Binary, Bounded, Composite, NonTensor, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from wmkit.codecs import Decoder
from wmkit.data import ReplayStreams
from wmkit.envs import make_env
from wmkit.envs.crafter_env import ACHIEVEMENTS
from wmkit.envs.gymnasium_env import TAKEN as TORCHRL
from wmkit.envs.vizdoom.engine import HEIGHT, WIDTH
from wmkit.errors import ConfigError, SpecError
from wmkit.systems import compose
from wmkit.systems.observations import SIDE, TAKEN
from wmkit.systems.spaces import Spaces, read_spaces
from wmkit.training import train
from wmkit.training.parts import build_system, make_training_env

THREE = Box(-1, 1, (3,), np.float32)
NUMBERS = Unbounded((3,))
SMOKE = ["preset=smoke", "env=gymnasium"]


class Room(gymnasium.Env):
    """Samples of its observation space; takes only what is in its action space."""

    def __init__(self, seen, taken):
        self.observation_space, self.action_space, self.actions = seen, taken, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(int(action))
        ends = len(self.actions) % 64 == 0
        return self.observation_space.sample(), 1.0, ends, False, {}


@pytest.fixture
def room():
    """Registers a room and gives its id."""

    def register(seen=THREE, taken=None):
        gymnasium.register("Room-v0", entry_point=lambda: Room(seen, taken or Discrete(3)))
        return "Room-v0"

    yield register
    gymnasium.registry.pop("Room-v0", None)


def build(spec: dict, system: str = "dreamer_v3", action=None):
    return wmkit.build(
        system,
        observation_spec=Composite(spec),
        action_spec=OneHot(3) if action is None else action,
        overrides=["preset=smoke"],
    )


def read(spec: dict, vectors="auto", images="auto") -> Spaces:
    return read_spaces(Composite(spec), OneHot(3), images=images, vectors=vectors, system="dreamer_v3")


@pytest.mark.parametrize(
    ("key", "spec", "words"),
    [
        ("x", Composite(b=NUMBERS), r"cannot be read: found nested keys \(b\), wanted .*; flatten it"),
        ("x", Composite(b=Composite(c=NUMBERS)), r"nested keys \(b/c\)"),
        ("x", NonTensor(()), "cannot be read: found text .*; make it classes or numbers"),
        *((key, NUMBERS, "a name with a meaning.*; rename it") for key in sorted(SIDE)),
        *(
            (key, NUMBERS, "that a run uses itself: found UnboundedContinuous of shape")
            for key in sorted(TAKEN)
        ),
        ("achievements", Binary(3), "wanted Crafter's 22 flags"),
        ("a/b", NUMBERS, "that pages and files cannot hold"),
        ("${a}", NUMBERS, "that pages and files cannot hold"),
    ],
)
def test_what_cannot_be_read_is_refused_or_left_out_by_a_list(key, spec, words):
    with pytest.raises(SpecError, match=words) as error:
        read({"obs": NUMBERS, key: spec})
    message = str(error.value)
    assert repr(key) in message and "\n" not in message
    if "leave it out by " in message:
        assert message.endswith("observations.vectors=[obs]")
        assert read({"obs": NUMBERS, key: spec}, ["obs"]).observations == ("obs",)
    with pytest.raises(SpecError, match=re.escape(repr(key))):
        read({key: spec})
    if key != "reward":
        with pytest.raises(SpecError, match=r"rename it|cannot be read"):
            read({"obs": NUMBERS, key: spec}, ["obs", key])


def test_images_are_left_out_by_their_own_list():
    image = Bounded(0, 255, (3, 64, 64), dtype=torch.uint8)
    spec = {"frame": image, "pixels": image, "obs": NUMBERS}
    with pytest.raises(SpecError, match=r"3, 160, 256.*observations.images=\[pixels\]"):
        read(spec, ["obs"])
    assert read(spec, "auto", ["pixels"]).observations == ("pixels", "obs")


def test_what_environments_may_show_beside_observations_stays_out_of_sight():
    shown = {
        "reward": Unbounded((1,)),
        **{key: Binary(1, dtype=torch.bool) for key in ("success", "is_init", "is_first", "is_last")},
        "achievements": Binary(len(ACHIEVEMENTS), dtype=torch.bool),
        "step_count": UnboundedDiscrete((1,)),
        "frame": Bounded(0, 255, (3, HEIGHT, WIDTH), dtype=torch.uint8),
        "goal_mask": Binary(shape=(1, HEIGHT, WIDTH), dtype=torch.bool),
        "score": Unbounded((1,)),
        "zoomed": Composite(affordance=Unbounded((1, 64, 64))),
        "log/mass": NUMBERS,
    }
    assert read({"obs": NUMBERS, **shown}).observations == ("obs",)
    with pytest.raises(SpecError, match="log/mass, success"):
        read({"success": shown["success"], "log/mass": NUMBERS})


def test_the_guide_lists_the_names_that_are_not_free():
    guide = Path(__file__).parents[1] / "docs/guides/environment.md"
    missing = [
        key for key in (*TAKEN, *SIDE, *TORCHRL) if f"`{key}`" not in guide.read_text(encoding="utf-8")
    ]
    assert not missing


@pytest.mark.parametrize("key", ["kl_dynamics", "continuation", "critic"])
def test_names_of_loss_terms_are_refused(key):
    with pytest.raises(SpecError, match=f"{key!r}"):
        build({"obs": NUMBERS, key: NUMBERS})


@pytest.mark.parametrize("key", ["items", "keys", "forward", "training", "arm.angle"])
def test_any_other_name_is_read(key):
    system = build({key: NUMBERS, "obs": NUMBERS})
    assert system.spaces.vectors == tuple(sorted((key, "obs")))
    assert system.update(system.example_batch())["loss_joint"].isfinite()


def test_names_of_modules_are_keys_wherever_they_can_be():
    keys = ["a%2Eb", "position", "über alles", "0"]
    half = Decoder(4, dict.fromkeys(keys, (2,)), images=[], vectors=keys, depth=4, units=8, layers=1)
    assert list(half.vector_out) == keys


@pytest.mark.parametrize(
    ("seen", "taken", "words"),
    [
        (
            THREE,
            Dict(a=Discrete(2), b=Discrete(3)),
            "an action of several parts: found keys a, b, wanted one",
        ),
        (THREE, Tuple((Discrete(2), Discrete(3))), r"found actions Tuple\(.*\), wanted an array or classes"),
        (THREE, MultiDiscrete([2, 3]), "several parts: found 2 choices of 2, 3 values"),
        (Text(3), Discrete(2), "observation 'observation' cannot be read: found text"),
        *(
            (
                Dict({"obs": THREE, key: THREE}),
                None,
                f"found observations with the key '{key}', wanted others",
            )
            for key in ("reward", "done", "terminated", "truncated", "next", "shape", "self", "_reset")
        ),
    ],
)
def test_spaces_that_fit_no_system_are_refused_before_a_run_begins(room, seen, taken, words):
    config = compose("dreamer_v3", [*SMOKE, f"env.name={room(seen, taken)}"])
    with pytest.raises((ConfigError, SpecError), match=words) as error:
        build_system(config, make_training_env(config, None, seed=0), torch.device("cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("start", [5, -1])
def test_classes_of_gymnasium_with_a_start_count_from_0(room, start):
    seen = Dict(place=Discrete(4, start=3), pair=MultiDiscrete([3, 3], start=[2, 5]), inner=Dict(x=THREE))
    env = make_env(room(seen, Discrete(3, start=start)))
    steps = env.rollout(60)
    game = env.unwrapped
    assert game.actions == (steps["action"].argmax(-1) + start).tolist()
    assert set(game.actions) == {start, start + 1, start + 2}
    assert (steps["place"].sum(0) > 0).all() and steps["place"].shape == (60, 4)
    assert (steps["pair"].sum(0) > 0).all() and steps["pair"].shape == (60, 2, 3)


@pytest.mark.slow
def test_a_run_reads_an_image_and_a_vector_and_keeps_no_logs(room, tmp_path):
    seen = Dict(pixels=Box(0, 255, (3, 64, 64), np.uint8), speed=THREE, **{"log/mass": THREE})
    overrides = [f"env.name={room(seen)}", f"run_dir={tmp_path / 'run'}", "training.steps=40"]
    run = train(compose("dreamer_v3", [*SMOKE, *overrides])).run
    streams = ReplayStreams.open(f"{run}/replay")
    assert {"pixels", "speed"} <= streams.sample(2, 4).keys() and "log" not in streams.sample(2, 4).keys()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("count", ["null", "0", "1.5", "two", "true"])
def test_a_run_wants_a_whole_number_of_environments(count):
    with pytest.raises(ConfigError, match=r"^env.num_envs is "):
        config = compose("dreamer_v3", [*SMOKE, "env.name=CartPole-v1", f"env.num_envs={count}"])
        make_training_env(config, None, seed=0)


def test_systems_that_take_other_actions_are_named():
    with pytest.raises(SpecError, match=r"choose a system that takes continuous actions \((.*)\)$") as error:
        build({"obs": NUMBERS}, "twm", Bounded(-2, 2, (1,)))
    named = str(error.value).rpartition("(")[2].removesuffix(")").split(", ")
    assert {"dreamer_v1", "dreamer_v2", "dreamer_v3"} <= {*named}
    assert not {"twm", "storm", "dreamer_v3_2023", "ls_imagine"} & {*named}
    assert build({"obs": NUMBERS}, named[0], Bounded(-2, 2, (1,))).spaces.actions == "continuous"
