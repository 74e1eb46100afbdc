"""Environments of gymnasium's as people write them: what they show, take, hand over and how they fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from torchrl.data import Composite

from wmkit.envs import make_env
from wmkit.errors import ConfigError, SpecError
from wmkit.systems import compose
from wmkit.systems.spaces import read_spaces
from wmkit.training.parts import build_system, make_training_env

F, U8 = np.float32, np.uint8
ONE = Box(-1, 1, (1,), F)


class Game(gymnasium.Env):
    """Shows samples, wants what its action space contains, and remembers both."""

    def __init__(self, seen: Space = ONE, taken: Space | None = None) -> None:
        self.observation_space, self.action_space = seen, taken or Discrete(2)
        self.sent: list[Any] = []
        self.actions: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.show(), {}

    def show(self):
        self.sent.append(self.observation_space.sample())
        return self.sent[-1]

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        self.actions.append(action)
        return self.show(), 0.0, False, False, {}


@pytest.fixture
def register():
    """Registers what makes a game and gives its id."""

    def register(create: Callable[..., Any]) -> str:
        gymnasium.register("Game-v0", entry_point=create)
        return "Game-v0"

    yield register
    gymnasium.registry.pop("Game-v0", None)


@pytest.fixture
def game(register):
    """An unbatched environment of a seen and a taken space, and the game inside."""

    def make(seen=ONE, taken=None, **options):
        env = make_env(register(lambda: Game(seen, taken)), **options)
        return env, env.unwrapped

    return make


def spaces_of(env, classes: Any = 255, images: Any = "auto", vectors: Any = "auto"):
    return read_spaces(
        env.observation_spec,
        env.full_action_spec,
        images=images,
        vectors=vectors,
        system="any",
        classes=classes,
        actions=("discrete", "continuous"),
    )


def first(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        (Box(0, 255, (64, 48, 3), U8), first),
        (Box(0, 255, (64, 64, 12), U8), first),
        (Box(0, 255, (84, 84), U8), lambda x: x[None]),
        (Box(0, 255, (4, 32, 32, 3), U8), lambda x: np.concatenate([first(one) for one in x])),
        (Box(0, 255, (2, 3, 32, 32), U8), np.concatenate),
        (Box(0, 255, (3, 32, 32), U8), lambda x: x),
        (Box(0, 255, (32, 32, 3), np.int64), lambda x: first(x).astype(U8)),
        (Box(0, 1, (3, 32, 32), bool), lambda x: x.astype(U8) * 255),
        (Box(0, 65535, (32, 32, 1), np.uint16), lambda x: (first(x) / 65535).astype(F)),
        (Box(0, 255, (3, 32, 32), F), lambda x: x / 255),
        (Box(-1, 1, (32, 32, 3), np.float64), lambda x: (first(x).astype(F) + 1) / 2),
        (Box(0, 1, (3, 32, 32), F), lambda x: x),
    ],
)
def test_pictures_are_turned_and_scaled_by_their_bounds(game, space, wanted):
    env, inner = game(space)
    (key,) = spaces_of(env).images
    shown = env.rollout(2)[key]
    expected = np.stack([wanted(one) for one in inner.sent[-3:-1]])
    assert shown.dtype in (torch.uint8, torch.float32) and shown.shape == expected.shape
    np.testing.assert_allclose(shown.numpy(), expected, atol=1e-6)


def test_pictures_are_resized_where_asked_and_small_tables_left(game):
    two = Dict(far=Box(0, 255, (210, 160, 3), U8), near=Box(0, 1, (32, 32), F), tiny=Box(0, 9, (7, 7, 3), U8))
    spec = game(two)[0].observation_spec
    assert [tuple(spec[key].shape) for key in two] == [(3, 210, 160), (32, 32), (7, 7, 3)]
    spec = game(two, resize=64)[0].observation_spec
    assert [tuple(spec[key].shape) for key in two] == [(3, 64, 64), (32, 32), (3, 64, 64)]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Box(0, 255, (210, 160, 3), U8), r"'pixels' of 210 x 160 pixels .*env.resize=64 "),
        (
            Dict(a=Box(0, 255, (3, 64, 64), U8), b=Box(0, 255, (32, 32, 3), U8)),
            r"'b' of 32 x 32.*images=\[a\]",
        ),
        (Box(-np.inf, np.inf, (64, 64, 3), F), "'pixels' holds floats without bounds"),
        (Discrete(1_000_000), "found 1000000 of them"),
    ],
)
def test_what_no_codec_takes_names_the_key_and_an_override(register, space, words):
    config = compose("storm", ["preset=smoke", "env=gymnasium", f"env.name={register(lambda: Game(space))}"])
    with pytest.raises(SpecError, match=words) as error:
        build_system(config, make_training_env(config, None, seed=0), torch.device("cpu"))
    assert "\n" not in str(error.value)


class Words(Space):
    """A space of somebody's own, such as MiniGrid's missions."""

    def sample(self, mask=None, probability=None):
        return "go"


def test_a_space_that_nobody_knows_is_left_out_by_a_list(game):
    env, _ = game(Dict(mission=Words(), speed=ONE))
    assert env.rollout(2)["speed"].shape == (2, 1)
    with pytest.raises(
        SpecError, match=r"'mission' cannot be read: .*leave it out by observations.vectors=\[speed\]"
    ):
        spaces_of(env)
    assert spaces_of(env, vectors=["speed"]).observations == ("speed",)


@pytest.mark.parametrize(
    ("space", "classes"),
    [
        (Box(0, 255, (128,), U8), None),
        (Box(0, 254, (4,), U8), 255),
        (Box(0, 1, (3,), bool), 2),
        (Box(0, 1_000_000, (2,), np.int64), None),
        (Box(0, 2**31 - 1, (2,), np.int32), None),
        (Box(0, 2**64 - 1, (2,), np.uint64), None),
        (Box(-5, 5, (3,), np.int32), None),
        (Box(np.array([0, 0]), np.array([3, 9]), dtype=np.int64), 10),
        (Box(0, 12, (8, 8), U8), 13),
        (MultiBinary((2, 2)), 2),
        (MultiDiscrete([[2, 3], [4, 2]]), None),  # one-hot
    ],
)
def test_whole_numbers_are_classes_where_few(game, space, classes):
    env, inner = game(space)
    found = spaces_of(env)
    (key,) = found.vectors
    assert found.classes.get(key) == classes
    if isinstance(space, Box) and space.dtype != np.uint64:
        assert np.array_equal(env.rollout(1)[key][0].numpy(), inner.sent[-2])


def test_a_setting_says_which_whole_numbers_are_classes(register):
    space = Dict(ram=Box(0, 255, (4,), U8), lives=Box(0, 3, (1,), np.int64))

    def classes(*overrides):
        name = register(lambda: Game(space))
        config = compose("dreamer_v3", ["preset=smoke", "env=gymnasium", f"env.name={name}", *overrides])
        env = make_training_env(config, None, seed=0)
        system = build_system(config, env, torch.device("cpu"))
        batch = env.rollout(4)
        assert system.world_model.encoder.encode(batch.exclude("next")).isfinite().all()
        return system.spaces.classes

    assert classes() == {"lives": 4}
    assert classes("observations.classes=256") == {"lives": 4, "ram": 256}
    assert classes("observations.classes=3") == {}
    assert classes("observations.classes=[ram]") == {"ram": 256}
    for wrong in ("[speed]", "many", "-1"):
        with pytest.raises((ConfigError, SpecError), match=r"observations\.classes"):
            classes(f"observations.classes={wrong}")


@pytest.mark.parametrize(
    ("space", "wide"),
    [
        (MultiDiscrete([4]), 4),
        (MultiDiscrete([[3]], start=[[5]]), 3),
        (MultiBinary(1), 2),
        (Discrete(3, start=-1), 3),
        (Discrete(1), 1),
        (Box(-2, 2, (), np.int32), 5),
        (Box(0, 1, (1,), bool), 2),
        (Box(3, 3, (2,), F), 1),
        (Dict(turn=Discrete(3)), 3),
        (Tuple((Discrete(3),)), 3),
        (Box(-1, 1, (), F), -1),
        (Box(-1, 1, (2, 3), F), -6),
        (Box(0.1, 0.3, (2,), np.float64), -2),
        (Box(np.array([-1, 0, 5], F), np.array([1, 0, 7], F)), -2),
        (Dict(action=Box(-1, 1, (), F)), -1),
    ],
)
def test_an_action_of_one_part_is_taken_whatever_its_space(game, space, wide):
    env, inner = game(taken=space)
    found = spaces_of(env)
    assert (found.actions, found.action_dim) == ("discrete" if wide > 0 else "continuous", abs(wide))
    env.rollout(60)  # each action is in its space, which the game asserts
    if wide > 0:
        assert len({str(action) for action in inner.actions}) == wide
    elif space.dtype == np.float64:
        high = torch.ones(2) * 0.3  # in float32 more than the bound
        env.step(env.reset().set("action", high))
        assert inner.actions[-1].max() <= 0.3


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (MultiDiscrete([3, 3]), "several parts: found 2 choices of 3, 3 values"),
        (MultiDiscrete([[2, 2], [2, 2]]), "found 4 choices"),
        (MultiBinary(4), "found 4 choices of 2, 2, 2, 2"),
        (Box(0, 3, (3,), np.int64), "found 3 whole numbers"),
        (Box(-np.inf, np.inf, (2,), F), "floats of shape .2. without bounds"),
        (Box(np.array([0, -1], F), np.array([np.inf, 1], F)), "from -1 to inf"),
        (Box(-3e38, 3e38, (2,), F), "finite"),
        (Discrete(1_000_000), "1000000 values"),
        (Box(-1, 1, (0,), F), "none at all"),
    ],
)
def test_other_actions_are_refused_in_words(game, space, words):
    with pytest.raises(SpecError, match=words) as error:
        spaces_of(game(taken=space)[0])
    assert "\n" not in str(error.value)


class Shared(Game):
    """Fills what it has handed out again and again."""

    def __init__(self, kind):
        super().__init__(Dict(state=ONE, image=Box(0, 255, (16, 16, 3), U8)) if kind == "dict" else ONE)
        self.parts = {"state": np.zeros(1, F), "image": np.zeros((16, 16, 3), U8)}
        self.kind, self.time = kind, 0

    def show(self):
        self.time += 1
        for part in self.parts.values():
            part[:] = self.time
        return self.parts if self.kind == "dict" else self.parts["state"]


@pytest.mark.parametrize("kind", ["dict", "array"])
@pytest.mark.parametrize("num_envs", [None, 1, 2])
def test_what_an_environment_fills_again_is_copied(register, kind, num_envs):
    env = make_env(register(lambda: Shared(kind)), num_envs=num_envs)
    before = env.reset()
    start = before["observation"].flatten()[0].item()
    after = env.step(env.rand_action(before))
    assert (before["observation"] == start).all() and (after["next", "observation"] == start + 1).all()
    if kind == "dict":
        assert (before["image"] == start).all() and (after["next", "image"] == start + 1).all()


def broken(**parts):
    """What makes a game whose second handing over has another part."""

    class Broken(Game):
        def step(self, action):
            seen, *rest = super().step(action)
            handed = dict(zip(("reward", "terminated", "truncated", "info"), rest, strict=True)) | parts
            seen = handed.pop("seen", seen)
            return handed.get("whole", (seen, *handed.values()))

    return lambda seen: lambda: Broken(seen)


@pytest.mark.parametrize(
    ("seen", "parts", "words"),
    [
        (Dict(a=ONE, b=ONE), {"seen": {"a": [0.0]}}, "no observation 'b': found the keys a, wanted a, b"),
        (ONE, {"seen": None}, "showed None as its observation: wanted an array of shape .1. of float32"),
        (
            Dict(a=ONE),
            {"seen": {"a": np.zeros(2, F)}},
            r"\[2\] of float32 as observation 'a': .* shape \[1\]",
        ),
        (ONE, {"seen": [[1, 2], [3]]}, r"showed list \[\[1, 2\], \[3\]\]"),
        (Discrete(4), {"seen": 4}, "showed 4 .*classes from 0 to 3"),
        (Box(0, 9, (1,), U8), {"seen": 1.5}, "showed float 1.5"),
        (Box(0, 9, (1,), U8), {"seen": 300}, "showed int 300"),
        (Box(0, 9, (1,), U8), {"seen": np.nan}, "showed float nan"),
        (ONE, {"reward": None}, "reward None: wanted one number"),
        (ONE, {"reward": np.zeros(2)}, "reward array.*wanted one number"),
        (ONE, {"truncated": None}, "truncated None: wanted true or false"),
        (ONE, {"terminated": math.nan}, "terminated nan: wanted true or false"),
        (ONE, {"whole": (0, 0.0, True, {})}, "older than gymnasium's .*a step that gives 4 values"),
    ],
)
def test_what_cannot_be_read_when_handed_over_is_one_sentence(register, seen, parts, words):
    env = make_env(register(broken(**parts)(seen)))
    with pytest.raises(SpecError, match=rf"^env 'gym/Game-v0' .*{words}"):
        env.rollout(2)


@pytest.mark.parametrize(
    ("seen", "parts", "value"),
    [
        (ONE, {"seen": [0.5]}, 0.5),
        (ONE, {"seen": 0.5}, 0.5),
        (ONE, {"seen": np.array([0.5])}, 0.5),
        (Box(-1, 1, (), F), {"seen": [0.5]}, 0.5),
        (Box(0, 9, (1,), U8), {"seen": np.array([3.0])}, 3),
        (Dict(observation=ONE), {"seen": {"observation": [1], "more": "words"}}, 1),
        (ONE, {"seen": [0.5], "reward": np.array([2.0]), "terminated": 0, "truncated": np.True_}, 0.5),
    ],
)
def test_what_is_harmless_is_read(register, seen, parts, value):
    env = make_env(register(broken(**parts)(seen)))
    step = env.step(env.rand_action(env.reset()))["next"]
    assert step["observation"].item() == value
    assert step["reward"].item() == (2.0 if "reward" in parts else 0.0)
    assert step["done"].item() == ("truncated" in parts)


class Bare(gymnasium.Env):
    """Without a constructor."""

    observation_space, action_space = ONE, Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, F), {}

    def step(self, action):
        return np.zeros(1, F), 0.0, False, False, {}


class Skips(Bare):
    """With a word of its own that TorchRL has too, and with any other."""

    def __init__(self, frameskip=5, **others):
        self.given = frameskip, others


@pytest.mark.parametrize("num_envs", [None, 2])
def test_an_environment_gets_the_options_that_were_given(register, num_envs):
    config = compose("dreamer_v3", ["env=gymnasium", f"env.name={register(Skips)}", "env.num_envs=1"])
    assert make_training_env(config, None, seed=0).batch_size == (1,)
    assert make_env("Game-v0").unwrapped.given == (5, {})
    assert make_env("Game-v0", frameskip=2, colour="red").unwrapped.given == (2, {"colour": "red"})
    gymnasium.registry.pop("Game-v0")
    make_env(register(Bare), num_envs=num_envs).rollout(2)


class OldReset(Bare):
    def reset(self):
        return np.zeros(1, F)


class OldSeed(Bare):
    def reset(self, seed=None):
        return np.zeros(1, F), {}


class OldObservation(Bare):
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, F)


class OldStep(Bare):
    def step(self, action):
        return np.zeros(1, F), 0.0, False, {}


class Undrawn(Bare):
    def __init__(self, render_mode=None):
        self.render_mode = render_mode


class DrawsNothing(Undrawn):
    def render(self):
        return None


def _raises(error):
    def create(**options):
        raise error

    return create


def _imports(**options):
    import a_package_that_is_not_there  # noqa: F401


def _counts(**options):
    class Counts(Bare):
        def reset(self, *, seed=None, options=None):
            return 1 + "a"

    return Counts()


@pytest.mark.parametrize(
    ("create", "options", "words"),
    [
        (
            OldReset,
            {},
            r"older than gymnasium's .*found reset\(\), wanted reset\(\*, seed=None, options=None\)",
        ),
        (OldSeed, {}, r"found reset\(seed=None\), wanted reset"),
        (OldObservation, {}, "a reset that gives ndarray alone"),
        (Undrawn, {"pixels": True}, r"found no render\(\), wanted render_mode.*env.pixels=false"),
        (DrawsNothing, {"pixels": True}, r"found render\(\) gives NoneType"),
        (Bare, {"pixels": True}, "found no render_mode among its options"),
        (_raises(RuntimeError("no licence")), {}, "found RuntimeError: no licence .*correct the environment"),
        (_raises(KeyError("map")), {}, "found KeyError: 'map'"),
        (_imports, {}, "found ModuleNotFoundError: .*; install the package that has the module 'a_package"),
        (_counts, {}, "found TypeError: unsupported operand.*correct the environment"),
        (Bare, {"colour": "red"}, "found TypeError: .*check its options"),
        (Bare, {"image_size": 0}, "image_size is 0"),
    ],
)
def test_what_goes_wrong_while_it_is_made_keeps_its_type_and_text(register, create, options, words):
    name = register(create)
    with pytest.raises((ConfigError, SpecError), match=words) as error:
        make_env(name, **options)
    assert "\n" not in str(error.value)
    assert ("install" in str(error.value)) == (create is _imports)


@pytest.mark.parametrize("limit", [None, 9])  # with one, gymnasium's own wrapper unpacks the step
def test_a_step_of_four_is_named(limit):
    gymnasium.register("Game-v0", entry_point=OldStep, max_episode_steps=limit)
    try:
        with pytest.raises(
            SpecError, match=r"older than gymnasium's .*wanted .*terminated, truncated and info"
        ):
            make_env("Game-v0").rollout(2)
    finally:
        gymnasium.registry.pop("Game-v0")


def test_a_spec_of_torchrls_is_read_by_the_same_rules():
    from torchrl.data import Bounded, OneHot, Unbounded, UnboundedDiscrete

    def read(**spec):
        return read_spaces(Composite(spec), OneHot(2), images="auto", vectors="auto", system="any", classes=9)

    found = read(a=UnboundedDiscrete((2,)), b=Bounded(0, 8, (2,), dtype=torch.int64), c=Unbounded((3,)))
    assert found.vectors == ("a", "b", "c") and found.classes == {"b": 9}
    with pytest.raises(SpecError, match="'a' holds floats from 0 to 255"):
        read(a=Bounded(0, 255, (3, 64, 64), dtype=torch.float32))
