"""Transformers with a memory: against a slow reference, over several tokens a step, at the window's edge."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import wmkit.systems
from wmkit import backbones, fast
from wmkit.backbones.torchrl_transformer import TorchRLTransformer
from wmkit.errors import ConfigError
from wmkit.nn.attention import visible

B, D, U = 3, 6, 16
NAMES = ["transformer_xl", "gpt", "stacked_transformer"]
EXACT = {"atol": 1e-10, "rtol": 1e-10}
PAGES = Path(wmkit.systems.__file__).parent / "conf"


def make(name: str, **options: object) -> backbones.SequenceModel:
    torch.manual_seed(0)
    return backbones.build(name, D, U, **options).double().eval()


def tokens(count: int, chance: float = 0.2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, count, D, dtype=torch.float64), torch.rand(B, count) < chance


def slow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment: list[int],
    window: int | list[int],
    scale: float,
    r: Tensor | None = None,
) -> Tensor:
    """One head of one row, score by score; ``r`` holds (q + v) · W_R R_d by query and distance."""
    out, kinds = torch.zeros_like(q), [window] if isinstance(window, int) else window
    for i in range(len(q)):
        width = kinds[(i - segment.index(segment[i])) % len(kinds)]
        seen = [j for j in range(i + 1) if segment[j] == segment[i] and i - j < width]
        scores = [scale * (q[i] @ k[j] + (r[i, i - j] if r is not None else 0)) for j in seen]
        for weight, j in zip(torch.stack(scores).softmax(0), seen, strict=True):
            out[i] += weight * v[j]
    return out


def slow_transformer_xl(model: backbones.SequenceModel, x: Tensor, reset: Tensor) -> Tensor:
    """The formulas, one row, head, query and key at a time."""
    x, count = model.project_in(x), x.shape[1]
    window = model.window if model.windows is None else model.windows.tolist()
    distances = torch.zeros(count, model.width, dtype=torch.float64)
    for d in range(count):
        for c in range(0, model.width, 2):
            distances[d, c] = math.sin(d / 10000 ** (c / model.width))
            distances[d, c + 1] = math.cos(d / 10000 ** (c / model.width))
    for layer in model.layers:
        heads, wide = layer.attention.heads, layer.attention.head_dim
        weights = layer.attention.project.weight.split(heads * wide)
        mixed = torch.zeros(*x.shape[:2], heads * wide, dtype=torch.float64)
        for b in range(len(x)):
            segment = reset[b].cumsum(0).tolist()
            for head in range(heads):
                rows = slice(head * wide, (head + 1) * wide)
                q, k, v = (x[b] @ weight[rows].T for weight in weights)
                r = (q + model.position_bias[head]) @ (distances @ layer.position.weight[rows].T).T
                q = q + model.content_bias[head]
                mixed[b, :, rows] = slow_attention(q, k, v, segment, window, layer.attention.scale, r)
        x = layer.norm_attention(x + mixed @ layer.attention.out.weight.T)
        ff = layer.feed_forward
        x = layer.norm_feed_forward(x + ff.second(F.silu(ff.first(x))))
    return model.project_out(x)


@pytest.mark.parametrize("window", [4, 64, [4, 2, 5]])
def test_transformer_xl_is_its_formulas(window: int | list[int]) -> None:
    model = make("transformer_xl", width=12, heads=3, head_dim=2, window=window, scale=0.3)
    x, reset = tokens(11)
    expected = slow_transformer_xl(model, x, reset)
    torch.testing.assert_close(model.scan(x, None, reset)[0], expected, **EXACT)
    assert model.layers[0].attention.scale == 0.3
    assert make("transformer_xl").layers[0].attention.scale == U**-0.5


def slow_gpt(model: backbones.SequenceModel, x: Tensor, reset: Tensor, pre_norm: bool) -> Tensor:
    x, window = model.project_in(x), model.window
    for b in range(len(x)):
        age = 0
        for t in range(x.shape[1]):
            age = 0 if reset[b, t] else age
            x = x.clone()
            x[b, t] += model.positions.weight[min(age, window - 1)]
            age += 1
    x = x if pre_norm else model.after_embedding(x)
    for layer in model.layers:
        heads, wide = layer.attention.heads, layer.attention.head_dim
        seen = layer.norm_attention(x) if pre_norm else x
        mixed = torch.zeros(*x.shape[:2], heads * wide, dtype=torch.float64)
        for b in range(len(x)):
            segment = reset[b].cumsum(0).tolist()
            for head in range(heads):
                rows = slice(head * wide, (head + 1) * wide)
                q, k, v = (part[:, rows] for part in layer.attention.project(seen[b]).chunk(3, -1))
                mixed[b, :, rows] = slow_attention(q, k, v, segment, window, wide**-0.5)
        x = x + layer.attention.out(mixed)
        x = x if pre_norm else layer.norm_attention(x)
        ff = layer.feed_forward
        x = x + ff.second(F.relu(ff.first(layer.norm_feed_forward(x) if pre_norm else x)))
        x = x if pre_norm else layer.norm_feed_forward(x)
    return model.project_out(model.after_layers(x) if pre_norm else x)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_gpt_is_its_formulas(pre_norm: bool) -> None:
    model = make("gpt", width=12, heads=3, window=4, pre_norm=pre_norm, bias=pre_norm)
    x, reset = tokens(9)
    torch.testing.assert_close(model.scan(x, None, reset)[0], slow_gpt(model, x, reset, pre_norm), **EXACT)


def test_gates_stand_for_sums() -> None:
    model = make("stacked_transformer", gated=True)
    gate, x, y = model.layers[0].gate_attention, *torch.randn(2, 3, U // 2).double()
    w, u = (layer.weight.chunk(3) for layer in (gate.new, gate.old))
    r = torch.sigmoid(w[0] @ y.T + u[0] @ x.T)
    z = torch.sigmoid(w[1] @ y.T + u[1] @ x.T + gate.bias.unsqueeze(1) - 0.1)
    h = torch.tanh(w[2] @ y.T + r * (u[2] @ x.T))
    torch.testing.assert_close(gate(x, y), ((1 - z) * x.T + z * h).T, **EXACT)


@pytest.mark.parametrize(
    ("name", "window"), [*product(NAMES, (5, 40)), ("transformer_xl", [6, 3, 5])], ids=str
)
def test_memory_gives_what_a_whole_pass_gives(name: str, window: int | list[int]) -> None:
    """Also beyond the window, and whatever number of tokens a call takes."""
    model = make(name, window=window)
    x, reset = tokens(23, 0.1)
    whole, last = model.scan(x, None, reset)
    for sizes in ([23], [1] * 23, [3] * 7 + [2], [2, 20, 1]):
        carry, outputs, loop = model.initial(B), [], model.bind(tokens=max(sizes))
        for part, part_reset in zip(x.split(sizes, 1), reset.split(sizes, 1), strict=True):
            u, carry = loop.scan(part, carry, part_reset)
            outputs.append(u)
        torch.testing.assert_close(torch.cat(outputs, 1), whole, **EXACT)
        held = min(23, model.slots)  # what began with nothing is no longer than that
        for full, short in zip((*carry.keys, *carry.values), (*last.keys, *last.values), strict=True):
            assert full.shape[2] == model.slots and short.shape[2] == held
            torch.testing.assert_close(full[:, :, -held:], short, **EXACT)
            assert not full[:, :, :-held].any()
        torch.testing.assert_close((carry.age, carry.output), (last.age, last.output), **EXACT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [5, 40])
def test_a_memory_that_began_with_nothing_grows_to_its_window(name: str, window: int) -> None:
    """Token triples from nothing, with and without gradients, old carries used again among them."""
    model = make(name, window=window)
    x, reset = tokens(24, 0.1)
    whole = model.scan(x, None, reset)[0]
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            carry, loop = None, model.bind(tokens=3)
            for t in range(0, 24, 3):
                before = carry
                loop.scan(x[:, :3].flip(1), before, reset[:, t : t + 3])  # leaves nothing behind
                u, carry = loop.scan(x[:, t : t + 3], before, reset[:, t : t + 3])
                torch.testing.assert_close(u, whole[:, t : t + 3], **EXACT)
                assert carry.keys[0].shape[2] == min(t + 3, window - 1)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_are_read_are_those_of_reading_all(name: str) -> None:
    model = make(name, layers=4, window=7)
    x, reset = tokens(14, 0.1)
    x.requires_grad_()
    every, read = model.scan(x, None, reset), model.scan(x, None, reset, slice(1, None, 3))
    torch.testing.assert_close(read[0], every[0][:, 1::3], **EXACT)
    torch.testing.assert_close(read[1], every[1], **EXACT)
    gradients = [torch.autograd.grad(u.square().sum(), x)[0] for u in (read[0], every[0][:, 1::3])]
    torch.testing.assert_close(*gradients, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_imagining_by_step_equals_the_whole_pass_in_single_precision(name: str) -> None:
    model = make(name, layers=4, window=53).float()
    x, reset = tokens(50, 0.05)
    x, loop, carry, outputs = x.float(), model.bind(), model.initial(B), []
    with torch.no_grad():
        for t in range(50):
            u, carry = loop.step(x[:, t], carry, reset[:, t])
            outputs.append(u)
        whole = model.scan(x, None, reset)[0]
    torch.testing.assert_close(torch.stack(outputs, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_after_a_reset_a_rollout_is_a_new_one(name: str) -> None:
    model = make(name, window=6)
    x, _ = tokens(12)
    reset = torch.zeros(B, 12, dtype=torch.bool)
    reset[:, 7] = True
    torch.testing.assert_close(
        model.scan(x, None, reset)[0][:, 7:], model.scan(x[:, 7:], None, reset[:, 8:9].expand(-1, 5))[0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_carries_stay_values_in_a_loop_without_gradients(name: str) -> None:
    """Longer than the room a loop sets aside; two rollouts go on from one carry in the middle."""
    model = make(name, window=6)
    x, reset = tokens(40, 0.1)
    with torch.no_grad():
        whole, _ = model.scan(x, None, reset)
        loop, carry, carries = model.bind(tokens=8), model.initial(B), []
        for t in range(40):
            u, carry = loop.step(x[:, t], carry, reset[:, t])
            torch.testing.assert_close(u, whole[:, t], **EXACT)
            carries.append(carry)
        for other in (5, 30):
            wrong, _ = loop.step(-x[:, 0], carries[other], reset[:, 1])
            again, after = loop.step(x[:, other + 1], carries[other], reset[:, other + 1])
            torch.testing.assert_close(again, whole[:, other + 1], **EXACT)
            torch.testing.assert_close(after, carries[other + 1], **EXACT)
            assert not torch.allclose(wrong, again)
        with fast.disabled():
            plain, _ = loop.step(x[:, 31], carries[30], reset[:, 31])
        torch.testing.assert_close(plain, whole[:, 31], **EXACT)
        begun = loop.scan(x[:, :8], None, reset[:, :8])[1]
        again, _ = loop.step(x[:, 8], begun, reset[:, 8])
        torch.testing.assert_close(again, whole[:, 8], **EXACT)


def test_a_late_token_stays_with_its_episode() -> None:
    """TWM's order ``[reward of the step before, latent, action]``, reset at the latent."""
    model = make("transformer_xl")
    x, reset = tokens(3 * 4, 0.0)
    reset[:, 2 * 3 + 1] = True  # an episode begins with the latent of the third step
    x.requires_grad_()
    u, _ = model.scan(x, None, reset)
    weights = torch.linspace(-1, 1, U, dtype=torch.float64)
    (new,) = torch.autograd.grad((u[:, 7:] * weights).sum(), x, retain_graph=True)
    assert new[:, :7].abs().max() == 0 and new[:, 7:].abs().sum(-1).min() > 0
    (late,) = torch.autograd.grad((u[:, 6] * weights).sum(), x)
    assert late[:, 7:].abs().max() == 0 and late[:, :7].abs().sum(-1).min() > 0


def test_window_is_what_a_layer_sees() -> None:
    for name in NAMES:
        model = make(name, layers=1, window=4)
        x, reset = tokens(9, 0.0)
        x.requires_grad_()
        u, carry = model.scan(x, model.initial(B), reset)
        (grad,) = torch.autograd.grad((u[:, 8] * torch.linspace(-1, 1, U)).sum(), x)
        assert grad[:, :5].abs().max() == 0 and grad[:, 5:].abs().sum(-1).min() > 0
        assert carry.keys[0].shape[2] == model.slots == 3


@pytest.mark.parametrize("name", ["transformer_xl", "gpt"])
def test_a_remembered_step_costs_one_token(name: str) -> None:
    model = make(name, width=64, window=32).requires_grad_(False)
    x, reset = tokens(32, 0.0)
    with torch.no_grad():
        carry, loop, flops = model.scan(x, None, reset)[1], model.bind(), {}
    for count, call in (
        (1, lambda: loop.step(x[:, 0], carry, reset[:, 0])),
        (32, lambda: model.scan(x, None, reset)),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        flops[count] = counter.get_total_flops()
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "position" not in n)
    assert 2 * B * weights <= flops[1] <= 1.5 * 2 * B * weights  # the rest is attention over the window
    assert flops[1] < flops[32] / 20


def test_gradients_reach_what_is_remembered_and_every_parameter() -> None:
    for name in NAMES:
        model = make(name)
        x, reset = tokens(6, 0.0)
        x.requires_grad_()
        carry = model.scan(x, model.initial(B), reset)[1]
        u, _ = model.step(torch.ones(B, D, dtype=torch.float64), carry, reset[:, 0])
        (u * torch.linspace(-1, 1, U)).sum().backward()
        assert x.grad.abs().sum(-1).min() > 0
        assert all(p.grad is not None for p in model.parameters()), name


def test_dropout_acts_in_training_alone() -> None:
    for name in NAMES:
        model = make(name, dropout=0.5)
        x, reset = tokens(6)
        expected = make(name).scan(x, None, reset)[0]
        torch.testing.assert_close(model.scan(x, None, reset)[0], expected)
        model.train()
        assert not torch.allclose(model.scan(x, None, reset)[0], model.scan(x, None, reset)[0])


class StandIn:
    """What TorchRL's TransformerModule does between steps: it counts positions and keeps the cache."""

    def __init__(self, transformer: TorchRLTransformer, rows: int) -> None:
        self.transformer, self.cache = transformer, transformer.new_kv_cache(rows, device=torch.device("cpu"))
        self.positions = torch.zeros(rows, dtype=torch.int64)

    def step(self, value: Tensor, is_init: Tensor) -> Tensor:
        cache = self.transformer.reset_kv_cache(self.cache, is_init)
        positions = self.positions.masked_fill(is_init, 0)
        out, self.cache = self.transformer(value.unsqueeze(1), positions.unsqueeze(-1), kv_cache=cache)
        self.positions = positions + 1
        return out.squeeze(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [4, 64])
def test_called_as_torchrl_calls_transformers(name: str, window: int) -> None:
    """A window under its mask, and step by step, are the model's own scan; a cache stays what it was."""
    model = make(name, window=window)
    transformer, (x, is_init) = TorchRLTransformer(model), tokens(17)
    is_init[:, 0] = True
    index = torch.arange(17)
    positions = index - (index * is_init).cummax(-1).values
    segment = is_init.cumsum(-1)
    mask = (segment.unsqueeze(-1) == segment.unsqueeze(-2)).tril()
    expected = model.scan(x, None, is_init)[0]
    out, nothing = transformer(x, positions, mask=mask)
    torch.testing.assert_close(out, expected, **EXACT)
    driver, empty = StandIn(transformer, B), model.initial(B)
    begun = driver.cache
    stepped = torch.stack([driver.step(x[:, t], is_init[:, t]) for t in range(17)], 1)
    torch.testing.assert_close(stepped, expected, **EXACT)
    torch.testing.assert_close(begun, empty, **EXACT)
    assert nothing is None and not any(leaf.requires_grad for leaf in driver.cache.keys)
    attention = model.layers[0].attention
    shape = B, transformer.num_heads, transformer.max_seq_len - 1, transformer.head_dim
    assert driver.cache.keys[0].shape == shape and transformer.num_layers == len(driver.cache.keys)
    assert attention.project.out_features == 3 * transformer.num_heads * transformer.head_dim


def test_twm_remembers_as_its_own_code_does() -> None:
    """Once memory is full a reward sees 51 tokens, a latent and an action 52 (jrobine/twm e6a8e59).

    There 50 tokens are remembered and three new. The first that a latent or an action sees stands 17 steps of
    three tokens before it; a reward sees its own step and the 16 before, as far as memory has them.
    """
    past, kinds, new, mask = 16, 3, 3, []
    length = past * kinds + 2 + new
    for position in range(length - new, length):
        kind = (position - (length - 2)) % kinds  # 0 latent, 1 action, 2 reward
        first = position - (past + 1) * kinds if kind < 2 else position - kind - past * kinds
        mask.append([max(first, 0) <= key <= position for key in range(length)])
    window = OmegaConf.load(PAGES / "backbone/twm/transformer_xl.yaml").window
    model = make("transformer_xl", window=list(window))
    ages = torch.tensor([[3 * 40 + 2, 3 * 41, 3 * 41 + 1]])  # reward, latent and action far into an episode
    slots = length - new + 1  # one more than there
    seen = visible(ages, slots, model.windows)[0, 0]
    assert torch.equal(seen[:, 1:], torch.tensor(mask)) and not seen[:, 0].any()
    assert seen.sum(-1).tolist() == [51, 52, 52] and model.slots == slots


def test_published_sizes() -> None:
    """TWM's 8,543,232, STORM's 4,235,264 without its mixer, TransDreamer's 14,769,744."""

    def count(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    twm = backbones.build("transformer_xl", 256, 256, layers=10, heads=4, hidden=1024, window=53)
    storm = backbones.build("gpt", 512, 512, layers=2, heads=8, hidden=1024, window=64)
    stacked = backbones.build("stacked_transformer", 600, 3600, layers=6, heads=8, head_dim=64, hidden=1024)
    assert (count(twm), count(storm), count(stacked)) == (8_543_232, 4_235_264, 14_769_744)
    assert twm.layers[0].attention.scale == 1 / 16


def test_bad_options() -> None:
    for options, message in (
        ({"window": 1}, "window of a transformer is 1"),
        ({"heads": 5}, "width 16 cannot be cut into 5 equal heads"),
        ({"activation": "sine"}, "activation 'sine' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            backbones.build("transformer_xl", D, U, **options)
