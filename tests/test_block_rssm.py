"""The RSSM of DreamerV3 since 2024: the block GRU and the options around it.

References here are written down from the equations, slowly: one block after the other, all inputs
concatenated, nothing ahead of the loop.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit import backbones, fast
from wmkit.dynamics import RSSM, Latent, LongShortRSSM
from wmkit.errors import ConfigError
from wmkit.fast import filter_loop
from wmkit.functional import sample_index, unimix_probs
from wmkit.nn import STYLE_2024, BlockLinear, GaussianLatent

A, E, G, C, U, H, BLOCKS = 3, 7, 4, 5, 16, 6, 4


def rssm(blocks: int = BLOCKS, **options: object) -> partial:
    sizes = {"deter": U, "groups": G, "classes": C, "hidden": H}
    style = {"style": STYLE_2024, "joint_input": False, "clip_action": True, "initial_state": "zeros"}
    gru = partial(backbones.build, "block_gru", blocks=blocks)
    return partial(RSSM, **{"backbone": gru, **sizes, "prior_layers": 2, **style, **options})


@pytest.fixture
def model() -> RSSM:
    """Every parameter random: also biases, norm scales, and logits far from uniform."""
    torch.manual_seed(0)
    made = rssm()(A, E)
    for p in made.parameters():
        nn.init.normal_(p, 0.0, 0.5)
    return made


def record(previous_action: Tensor, is_init: Tensor) -> dict[str, Tensor]:
    return {"previous_action": previous_action, "is_init": is_init}


# -- the equations, slowly ---------------------------------------------------------------


def slow_lna(layer: nn.Module, x: Tensor) -> Tensor:
    y = x @ layer.linear.weight.T + layer.linear.bias
    y = y / torch.sqrt((y**2).mean(-1, keepdim=True) + 1e-4) * layer.norm.weight
    return y * torch.sigmoid(y)


def slow_blocks(weight: Tensor, bias: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    out = [x @ weight[k] for k, x in enumerate(inputs)]
    return [y + b for y, b in zip(out, bias.chunk(len(out)), strict=True)]


def slow_core(model: RSSM, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    gru = model.backbone
    action = action / torch.maximum(torch.ones_like(action), action.abs()).detach()
    x0, x1 = slow_lna(gru.belief_in, deter), slow_lna(model.input.state, stoch)
    x2 = slow_lna(model.input.action, action)
    inputs = [torch.cat([deter_k, x0, x1, x2], -1) for deter_k in deter.chunk(BLOCKS, -1)]
    h = torch.cat(slow_blocks(gru.hidden.weight, gru.hidden.bias, inputs), -1)
    h = h / torch.sqrt((h**2).mean(-1, keepdim=True) + 1e-4) * gru.norm.weight
    h = h * torch.sigmoid(h)
    new = []
    gates = slow_blocks(gru.gates.weight, gru.gates.bias, h.chunk(BLOCKS, -1))
    for gates_k, deter_k in zip(gates, deter.chunk(BLOCKS, -1), strict=True):
        r, c, u = gates_k.chunk(3, -1)
        u = torch.sigmoid(u - 1)
        new.append(u * torch.tanh(torch.sigmoid(r) * c) + (1 - u) * deter_k)
    return torch.cat(new, -1)


def slow_observe(
    model: RSSM, embed: Tensor, actions: Tensor, is_init: Tensor, stoch: Tensor, deter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.rand(*embed.shape[:2], G, 1)
    beliefs, states, logits = [], [], []
    for t in range(embed.shape[1]):
        keep = 1.0 - is_init[:, t].float().unsqueeze(-1)
        deter = slow_core(model, deter * keep, stoch * keep, actions[:, t] * keep)
        hidden = slow_lna(model.posterior_in, torch.cat([deter, embed[:, t]], -1))
        logit = model.posterior_out[-1](hidden).unflatten(-1, (G, C))
        probs = 0.99 * logit.softmax(-1) + 0.01 / C
        one_hot = F.one_hot(sample_index(probs, noise[:, t]), C).float()
        stoch = (one_hot + (probs - probs.detach())).flatten(-2)
        beliefs.append(deter), states.append(stoch), logits.append(logit)
    return torch.stack(beliefs, 1), torch.stack(states, 1), torch.stack(logits, 1)


def window() -> tuple[Tensor, Tensor, Tensor]:
    embed, action = torch.randn(5, 6, E), 2 * torch.randn(5, 6, A)  # actions above one too
    is_init = torch.rand(5, 6) < 0.25
    is_init[0] = False
    is_init[1, 3] = True
    return embed, action, is_init


def test_observe_and_its_gradients_equal_the_equations(model: RSSM) -> None:
    embed, action, is_init = window()
    start = Latent(torch.randn(5, G * C), torch.randn(5, U))
    leaves = [embed.requires_grad_(), action.requires_grad_()]
    leaves += [p for name, p in model.named_parameters() if not name.startswith("prior")]
    results = []
    for slow in (False, True):
        torch.manual_seed(1)
        if slow:
            belief, state, logits = slow_observe(model, embed, action, is_init, start.state, start.belief)
        else:
            seen = model.observe(embed, record(action, is_init), start)
            belief, state, logits = seen.latent.belief, seen.latent.state, seen.posterior_logits
            hidden = slow_lna(model.prior[1], slow_lna(model.prior[0], belief))
            torch.testing.assert_close(seen.prior_logits.flatten(-2), model.prior[2](hidden))
        torch.manual_seed(2)
        loss = sum((x * torch.randn_like(x)).mean() for x in (belief, state, logits))
        results.append((belief, state, logits, *torch.autograd.grad(loss, leaves)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_reset_is_a_start_from_zeros_and_stops_gradients(model: RSSM) -> None:
    embed, action = torch.randn(2, 2, E), torch.randn(2, 2, A)
    is_init = torch.tensor([[True, False], [False, False]])
    start = Latent(torch.randn(2, G * C), torch.randn(2, U))
    leaves = (start.state.requires_grad_(), start.belief.requires_grad_(), action.requires_grad_())
    seen = model.observe(embed, record(action, is_init), start)
    zero = slow_core(model, *(torch.zeros(1, width) for width in (U, G * C, A)))
    torch.testing.assert_close(seen.latent.belief[:1, 0], zero, atol=1e-6, rtol=1e-5)
    for grad in torch.autograd.grad(seen.posterior_logits.square().sum(), leaves):
        first = grad[:, 0] if grad.ndim == 3 else grad
        assert first[0].abs().max() == 0 and first[1].abs().max() > 0
    assert all(x.abs().max() == 0 for x in model.initial(2)[:2])


def test_imagination_without_gradients_reads_classes(model: RSSM) -> None:
    """One-hot states are looked up where no gradient is recorded, multiplied elsewhere."""
    action, noise = torch.randn(8, A), torch.rand(8, G, 1)
    start = model.step(model.initial(8), action, noise=noise)
    assert start.classes is not None
    recorded = model.step(start, action, noise=noise)
    with torch.no_grad():
        looked_up = model.step(start._replace(state=start.state * torch.nan), action, noise=noise)
    torch.testing.assert_close(looked_up.belief, recorded.belief, atol=1e-6, rtol=1e-5)
    expected = slow_core(model, start.belief, start.state, action)
    torch.testing.assert_close(recorded.belief, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_one_hot_actions_are_looked_up(model: RSSM) -> None:
    """So are jumps, whose action is the bit."""
    wrapped = LongShortRSSM(A, E, dynamics=rssm())
    action, noise = torch.eye(A)[torch.arange(8) % A], torch.rand(8, G, 1)
    for dynamics, jump in ((model, None), (wrapped, torch.arange(8) < 4)):
        one, other = (
            dynamics.bind(one_hot=one_hot).step(dynamics.initial(8), action, jump, noise)
            for one_hot in (False, True)
        )
        torch.testing.assert_close(one.belief, other.belief, atol=1e-6, rtol=1e-5)
        assert torch.equal(one.classes, other.classes)


# -- anchors -----------------------------------------------------------------------------


def test_gates_at_zero_keep_most_of_the_belief() -> None:
    gru = backbones.build("block_gru", 4, 16)
    nn.init.zeros_(gru.gates.weight)
    belief = torch.randn(3, 16)
    after, _ = gru.step(torch.randn(3, 4), belief, torch.zeros(3, dtype=torch.bool))
    assert torch.sigmoid(torch.tensor(-1.0)).item() == pytest.approx(0.268941, abs=1e-6)
    torch.testing.assert_close(after, 0.731059 * belief, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("classes", "floor"), [(4, 0.0025), (64, 1.5625e-4)])
def test_no_class_is_impossible(classes: int, floor: float) -> None:
    logits = F.one_hot(torch.tensor(0), classes) * 1e4
    probs = unimix_probs(logits, 0.01)
    assert probs.min().item() == pytest.approx(floor, rel=1e-5)
    assert -math.log(floor) == pytest.approx(math.log(classes / 0.01))  # the bound of a latent's KL


@pytest.mark.parametrize(
    ("sizes", "embed", "counts"),
    [
        ({"deter": 512, "hidden": 64, "classes": 4}, 64, (273_664, 45_312, 45_440)),
        ({"deter": 2048, "hidden": 256, "classes": 16}, 1024, (4_338_688, 918_528, 722_432)),
    ],
)
def test_parameter_counts_of_the_published_sizes(
    sizes: dict[str, int], embed: int, counts: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        made = rssm(blocks=8, groups=32, **sizes)(6, embed)

    def count(*parts: nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    core = count(made.input, made.backbone)
    assert (core, count(made.posterior_in, made.posterior_out), count(made.prior)) == counts


# -- block-linear layers -----------------------------------------------------------------


def test_block_linear_starts_as_a_dense_layer_would() -> None:
    torch.manual_seed(0)
    layer = BlockLinear(1024, 512, 8)
    assert layer.weight.shape == (8, 128, 64) and layer.bias.abs().max() == 0
    std = layer.weight.std().item()
    assert std == pytest.approx(math.sqrt(1 / 1024), rel=0.02)
    assert layer.weight.abs().max() <= 2 * math.sqrt(1 / 1024) / 0.8796
    gru = backbones.build("block_gru", 128, 512)
    assert gru.hidden.weight.std().item() == pytest.approx((512 + 8 * (64 + 128)) ** -0.5, rel=0.02)


def test_output_layers_start_in_the_style_of_the_others() -> None:
    torch.manual_seed(0)
    made = rssm(hidden=256)(A, E)
    for layer in (made.prior[-1], made.posterior_out[-1]):
        assert layer.weight.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_block_linear_is_a_loop_over_blocks() -> None:
    layer, x = BlockLinear(12, 8, 4), torch.randn(2, 3, 12)
    nn.init.normal_(layer.bias)
    slow = torch.cat(slow_blocks(layer.weight, layer.bias, x.chunk(4, -1)), -1)
    torch.testing.assert_close(layer(x), slow)
    with pytest.raises(ConfigError, match="5 equal blocks"):
        BlockLinear(10, 12, 5)


# -- with others -------------------------------------------------------------------------


def test_torchrl_computes_the_same(model: RSSM) -> None:
    theirs = pytest.importorskip("torchrl.modules.models.model_based").RSSMPriorV3(
        action_shape=torch.Size([A]),
        hidden_dim=H,
        rnn_hidden_dim=U,
        num_categoricals=G,
        num_classes=C,
        action_dim=A,
        recurrent_model="block_gru",
        num_blocks=BLOCKS,
    )
    gru = model.backbone
    pairs = [
        (theirs.rnn.belief_projection, gru.belief_in),
        (theirs.rnn.state_projection, model.input.state),
        (theirs.rnn.action_projection, model.input.action),
        (theirs.rnn.hidden_layers, nn.Sequential(gru.hidden, gru.norm)),
        (theirs.rnn.gates, gru.gates),
        (theirs.rnn_to_prior_projector, model.prior),
    ]
    for their, our in pairs:  # the same parameters in the same order and layout
        for p, q in zip(their.parameters(), our.parameters(), strict=True):
            p.data.copy_(q.data)
    assert sum(p.numel() for p in theirs.parameters()) == sum(
        p.numel() for part in (model.input, gru, model.prior) for p in part.parameters()
    )
    start = Latent(torch.randn(9, G * C), torch.randn(9, U))
    action, noise = 2 * torch.randn(9, A), torch.rand(9, G, 1)
    ours = model.step(start, action, noise=noise)
    logits, _, belief = theirs(start.state, start.belief, action)
    torch.testing.assert_close(ours.belief, belief, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.prior_logits(ours.belief), logits, atol=1e-5, rtol=1e-5)


def test_long_short_without_jumps_is_the_plain_model(model: RSSM) -> None:
    """One more action entry whose bit is never set changes nothing; set, it does."""
    wrapped = LongShortRSSM(A, E, dynamics=rssm())
    weights = model.state_dict()
    weights["input.action.linear.weight"] = F.pad(weights["input.action.linear.weight"], (0, 1), value=3.0)
    wrapped.short.load_state_dict(weights)
    embed, action, is_init = window()
    noise = torch.rand(5, G, 1)
    no_jump = torch.zeros(5, dtype=torch.bool)
    results = []
    for dynamics in (model, wrapped):
        torch.manual_seed(3)
        seen = dynamics.observe(embed, record(action, is_init))
        last = seen.latent.map(lambda x: x[:, -1])
        after = dynamics.step(last, action[:, 0], None if dynamics is model else no_jump, noise)
        results.append((seen.posterior_logits, after.belief, last))
    torch.testing.assert_close(results[0][:2], results[1][:2], atol=1e-6, rtol=1e-5)
    last = results[1][2]
    jumped = wrapped.step(last, action[:, 0], ~no_jump, noise)
    assert not torch.allclose(jumped.belief, results[1][1])
    after = wrapped.observe_jump(last, embed[:, 0], record(action[:, 0], ~no_jump))
    torch.testing.assert_close(after.latent.belief, jumped.belief, atol=1e-6, rtol=1e-5)


def test_split_input_over_a_backbone_that_takes_nothing_ahead() -> None:
    torch.manual_seed(0)
    made = rssm(backbone=partial(backbones.build, "ln_gru"))(A, E)
    embed, action, is_init = window()
    torch.manual_seed(1)
    seen = made.observe(embed, record(action, is_init))
    x = torch.cat([made.input.state(torch.zeros(5, G * C)), made.input.action(torch.zeros(5, A))], -1)
    belief, _ = made.backbone.step(x, torch.zeros(5, U), torch.zeros(5, dtype=torch.bool))
    first = is_init[:, 0]
    assert first.any()
    torch.testing.assert_close(seen.latent.belief[first, 0], belief[first])


def test_unknown_initial_state() -> None:
    with pytest.raises(ConfigError, match="'noise': wanted mode or zeros"):
        rssm(initial_state="noise")(A, E)


# -- the loop with its gradient written out -----------------------------------------------


@pytest.mark.parametrize("learned_initial", [False, True])
@pytest.mark.parametrize("classes", [C, 12])  # few classes, and many
def test_written_out_loop_is_the_loop(learned_initial: bool, classes: int) -> None:
    torch.manual_seed(0)
    gru = partial(backbones.build, "block_gru", blocks=BLOCKS, learned_initial=learned_initial)
    model = rssm(backbone=gru, classes=classes)(A, E)
    for p in model.parameters():
        nn.init.normal_(p, 0.0, 0.5)
    batch, steps = 3, 7
    inputs = [torch.randn(batch, steps, E), torch.randn(batch, steps, A), torch.randn(batch, U)]
    start = F.one_hot(torch.randint(0, classes, (batch, G)), classes).float().flatten(1)
    is_init = torch.rand(batch, steps) < 0.3
    assert is_init.any() and not is_init.all()
    weights = [torch.randn(batch, steps, width) for width in (G * classes, U, G * classes)]

    def run() -> tuple[list[Tensor], list[Tensor]]:
        leaves = [x.clone().requires_grad_() for x in inputs] + [*model.parameters()]
        torch.manual_seed(1)
        seen = model.observe(leaves[0], record(leaves[1], is_init), Latent(start, leaves[2]))
        outputs = [seen.latent.state, seen.latent.belief, seen.posterior_logits.flatten(2)]
        loss = sum((w * x).sum() for w, x in zip(weights, outputs, strict=True)) + seen.prior_logits.sum()
        grads = torch.autograd.grad(loss, leaves)
        return [*outputs, seen.latent.classes, seen.prior_logits], list(grads)

    assert filter_loop.applies(model)
    quick = run()
    with fast.disabled():
        slow = run()
    for found, wanted in zip([*quick[0], *quick[1]], [*slow[0], *slow[1]], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_written_out_loop_leaves_other_models_alone() -> None:
    for option in ({"joint_input": True}, {"posterior_layers": 2}, {"latent": GaussianLatent(3)}):
        assert not filter_loop.applies(rssm(**option)(A, E))
    with torch.autocast("cpu", torch.bfloat16):
        assert not filter_loop.applies(rssm()(A, E))
    with fast.disabled():
        assert not filter_loop.applies(rssm()(A, E))


def test_written_out_loop_keeps_nothing_alive(model: RSSM) -> None:
    """An output that its own operation refers to would stay for ever, update after update."""
    embed, action = torch.randn(2, 3, E, requires_grad=True), torch.randn(2, 3, A)
    seen = model.observe(embed, record(action, torch.zeros(2, 3, dtype=torch.bool)))
    outputs = seen.latent.state, seen.latent.belief, seen.posterior_logits
    loop = next(node for node in ancestors(outputs[0].grad_fn) if "_Loop" in node.name())
    alive = [weakref.ref(loop), weakref.ref(outputs[1])]
    sum(x.sum() for x in outputs).backward()
    del seen, outputs, loop
    assert [ref() for ref in alive] == [None, None]


def ancestors(node: torch.autograd.graph.Node) -> Iterator[torch.autograd.graph.Node]:
    """The operations that a result came from, itself first."""
    yield node
    for before, _ in node.next_functions:
        if before is not None:
            yield from ancestors(before)
