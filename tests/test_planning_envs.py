"""Environments for planning: two rooms, and Push-T where it is installed."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from wmkit.envs import make_env
from wmkit.envs.two_rooms import FREE, HALF, RADIUS, WALL, TwoRooms, move
from wmkit.systems import compose


def test_two_rooms_walls_hold_and_the_door_is_the_only_way():
    env = TwoRooms(max_steps=6)
    check_env_specs(env)
    generator = torch.Generator().manual_seed(0)
    position = torch.tensor([50.0, 150.0]).repeat(512, 1)
    crossed = 0
    for _ in range(400):
        new = move(position, 4 * torch.rand(512, 2, generator=generator) - 2)
        inside = (new[:, 0] - WALL).abs() < HALF
        assert ((new[:, 1] - 49).abs()[inside] <= 14).all()
        assert (new >= FREE[0] + RADIUS).all() and (new <= FREE[1] - RADIUS).all()
        across = (new[:, 0] < WALL) != (position[:, 0] < WALL)
        assert ((position[:, 1] - 49).abs()[across] <= 14).all()
        crossed += int(across.sum())
        position = new
    assert crossed


def test_two_rooms_are_solved_by_the_script_and_not_by_chance():
    won = {"scripted": 0, "random": 0}
    torch.manual_seed(0)
    for policy in won:
        env = TwoRooms(seed=3, image_size=16)
        for _ in range(12):
            here = env.reset()
            while not bool(here["done"]):
                action = env.scripted_action() if policy == "scripted" else env.action_spec.rand()
                here = env.step(here.set("action", action))["next"]
            won[policy] += bool(here["terminated"]) and bool(here["success"]) and float(here["reward"]) == 1
    assert won["scripted"] >= 11 and won["random"] <= 5


def test_two_rooms_take_blocks_of_actions():
    one, five = TwoRooms(seed=1, image_size=16), TwoRooms(seed=1, image_size=16, block=5)
    a, b = one.reset(), five.reset()
    assert torch.equal(a["pixels"], b["pixels"])
    actions = torch.full((10,), 0.3)
    b = five.step(b.set("action", actions))["next"]
    for action in actions.split(2):
        a = one.step(a.set("action", action))["next"]
    assert torch.equal(a["log/position"], b["log/position"]) and torch.equal(a["pixels"], b["pixels"])


def test_push_t_is_there_where_it_is_installed():
    pytest.importorskip("gym_pusht")
    options = compose("dreamer_v3", ["env=pusht"]).env.options
    env = make_env("gym/gym_pusht/PushT-v0", **options)
    rollout = env.rollout(3)
    assert rollout["pixels"].shape[1:] == (3, 64, 64) and rollout["agent_pos"].shape == (3, 2)
    env.close()
