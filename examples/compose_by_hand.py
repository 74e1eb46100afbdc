"""A world model from parts, without a page, a simulator or a trainer.

The world: a bright bar on a dark screen that actions push left or right; the right edge pays.
An encoder, an RSSM over a LayerNorm GRU, a decoder and two heads learn it from random
sequences; then the model dreams, and its dreams are scored by λ-returns.

    python examples/compose_by_hand.py
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from wmkit import backbones
from wmkit.codecs import Decoder, Encoder
from wmkit.dynamics import RSSM, Latent, WorldModel, rollout
from wmkit.functional import lambda_return_jumpy
from wmkit.heads import ContinueHead, RewardHead
from wmkit.objectives import HeadLosses, KLBalance, Objective, Reconstruction

ACTIONS, PLACES = 3, 8  # left, stay, right; the bar stands at one of eight places


def sequences(batch: int, length: int) -> TensorDict:
    """Random walks of the bar in the arrival-aligned layout ``[B, T, ...]``."""
    action = torch.randint(ACTIONS, (batch, length))
    action[:, 0] = 1
    place = torch.full((batch,), PLACES // 2)
    places = []
    for t in range(length):
        place = (place + action[:, t] - 1).clamp(0, PLACES - 1)
        places.append(place)
    position = torch.stack(places, 1)  # [B, T]
    columns = torch.arange(64) // (64 // PLACES)  # [64] place of every pixel column
    bar = (columns == position[..., None]).to(torch.uint8) * 255  # [B, T, 64]
    is_init = torch.zeros(batch, length, 1, dtype=torch.bool)
    is_init[:, 0] = True
    records = {
        "pixels": bar[:, :, None, None, :].expand(batch, length, 3, 64, 64),
        "previous_action": F.one_hot(action, ACTIONS).float() * ~is_init,
        "reward": (position == PLACES - 1).float()[..., None] * ~is_init,
        "is_init": is_init,
        "terminated": torch.zeros_like(is_init),
    }
    return TensorDict(records, [batch, length])


def make_world_model() -> WorldModel:
    """The parts, with their numbers."""
    codec = {"images": ["pixels"], "vectors": [], "depth": 4, "units": 32, "layers": 1}
    trunk = {"units": 32, "layers": 1}
    return WorldModel(
        {"pixels": (3, 64, 64)},
        ACTIONS,
        encoder=partial(Encoder, **codec),
        decoder=partial(Decoder, **codec),
        dynamics=partial(
            RSSM, backbone=partial(backbones.build, "ln_gru"), deter=64, groups=8, classes=8, hidden=64
        ),
        heads={
            "reward": partial(RewardHead, target="reward", **trunk),
            "continuation": partial(ContinueHead, **trunk),
        },
    )


def objectives(world_model: WorldModel) -> list[Objective]:
    """What it learns from; each is a TorchRL loss."""
    return [
        Reconstruction({"observations": 1.0}, world_model=world_model),
        HeadLosses({"reward": 1.0, "continuation": 1.0}, world_model=world_model),
        KLBalance({"kl_dynamics": 0.5, "kl_representation": 0.1}, world_model=world_model),
    ]


def go_right(latent: Latent, t: int) -> Tensor:
    """Actions ``[N, A]``; what is imagined so far does not matter."""
    return F.one_hot(torch.full(latent.belief.shape[:1], 2), ACTIONS).float()


def main(updates: int = 120) -> None:
    """Learn, dream, score."""
    torch.manual_seed(0)
    world_model = make_world_model()
    losses = objectives(world_model)
    optimizer = torch.optim.Adam(world_model.parameters(), lr=5e-3)
    for update in range(updates):
        seen = world_model(sequences(8, 12))  # encoded and observed once, for all of them
        found = {name: value for loss in losses for name, value in loss(seen).items()}
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(world_model.parameters(), 1000.0)
        optimizer.step()
        if update % 20 == 0 or update == updates - 1:
            image, reward = found["loss_pixels"].item(), found["loss_reward"].item()
            print(f"update {update:4d}   image {image:8.1f}   reward {reward:6.3f}")

    # Dream of walking right from every state of the last batch. A roll-out has time first.
    start = Latent(seen["state"].flatten(0, 1).detach(), seen["belief"].flatten(0, 1).detach())
    dream = rollout(world_model, start, go_right, horizon=8).latent.map(lambda x: x.transpose(0, 1))
    after = dream.map(lambda x: x[:, 1:])
    with torch.no_grad():
        reward = world_model.predict("reward", after).mean  # [N, H, 1]
        continuation = world_model.continuation(after)
        pictures = world_model.decoder.predict(world_model.read(world_model.decoder, dream))["pixels"].mean
    target = lambda_return_jumpy(
        reward,
        torch.zeros_like(reward),
        continuation,
        torch.ones_like(reward),
        torch.zeros_like(reward),
        gamma=0.97,
        lmbda=0.95,
    )
    bar = pictures[0].mean((1, 2))  # [H+1, 64] brightness by column
    picture = ["".join("#" if x > 0.5 else "." for x in row.view(PLACES, -1).mean(1).tolist()) for row in bar]
    print("one dream of walking right, a line per step, and the return from there:")
    for t, line in enumerate(picture[:-1]):
        print(f"  {line}   {target[0, t].item():5.2f}")


if __name__ == "__main__":
    main()
