"""IRIS's update in plain PyTorch: what is done, in the order and in the batches of its own code, and no more.

Whole batches go through every layer at once, in PyTorch's own memory layout; dreams go token by token over
keys and values in tensors that were set aside (as in the original), each step's frames are decoded and seen
by the actor with gradient. Networks are random, of the published size; only their cost matters here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIONS, TOKENS, ROWS, WIDTH, CHANNELS = 18, 16, 512, 512, 64
STEPS, HORIZON, BLOCKS, HEADS, DIM = 20, 20, 10, 4, 256


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(32, CHANNELS, eps=1e-6) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = norm(y)
            y = conv(y * torch.sigmoid(y))
        return x + y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, CHANNELS, eps=1e-6)
        self.maps = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, keys, values = (conv(y).flatten(2) for conv in self.maps[:3])
        weight = torch.bmm(query.transpose(1, 2), keys) * CHANNELS**-0.5
        seen = torch.bmm(values, weight.softmax(-1).transpose(1, 2)).view_as(x)
        return x + self.maps[3](seen)


class Pad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1, 0, 1))


def blocks(side: int, count: int) -> list[nn.Module]:
    made: list[nn.Module] = []
    for _ in range(count):
        made += [Residual(), Attention()] if side in (8, 16) else [Residual()]
    return made


def ends(out: int) -> list[nn.Module]:
    return [nn.GroupNorm(32, CHANNELS, eps=1e-6), nn.SiLU(), nn.Conv2d(CHANNELS, out, 3, padding=1)]


class Tokenizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        middle = lambda: [Residual(), Attention(), Residual()]  # noqa: E731
        down: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1)]
        up: list[nn.Module] = [
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.Conv2d(WIDTH, CHANNELS, 3, padding=1),
            *middle(),
        ]
        for side in (64, 32, 16, 8, 4):
            down += blocks(side, 2)
            if side > 4:
                down += [Pad(), nn.Conv2d(CHANNELS, CHANNELS, 3, 2)]
        for side in (4, 8, 16, 32, 64):
            up += blocks(side, 3)
            if side < 64:
                up += [nn.Upsample(scale_factor=2), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)]
        self.encoder = nn.Sequential(*down, *middle(), *ends(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))
        self.decoder = nn.Sequential(*up, *ends(3))
        self.table = nn.Embedding(ROWS, WIDTH)

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(2 * images - 1)
        flat = z.permute(0, 2, 3, 1).reshape(-1, WIDTH)
        table = self.table.weight
        distance = flat.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * flat @ table.T
        return z, distance.argmin(1).view(-1, TOKENS)

    def vectors(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).transpose(1, 2).unflatten(2, (4, 4))

    def decode(self, tokens: Tensor) -> Tensor:
        return ((self.decoder(self.vectors(tokens)) + 1) / 2).clamp(0, 1)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.dense = nn.Sequential(
            nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM), nn.Dropout(0.1)
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, cache: Tensor | None, begin: int, mask: Tensor) -> Tensor:
        y = self.norms[0](x)
        split = lambda z: z.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
        query, keys, values = split(self.query(y)), split(self.key(y)), split(self.value(y))
        end = begin + x.shape[1]
        if cache is not None:
            cache[0, :, :, begin:end], cache[1, :, :, begin:end] = keys, values
            keys, values = cache[0, :, :, :end], cache[1, :, :, :end]
        weight = query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        weight = weight.masked_fill(mask[begin:end, :end] == 0, float("-inf")).softmax(-1)
        x = x + self.drop(self.out((self.drop(weight) @ values).transpose(1, 2).flatten(2)))
        return x + self.dense(self.norms[1](x))


class TokenModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frame, self.action = nn.Embedding(ROWS, DIM), nn.Embedding(ACTIONS, DIM)
        self.positions, self.drop = nn.Embedding(340, DIM), nn.Dropout(0.1)
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(BLOCKS)), nn.LayerNorm(DIM)
        head = lambda out: nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, out))  # noqa: E731
        self.tokens, self.reward, self.end = head(ROWS), head(3), head(2)
        self.register_buffer("mask", torch.tril(torch.ones(340, 340)))

    def forward(self, x: Tensor, caches: list[Tensor] | None = None, begin: int = 0) -> Tensor:
        place = torch.arange(begin, begin + x.shape[1])
        x = self.drop(x + self.positions(place))
        for i, layer in enumerate(self.layers):
            x = layer(x, None if caches is None else caches[i], begin, self.mask)
        return self.norm(x)


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths, layers = [3, 32, 32, 64, 64], list[nn.Module]()
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        self.see, self.lstm = nn.Sequential(*layers, nn.Flatten()), nn.LSTMCell(1024, 512)
        self.policy, self.value = nn.Linear(512, ACTIONS), nn.Linear(512, 1)


def draw(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).sample()


class PlainIRIS:
    """The three pieces of an update."""

    def __init__(self, frames: int, windows: int, starts: int) -> None:
        self.tokenizer, self.model, self.agent = Tokenizer(), TokenModel(), Agent()
        self.frames, self.windows = torch.rand(frames, 3, 64, 64), torch.rand(windows, STEPS, 3, 64, 64)
        self.starts = torch.rand(starts, STEPS + 1, 3, 64, 64)
        self.actions = torch.randint(ACTIONS, (windows, STEPS))
        parts = (self.tokenizer, self.model, self.agent)
        self.optimizers = [torch.optim.Adam(part.parameters(), lr=1e-4) for part in parts]

    def step(self, i: int, loss: Tensor) -> None:
        self.optimizers[i].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.optimizers[i].param_groups[0]["params"], 10.0)
        self.optimizers[i].step()

    def learn_tokenizer(self) -> None:
        z, tokens = self.tokenizer.tokens(self.frames)
        chosen = self.tokenizer.vectors(tokens)
        picture = self.tokenizer.decoder(z + (chosen - z).detach())
        loss = (z.detach() - chosen).square().mean() + (z - chosen.detach()).square().mean()
        self.step(0, loss + (2 * self.frames - 1 - picture).abs().mean())

    def learn_model(self) -> None:
        with torch.no_grad():
            _, tokens = self.tokenizer.tokens(self.windows.flatten(0, 1))
        rows, model = len(self.windows), self.model
        tokens = tokens.view(rows, STEPS, TOKENS)
        x = torch.cat([model.frame(tokens), model.action(self.actions).unsqueeze(2)], 2).flatten(1, 2)
        out = model(x).unflatten(1, (STEPS, TOKENS + 1))
        logits = model.tokens(torch.cat([out[:, :, :-2], out[:, :, -1:]], 2)).flatten(1, 2)[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(1)[:, 1:].flatten())
        last, never = out[:, :, -1].flatten(0, 1), torch.zeros(rows * STEPS, dtype=torch.int64)
        loss = loss + F.cross_entropy(model.reward(last), never) + F.cross_entropy(model.end(last), never)
        self.step(1, loss)

    def learn_agent(self) -> None:
        agent, model, tokenizer, rows = self.agent, self.model, self.tokenizer, len(self.starts)
        model.eval()
        with torch.no_grad():
            before = tokenizer.decode(tokenizer.tokens(self.starts[:, :-1].flatten(0, 1))[1])
            carry = (torch.zeros(rows, 512), torch.zeros(rows, 512))
            for image in before.view(rows, STEPS, 3, 64, 64).unbind(1):
                carry = agent.lstm(agent.see(2 * image - 1), carry)
            tokens = tokenizer.tokens(self.starts[:, -1])[1]
            caches = [torch.zeros(2, rows, HEADS, 340, DIM // HEADS) for _ in range(BLOCKS)]
            model(model.frame(tokens), caches)
            image = tokenizer.decode(tokens)
        begin, taken = TOKENS, []
        for t in range(HORIZON):
            carry = agent.lstm(agent.see(2 * image - 1), carry)
            logits, value = agent.policy(carry[0]), agent.value(carry[0])[:, 0]
            action = draw(logits)
            with torch.no_grad():
                out = model(model.action(action).unsqueeze(1), caches, begin)[:, -1]
                begin += 1
                reward, end, drawn = draw(model.reward(out)) - 1.0, draw(model.end(out)).float(), []
                for _ in range(TOKENS if t + 1 < HORIZON else 0):
                    drawn.append(draw(model.tokens(out)))
                    out = model(model.frame(drawn[-1]).unsqueeze(1), caches, begin)[:, -1]
                    begin += 1
                if drawn:
                    image = tokenizer.decode(torch.stack(drawn, 1))
            taken.append((logits, action, value, reward, end))
        model.train()
        logits, action, value, reward, end = (torch.stack(x, 1) for x in zip(*taken, strict=True))
        last, returns = value[:, -1].detach(), []
        for t in reversed(range(HORIZON - 1)):
            ahead = 0.05 * value[:, t + 1].detach() + 0.95 * last
            last = reward[:, t] + 0.995 * (1 - end[:, t]) * ahead
            returns.append(last)
        target, policy = torch.stack(returns[::-1], 1), torch.distributions.Categorical(logits=logits[:, :-1])
        gain = policy.log_prob(action[:, :-1]) * (target - value[:, :-1].detach())
        loss = (value[:, :-1] - target).square().mean() - gain.mean() - 0.001 * policy.entropy().mean()
        self.step(2, loss)


def pieces(frames: int, windows: int, starts: int) -> dict[str, Callable[[], None]]:
    """The three pieces of an update, by learner."""
    plain = PlainIRIS(frames, windows, starts)
    return {"tokenizer": plain.learn_tokenizer, "dynamics": plain.learn_model, "agent": plain.learn_agent}
