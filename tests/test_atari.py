"""Atari's two protocols, held against the games' own package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from support.play import act, small
from wmkit.envs import make_env, read_options
from wmkit.envs.adapters import fit_image_by_area
from wmkit.envs.atari import AtariEnv, atari100k
from wmkit.errors import ConfigError
from wmkit.systems import compose
from wmkit.training.parts import make_training_env
from wmkit.training.protocol import EvaluationProtocol


def emulator(game: str, seed: int = 0, sticky: float = 0.0):
    """The games' own package, frame by frame."""
    ale_py = pytest.importorskip("ale_py")
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", sticky)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    ale.reset_game()
    return ale


@pytest.mark.parametrize("grey", [False, True])
def test_a_step_is_four_frames_and_shows_the_maximum_of_the_last_two(grey):
    pytest.importorskip("ale_py")
    protocol = AtariEnv if grey else atari100k
    env = protocol("ms_pacman", noops=0, sticky=0.0, seed=3)
    env.rollout(5)  # what an episode leaves behind must not be seen in the next
    env.set_seed(3)
    ale, side = emulator("ms_pacman", 3), 96 if grey else 64

    def look(screen):
        image = small(screen, side)
        if not grey:
            return image.transpose(2, 0, 1)
        rows = [[int(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in row.tolist()] for row in image]
        return np.array(rows)[None]

    def assert_equal(found, wanted):  # one apart where a grey value lies on a whole number
        assert np.abs(found.numpy().astype(int) - wanted).max() <= int(grey)

    current = env.reset()
    assert_equal(current["pixels"], look(ale.getScreenRGB()))
    random, total = np.random.default_rng(0), 0.0
    for index in random.integers(len(env.actions), size=100):  # the music takes 65
        current["action"] = torch.nn.functional.one_hot(torch.tensor(int(index)), len(env.actions))
        stepped = env.step(current)["next"]
        reward, screens = 0.0, []
        for _ in range(4):
            reward += ale.act(env.actions[int(index)])
            screens.append(ale.getScreenRGB())
        assert stepped["reward"].item() == reward
        assert_equal(stepped["pixels"], look(np.maximum(*screens[-2:])))
        total += reward
    assert total >= 10 and env.emulator.getEpisodeFrameNumber() == ale.getEpisodeFrameNumber()


def test_resets_take_0_to_30_single_frames_of_doing_nothing():
    pytest.importorskip("ale_py")
    env = atari100k("pong")
    start = emulator("pong").getEpisodeFrameNumber()
    counts = []
    for _ in range(160):
        env.reset()
        counts.append(env.emulator.getEpisodeFrameNumber() - start)
    assert min(counts) == 0 and max(counts) == 30 and len(set(counts)) > 28
    assert abs(np.mean(counts) - 15) < 2  # nearly three standard deviations


def test_a_quarter_of_the_frames_sticks_in_atari_and_none_in_atari100k():
    """From one state: three frames of nothing, one of RIGHT, two of nothing. RIGHT is lost if it stuck."""
    pytest.importorskip("ale_py")
    lost = {}
    for name, protocol in (("atari", AtariEnv), ("atari100k", atari100k)):
        env = protocol("breakout", noops=0)
        env.reset()
        ale = env.emulator
        state = ale.cloneState()

        def play(actions, ale=ale, state=state):
            ale.restoreState(state)
            for action in actions:
                ale.act(action)
            return ale.getRAM().tobytes()

        nothing = play([0, 0, 0, 0, 0, 0])
        lost[name] = np.mean([play([0, 0, 0, 3, 0, 0]) == nothing for _ in range(300)])
    assert lost["atari100k"] == 0
    assert abs(lost["atari"] - 0.25) < 0.075  # three standard deviations


def test_lives_are_ignored_and_game_over_terminates():
    pytest.importorskip("ale_py")
    env = atari100k("breakout", noops=0)
    current, lives = env.reset(), [5]
    for _ in range(1000):
        stepped = act(env, current, 1)  # FIRE, which serves the ball and never moves the bat
        lives.append(env.emulator.lives())
        if stepped["done"]:
            break
    assert lives == sorted(lives, reverse=True) and set(lives) == {5, 4, 3, 2, 1, 0}
    assert stepped["terminated"] and not stepped["truncated"]
    assert env.reset()["terminated"].logical_not() and env.emulator.lives() == 5


@pytest.mark.parametrize(
    ("system", "overrides", "terminates"),
    [
        ("dreamer_v3", ["env=atari"], True),
        ("dreamer_v3", ["preset=atari100k"], True),
        ("dreamer_v3", ["env=atari100k"], False),
        ("twm", ["preset=atari100k"], False),
    ],
)
def test_the_limit_is_an_end_or_a_truncation_by_the_protocol(system, overrides, terminates):
    """T18: danijar/dreamerv3 ends an episode at the limit of frames as if the game were over."""
    pytest.importorskip("ale_py")
    config = compose(system, [*overrides, "env.num_envs=1", "env.options.max_frames=8"])
    env = make_training_env(config, None, seed=0)
    last = env.rollout(5)["next"][0, -1]
    assert last["done"] and last["terminated"].item() is terminates
    assert last["truncated"].item() is not terminates
    assert env._envs[0]._played == 8
    with pytest.raises(ConfigError, match="limit='end'"):
        atari100k("pong", limit="end")


def test_a_lost_life_ends_an_episode_of_training_but_none_of_evaluation():
    """Breakout, served by FIRE and never hit: five lives, each an episode, in one game."""
    pytest.importorskip("ale_py")
    env = atari100k("breakout", noops=0, lives="terminate")
    current, starts, ends = env.reset(), [(5, env.emulator.getEpisodeFrameNumber())], []
    for _ in range(1000):
        stepped = act(env, current, 1)
        assert not stepped["truncated"] and bool(stepped["done"]) == bool(stepped["terminated"])
        if stepped["done"]:
            ends.append((env.emulator.lives(), env.emulator.getEpisodeFrameNumber()))
            current = env.reset()
            starts.append((env.emulator.lives(), env.emulator.getEpisodeFrameNumber()))
            if starts[-1][0] == 5:
                break
        else:
            current = stepped
    assert [lives for lives, _ in ends] == [4, 3, 2, 1, 0]
    assert [lives for lives, _ in starts] == [5, 4, 3, 2, 1, 5]
    for (_, ended), (_, began) in zip(ends[:-1], starts[1:-1], strict=True):
        assert began == ended + env.action_repeat  # one step without an action, then on
    assert starts[-1][1] == starts[0][1]  # only the end of the game begins it anew

    for system in ("twm", "storm"):  # Atari's rules, and the system's own schedule
        published, atari = (compose(system, [f"preset={name}"]) for name in ("full", "atari100k"))
        assert atari.training == published.training and atari.controller == published.controller
    assert (atari.training.steps, atari.training.train_ratio) == (102_000, 1040.0)
    config = compose("twm", ["preset=atari100k", "env.game=breakout"])
    for evaluation, lives in ((False, "terminate"), (True, "ignored")):
        made = make_training_env(config, None, seed=0, evaluation=evaluation)
        made.reset()
        assert made._envs[0].lives == lives
    asked = compose("twm", ["preset=atari100k", "env.evaluation.lives=terminate"])
    assert EvaluationProtocol.of(asked, 1).lives == "terminate"
    with pytest.raises(ConfigError, match="lives='lost'"):
        atari100k("pong", lives="lost")


def test_fire_is_pressed_for_the_agent_where_a_game_waits_for_it():
    """An agent that does nothing loses a game of Breakout only if somebody else serves."""
    pytest.importorskip("ale_py")

    def lives_of(**options):
        env = atari100k("breakout", noops=3, **options)
        current, lives, frames = env.reset(), [], []
        for _ in range(400):
            lives.append(env.emulator.lives())
            frames.append(env.emulator.getEpisodeFrameNumber())
            current = act(env, current, 0)
            if current["done"]:
                break
        return lives, np.diff(frames), env

    unserved, _, _ = lives_of()
    assert set(unserved) == {5} and len(unserved) == 400
    served, steps, env = lives_of(fire=True)
    assert sorted(set(served)) == [1, 2, 3, 4, 5] and env.emulator.lives() == 0
    lost = np.diff(served) < 0
    assert (steps[lost] == 8).all() and (steps[~lost] == 4).all()  # the step, and FIRE within it
    start = env.emulator.getEpisodeFrameNumber()
    env.reset()
    begun = env.emulator.getEpisodeFrameNumber()
    assert begun < start and (begun - emulator("breakout").getEpisodeFrameNumber()) % 4 == 0
    assert (begun - emulator("breakout").getEpisodeFrameNumber()) // 4 in (
        3,
        4,
        5,
    )  # two presses, 1 to 3 no-ops
    env = atari100k(
        "breakout", noops=0, fire=True, max_frames=8
    )  # a limit met before does not cut them short
    starts = []
    for _ in range(3):
        current = env.reset()
        starts.append(env.emulator.getEpisodeFrameNumber())
        assert not act(env, current, 0)["done"] and act(env, current, 0)["truncated"]
    assert len(set(starts)) == 1
    assert atari100k("pong", fire=True).fires and not atari100k("ms_pacman", fire=True).fires

    config = compose("twm", ["preset=atari100k", "env.game=breakout"])
    assert "no no-ops, FIRE pressed for the agent, lives ignored" in str(EvaluationProtocol.of(config, 1))


def test_area_means_are_what_a_pixel_covers():
    """Against a picture so much finer that no pixel is cut."""
    image = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    fine = image.astype(np.float64).repeat(32, 0).repeat(2, 1)  # 6,720 x 320: 105 x 5 for each of 64 x 64
    expected = fine.reshape(64, 105, 64, 5, 3).mean((1, 3))
    assert np.abs(fit_image_by_area(image, 64) - expected).max() <= 0.5 + 1e-4
    assert (fit_image_by_area(np.full((210, 160, 3), 7, np.uint8), 84) == 7).all()
    pytest.importorskip("ale_py")
    plain, by_area = (atari100k("pong", filter=name, noops=0) for name in ("bilinear", "area"))
    assert plain.reset()["pixels"].shape == by_area.reset()["pixels"].shape
    with pytest.raises(ConfigError, match=r"filter='box': wanted one of bilinear, area; correct filter"):
        atari100k("pong", filter="box")


NOT_IN_OLD_SCORES = ("fewest_noops", "noop_frames", "actions", "filter", "limit")


@pytest.mark.parametrize(
    ("game", "everything", "words"),
    [
        ("breakout", False, "1 to 3 no-ops of 4 frames, FIRE pressed for the agent, lives"),
        ("ms_pacman", False, "0 to 3 no-ops, lives"),  # whose second action is another
        ("ms_pacman", True, "1 to 3 no-ops of 4 frames, FIRE pressed for the agent, lives"),
    ],
)
def test_a_protocol_tells_the_noops_that_are_made(game, everything, words):
    """As frames that the emulator has played after resets."""
    pytest.importorskip("ale_py")
    name, options = f"atari100k/{game}", {"fire": True, "noops": 3, "all_actions": everything}
    config = OmegaConf.create({"env": {"name": name, "options": options}, "training": {}})
    protocol = EvaluationProtocol.of(config, 1)
    assert words in str(protocol) and f"{'full' if everything else 'minimal'} action set" in str(protocol)
    env, start, seen = make_env(name, **options), emulator(game).getEpisodeFrameNumber(), set()
    for _ in range(40):
        env.reset()
        seen.add(env.emulator.getEpisodeFrameNumber() - start)
    presses = 2 * env.action_repeat if protocol.fire else 0
    counts = range(protocol.fewest_noops, protocol.noops + 1)
    assert seen == {presses + protocol.noop_frames * count for count in counts}


def test_a_protocol_says_what_the_environment_does():
    pytest.importorskip("ale_py")
    config = compose("storm", ["preset=atari100k", "env.game=pong", "env.num_envs=3"])
    protocol = EvaluationProtocol.of(config, episodes=7)
    env = make_training_env(config, None, seed=0, evaluation=True)
    env.reset()
    game = env._envs[0]
    assert (protocol.episodes, protocol.num_envs, protocol.sampled) == (7, env.batch_size[0], True)
    assert protocol.sticky == pytest.approx(game.emulator.getFloat("repeat_action_probability"))
    assert (protocol.action_repeat, protocol.noops) == (game.action_repeat, game.noops)
    assert (protocol.frame_limit, protocol.lives) == (game.max_frames, game.lives)
    assert protocol.step_limit is None and EvaluationProtocol.read(protocol.record()) == protocol
    words = ("7 episodes of atari100k/pong", "sampled", "action repeat 4", "sticky actions 0.25", "no no-ops")
    assert all(word in str(protocol) for word in (*words, "lives ignored", "108,000 frames", "seed 1000000"))
    assert (protocol.fire, protocol.actions, protocol.filter) == (game.fires, "minimal", game.filter)
    assert protocol.limit == game.limit and "minimal action set, area filter, at most" in str(protocol)
    assert "108,000 frames, then truncated" in str(protocol)
    training = EvaluationProtocol.of_training(config, episodes=7)
    assert training.beside(protocol) == "the loss of a life ends the episode"
    old = {key: value for key, value in protocol.record().items() if key not in NOT_IN_OLD_SCORES}
    assert "up to 30 no-ops, lives ignored, at most 108,000 frames, 3" in str(
        EvaluationProtocol.read({**old, "noops": 30})
    )
    assert read_options("gym/Acrobot-v1")["max_steps"] == 500
    assert read_options("Acrobot-v1", max_episode_steps=9)["max_steps"] == 9
    with pytest.raises(ConfigError, match="cannot take these options"):
        read_options("atari/pong", stickiness=1)


def test_actions_of_the_two_protocols_and_spellings_of_a_game():
    pytest.importorskip("ale_py")
    assert AtariEnv("Pong").action_spec.shape == (18,)
    assert atari100k("pong").action_spec.shape == (6,)
    assert atari100k("MsPacman").game == atari100k("mspacman").game == "ms_pacman"
    assert atari100k("james_bond").game == "jamesbond"
