"""TorchRL's PPO learns, and its CEM planner plans, inside a trained wmkit model; then both face the real
world.

    wmkit train dreamer_v3 preset=pendulum run_dir=runs/pendulum
    python examples/dream_ppo.py runs/pendulum

Nothing of TorchRL is changed: ``DreamEnv`` is the model as an environment, and ``wmkit.control.Policy`` takes
any TensorDict module as its actor, which then acts in the real environment on what the model has filtered.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardScaling, StepCounter, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import CEMPlanner, OneHotCategorical, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from wmkit.control import Policy
from wmkit.training import load_run


def starts(system, memory, count: int = 2000) -> TensorDict:
    """States that the model filters from replay: where dreams begin."""
    found = []
    with torch.no_grad():
        while sum(len(x) for x in found) < count:
            scene = system.scene(memory.sample())
            latent = scene.observed.latent.map(lambda x: x.flatten(0, 1))
            alive = ~scene.batch["terminated"].flatten()
            packed = system.world_model.dynamics.pack(latent)
            found.append(TensorDict(packed, [len(latent.state)])[alive].clone())
    return torch.cat(found)[:count]


def actor_and_value(system, width: int = 128):
    """A policy and a value function of TorchRL's over ``state`` and ``belief``."""
    keys, dynamics = ["state", "belief"], system.world_model.dynamics
    size, actions = dynamics.state_dim + dynamics.belief_dim, system.spaces.action_dim
    discrete = system.spaces.actions == "discrete"

    class Joined(nn.Module):
        def __init__(self, out: int, *last: nn.Module) -> None:
            super().__init__()
            first, second = nn.Linear(size, width), nn.Linear(width, width)
            self.layers = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(width, out), *last)

        def forward(self, state, belief):
            return self.layers(torch.cat([state, belief], -1))

    if discrete:
        net, out, law, options = Joined(actions), ["logits"], OneHotCategorical, {}
    else:
        net, out, law = Joined(2 * actions, NormalParamExtractor()), ["loc", "scale"], TanhNormal
        options = {"low": -1.0, "high": 1.0}
    actor = ProbabilisticActor(
        TensorDictModule(net, keys, out),
        in_keys=out,
        distribution_class=law,
        distribution_kwargs=options,
        return_log_prob=True,
    )
    return actor, ValueOperator(Joined(1), in_keys=keys)


def learn(env, actor, value, *, batches: int, steps: int = 2048, epochs: int = 6) -> None:
    """PPO as TorchRL has it."""
    advantage = GAE(gamma=0.95, lmbda=0.95, value_network=value, average_gae=True)
    loss = ClipPPOLoss(actor, value, clip_epsilon=0.2, entropy_coeff=0.003)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = Collector(env, actor, frames_per_batch=steps, total_frames=steps * batches)
    for i, data in enumerate(collector):
        for _ in range(epochs):
            with torch.no_grad():
                advantage(data)
            flat = data.reshape(-1)
            for part in flat[torch.randperm(len(flat))].split(256):
                found = loss(part)
                optimizer.zero_grad()
                sum(found[key] for key in ("loss_objective", "loss_critic", "loss_entropy")).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimizer.step()
        print(f"ppo {i + 1:3d}: dreamed reward per step {data['next', 'reward'].mean():.3f}", flush=True)
    collector.shutdown()


def dreamed(env, actor, episodes: int, steps: int) -> float:
    """Mean return of so many steps in the model."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        total = [env.rollout(steps, actor)["next", "reward"].sum().item() for _ in range(episodes)]
    return sum(total) / len(total)


def real(opened, actor, episodes: int) -> float:
    """Mean return in the real environment, the model filtering what is seen."""
    system = opened.system
    spaces = system.spaces
    policy = Policy(
        system.world_model,
        actor,
        images={key: spaces.shapes[key] for key in spaces.images},
        vectors=spaces.vectors,
        frames=system.frames,
        continuous=spaces.actions == "continuous",
    )
    world, returns = opened.make_world(policy), []
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        while len(returns) < episodes:
            played = world.rollout(1000, policy, break_when_any_done=False, break_when_all_done=True)
            over = played["next", "done"].squeeze(-1).cumsum(1)  # [N, T]
            before = torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], 1) == 0
            returns += (played["next", "reward"].squeeze(-1) * before).sum(1).tolist()
    world.close()
    return sum(returns) / len(returns)


def main() -> None:
    """Learn, plan, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run of dreamer_v3 that was trained")
    parser.add_argument("--batches", type=int, default=40, help="of 2,048 dreamed steps for PPO")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="of a dreamed episode")
    parser.add_argument("--horizon", type=int, default=20, help="of the CEM planner")
    parser.add_argument("--candidates", type=int, default=200, help="of the CEM planner")
    options = parser.parse_args()
    torch.manual_seed(0)
    opened = load_run(options.run)
    system = opened.system.eval()
    begin = starts(system, opened.memory)
    tenth = RewardScaling(0.0, 0.1)  # of returns in the hundreds PPO's critic would learn, and little else
    env = TransformedEnv(system.dream_env([32], start=begin), Compose(StepCounter(options.steps), tenth))
    actor, value = actor_and_value(system)
    untrained = real(opened, actor, options.episodes)
    learn(env, actor, value, batches=options.batches)
    one = system.dream_env([], start=begin, relaxed=True)
    best = max(options.candidates // 10, 1)
    planner = CEMPlanner(
        one, planning_horizon=options.horizon, optim_steps=4, num_candidates=options.candidates, top_k=best
    )
    single = TransformedEnv(system.dream_env([], start=begin), StepCounter(options.steps))
    print(f"\n{'':24s}{'in the model':>16s}{'in the world':>16s}")
    print(f"{'untrained PPO policy':24s}{'':>16s}{untrained:16.1f}")
    row = dreamed(single, actor, options.episodes, options.steps), real(opened, actor, options.episodes)
    print(f"{'PPO, learned in dreams':24s}{row[0]:16.1f}{row[1]:16.1f}")
    planned = real(opened, TensorDictSequential(planner), max(options.episodes // 4, 1))
    print(f"{'CEM, plans in dreams':24s}{'':>16s}{planned:16.1f}")
    print(f"{'wmkit actor of the run':24s}{'':>16s}{real(opened, system.actor, options.episodes):16.1f}")


if __name__ == "__main__":
    main()
