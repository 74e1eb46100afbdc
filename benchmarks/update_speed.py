"""One training update of wmkit beside the same update assembled from TorchRL's own parts.

    python benchmarks/update_speed.py --system dreamer_v3 --size 1m --obs proprio --against torchrl --json
    python benchmarks/update_speed.py --obs vision --codec strided --threads 2 --json vision.json
    python benchmarks/update_speed.py --system twm --json twm.json        # or storm: token_update_speed.py

`--json` alone prints the numbers as JSON and nothing else, the tables then go to standard error; with a path
it writes them there.

An update is everything from a ready batch: world-model loss, imagination, actor, critic, the critic on
replay, one backward, one optimiser step, slow critic. Both sides run in turn, each in a process of its own,
on the same numbers, with as many threads, after a warm-up; a turn is one update without and one with the
clock. The column CPU counts processor seconds of the process: on a machine with other work it says more than
the wall clock.

wmkit keeps freed memory, as `wmkit train` does; TorchRL leaves the allocator as it is. With `--keep both`
both keep it, with `--keep none` neither does: what then differs is not the allocator's doing. `--compile`
compiles both, each in its own way: wmkit the whole update, TorchRL forward and backward. That takes many
minutes, which are told.

The peer is TorchRL's `DreamerV3Loss` with its `DreamerV3OptimizationStepper` and `DreamerV3Optimizer`. Tables
of parameters and of the losses of the first update show whether the two do the same work. Actions are six,
one-hot; `proprio` is one vector of 24 numbers, `vision` one image of 3 x 64 x 64.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import token_update_speed
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import (
    DreamerV3DiscreteActor,
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    WorldModelWrapper,
)
from torchrl.objectives import (
    DreamerV3ActorLoss,
    DreamerV3Loss,
    DreamerV3ModelLoss,
    DreamerV3ValueLoss,
    SoftUpdate,
    ValueEstimators,
    symlog,
)
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

import wmkit
from wmkit.fast import keep_freed_memory
from wmkit.optim.captured import compile_update

# TensorDictModule looks for pandas at every call, which is quick only once it is imported.
PANDAS = find_spec("pandas") is not None and bool(import_module("pandas"))

SIZES = ["1m", "12m", "25m", "50m", "100m", "200m", "400m"]
ACTIONS, HORIZON, DISCOUNT, LAMBDA = 6, 15, 1 - 1 / 333, 0.95
BLOCKS, BINS, UNIMIX = 8, 255, 0.01
SPACES = {
    "proprio": ("observation", Unbounded((24,))),
    "vision": ("pixels", UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)),
}
DIFFERENCES = [
    "same terms on both sides, the critic on replay included; one backward, LaProp with adaptive clipping",
    "discrete actions on both sides: torchrl's DreamerV3DiscreteActor, a REINFORCE actor",
    "torchrl applies and samples the prior inside its loop over time, wmkit applies it once over the window",
    "torchrl applies the actor twice, with gradients: while it imagines, and to score what it did",
    "torchrl predicts rewards at every imagined step, wmkit over all steps at once",
]
# Options that not every system or observation has: what they are where they are not given.
OPTIONS = {"size": "1m", "obs": "proprio", "batch": 16, "length": 64, "keep": "ours", "compile": False}
IMAGE_OPTIONS = {"codec": "pooled"}
STDOUT = Path("-")  # --json without a path
CODEC_NOTES = {
    "pooled": "torchrl has no image codec that pools: its side is ours in plain PyTorch, channels last",
    "strided": "image codec of torchrl's own, channels last, and ours with strided=true; its decoder has one "
    "block layer over state and belief and no sigmoid, ours a block layer, two dense ones and a sigmoid",
}


@dataclass
class Side:
    """One of the two programs.

    Attributes:
        update: one update; its losses by name.
        parts: pieces of an update that can be timed alone.
        parameters: counts by part.
        note: how it runs.
        compile_s: seconds its compilation took, if it was compiled.
    """

    update: Callable[[], dict[str, Tensor]]
    parts: dict[str, Callable[[], None]]
    parameters: dict[str, int]
    note: str = "eager"
    compile_s: float | None = None

    def time(self, name: str) -> tuple[float, float]:
        """Milliseconds of one update, or of one of its pieces, by the wall's clock and the processor's."""
        work = self.parts.get(name, self.update)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def count(*modules: nn.Module) -> int:
    """Parameters of ``modules``."""
    return sum(p.numel() for module in modules for p in module.parameters())


# -- wmkit --------------------------------------------------------------------------------------------


def build_wmkit(args: argparse.Namespace) -> tuple[Any, TensorDict]:
    """The system, and a batch with stored latents in front."""
    key, spec = SPACES[args.obs]
    overrides = [
        f"size={args.size}",
        "preset=full",
        f"batch.size={args.batch}",
        f"batch.length={args.length}",
    ]
    if args.obs == "vision" and args.codec == "strided":
        overrides += [f"+world_model.{half}.image.strided=true" for half in ("encoder", "decoder")]
    system = wmkit.build(
        args.system,
        observation_spec=Composite({key: spec}),
        action_spec=OneHot(ACTIONS),
        overrides=overrides,
    )
    batch = system.example_batch()
    dynamics = system.world_model.dynamics
    for name, width in {"state": dynamics.state_dim, "belief": dynamics.belief_dim}.items():
        batch[name] = torch.zeros(*batch.shape, width)
    return system, batch


def wmkit_side(system: Any, batch: TensorDict, *, compiled: bool = False) -> Side:
    """wmkit's update and its pieces; a compiled update has none."""
    model, dynamics, learner = (
        system.world_model,
        system.world_model.dynamics,
        system.schedule.learners["joint"],
    )
    controller, replay, scene = system.controller, system.controller.replay, system.scene(batch)
    model_weights = list(model.parameters())
    behaviour_weights = [*system.actor.parameters(), *system.critic.parameters()]

    def world_model() -> None:
        seen, losses = system.scene(batch), []
        for objective in system.objectives.values():
            losses += [objective.weights[name] * term.loss for name, term in objective.terms(seen).items()]
        learner.optimizer.zero_grad()
        sum(losses).backward(inputs=model_weights)

    def behaviour() -> None:
        controller.replay = None  # as in the peer's piece
        terms = controller.learn(scene, system.schedule.slow).terms
        controller.replay = replay
        learner.optimizer.zero_grad()
        (terms["actor"].loss + terms["critic"].loss).backward(inputs=behaviour_weights)

    def optimiser() -> None:
        learner.optimizer.step()
        system.schedule.follow()

    names = {
        "reconstruction": f"loss_{next(iter(system.spaces.shapes))}",
        "reward": "loss_reward",
        "continuation": "loss_continuation",
        "KL, dynamics": "loss_kl_dynamics",
        "KL, representation": "loss_kl_representation",
        "actor": "loss_actor",
        "critic": "loss_critic",
        "critic on replay": "loss_replay_critic",
    }

    run = compile_update(system) if compiled else system.update

    def update() -> dict[str, Tensor]:
        metrics = run(batch)
        return {name: metrics[key] for name, key in names.items()}

    side = Side(
        update,
        {"world model": world_model, "behaviour": behaviour, "optimiser, slow critic": optimiser},
        {
            "encoder": count(model.encoder),
            "recurrent core": count(dynamics.input, dynamics.backbone),
            "posterior": count(dynamics.posterior_in, dynamics.posterior_out),
            "prior": count(dynamics.prior),
            "decoder": count(model.decoder),
            "reward": count(model.heads["reward"]),
            "continuation": count(model.heads["continuation"]),
            "actor": count(system.actor),
            "critic": count(system.critic),
        },
    )
    if compiled:
        side.note, side.parts = "the whole update compiled as one graph", {}  # pieces alone would run eagerly
    return side


# -- TorchRL: parts of its own, and an image codec that it does not have -----------------------------


class ChannelNorm(nn.Module):
    """RMS norm over the channels of ``[N, C, H, W]``, which lie last in memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.movedim(1, -1), self.weight.shape, self.weight, 1e-4).movedim(-1, 1)


def conv(before: int, after: int) -> nn.Conv2d:
    """Kernel 5, same size."""
    return nn.Conv2d(before, after, 5, padding=2)


class PooledEncoder(nn.Module):
    """Convolution, max-pooling, norm, activation; four times. In plain PyTorch."""

    def __init__(self, channels: int, depth: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (2 * depth, 3 * depth, 4 * depth, 4 * depth):
            layers += [conv(channels, width), nn.MaxPool2d(2), ChannelNorm(width), nn.SiLU()]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.out_dim = channels * (side // 16) ** 2

    def forward(self, image: Tensor) -> Tensor:
        x = (image.flatten(0, -4).float() / 255 - 0.5).contiguous(memory_format=torch.channels_last)
        return self.layers(x).flatten(1).unflatten(0, image.shape[:-3])


class PooledDecoder(nn.Module):
    """The way back: a block layer over the belief, two layers over the state, doubling and convolving."""

    def __init__(self, state: int, belief: int, depth: int, units: int, channels: int, side: int) -> None:
        super().__init__()
        self.shape = (4 * depth, side // 16, side // 16)
        out = self.shape[0] * self.shape[1] ** 2
        self.blocks = nn.Parameter(torch.randn(BLOCKS, belief // BLOCKS, out // BLOCKS) * belief**-0.5)
        self.bias = nn.Parameter(torch.zeros(out))
        self.state = DreamerV3MLP(state, out, depth=1, num_cells=2 * units)
        layers: list[nn.Module] = [ChannelNorm(4 * depth), nn.SiLU()]
        widths = (4 * depth, 4 * depth, 3 * depth, 2 * depth)
        for before, after in pairwise(widths):
            layers += [nn.Upsample(scale_factor=2), conv(before, after), ChannelNorm(after), nn.SiLU()]
        layers += [nn.Upsample(scale_factor=2), conv(2 * depth, channels), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, state: Tensor, belief: Tensor) -> Tensor:
        flat = belief.flatten(0, -2)
        by_block = torch.bmm(flat.unflatten(-1, (BLOCKS, -1)).transpose(0, 1), self.blocks)
        grid = by_block.transpose(0, 1).flatten(1) + self.bias + self.state(state.flatten(0, -2))
        grid = grid.unflatten(-1, self.shape).contiguous(memory_format=torch.channels_last)
        return self.layers(grid).unflatten(0, belief.shape[:-1])


def codec(args: argparse.Namespace, size: Any) -> tuple[nn.Module, int, nn.Module]:
    """Encoder, width of its output, decoder."""
    state = size.groups * size.classes
    if args.obs == "proprio":
        (width,) = SPACES["proprio"][1].shape
        encoder = DreamerV3MLP(width, None, depth=3, num_cells=size.units)
        return encoder, size.units, DreamerV3MLP(state + size.deter, width, depth=3, num_cells=size.units)
    channels, side, _ = shape = tuple(SPACES["vision"][1].shape)
    if args.codec == "pooled":
        pooled = PooledEncoder(channels, size.depth, side)
        decoder: nn.Module = PooledDecoder(state, size.deter, size.depth, size.units, channels, side)
        return pooled, pooled.out_dim, decoder
    strided = DreamerV3ImageEncoder(channels, size.depth)
    decoder = DreamerV3ImageDecoder(state + size.deter, shape, size.depth, num_blocks=BLOCKS)
    return strided, strided.output_features(shape), decoder


def bind(module: Callable, reads: list, writes: list) -> TensorDictModule:
    """A callable between keys."""
    return TensorDictModule(module, in_keys=reads, out_keys=writes)


def after(*keys: str) -> list[tuple[str, str]]:
    """Keys under ``next``."""
    return [("next", key) for key in keys]


class TorchRL:
    """TorchRL's DreamerV3, wired as its authors wire it, less what no loss reads.

    Args:
        args: of the command line.
        size: numbers of the size, from wmkit's page.
    """

    def __init__(self, args: argparse.Namespace, size: Any) -> None:
        state = size.groups * size.classes
        feature = state + size.deter
        latent = {
            "hidden_dim": size.hidden,
            "rnn_hidden_dim": size.deter,
            "num_categoricals": size.groups,
            "num_classes": size.classes,
            "unimix": UNIMIX,
        }
        self.prior = RSSMPriorV3(
            action_shape=(ACTIONS,),
            action_dim=ACTIONS,
            recurrent_model="block_gru",
            num_blocks=BLOCKS,
            **latent,
        )
        self.encoder, embed, self.decoder = codec(args, size)
        if args.obs == "vision":
            for half in (self.encoder, self.decoder):
                half.to(memory_format=torch.channels_last)
        self.posterior = RSSMPosteriorV3(obs_embed_dim=embed, use_rms_norm=True, **latent)

        def head(out: int, depth: int, outscale: float) -> nn.Module:
            return DreamerV3MLP(feature, out, depth=depth, num_cells=size.units, outscale=outscale)

        self.reward, self.continuation = head(BINS, 1, 0.0), head(1, 1, 1.0)
        self.critic, self.actor = (
            head(BINS, 3, 0.0),
            DreamerV3DiscreteActor(feature, ACTIONS, num_cells=size.units),
        )
        self.loss = self._loss(args, size, state)
        self.optimizer = DreamerV3Optimizer(self.loss.parameters())
        self.slow = SoftUpdate(self.loss.value_loss, tau=0.02)

    def _world_model(self, observation: str, vector: bool) -> TensorDictSequential:
        target = "symlog" if vector else observation
        features = after("belief", "state")  # in the authors' order
        modules = [bind(symlog, after(observation), after(target))] if vector else []
        rollout = RSSMRolloutV3(
            bind(self.prior, ["state", "belief", "action"], after("prior_logits", "state", "belief")),
            bind(self.posterior, after("belief", "encoded_latents"), after("posterior_logits", "state")),
        )
        return TensorDictSequential(
            *modules,
            bind(self.encoder, after(target), after("encoded_latents")),
            rollout,
            bind(self.decoder, after("state", "belief"), after("reconstruction")),
            bind(self.reward, features, after("reward_logits")),
            bind(self.continuation, features, after("continue_pred")),
        )

    def _imagination(self, size: Any, state: int) -> DreamerEnv:
        rewards = TensorDictSequential(
            bind(self.reward, ["belief", "state"], ["reward_logits"]),
            bind(SymExpTwoHot(BINS), ["reward_logits"], ["reward"]),
        )
        transition = bind(self.prior, ["state", "belief", "action"], ["_", "state", "belief"])
        model, device = WorldModelWrapper(transition, rewards), torch.get_default_device()
        env = DreamerEnv(model, (state,), (size.deter,), device=device)
        env.observation_spec = Composite(state=Unbounded((state,)), belief=Unbounded((size.deter,)))
        env.state_spec = env.observation_spec.clone()
        env.action_spec, env.reward_spec = OneHot(ACTIONS), Unbounded((1,))
        return env

    def _loss(self, args: argparse.Namespace, size: Any, state: int) -> DreamerV3Loss:
        observation = SPACES[args.obs][0]
        vector = args.obs == "proprio"
        model_loss = DreamerV3ModelLoss(
            self._world_model(observation, vector),
            kl_mode="separate",
            unimix=UNIMIX,
            lambda_continue=1.0,
            continue_target_scale=DISCOUNT,
            reco_symlog=False,  # the target is in symlog units already
            detach_output=False,
        )
        model_loss.set_keys(pixels="symlog" if vector else observation, reco_pixels="reconstruction")
        features = ["belief", "state"]
        value = TensorDictSequential(
            bind(self.critic, features, ["state_value_logits"]),
            bind(SymExpTwoHot(BINS), ["state_value_logits"], ["state_value"]),
        )
        going_on = TensorDictSequential(
            bind(self.continuation, features, ["continue_logits"]),
            bind(torch.sigmoid, ["continue_logits"], ["continuation"]),
        )
        actor_loss = DreamerV3ActorLoss(
            self.actor,
            value,
            self._imagination(size, state),
            continuation_model=going_on,
            imagination_horizon=HORIZON,
            use_reinforce=True,
        )
        actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=LAMBDA)
        value_loss = DreamerV3ValueLoss(
            value, value_loss="two_hot", actor_loss=actor_loss, slow_critic_regularization=1.0
        )
        return DreamerV3Loss(model_loss, actor_loss, value_loss)


def torchrl_sample(system: Any, batch: TensorDict, observation: str) -> TensorDict:
    """wmkit's batch as TorchRL's losses read it; the numbers stay the same."""
    window = batch[:, system.context :]
    arrived = window.select(observation, "reward", "terminated", "done").clone()
    root = window.select("state", "belief", "is_init").clone()
    return TensorDict(
        {**root, "action": window["previous_action"].clone(), "next": arrived}, batch_size=window.shape
    )


def torchrl_side(args: argparse.Namespace, size: Any, sample: TensorDict) -> Side:
    """The peer's update and its pieces."""
    peer = TorchRL(args, size)
    loss, optimizer = peer.loss, peer.optimizer
    stepper = DreamerV3OptimizationStepper(
        loss, optimizer, peer.slow, compile_train_step=args.compile, cudagraph=False, warmup_steps=1
    )
    names = {
        "reconstruction": ("loss_model_reco", 1.0),
        "reward": ("loss_model_reward", 1.0),
        "continuation": ("loss_model_continue", 1.0),
        "KL, dynamics": ("loss_model_dynamic", 1.0),
        "KL, representation": ("loss_model_representation", 0.1),
        "actor": ("loss_actor", 1.0),
        "critic": ("loss_value", 1.0),
        "critic on replay": ("loss_replay_value", 0.3),
    }

    def update() -> dict[str, Tensor]:
        metrics = stepper.step(None, sample)
        return {name: metrics[key] / weight for name, (key, weight) in names.items()}

    def backward(losses: TensorDict) -> None:
        optimizer.zero_grad()
        sum(value.sum() for key, value in losses.items() if key.startswith("loss_")).backward()

    with torch.no_grad():
        posterior = loss.model_loss(sample)[1]["next"].select("state", "belief").reshape(-1)

    def world_model() -> None:
        backward(loss.model_loss(sample)[0])

    def behaviour() -> None:
        actor, imagined = loss.actor_loss(posterior)
        backward(actor.update(loss.value_loss(imagined.detach())[0]))

    def optimiser() -> None:
        optimizer.step()
        peer.slow.step()

    side = Side(
        update,
        {"world model": world_model, "behaviour": behaviour, "optimiser, slow critic": optimiser},
        {
            "encoder": count(peer.encoder),
            "recurrent core": count(peer.prior.rnn),
            "posterior": count(peer.posterior),
            "prior": count(peer.prior.rnn_to_prior_projector),
            "decoder": count(peer.decoder),
            "reward": count(peer.reward),
            "continuation": count(peer.continuation),
            "actor": count(peer.actor),
            "critic": count(peer.critic),
        },
    )
    if args.compile:
        begin = time.perf_counter()
        stepper.warmup(sample)
        side.compile_s, side.note = time.perf_counter() - begin, "forward and backward compiled"
        side.parts = {}  # pieces alone would run eagerly
    return side


# -- measuring and telling ----------------------------------------------------------------------------


class FlopCounter(TorchDispatchMode):
    """Products and convolutions by PyTorch's formulas; its own counter trips over TensorDict modules."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def gigaflops(side: Side) -> float | None:
    """Arithmetic of one eager update; counting would break up a compiled one."""
    if side.compile_s is not None:
        return None
    with FlopCounter() as counter:
        side.update()
    return counter.total / 1e9


def serve(name: str, args: argparse.Namespace, parent: Connection) -> None:
    """Be one side: say what it is, then run and time whatever piece the parent names."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.keep == "both" or (args.keep == "ours" and name == "wmkit"):
        keep_freed_memory()
    system, batch = build_wmkit(args)
    if name == "wmkit":
        side = wmkit_side(system, batch, compiled=args.compile)
    else:
        size = OmegaConf.load(str(files("wmkit.systems") / "conf" / "size" / f"{args.size}.yaml"))
        side = torchrl_side(args, size, torchrl_sample(system, batch, SPACES[args.obs][0]))
    begin = time.perf_counter()
    first = {k: float(v) for k, v in side.update().items()}
    if args.compile and side.compile_s is None:
        side.compile_s = time.perf_counter() - begin  # its first update is when it is compiled
    facts = {
        "parts": list(side.parts),
        "parameters": side.parameters,
        "note": side.note,
        "compile_s": side.compile_s,
        "first_losses": first,
        "gflop": gigaflops(side),
    }
    parent.send(facts)
    for piece in iter(parent.recv, None):
        side.time(piece)  # the other side has used the caches meanwhile
        parent.send(side.time(piece))


class Runner:
    """A side in a process of its own.

    Attributes:
        facts: what :func:`serve` says of it.
        wall: milliseconds by piece, one per repetition.
        cpu: likewise, of the processor.
    """

    def __init__(self, name: str, args: argparse.Namespace, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        process = context.Process(target=serve, args=(name, args, other), daemon=True)
        process.start()
        other.close()
        stack.callback(process.join)
        stack.callback(self.pipe.close)
        stack.callback(self.pipe.send, None)
        self.facts: dict[str, Any] = self.pipe.recv()
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def time(self, piece: str, *, keep: bool = True) -> None:
        """Run a piece once; note its milliseconds if they are to be kept."""
        self.pipe.send(piece)
        wall, cpu = self.pipe.recv()
        if keep:
            self.wall.setdefault(piece, []).append(wall)
            self.cpu.setdefault(piece, []).append(cpu)


def measure(sides: dict[str, Runner], repeats: int, warm_up: int) -> None:
    """Both sides in turn, who goes first changing every time; the whole update, then its pieces."""
    for piece in ("update", *sides["wmkit"].facts["parts"]):
        there = [s for s in sides.values() if piece == "update" or piece in s.facts["parts"]]
        for turn in range(-(warm_up if piece == "update" else 1), repeats):
            for side in there[:: 1 if turn % 2 == 0 else -1]:
                side.time(piece, keep=turn >= 0)


def report(sides: dict[str, Runner]) -> dict[str, dict[str, float]]:
    """Print medians; returns them by row."""
    ours, peer = sides["wmkit"], sides["torchrl"]
    print("| part | wmkit, ms | torchrl, ms | ratio | wmkit, CPU ms | torchrl, CPU ms | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = {}
    for name in ours.wall:
        row: dict[str, float] = {}
        for kind in ("wall", "cpu"):
            mine = statistics.median(getattr(ours, kind)[name])
            row[f"wmkit_{kind}_ms"] = mine
            if name in getattr(peer, kind):
                theirs = statistics.median(getattr(peer, kind)[name])
                row |= {f"torchrl_{kind}_ms": theirs, f"{kind}_ratio": mine / theirs}
        rows[name] = row
        cells = [
            f"{row[key]:.{digits}f}" if key in row else "–"
            for kind in ("wall", "cpu")
            for key, digits in ((f"wmkit_{kind}_ms", 1), (f"torchrl_{kind}_ms", 1), (f"{kind}_ratio", 3))
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    return rows


def compare(title: str, sides: dict[str, dict[str, float]], form: str) -> None:
    """Two columns of numbers side by side."""
    print(f"\n| {title} | wmkit | torchrl |\n| --- | ---: | ---: |")
    for name in sides["wmkit"]:
        print(f"| {name} | {sides['wmkit'][name]:{form}} | {sides['torchrl'][name]:{form}} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", choices=["dreamer_v3", "twm", "storm"], default="dreamer_v3")
    parser.add_argument(
        "--against",
        choices=["torchrl", "plain", "nothing"],
        help="dreamer_v3: torchrl; twm, storm: plain or nothing",
    )
    only = parser.add_argument_group("of dreamer_v3 only; twm and storm run at their published size")
    only.add_argument("--size", choices=SIZES, help="1m if not given")
    only.add_argument("--obs", choices=list(SPACES), help="proprio if not given")
    only.add_argument(
        "--codec",
        choices=list(CODEC_NOTES),
        help="image codec of both sides: today's (pooled, if not given), or one with strided convolutions as "
        "TorchRL has it",
    )
    only.add_argument("--batch", type=int, help="16 if not given")
    only.add_argument("--length", type=int, help="64 if not given")
    only.add_argument("--keep", choices=["ours", "both", "none"], help="who keeps freed memory")
    only.add_argument(
        "--compile", action="store_true", default=None, help="both sides compiled, each in its own way"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=Path,
        metavar="PATH",
        help="write the numbers there; without PATH print them, and the tables to standard error",
    )
    args = parser.parse_args()
    peers = ["torchrl"] if args.system == "dreamer_v3" else ["plain", "nothing"]
    if args.against not in (None, *peers):
        parser.error(
            f"{args.system} cannot be compared with {args.against!r}: wanted {' or '.join(peers)}; "
            "change --against or leave it out"
        )
    args.against = args.against or peers[0]
    settle(parser, args)
    return args


def settle(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that were given and do nothing; fill in those that were not and do something."""
    dreamer = args.system == "dreamer_v3"
    options = {**OPTIONS, **IMAGE_OPTIONS}
    wanted = {} if not dreamer else options if args.obs == "vision" else OPTIONS
    given = [name for name in options if getattr(args, name) is not None]
    useless = " and ".join(f"--{name}" for name in given if name not in wanted)
    if useless and dreamer:
        parser.error(
            f"{useless} was given without an image: wanted --obs vision; add it or leave {useless} out"
        )
    if useless:
        parser.error(
            f"{args.system} runs as published, but found {useless}: wanted none but --against, --threads, "
            "--repeats, --warm-up and --json; leave out what is not among them"
        )
    for name in options:
        if name not in wanted:
            delattr(args, name)
        elif name not in given:
            setattr(args, name, wanted[name])


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    alone = args.json == STDOUT
    with redirect_stdout(sys.stderr if alone else sys.stdout):
        result = run(args) if args.system == "dreamer_v3" else token_update_speed.run(args, FlopCounter)
    text = json.dumps(result, indent=1)
    if alone:
        print(text)
    elif args.json:
        args.json.write_text(text + "\n")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides of dreamer_v3 and print; returns what ``--json`` holds."""
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        **{package: version(package) for package in ("torch", "torchrl", "tensordict")},
        "pandas": PANDAS,
        "load": round(os.getloadavg()[0], 2),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    codec_name = f", {args.codec} codec" if args.obs == "vision" else ""
    print(f"{args.system}, size {args.size}, {args.obs}{codec_name}, {args.batch} x {args.length}")
    print(f"freed memory kept: {args.keep}\n")
    with ExitStack() as stack:
        sides = {name: Runner(name, args, stack) for name in ("wmkit", "torchrl")}
        measure(sides, args.repeats, args.warm_up)

    def fact(name: str) -> dict[str, Any]:
        return {side: runner.facts[name] for side, runner in sides.items()}

    rows, flops, seconds = report(sides), fact("gflop"), fact("compile_s")
    known = ", ".join(f"{name} {value:.1f}" for name, value in flops.items() if value is not None)
    if known:
        print(f"\nGFLOP of an update: {known}")
    compare("parameters", fact("parameters"), ",d")
    compare("loss of the first update, unweighted", fact("first_losses"), ".4f")
    notes = [*DIFFERENCES, *([CODEC_NOTES[args.codec]] if args.obs == "vision" else [])]
    notes += [f"{name}: {note}" for name, note in fact("note").items()]
    notes += [f"{n}: compiled in {s:.1f} s" for n, s in seconds.items() if s is not None]
    print("\n" + "\n".join(f"- {note}" for note in notes))
    return {
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "machine": machine,
        "medians": rows,
        "update_wall_ms": {name: side.wall["update"] for name, side in sides.items()},
        "update_cpu_ms": {name: side.cpu["update"] for name, side in sides.items()},
        "compile_s": seconds,
        "gflop": flops,
        "parameters": fact("parameters"),
        "first_losses": fact("first_losses"),
        "notes": notes,
    }


if __name__ == "__main__":
    main()
