"""Updates of TWM and STORM in plain PyTorch, with the cost structure of the official codes.

Written from what is known of them (networks, shapes, order of work; docs/systems/twm.md and storm.md), not
copied, and held to their measured arithmetic by the benchmark. What makes them slow is kept: caches hold
layer inputs and grow by concatenation, so that keys and values of the whole past are projected again at
every step of a dream (TWM: queries too); STORM encodes frames of its own for dreams and takes context steps
one by one, with all heads; images lie plane by plane; sampling goes through torch.distributions. Losses
have the official terms; episodes' borders are left out, as they cost nothing. float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, OneHotCategoricalStraightThrough
from torch.nn import functional as F

torch.distributions.Distribution.set_default_validate_args(False)  # they run with assertions off
ACTIONS, GROUPS, CLASSES = 18, 32, 32


def perceptron(
    widths: list[int], activation: type[nn.Module], *, norm: bool = False, drop: float = 0.0
) -> nn.Sequential:
    """Dense layers with everything between them; the last one is linear."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [
            nn.Linear(before, after, bias=not norm),
            *([nn.LayerNorm(after)] if norm else []),
            activation(),
        ]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def draw(logits: Tensor) -> Tensor:
    """Straight-through one-hot sample ``[*B, G*C]`` of ``[*B, G*C]`` logits."""
    grouped = logits.unflatten(-1, (GROUPS, CLASSES))
    return Independent(OneHotCategoricalStraightThrough(logits=grouped), 1).rsample().flatten(-2)


def cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """``-p log q`` of logits ``[*B, G*C]``, summed over groups."""
    teacher, student = (x.unflatten(-1, (GROUPS, CLASSES)).log_softmax(-1) for x in (teacher, student))
    return -(teacher.exp() * student).sum((-2, -1))


class Attention(nn.Module):
    """Post-norm layer over cached inputs: everything remembered is projected again."""

    def __init__(
        self, width: int, heads: int, hidden: int, scale: float, act: type[nn.Module], relative: bool
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.project, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.position = nn.Linear(width, width, bias=False) if relative else None
        self.feed = nn.Sequential(nn.Linear(width, hidden), act(), nn.Dropout(0.1), nn.Linear(hidden, width))
        self.norms, self.drop = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.Dropout(0.1)

    def forward(
        self, x: Tensor, past: Tensor, biases: tuple[Tensor, Tensor] | None, code: Tensor | None
    ) -> Tensor:
        """``x [B, n, D]`` after ``past [B, m, D]``."""
        everything, count = torch.cat([past, x], 1), x.shape[1]
        width, total = x.shape[2], everything.shape[1]
        if self.position is None:  # STORM's queries are of the new tokens
            query = F.linear(x, self.project.weight[:width])
            key, value = F.linear(everything, self.project.weight[width:]).chunk(2, -1)
        else:
            query, key, value = self.project(everything).chunk(3, -1)
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, key, value))
        query = query[:, :, -count:]
        content = query if biases is None else query + biases[0]
        scores = content @ key.transpose(-1, -2)
        if biases is not None:
            table = self.position(code).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)  # [H, d, m + n]
            shifted = F.pad((query + biases[1]) @ table, (1, 0)).flatten(-2)[..., count:]
            scores = scores + shifted.unflatten(-1, (count, total))
        causal = torch.ones(count, total, dtype=torch.bool).triu(total - count + 1)
        weights = self.drop((scores * self.scale).masked_fill(causal, -torch.inf).softmax(-1))
        x = self.norms[0](x + self.drop(self.out((weights @ value).transpose(1, 2).flatten(2))))
        return self.norms[1](x + self.drop(self.feed(x)))


class Backbone(nn.Module):
    """Layers whose cache is a list of their inputs."""

    def __init__(
        self, layers: int, width: int, heads: int, scale: float, act: type[nn.Module], relative: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Attention(width, heads, 1024, scale, act, relative) for _ in range(layers)
        )
        self.biases = nn.Parameter(torch.randn(2, heads, 1, width // heads) * 0.1) if relative else None
        self.width = width

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """``[B, n, D]`` and the cache with these tokens in it."""
        cache = [x[:, :0]] * len(self.layers) if cache is None else cache
        code, kept = None, []
        if self.biases is not None:
            distance = torch.arange(cache[0].shape[1] + x.shape[1] - 1, -1, -1.0)
            angle = distance[:, None] * 10000 ** (-torch.arange(0, self.width, 2.0) / self.width)
            code = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        for layer, past in zip(self.layers, cache, strict=True):
            kept.append(torch.cat([past, x], 1))
            x = layer(x, past, None if self.biases is None else tuple(self.biases), code)
        return x, kept


class Learner:
    """Adam with clipping."""

    def __init__(self, modules: list[nn.Module], lr: float, clip: float, **options: float) -> None:
        self.weights = [p for module in modules for p in module.parameters()]
        self.adam, self.clip = torch.optim.Adam(self.weights, lr=lr, **options), clip

    def step(self, loss: Tensor) -> None:
        self.adam.zero_grad()
        loss.backward(inputs=self.weights)
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.adam.step()


def lambda_returns(reward: Tensor, discount: Tensor, value: Tensor) -> Tensor:
    """``[N, H]`` from values ``[N, H + 1]``; λ is 0.95."""
    last, returns = value[:, -1], []
    for t in reversed(range(reward.shape[1])):
        last = reward[:, t] + discount[:, t] * (0.05 * value[:, t + 1] + 0.95 * last)
        returns.append(last)
    return torch.stack(returns[::-1], 1)


class PlainTWM:
    """Ten layers over reward, state and action tokens; three calls of the encoder; four Adams."""

    def __init__(self, rows: int, starts: int) -> None:
        silu = nn.SiLU
        widths, kernels = [4, 48, 96, 192, 384], [5, 5, 6, 6]
        convs = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 4, 2), silu())]
        self.encoder = nn.Sequential(*convs, nn.Flatten(), *perceptron([1536, 512, 512, 1024], silu))
        back = [768, 192, 96, 48, 4]
        ups = [
            m
            for a, b, k in zip(back[:-1], back[1:], kernels, strict=True)
            for m in (nn.ConvTranspose2d(a, b, k, 2), silu())
        ]
        self.decoder = nn.Sequential(nn.Linear(1024, 768), silu(), nn.Unflatten(1, (768, 1, 1)), *ups[:-1])
        self.state, self.action, self.reward = (
            nn.Linear(1024, 256),
            nn.Embedding(ACTIONS, 256),
            nn.Linear(1, 256),
        )
        self.backbone = Backbone(10, 256, 4, 1 / 16, silu, relative=True)
        self.prior = nn.Sequential(silu(), *perceptron([256, 512, 512, 512, 512, 1024], silu, drop=0.1))
        self.heads = nn.ModuleList(
            nn.Sequential(silu(), *perceptron([256] * 5 + [1], silu, drop=0.1)) for _ in range(2)
        )
        self.actor, self.critic = (perceptron([1024, 512, 512, 512, 512, out], silu) for out in (ACTIONS, 1))
        dynamics = [self.state, self.action, self.reward, self.backbone, self.prior, self.heads]
        self.dynamics = nn.ModuleList(dynamics)
        settings = {"eps": 1e-5, "weight_decay": 1e-6}
        self.learn = {
            "observation": Learner([self.encoder, self.decoder], 1e-4, 100.0, **settings),
            "dynamics": Learner(dynamics, 1e-4, 100.0, **settings),
            "actor": Learner([self.actor], 1e-4, 1.0, **settings),
            "critic": Learner([self.critic], 1e-5, 1.0, **settings),
        }
        self.starts = starts
        self.images = torch.rand(rows, 18, 4, 64, 64)
        self.actions, self.rewards = torch.randint(ACTIONS, (rows, 17)), torch.rand(rows, 17)

    def world_model(self) -> None:
        rows = len(self.images)
        with torch.no_grad():
            first, last = (self.encoder(self.images[:, t]) for t in (0, -1))
        logits = self.encoder(self.images[:, 1:-1].flatten(0, 1))
        z = draw(logits)
        decoded = self.decoder(z).unflatten(0, (rows, 16))
        self.states = torch.cat(
            [draw(first)[:, None], z.detach().unflatten(0, (rows, 16))], 1
        )  # [B, 17, 1024]
        tokens = self.tokens(self.states, self.actions, self.rewards)[:, :-1]  # the last reward is not known
        belief = self.backbone(tokens)[0][:, 1::3]
        prior, (reward, going_on) = self.prior(belief), (head(belief)[..., 0] for head in self.heads)
        target = torch.cat([logits.detach().unflatten(0, (rows, 16))[:, 1:], last[:, None]], 1)
        loss = cross_entropy(target, prior[:, 1:]).mean()
        loss = loss + 10 * F.mse_loss(reward[:, 1:], self.rewards[:, 1:]) / 2
        label = torch.full_like(going_on[:, 1:], 0.99)
        self.learn["dynamics"].step(loss + 50 * F.binary_cross_entropy_with_logits(going_on[:, 1:], label))
        entropy = Independent(
            OneHotCategoricalStraightThrough(logits=logits.unflatten(-1, (32, 32))), 1
        ).entropy()
        loss = (decoded - self.images[:, 1:-1]).square().sum((2, 3, 4)).mean() / 2
        loss = loss + 5 * torch.relu(0.1 - entropy.mean() / (GROUPS * math.log(CLASSES)))
        student = logits.unflatten(0, (rows, 16))
        self.learn["observation"].step(loss + 0.01 * cross_entropy(prior[:, :-1].detach(), student).mean())

    def tokens(self, states: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        parts = F.silu(self.state(states)), self.action(actions), F.silu(self.reward(rewards[..., None]))
        return torch.stack(parts, 2).flatten(1, 2)

    @torch.no_grad()
    def imagination(self) -> None:
        self.dynamics.eval()
        pick = torch.randperm(len(self.images) * 16)[: self.starts]
        row, time = pick // 16, pick % 16
        tokens = self.tokens(
            self.states[row, time, None], self.actions[row, time, None], self.rewards[row, time, None]
        )
        _, cache = self.backbone(tokens[:, :2])
        z, reward = self.states[row, time + 1], self.rewards[row, time]
        seen, taken = [z], []
        for _ in range(15):
            action = Categorical(logits=self.actor(z)).sample()
            late = F.silu(self.reward(reward[:, None]))
            now = torch.stack([late, F.silu(self.state(z)), self.action(action)], 1)
            out, cache = self.backbone(now, cache)
            belief = out[:, -1]
            z, reward = draw(self.prior(belief)), self.heads[0](belief)[:, 0]
            discount = self.heads[1](belief)[:, 0].sigmoid()
            seen.append(z)
            taken.append((action, reward, discount))
        self.dynamics.train()
        self.dream = torch.stack(seen, 1), *(torch.stack(parts, 1) for parts in zip(*taken, strict=True))

    def actor_critic(self) -> None:
        states, actions, rewards, discounts = self.dream
        with torch.no_grad():
            value = self.critic(states)[..., 0]
            returns = lambda_returns(rewards, discounts, value)
            weight = torch.cat([torch.ones_like(discounts[:, :1]), discounts[:, :-1].cumprod(1)], 1)
        online = self.critic(states[:, :-1])[..., 0]
        self.learn["critic"].step((weight * (online - returns).square() / 2).mean())
        policy = Categorical(logits=self.actor(states[:, :-1]))
        gain = (weight * policy.log_prob(actions) * (returns - value[:, :-1])).mean()
        entropy = (weight * policy.entropy()).mean() / math.log(ACTIONS)
        self.learn["actor"].step(0.01 * torch.relu(0.1 - entropy) - gain)


class PlainSTORM:
    """Two layers over mixed tokens; batch norm; dreams from frames of their own, context step by step."""

    def __init__(self, rows: int, starts: int) -> None:
        relu, widths = nn.ReLU, [3, 32, 64, 128, 256]
        convs = [
            m
            for a, b in pairwise(widths)
            for m in (nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), relu())
        ]
        self.encoder = nn.Sequential(*convs, nn.Flatten(), nn.Linear(4096, 1024))
        ups = [
            m
            for a, b in ((256, 128), (128, 64), (64, 32))
            for m in (nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), relu())
        ]
        self.decoder = nn.Sequential(
            *(nn.Linear(1024, 4096, bias=False), nn.Unflatten(1, (256, 4, 4)), nn.BatchNorm2d(256), relu()),
            *(*ups, nn.ConvTranspose2d(32, 3, 4, 2, 1)),
        )
        mixer = [nn.Linear(1024 + ACTIONS, 512, bias=False), nn.LayerNorm(512), relu()]
        self.mixer = nn.Sequential(*mixer, nn.Linear(512, 512, bias=False), nn.LayerNorm(512))
        self.positions, self.norm = nn.Embedding(64, 512), nn.LayerNorm(512)
        self.backbone, self.prior = Backbone(2, 512, 8, 1 / 8, relu, relative=False), nn.Linear(512, 1024)
        self.reward, self.ends = (perceptron([512, 512, 512, out], relu, norm=True) for out in (255, 1))
        self.actor, self.critic, self.slow = (
            perceptron([1536, 512, 512, out], relu, norm=True) for out in (ACTIONS, 255, 255)
        )
        model = [
            self.encoder,
            self.decoder,
            self.mixer,
            self.positions,
            self.norm,
            self.backbone,
            self.prior,
            self.reward,
            self.ends,
        ]
        self.model, self.bins = nn.ModuleList(model), torch.linspace(-20, 20, 255)
        self.learn = {
            "model": Learner(model, 1e-4, 1000.0),
            "agent": Learner([self.actor, self.critic], 3e-5, 100.0, eps=1e-5),
        }
        self.images, self.frames = torch.rand(rows, 64, 3, 64, 64), torch.rand(starts, 8, 3, 64, 64)
        self.actions, self.rewards = torch.randint(ACTIONS, (rows, 64)), torch.rand(rows, 64)
        self.context = torch.randint(ACTIONS, (starts, 8))

    def mixed(self, logits: Tensor) -> Tensor:
        """One per cent of the uniform, as log-probabilities ``[*B, G*C]``."""
        probs = logits.unflatten(-1, (GROUPS, CLASSES)).softmax(-1)
        return (0.99 * probs + 0.01 / CLASSES).log().flatten(-2)

    def coded(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy to the two-hot code of ``symlog(target)``."""
        place = (torch.sign(target) * torch.log1p(target.abs()) + 20) / 40 * 254
        low = place.floor().long().clamp(0, 253)
        code = (
            F.one_hot(low, 255) * (1 - place + low)[..., None]
            + F.one_hot(low + 1, 255) * (place - low)[..., None]
        )
        return -(code * logits.log_softmax(-1)).sum(-1)

    def decoded(self, logits: Tensor) -> Tensor:
        mean = (logits.softmax(-1) * self.bins).sum(-1)
        return torch.sign(mean) * torch.expm1(mean.abs())

    def tokens(self, states: Tensor, actions: Tensor, begin: int = 0) -> Tensor:
        mixed = self.mixer(torch.cat([states, F.one_hot(actions, ACTIONS).float()], -1))
        return self.norm(mixed + self.positions.weight[begin : begin + mixed.shape[1]])

    def world_model(self) -> None:
        rows = len(self.images)
        posterior = self.mixed(self.encoder(self.images.flatten(0, 1)).unflatten(0, (rows, 64)))
        z = draw(posterior)
        decoded = self.decoder(z.flatten(0, 1)).unflatten(0, (rows, 64))
        belief = self.backbone(self.tokens(z, self.actions))[0]
        prior = self.mixed(self.prior(belief))
        kl = [
            (
                cross_entropy(p.detach() if side else p, q if side else q.detach())
                - cross_entropy(p.detach(), p)
            )
            .mean()
            .clamp(min=1)
            for side, (p, q) in enumerate([(posterior[:, 1:], prior[:, :-1])] * 2)
        ]
        ends = F.binary_cross_entropy_with_logits(self.ends(belief)[..., 0], torch.zeros(rows, 64))
        loss = (decoded - self.images).square().sum((2, 3, 4)).mean() + ends
        loss = loss + self.coded(self.reward(belief), self.rewards).mean() + 0.1 * kl[0] + 0.5 * kl[1]
        self.learn["model"].step(loss)

    @torch.no_grad()
    def imagination(self) -> None:
        self.model.eval()
        states = draw(self.mixed(self.encoder(self.frames.flatten(0, 1)))).unflatten(0, self.context.shape)
        cache = None
        for t in range(8):
            z, belief, cache = self.step(states[:, t], self.context[:, t], cache, t)
        seen, taken = [torch.cat([z, belief], -1)], []
        for t in range(8, 24):
            action = Categorical(logits=self.actor(seen[-1])).sample()
            z, belief, cache = self.step(z, action, cache, t)
            seen.append(torch.cat([z, belief], -1))
            taken.append((action, self.last_reward, self.last_end))
        self.model.train()
        self.dream = torch.stack(seen, 1), *(torch.stack(parts, 1) for parts in zip(*taken, strict=True))

    def step(
        self, z: Tensor, action: Tensor, cache: list[Tensor] | None, t: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One token and all heads."""
        out, cache = self.backbone(self.tokens(z[:, None], action[:, None], t), cache)
        belief = out[:, 0]
        self.last_reward, self.last_end = self.decoded(self.reward(belief)), self.ends(belief)[:, 0] > 0
        return draw(self.mixed(self.prior(belief))), belief, cache

    def actor_critic(self) -> None:
        features, actions, rewards, ends = self.dream
        discount = 0.985 * (~ends).float()
        logits = self.critic(features)
        with torch.no_grad():
            value = self.decoded(logits)
            targets = [
                lambda_returns(rewards, discount, v) for v in (value, self.decoded(self.slow(features)))
            ]
            spread = targets[0].quantile(0.95) - targets[0].quantile(0.05)
            advantage = (targets[0] - value[:, :-1]) / spread.clamp(min=1)
        policy = Categorical(logits=self.actor(features[:, :-1]))
        loss = -(policy.log_prob(actions) * advantage).mean() - 3e-4 * policy.entropy().mean()
        loss = loss + sum(self.coded(logits[:, :-1], target).mean() for target in targets)
        self.learn["agent"].step(loss)
        with torch.no_grad():
            for slow, new in zip(self.slow.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(new, 0.02)


def pieces(system: str, rows: int, starts: int) -> dict[str, Callable[[], None]]:
    """The three pieces of an update, to be called in this order."""
    plain = (PlainTWM if system == "twm" else PlainSTORM)(rows, starts)
    return {
        "world model": plain.world_model,
        "imagination": plain.imagination,
        "actor-critic": plain.actor_critic,
    }
