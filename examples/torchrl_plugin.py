"""Five parts of wmkit in a script that is TorchRL otherwise: LS-Imagine's labels, model, spans and returns.

    python examples/torchrl_plugin.py                              # about a minute on a CPU
    python examples/torchrl_plugin.py --backbone transformer_xl    # another sequence model

An agent walks at random. A model learns its steps, and jumps to zoomed views; a critic learns their worth.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import Compose, InitTracker, TransformedEnv
from torchrl.objectives import LossModule
from torchrl.objectives.utils import dispatch_value_estimator

from wmkit import backbones
from wmkit.affordance import AffordanceTransform, JumpLabeller, MaskAffordance
from wmkit.codecs import Encoder
from wmkit.data import JumpResolver, PendingPairs, jump_path, to_chunks
from wmkit.dynamics import RSSM, LongShortRSSM, to_record
from wmkit.envs import make_env
from wmkit.heads import Critic, JumpFlagHead, RewardHead
from wmkit.objectives import KLBalance, WorldModelEstimators

GAMMA, STREAMS, SIZE, BATCH, LENGTH = 0.97, 2, 20_000, 128, 16
IMAGES, LAYERS = {"affordance": (1, 64, 64), "pixels": (3, 64, 64)}, {"units": 64, "layers": 1}


class PluginLoss(LossModule):
    """What model and critic learn from records ``[B, T]`` of replay."""

    def __init__(self, model: TensorDictSequential, critic: Critic) -> None:
        super().__init__()
        self.model, self.critic, self.kl = model, critic, KLBalance({}, free_nats=0.1, unimix=0.01)

    def make_value_estimator(self, value_type: WorldModelEstimators, **options: object) -> None:
        """One of wmkit's."""
        options["value_network"] = self.critic
        dispatch_value_estimator(self, value_type, supported=WorldModelEstimators, **options)

    def forward(self, td: TensorDict) -> TensorDict:
        """``loss_NAME`` for each term."""
        encoder, dynamics, *heads = self.model.module
        self.model(td)
        losses = {"kl": self.divergence(td["posterior_logits"], td["prior_logits"])}
        for head in heads:
            losses[head.target] = head.predict(features(td)).loss(head.label(td)).mean()
        at = td[td["is_zoomed"].squeeze(-1)]  # [N] records from which a jump leads to their zoomed view
        seen = dynamics.observe_jump(dynamics.unpack(at), encoder.encode(at["zoomed"]), to_record(at))
        losses["kl_jumps"] = self.divergence(seen.posterior_logits, seen.prior_logits)
        path = jump_path(td, GAMMA)  # transitions of replay, some of them jumps
        path["next", "reward"] += path["next", "intrinsic_reward"]
        self.value_estimator(path)
        value, counts = self.critic.predict(features(path)).loss(path["value_target"]), path["counts"]
        losses["value"] = (value * counts).sum() / counts.sum()
        return TensorDict({f"loss_{name}": loss for name, loss in losses.items()})

    def divergence(self, posterior: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        """KL both ways, as in DreamerV3."""
        dynamics, representation = self.kl.of(posterior, prior).values()
        value = 0.5 * dynamics.value + 0.1 * representation.value
        return value.sum() / max(value.numel(), 1)  # there may be no jumps


def features(td: TensorDict) -> torch.Tensor:
    """What heads and critic read."""
    return torch.cat([td["state"], td["belief"]], -1)


def main(arguments: list[str] | None = None) -> list[float]:
    """Train and return the sum of the losses of each batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000, help="of both environments together")
    parser.add_argument("--backbone", default="ln_gru")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    # 1. Labels what the environment shows: maps, scores, jumps, zoomed views.
    labels = AffordanceTransform(MaskAffordance(), labeller=JumpLabeller(margin=0.5, rise=0.3), del_keys=True)
    env = make_env("vizdoom/harvest_log_in_plains", num_envs=STREAMS, world="small", frames=True, masks=True)
    env = TransformedEnv(env, Compose(InitTracker(), labels))
    # 2. Knows how long a jump takes as soon as the record comes in that reached its view.
    sampler = SliceSampler(slice_len=LENGTH, traj_key="stream", init_key=None, truncated_key=None)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(SIZE), sampler=sampler, batch_size=BATCH)
    buffer.append_transform(JumpResolver(SIZE, PendingPairs(STREAMS, gamma=GAMMA, success_reaches=True)))
    # 3. A world model of steps and jumps, over whichever backbone.
    encoder = Encoder(IMAGES, images=list(IMAGES), vectors=[], depth=16, patch=8, **LAYERS)
    backbone = partial(backbones.build, options.backbone)
    rssm = partial(RSSM, backbone=backbone, deter=128, groups=8, classes=8, hidden=64)
    dynamics = LongShortRSSM(env.action_spec.shape[-1], encoder.out_dim, dynamics=rssm)
    width = dynamics.state_dim + dynamics.belief_dim
    heads = JumpFlagHead(width, **LAYERS), RewardHead(width, target="intrinsic_reward", **LAYERS)
    # 4. and 5. Losses, and returns over jumps and steps alike.
    loss = PluginLoss(TensorDictSequential(encoder, dynamics, *heads), Critic(width, **LAYERS))
    loss.make_value_estimator(WorldModelEstimators.LambdaReturnJumpy, gamma=GAMMA, lmbda=0.95)
    optimizer, totals = torch.optim.Adam(loss.parameters(), lr=1e-3), []
    for i, batch in enumerate(Collector(env, frames_per_batch=100, total_frames=options.steps)):
        for stream, chunk in enumerate(to_chunks(batch, [i > 0] * STREAMS)):
            buffer.extend(chunk.records.set("stream", torch.full((len(chunk.records),), stream)))
        found = []
        for _ in range(12):
            terms = loss(buffer.sample().reshape(-1, LENGTH))
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
            found.append(terms.detach())
        mean = torch.stack(found).mean(0)
        totals.append(sum(mean.values()).item())
        print((i + 1) * 100, *(f"{key} {value:.3f}" for key, value in mean.items()), flush=True)
    return totals


if __name__ == "__main__":
    main()
