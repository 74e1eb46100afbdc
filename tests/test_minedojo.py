"""Minecraft without MineDojo: actions, observations, rewards, ends, and the wire between interpreters."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import zipfile

import numpy as np
import pytest
import torch

from wmkit.envs import ACTIONS, make_env, task_prompt
from wmkit.envs.minedojo import TASKS, VECTOR, Keyboard, Report
from wmkit.envs.minedojo.actions import KEYS, check_vector, to_dict, to_vector
from wmkit.envs.minedojo.episode import Episode
from wmkit.envs.minedojo.far import wire
from wmkit.envs.minedojo.interpreter import MALMO, VARIABLE
from wmkit.envs.minedojo.observations import hud_mask, read_report, to_tensors
from wmkit.envs.minedojo.recording import Recorder, Recording, missing
from wmkit.envs.minedojo.requirements import examine, mend_build
from wmkit.errors import ConfigError, EnvironmentCrashError, SpecError


def report(life=20.0, over=False, **held):
    frame = np.zeros((3, 160, 256), np.uint8)
    return Report(frame, held, vitals=(life, 20.0, 300.0, 0.0, 5.0, 0.0), over=over)


# ---------------------------------------------------------------- tasks


def test_the_five_tasks_are_those_of_the_released_code():
    rows = {
        name: (task.prompt, task.biome, task.tool, task.mobs, task.target, task.max_steps, task.fast_reset)
        for name, task in TASKS.items()
    }
    assert rows == {
        "harvest_log_in_plains": ("Cut a tree", "plains", None, (), "log", 1000, 5),
        "harvest_water_with_bucket": ("Obtain water", "plains", "bucket", (), "water_bucket", 1000, 5),
        "harvest_sand": ("Obtain sand", None, None, (), "sand", 1000, 5),
        "mine_iron_ore": ("Mine iron ore", None, "stone_pickaxe", (), "iron_ore", 2000, 10),
        "shear_sheep": ("Obtain wool", "plains", "shears", ("sheep",), "wool", 1000, 5),
    }
    assert all(task_prompt(f"minedojo/{name}") == task.prompt for name, task in TASKS.items())


# ---------------------------------------------------------------- actions


def test_twelve_actions_press_what_they_say():
    keyboard = Keyboard(sticky_jump=1)
    pressed = {}
    for action, name in enumerate(ACTIONS):
        keyboard.release()
        pressed[name] = keyboard.press(action)
    assert pressed == {
        "noop": {},
        "attack": {"attack": 1},
        "look up": {"camera": [-10, 0]},
        "look down": {"camera": [10, 0]},
        "turn left": {"camera": [0, -10]},
        "turn right": {"camera": [0, 10]},
        "forward": {"forward": 1},
        "back": {"back": 1},
        "left": {"left": 1},
        "right": {"right": 1},
        "jump": {"jump": 1, "forward": 1},
        "use": {"use": 1},
    }
    with pytest.raises(SpecError, match="action 12"):
        keyboard.press(12)


def test_a_jump_is_held_ten_steps_beside_other_keys_and_ends_with_the_episode():
    keyboard = Keyboard()
    held = [keyboard.press(action) for action in [10] + [7] * 11]
    assert held[:10] == [{"jump": 1, "forward": 1}] + [{"back": 1, "jump": 1, "forward": 1}] * 9
    assert held[10:] == [{"back": 1}] * 2
    keyboard.press(10)
    keyboard.release()
    assert keyboard.press(0) == {}


def test_pitch_stays_within_the_limit_whatever_is_pressed():
    keyboard, pitch = Keyboard(), 0
    rng = np.random.default_rng(0)
    for action in np.concatenate([np.full(9, 3), np.full(20, 2), rng.integers(0, 12, 400)]):
        keys = keyboard.press(int(action))
        pitch += keys.get("camera", [0, 0])[0]
        assert abs(pitch) <= 70 and pitch == keyboard.pitch
    assert keyboard.press(4)["camera"] == [0, -10]  # the other axis is free


def test_keys_become_a_dictionary_and_eight_numbers():
    nothing = {**dict.fromkeys(KEYS, 0), "camera": [0, 0], "craft": "none"}
    assert to_dict({"jump": 1, "camera": [10, 0]}, nothing) == {**nothing, "jump": 1, "camera": [10, 0]}
    assert nothing["jump"] == 0  # not written into
    idle = [0, 0, 0, 12, 12, 0, 0, 0]
    assert to_vector({}) == idle
    assert to_vector({"back": 1, "left": 1, "sneak": 1}) == [2, 1, 2, 12, 12, 0, 0, 0]
    assert to_vector({"attack": 1, "use": 1, "camera": [-180, 180]}) == [0, 0, 0, 0, 24, 3, 0, 0]
    assert to_vector({"camera": [10, -10]}, interval=10)[3:5] == [19, 17]
    for action in range(12):
        assert check_vector(to_vector(Keyboard().press(action)))
    for wrong in ([0] * 7, [3, *idle[1:]], [*idle[:-1], 36], [-1, *idle[1:]]):
        with pytest.raises(SpecError, match="8 numbers"):
            check_vector(wrong)
    assert len(VECTOR) == 8


# ---------------------------------------------------------------- observations


def said(**changes):
    values = {"inventory": {"log": 2}, "vitals": [20, 20, 300, 0, 5, 0], "place": [0, 64, 0, 0, 0]}
    return {**values, "over": False, "reward": 0, "success": False, **changes}


def test_a_report_copies_its_frame_and_refuses_what_is_no_report():
    turned = np.arange(3 * 160 * 256, dtype=np.uint32).astype(np.uint8).reshape(160, 256, 3)[::-1]
    frame = turned.transpose(2, 0, 1)  # as MineDojo gives it: a view that runs backwards
    found = read_report(said(), frame)
    assert (
        np.array_equal(found.frame, frame) and found.frame.flags.c_contiguous and found.frame.flags.writeable
    )
    assert not np.shares_memory(found.frame, turned)
    tensors = to_tensors(found, frames=True, numbers=True)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "pixels": (3, 64, 64),
        "frame": (3, 160, 256),
        "vitals": (6,),
        "place": (5,),
    }
    wrong = (
        *({"vitals": value} for value in ([20], None, [float("nan")] * 6)),
        *({"inventory": value} for value in (["log"], None, {"log": "many"})),
        {"place": [0, 0, 0, 0, float("inf")]},
        {"reward": [1, 2]},
    )
    for change in wrong:
        with pytest.raises(EnvironmentCrashError, match="cannot be read"):
            read_report(said(**change), frame)
    for key in said():
        with pytest.raises(EnvironmentCrashError, match="cannot be read"):
            read_report({name: value for name, value in said().items() if name != key}, frame)


def test_the_painted_over_part_is_a_quarter_and_leaves_the_sky():
    mask = hud_mask()
    assert 0.25 < mask.mean() < 0.27
    assert not mask[:81].any() and mask[159, 35:].all() and not mask[:, :35].any()


# ---------------------------------------------------------------- rewards and ends


@pytest.mark.parametrize(
    ("on_success", "ends"),
    [("terminate", (True, False)), ("truncate", (False, True)), ("continue", (False, False))],
)
def test_success_pays_two_and_ends_as_asked(on_success, ends):
    episode = Episode("log", max_steps=10, on_success=on_success)
    episode.begin(report())
    assert episode.step(report(log2=1)) == (0.0, False, False, False)  # acacia is no log
    assert episode.step(report(log=1)) == (2.0, True, *ends)


def test_items_lost_cost_one_and_success_stays():
    episode = Episode("log", max_steps=10, on_success="continue")
    episode.begin(report())
    rewards = [episode.step(report(log=held))[:2] for held in (1, 3, 1, 0)]
    assert rewards == [(2.0, True), (4.0, True), (-2.0, True), (-1.0, True)]
    episode.begin(report(log=4))  # what is held at the start pays nothing
    assert episode.step(report(log=4))[0] == 0.0
    assert Episode("log", max_steps=10, item_bonus=0.0).step(report(log=1))[0] == 1.0


def test_death_terminates_and_time_truncates():
    episode = Episode("log", max_steps=3, on_success="truncate")
    episode.begin(report())
    assert episode.step(report(life=0.0)) == (0.0, False, True, False)
    episode.begin(report())
    assert [episode.step(report())[2:] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    episode.begin(report())
    assert episode.step(report(over=True))[2:] == (False, True)  # the game ended it
    episode.begin(report())
    assert episode.step(report(life=0.0, log=1)) == (2.0, True, True, False)  # won and dead: an end


def test_a_task_of_minedojos_own_takes_its_word():
    episode = Episode(None, max_steps=3)
    episode.begin(report())
    found = report()
    found.reward, found.success = 0.5, True
    assert episode.step(found) == (0.5, True, True, False)


# ---------------------------------------------------------------- the wire


def test_messages_survive_being_torn_and_bad_ones_are_refused():
    here, there = socket.socketpair()
    with here, there:
        message = {"do": "step", "action": {"camera": [1.5, -2]}, "raw": "x" * 100_000}
        sender = threading.Thread(target=wire.send, args=(there, message))
        sender.start()
        assert wire.receive(here) == message
        sender.join()
        for payload in (b"[1]", b"{", b"\xff\xfe", b"[" * 100_000):
            there.sendall(struct.pack("!I", len(payload)) + payload)
            with pytest.raises(wire.WireError, match="JSON"):
                wire.receive(here)
        there.sendall(struct.pack("!I", 2**31))
        with pytest.raises(wire.WireError, match="bytes"):
            wire.receive(here)
        there.sendall(struct.pack("!I", 10) + b"abc")
        there.close()
        with pytest.raises(wire.WireError, match="closed"):
            wire.receive(here)
    with pytest.raises(ValueError, match="JSON"):
        wire.send(here, {"reward": float("nan")})


def test_only_who_says_the_token_is_let_in():
    with wire.listen() as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        liars = [wire.connect(port, token, 5.0) for token in ("", "b" * 64, "a" * 63)]
        raw = [socket.create_connection((host, port)) for _ in range(2)]
        raw[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        raw[1].sendall(struct.pack("!I", 9) + json.dumps([1, 2, 3]).encode())
        honest = []
        thread = threading.Thread(target=lambda: honest.append(wire.connect(port, "a" * 64, 5.0)))
        thread.start()
        accepted = wire.accept(listener, "a" * 64, 30.0)
        thread.join()
        wire.send(honest[0], {"do": "close"})
        assert wire.receive(accepted) == {"do": "close"}
        for sock in (*liars, *raw):
            sock.settimeout(5.0)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        for sock in (*liars, *raw, *honest, accepted):
            sock.close()


# ---------------------------------------------------------------- options


def test_options_that_do_not_fit_are_one_sentence(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(python))
    env = make_env("minedojo/harvest_sand", numbers=True)
    assert env.action_spec.shape == torch.Size([12]) and env.simulator is None
    env.close()
    env = make_env("minedojo/combat_zombie", actions="vector")
    assert env.action_spec.space is not None and env.action_spec.shape == torch.Size([8])
    env.close()
    for options in (
        {"on_success": "win"},
        {"sticky_jump": 0},
        {"port": 70_000},
        {"hud": "hide"},
        {"actions": "vector"},
        {"max_steps": 0},
        {"jump": 3},
    ):
        with pytest.raises(ConfigError, match="|".join(options)):
            make_env("minedojo/harvest_sand", **options)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=VARIABLE):
        make_env("minedojo/harvest_sand")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="wmkit minedojo setup"):
        make_env("minedojo/harvest_sand")


# ---------------------------------------------------------------- an episode in a file


def record(path, moments=3):
    slot = {"inventory": "inventory", "name": "air", "variant": 0, "quantity": 0}
    raw = {"inventory": [slot | {"max_durability": -1, "cur_durability": -1.0}] * 41, "life": 20.0}
    raw |= dict.fromkeys(("nearby_crafting_table", "nearby_furnace"), False)
    raw |= dict.fromkeys(("xpos", "ypos", "zpos"), 0.5)
    rng = np.random.default_rng(0)
    with Recorder(path, "harvest_sand", {"name": "minedojo", "version": "0.1"}) as recorder:
        for i in range(moments):
            frame = rng.integers(0, 256, (3, 160, 256), dtype=np.uint8)
            action = {"camera": [10, 0]} if i else None
            recorder.add(action, Report(frame, {}, raw=raw | {"xp": i}, reward=i / 2, success=i == 2))


def test_a_recording_gives_back_what_was_said_and_shown(tmp_path):
    record(tmp_path / "episode.zip")
    recording = Recording.open(tmp_path / "episode.zip")
    moments = list(recording.moments())
    assert [m.action for m in moments] == [None, {"camera": [10, 0]}, {"camera": [10, 0]}]
    assert [(m.reward, m.success, m.raw["xp"]) for m in moments] == [
        (0, False, 0),
        (0.5, False, 1),
        (1, True, 2),
    ]
    frame = np.random.default_rng(0).integers(0, 256, (3, 160, 256), dtype=np.uint8)
    assert np.array_equal(moments[0].frame, frame)
    demanded, defaulted = missing(moments[0].raw)
    assert demanded == [] and "yaw" in defaulted and "life" not in defaulted
    short = moments[0].raw | {"inventory": [*moments[0].raw["inventory"][1:], {"inventory": "inventory"}]}
    assert "inventory's name" in missing(short)[0]
    with pytest.raises(ConfigError, match="there already"):
        record(tmp_path / "episode.zip")


def test_a_torn_or_foreign_recording_is_a_sentence(tmp_path):
    record(tmp_path / "whole.zip")
    whole = (tmp_path / "whole.zip").read_bytes()
    members = {}
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(members["recording.json"])
    bad = {
        "torn": whole[: len(whole) // 2],
        "text": b"no archive",
        "later": {"recording.json": json.dumps(head | {"version": 2}).encode()},
        "many": {"recording.json": json.dumps(head | {"moments": 10**9}).encode()},
        "none": {"recording.json": b"[]"},
        "steps": {"steps.jsonl": members["steps.jsonl"][:40]},
        "values": {"steps.jsonl": members["steps.jsonl"].replace(b'"raw": {', b'"raw": [{', 1)},
        "picture": {"frames/00001.png": members["frames/00001.png"][:500]},
        "size": {"frames/00001.png": b"GIF89a" + bytes(100)},
    }
    for name, change in bad.items():
        path = tmp_path / f"{name}.zip"
        if isinstance(change, bytes):
            path.write_bytes(change)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for member, content in {**members, **change}.items():
                    archive.writestr(member, content)
        with pytest.raises(ConfigError, match="cannot be read"):
            list(Recording.open(path).moments())


# ---------------------------------------------------------------- what a machine needs


def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    for variable in ("DISPLAY", "MINEDOJO_HEADLESS", MALMO, "GRADLE_USER_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def found():
        return {finding.name: finding for finding in examine(tmp_path / "venv")}

    assert not any(found()[name].good for name in ("Java", "screen", "Malmo"))
    for name, script in (("java", "echo 'openjdk version \"1.8.0_392\"' >&2"), ("xvfb-run", ":")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("MINEDOJO_HEADLESS", "1")
    malmo = tmp_path / "venv" / "lib" / "python3.9" / "site-packages" / "minedojo" / "sim" / "Malmo"
    (malmo / "Minecraft").mkdir(parents=True)
    build = "buildscript {\n    repositories {\n    }\n"
    build += "    classpath('com.github.SpongePowered:MixinGradle:dcfaf61')\n}"
    (malmo / "Minecraft" / "build.gradle").write_text(build)
    now = found()
    assert now["Java"].good and now["screen"].good and now["Malmo"].good and not now["MixinGradle"].good
    with pytest.raises(ConfigError, match="MixinGradle-dcfaf61"):
        mend_build(malmo, tmp_path, tmp_path / "venv" / "Malmo")
    clone = tmp_path / "clones" / "MixinGradle-dcfaf61"
    clone.mkdir(parents=True)
    mended = mend_build(malmo, clone, tmp_path / "venv" / "Malmo")
    text = (mended / "build.gradle").read_text()
    assert f'maven {{ url "{clone.parent.as_uri()}" }}' in text
    assert "'MixinGradle-dcfaf61:MixinGradle:dcfaf61'" in text and "SpongePowered" not in text
    assert all(finding.good for finding in found().values()), found()
    assert (malmo / "Minecraft" / "build.gradle").read_text() == build
