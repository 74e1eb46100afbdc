"""What each trick of a quick DreamerV3 update gains: the plain way and ours in turn, on the same numbers.

    python benchmarks/tricks.py --threads 2                     # all of them, two minutes
    python benchmarks/tricks.py --only 5 --only 14 --json tricks.json

Every trick is measured where it works: in the part that it changes of an update at size 1m, 16 x 64 and 15
imagined steps. Before the clock runs, both ways must give the same numbers (two draw other samples, which is
said). *Share* is what is gained, of a whole update of ours in the same run; shares do not add up, since
one way of saving often stands on another (without gradients, states are looked up as classes too).
Tricks are numbered as in docs/performance.md. Those of pictures use 256 images of 3 x 64 x 64, a quarter of
an update's; their share is of an update on images. `4` is not in wmkit: it shows what it would bring.
`products` gains nothing where MKL is taken on both sides (`wmkit doctor` says which is). `all` is an update
with every short cut of `wmkit.fast` and without them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from wmkit import fast
from wmkit.dynamics import rollout
from wmkit.fast import filter_loop
from wmkit.functional import sample_index, two_hot, two_hot_cross_entropy, unimix_probs
from wmkit.nn import UpsamplingConv, total_loss

B, T, H, ACTIONS = 16, 64, 15, 6
IMAGES = 256
Way = Callable[[], Any]


class Setting:
    """An update's parts and what they work on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.system: Any = self._system(Composite(observation=Unbounded((24,))))
        self.model = self.system.world_model
        self.rssm = self.model.dynamics
        self.batch = self.system.example_batch()
        self.scene = self.system.scene(self.batch)
        self.starts = self.system.controller.starts(self.scene).latent.detach()
        self.rows = len(self.starts.state)  # 1,024
        self.found = rollout(self.model, self.starts, self.system.actor, H).before  # [H, N, ...]
        self.features = self.model.read(self.system.critic, self.found)
        self.images: Any = self._system(Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)))

    def _system(self, spec: Composite) -> Any:
        overrides = ["size=1m", "preset=full", f"batch.size={B}", f"batch.length={T}"]
        return wmkit.build(
            "dreamer_v3", observation_spec=spec, action_spec=OneHot(ACTIONS), overrides=overrides
        )

    def update(self, system: Any) -> None:
        """A whole update."""
        system.update(system.example_batch())


TRICKS: dict[str, tuple[str, Callable[[Setting], tuple[Way, Way]]]] = {}


def trick(name: str, what: str) -> Callable[[Any], Any]:
    """Register a function that makes the plain way and ours; ways return what must be equal."""

    def register(make: Callable[[Setting], tuple[Way, Way]]) -> Callable[[Setting], tuple[Way, Way]]:
        TRICKS[name] = what, make
        return make

    return register


def graded(loss: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """A loss and its gradients."""
    return loss.detach(), *torch.autograd.grad(loss, weights, allow_unused=True)


# -- the window ---------------------------------------------------------------------------------------


@trick("1", "prior, decoder and heads once over the window, forward and backward")
def at_once(at: Setting) -> tuple[Way, Way]:
    model = at.model
    latent = at.found.map(lambda x: x[0].unflatten(0, (B, T)))
    weights = [*at.rssm.prior.parameters(), *model.heads.parameters(), *model.decoder.parameters()]

    def parts(latent: Any) -> Tensor:
        decoded = model.decoder.predict(model.read(model.decoder, latent)).values()
        means = [prediction.mean.mean() for prediction in decoded]
        means += [model.predict(name, latent).mean.mean() for name in model.heads]
        return sum(means, at.rssm.prior_logits(latent.belief).square().mean())

    def plain() -> Any:
        steps = [parts(latent.map(lambda x, t=t: x[:, t])) for t in range(T)]
        return graded(torch.stack(steps).mean(), *weights)

    return plain, lambda: graded(parts(latent), *weights)


@trick("2", "products of embeddings and actions before the loop, forward and backward")
def ahead(at: Setting) -> tuple[Way, Way]:
    rssm = at.rssm
    posterior, action_layer, hidden = rssm.posterior_in.linear, rssm.input.action, rssm.backbone.hidden
    units = rssm.belief_dim
    embed = torch.randn(T, B, posterior.in_features - units)
    action = F.one_hot(torch.randint(ACTIONS, (T, B)), ACTIONS).float()
    belief = torch.randn(T, B, units)
    shared = torch.randn(T, B, rssm.backbone.in_dim)  # belief and state, each through its layer
    dense = hidden.weight.detach()[:, units // rssm.backbone.blocks :].transpose(0, 1).flatten(1)
    dense = dense.contiguous().requires_grad_()  # [belief, state, action through their layers; U]
    known = len(dense) - shared.shape[-1]
    weights = [posterior.weight, dense, *action_layer.parameters()]

    def loss(pairs: list[tuple[Tensor, Tensor]]) -> Any:
        total = torch.stack([x.square().mean() + y.square().mean() for x, y in pairs])
        return graded(total.mean(), *weights)

    def plain() -> Any:
        pairs = []
        for t in range(T):
            read = torch.cat([shared[t], action_layer(action[t])], -1)
            pairs.append((read @ dense, F.linear(torch.cat([belief[t], embed[t]], -1), posterior.weight)))
        return loss(pairs)

    def ours() -> Any:
        step, later = dense.split([len(dense) - known, known])
        of_belief, of_embed = posterior.weight.split([units, posterior.in_features - units], 1)
        actions, embeds = action_layer(action) @ later, F.linear(embed, of_embed)
        pairs = zip(actions.unbind(), embeds.unbind(), shared.unbind(), belief.unbind(), strict=True)
        return loss([(a + x @ step, e + F.linear(u, of_belief)) for a, e, x, u in pairs])

    return plain, ours


@trick("4", "one product of the belief for core and posterior, 64 steps of 16 rows (not in wmkit)")
def joint(at: Setting) -> tuple[Way, Way]:
    core, posterior = torch.randn(2, at.rssm.belief_dim, 64).unbind()
    both, beliefs = torch.cat([core, posterior], 1), torch.randn(T, B, at.rssm.belief_dim)

    def plain() -> Any:
        return [(x @ core, x @ posterior) for x in beliefs]

    return plain, lambda: [(x @ both).split(64, 1) for x in beliefs]


def observed(at: Setting) -> Any:
    """The filtering loop, forward and backward."""
    torch.manual_seed(1)
    out = at.model.observe(at.scene.batch)
    loss = out.latent.belief.square().mean() + out.posterior_logits.square().mean()
    return graded(loss, *at.rssm.parameters())


def inside(context: Callable[[], Any], work: Way) -> Way:
    """``work`` within a context."""

    def way() -> Any:
        with context():
            return work()

    return way


@trick("2, 3, 6, 7", "the loop as one operation with its gradient written out, forward and backward")
def one_operation(at: Setting) -> tuple[Way, Way]:
    apart = lambda: mock.patch.object(filter_loop, "applies", lambda rssm: False)  # noqa: E731
    return inside(apart, lambda: observed(at)), lambda: observed(at)


# -- the roll-out -------------------------------------------------------------------------------------


@trick("3", "the block layer split by input, the share of one-hot actions ready, 15 steps of 1,024 rows")
def split(at: Setting) -> tuple[Way, Way]:
    gru, rows, known = at.rssm.backbone, at.rows, at.rssm.input.action.linear.out_features
    belief, shared = torch.randn(rows, gru.out_dim), torch.randn(rows, gru.in_dim + known)

    @torch.no_grad()
    def plain() -> Any:
        own = belief.view(rows, gru.blocks, -1)
        whole = torch.cat([own, shared.unsqueeze(1).expand(-1, gru.blocks, -1)], -1).flatten(1)
        return [gru.hidden(whole) for _ in range(H)]

    with torch.no_grad():
        loop = gru.bind(known)
        ready = loop.ahead(shared[:, -known:])

    def step() -> Tensor:
        product = fast.linear(shared[:, :-known], loop.shared)
        return fast.add_blocks(product, ready, fast.block_product(belief, loop.own))

    @torch.no_grad()
    def ours() -> Any:
        return [step() for _ in range(H)]

    return plain, ours


@trick("5", "products with one-hot states as sums of rows, one head over 15,360 rows")
def sums_of_rows(at: Setting) -> tuple[Way, Way]:
    weight, found = torch.randn(64, at.rssm.state_dim), at.found
    return lambda: F.linear(found.state, weight), lambda: fast.one_hot_linear(found.classes, weight)


@trick("15", "features as classes and belief instead of one row, five heads, forward and backward")
def in_parts(at: Setting) -> tuple[Way, Way]:
    weights = [torch.randn(64, at.features.dense.shape[-1], requires_grad=True) for _ in range(5)]
    out = [torch.randn(H, at.rows, 64)] * 5

    def plain() -> Any:
        dense = at.features.dense
        return torch.autograd.grad([F.linear(dense, weight) for weight in weights], weights, out)

    def ours() -> Any:
        return torch.autograd.grad([at.features.linear(weight) for weight in weights], weights, out)

    return plain, ours


@trick("7", "samples by comparing uniforms with sums, not by torch.multinomial, 15 steps (other samples)")
def drawn_before(at: Setting) -> tuple[Way, Way]:
    latent = at.rssm.latent
    probs = unimix_probs(torch.randn(at.rows, latent.groups, latent.classes), latent.unimix)

    def plain() -> None:
        for _ in range(H):
            torch.multinomial(probs.flatten(0, 1), 1)

    def ours() -> None:
        for uniform in torch.rand(H, at.rows, latent.groups, 1):
            sample_index(probs, uniform)

    return plain, ours


@trick("11", "steps of the roll-out without gradients")
def without_gradients(at: Setting) -> tuple[Way, Way]:
    rssm = at.rssm
    noise = rssm.noise(H, at.rows)
    action = F.one_hot(torch.randint(ACTIONS, (at.rows,)), ACTIONS).float()

    def steps() -> Any:
        latent, bound = at.starts, rssm.bind(one_hot=True)
        for t in range(H):
            latent = bound.step(latent, action, None, noise[t])
        return latent.belief.detach()

    return inside(torch.enable_grad, steps), inside(torch.no_grad, steps)


@trick("12", "no policy for the last state, no state after it (other samples)")
def no_more_than_needed(at: Setting) -> tuple[Way, Way]:
    def imagined(steps: int) -> None:
        rollout(at.model, at.starts, at.system.actor, steps)

    return lambda: imagined(H + 1), lambda: imagined(H)


def behaved(at: Setting) -> Any:
    """Losses of actor and critic and their gradients."""
    system, controller = at.system, at.system.controller
    torch.manual_seed(2)
    norm = {k: v.clone() for k, v in controller.return_norm.state_dict().items()}
    learned = controller.learn(at.scene, system.schedule.slow)
    controller.return_norm.load_state_dict(norm)  # which the loss moves
    weights = [*system.actor.parameters(), *system.critic.parameters()]
    return graded(torch.stack([term.loss for term in learned.terms.values()]).sum(), *weights)


@trick("products", "products of float32 by oneDNN instead of MKL, the behaviour")
def by_onednn(at: Setting) -> tuple[Way, Way]:
    by_mkl = lambda: torch.backends.mkldnn.flags(enabled=False)  # noqa: E731
    return inside(by_mkl, lambda: behaved(at)), lambda: behaved(at)


@trick("14, policy", "the policy sampled step by step, then scored at all steps at once, and its backward")
def policy_at_once(at: Setting) -> tuple[Way, Way]:
    actor, features = at.system.actor, at.features
    noise, weights = actor.noise(H, at.rows), list(actor.parameters())
    steps = [features.map(lambda x, t=t: x[t]) for t in range(H)]

    def score(policy: Any, action: Tensor) -> Tensor:
        return policy.log_prob(action).mean() + policy.entropy.mean()

    def plain() -> Any:
        losses = []
        for x, chance in zip(steps, noise, strict=True):
            policy = actor.policy(x)
            losses.append(score(policy, policy.sample(chance).detach()))
        return graded(torch.stack(losses).mean(), *weights)

    def ours() -> Any:
        with torch.no_grad():
            actions = [actor.policy(x).sample(chance) for x, chance in zip(steps, noise, strict=True)]
        return graded(score(actor.policy(features), torch.stack(actions)), *weights)

    return plain, ours


@trick("14, critic", "one forward of the critic for values and loss, and its backward")
def critic_once(at: Setting) -> tuple[Way, Way]:
    critic, features = at.system.critic, at.features
    targets = torch.randn(2, H, at.rows, 1).unbind()

    def score(twice: bool) -> Any:
        online = critic.predict(features)
        with torch.no_grad():
            values = (critic.predict(features) if twice else online).mean
        return values, *graded(total_loss(online, *targets).mean(), *critic.parameters())

    return lambda: score(True), lambda: score(False)


@trick("16", "two-hot losses without two-hot targets, two targets of 15,360 rows, forward and backward")
def no_codes(at: Setting) -> tuple[Way, Way]:
    bins = at.system.critic.distribution.bins
    logits = torch.randn(H * at.rows, len(bins), requires_grad=True)
    targets = torch.randn(H * at.rows, 2) * 20

    def plain() -> Any:
        log_probs = torch.log_softmax(logits, -1)
        losses = []
        for target in targets.unbind(-1):
            index, mass = two_hot(target, bins)
            code = torch.zeros_like(logits).scatter_add_(-1, index, mass)
            losses.append(-(code * log_probs).sum(-1))
        return graded(sum(losses).mean(), logits)  # type: ignore[union-attr]

    return plain, lambda: graded(two_hot_cross_entropy(logits, targets, bins).mean(), logits)


# -- images -------------------------------------------------------------------------------------------


@trick("18", "doubling and 5 x 5 convolution as 3 x 3 to four phases, 256 images, forward and backward")
def phases(at: Setting) -> tuple[Way, Way]:
    decoder = at.images.world_model.decoder.image
    features, target = torch.randn(IMAGES, sum(decoder.split)), torch.rand(IMAGES, 3, 64, 64)

    def double(self: UpsamplingConv, x: Tensor) -> Tensor:
        y = F.conv2d(F.interpolate(x, scale_factor=2), self.weight, self.bias, padding=2)
        return F.pixel_shuffle(y, self.patch or 1)

    def decode() -> Any:
        return graded((decoder(features) - target).square().mean(), *decoder.parameters())

    return inside(lambda: mock.patch.object(UpsamplingConv, "forward", double), decode), decode


@trick("19", "channels last, 256 images through the encoder, forward and backward")
def channels_last(at: Setting) -> tuple[Way, Way]:
    stages = at.images.world_model.encoder.image.stages
    image = torch.rand(IMAGES, 3, 64, 64)
    last = image.contiguous(memory_format=torch.channels_last)

    def encode(x: Tensor) -> Any:
        return graded(stages(x).square().mean(), *stages.parameters())

    return lambda: encode(image), lambda: encode(last)


# -- everything ---------------------------------------------------------------------------------------


@trick("all", "an update with every short cut of wmkit.fast, and without (other samples)")
def everything(at: Setting) -> tuple[Way, Way]:
    return inside(fast.disabled, lambda: at.update(at.system)), lambda: at.update(at.system)


# -- measuring ----------------------------------------------------------------------------------------


def milliseconds(work: Way) -> float:
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def measure(plain: Way, ours: Way, rounds: int, same: bool) -> tuple[float, float]:
    """Medians of both ways, in turn."""
    if same:
        torch.testing.assert_close(plain(), ours(), rtol=2e-3, atol=1e-4)
    plain(), ours()
    pairs = [(milliseconds(plain), milliseconds(ours)) for _ in range(rounds)]
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    return before, after


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="a trick's number, as the table has it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.only or ()) - set(TRICKS):
        parser.error(f"--only {', '.join(sorted(unknown))}: wanted some of {' | '.join(TRICKS)}")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    fast.keep_freed_memory()
    at = Setting()
    wholes = {}
    for name, system in (("numbers", at.system), ("images", at.images)):
        at.update(system)
        times = [milliseconds(lambda s=system: at.update(s)) for _ in range(max(args.rounds // 3, 1))]
        wholes[name] = statistics.median(times)
    print(f"machine {platform.machine()}, threads {args.threads}, torch {torch.__version__}; an update takes")
    print(", ".join(f"{whole:.0f} ms on {name}" for name, whole in wholes.items()), end="\n\n")
    print("| trick | what | plain, ms | wmkit, ms | gained, ms | share |")
    print("|---|---|---:|---:|---:|---:|")
    rows = []
    for name, (what, make) in TRICKS.items():
        if args.only and name not in args.only:
            continue
        before, after = measure(*make(at), args.rounds, "(other samples)" not in what)
        many = B * T / IMAGES if "256 images" in what else 1.0
        share = many * (before - after) / wholes["images" if many > 1 else "numbers"]
        rows.append({"trick": name, "what": what, "plain_ms": before, "wmkit_ms": after, "share": share})
        cells = f"{before:.1f} | {after:.1f} | {before - after:.1f} | {100 * share:.1f} %"
        print(f"| {name} | {what} | {cells} |", flush=True)
    if args.json:
        report = {"threads": args.threads, "torch": torch.__version__, "update_ms": wholes, "tricks": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
