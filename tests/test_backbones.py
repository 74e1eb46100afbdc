"""The four laws of every registered backbone, by default and with options, with resets anywhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._pytree import tree_leaves

import wmkit
from wmkit import backbones
from wmkit.backbones.shared_start import same_layers
from wmkit.errors import ConfigError

B, T, D, U = 3, 9, 5, 16
NAMES = [name for name in wmkit.available("backbone") if not name.startswith("doctest")]
PAGES = Path(wmkit.__file__).parent / "systems" / "conf" / "backbone"
SIZE = {"hidden": 8, "deter": U, "blocks": 2, "heads": 4, "head": 4, "feed_forward": 12, "predictor_heads": 2}
MODELS: dict[str, dict[str, object]] = {
    **{name: {"name": name} for name in NAMES},
    "ln_gru-learned": {"name": "ln_gru", "learned_initial": True},
    "adaln-narrow": {"name": "adaln", "condition": 1, "width": 8, "heads": 2, "window": 4, "layers": 1},
    "gpt-pre_norm": {"name": "gpt", "pre_norm": True, "bias": True, "activation": "gelu", "window": 4},
    "transformer_xl-short": {"name": "transformer_xl", "window": 4, "head_dim": 3, "layers": 3},
    "stacked_transformer-gated": {"name": "stacked_transformer", "gated": True, "layers": 4, "heads": 2},
    "s5-masked_dual": {"name": "s5", "scan_form": "masked_dual", "discretisation": "bilinear", "hidden": 8},
}
for page in sorted(PAGES.rglob("*.yaml")):
    config = OmegaConf.create({"size": SIZE, "page": OmegaConf.load(page)})
    options = OmegaConf.to_container(config, resolve=True)["page"]
    options = {"name": options["_target_"]} | {k: v for k, v in options.items() if k[0] != "_"}
    if options.get("modulation_std") == 0:
        options |= {"modulation_std": 0.1, "dropout": 0.0}  # closed gates let no gradient through
    if options not in MODELS.values():
        MODELS[str(page.relative_to(PAGES))] = options


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> backbones.SequenceModel:
    torch.manual_seed(0)
    return backbones.build(in_dim=D, out_dim=U, **MODELS[request.param]).eval()


def some_scalar(u: Tensor) -> Tensor:
    """Some function of outputs; not their sum, whose gradient dies in a LayerNorm."""
    return (u * torch.linspace(-1, 1, u.shape[-1])).square().sum()


def window() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    reset = torch.rand(B, T) < 0.25
    reset[0] = False
    reset[1, 4] = True
    return torch.randn(B, T, D), reset


def test_contract(model: backbones.SequenceModel) -> None:
    assert isinstance(model, backbones.SequenceModel)
    assert (model.in_dim, model.out_dim) == (D, U)
    assert all(leaf.shape[0] == B for leaf in tree_leaves(model.initial(B)))
    assert model.output(model.initial(B)).shape == (B, U)


def test_scan_equals_looped_step(model: backbones.SequenceModel) -> None:
    x, reset = window()
    scanned, last = model.scan(x, model.initial(B), reset)
    carry, outputs = model.initial(B), []
    for t in range(T):
        u, carry = model.step(x[:, t], carry, reset[:, t])
        outputs.append(u)
    torch.testing.assert_close(scanned, torch.stack(outputs, 1))
    for a, b in zip(tree_leaves(last), tree_leaves(carry), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_a_scan_equal_those_of_the_loop(model: backbones.SequenceModel) -> None:
    model, (x, reset) = model.double(), window()
    x, parameters, grads = x.double().requires_grad_(), list(model.parameters()), []
    for looped in (False, True):
        outputs, carry = [], model.initial(B)
        if looped:
            for t in range(T):
                u, carry = model.step(x[:, t], carry, reset[:, t])
                outputs.append(u)
        else:
            outputs.append(model.scan(x, carry, reset)[0].transpose(0, 1))
        loss = some_scalar(torch.stack(outputs) if looped else outputs[0])
        grads.append(torch.autograd.grad(loss, [x, *parameters]))
    assert all(grad.abs().sum() > 0 for grad in grads[0])
    torch.testing.assert_close(*grads, atol=1e-9, rtol=1e-6)


def test_nothing_crosses_a_reset(model: backbones.SequenceModel) -> None:
    x, reset = window()
    x.requires_grad_()
    carry = model.initial(B)
    scanned, _ = model.scan(x, carry, reset)
    (grad,) = torch.autograd.grad(some_scalar(scanned[1, 4:]), x)
    assert grad[1, :4].abs().max() == 0 and grad[1, 4:].abs().sum() > 0
    changed = x.detach().clone()
    changed[1, :4] += 1
    torch.testing.assert_close(model.scan(changed, carry, reset)[0][1, 4:], scanned[1, 4:])


def test_two_scans_equal_one(model: backbones.SequenceModel) -> None:
    x, reset = window()
    whole, _ = model.scan(x, model.initial(B), reset)
    first, carry = model.scan(x[:, :4], model.initial(B), reset[:, :4])
    second, _ = model.scan(x[:, 4:], carry, reset[:, 4:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_causality(model: backbones.SequenceModel) -> None:
    x, _ = window()
    x.requires_grad_()
    scanned, _ = model.scan(x, model.initial(B), torch.zeros(B, T, dtype=torch.bool))
    (grad,) = torch.autograd.grad(some_scalar(scanned[:, 5]), x)
    first = (
        6 - model.window if type(model).__name__ == "AdaLN" else 0
    )  # which sees one window, whatever its layers
    reached = grad.abs().sum(-1)
    assert reached[:, 6:].max() == 0 and reached[:, first:6].min() > 0 and reached[:, :first].sum() == 0


def test_nothing_known_nothing_reset_and_parts_read(model: backbones.SequenceModel) -> None:
    """The carry of a memory that began with nothing is shorter; it goes on to the same numbers."""
    x, reset = window()
    full, last = model.scan(x, model.initial(B), reset)
    read, carry = model.scan(x, None, reset, slice(0, None, 2))
    torch.testing.assert_close(read, full[:, ::2])
    torch.testing.assert_close(
        model.step(x[:, 0], carry, reset[:, 0])[0], model.step(x[:, 0], last, reset[:, 0])[0]
    )
    never = torch.zeros_like(reset)
    torch.testing.assert_close(model.scan(x)[0], model.scan(x, model.initial(B), never)[0])


def test_any_columns_can_be_known_ahead(model: backbones.SequenceModel) -> None:
    x, reset = window()
    _, carry = model.scan(x, model.initial(B), reset)
    expected, _ = model.step(x[:, 0], carry, reset[:, 0])
    for known in range(D + 1):
        loop, cut = model.bind(known), D - known
        got, _ = loop.step(x[:, 0, :cut], carry, reset[:, 0], loop.ahead(x[..., cut:])[:, 0])
        torch.testing.assert_close(got, expected)
    loop = model.bind(tokens=T)
    torch.testing.assert_close(loop.scan(x, None, reset)[0], model.scan(x, None, reset)[0])
    torch.testing.assert_close(loop.step(x[:, 0], carry, reset[:, 0])[0], expected)


def test_unknown_backbone() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ln_gru'"):
        backbones.build("lngru", D, U)


def test_what_is_no_sequence_model_is_refused() -> None:
    wmkit.register("backbone", "doctest_dense", torch.nn.Linear)
    with pytest.raises(ConfigError, match="is a Linear"):
        backbones.build("doctest_dense", D, U)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("block_gru", {"blocks": 3}, "block_gru of width 16 cannot be cut into 3"),
        ("gpt", {"wibble": 3}, "'gpt' got an unexpected .* 'wibble': wanted options among width, layers"),
        ("lstm", {"layers": 2}, "'lstm' got an unexpected .* 'layers'"),
        ("stacked_transformer", {"layers": 3}, "3 layers has outputs of width 16: wanted a multiple of 6"),
        ("transformer_xl", {"width": 15, "heads": 3}, "width of transformer_xl is 15: wanted an even"),
        *(
            (name, {"layers": 0}, "has 0 layers: wanted 1")
            for name in ("gpt", "transformer_xl", "stacked_transformer", "s5")
        ),
        *(("s5", {"delta": delta}, "draws its steps from") for delta in ([0, 0.1], [0.1, 0.01], [0.1])),
    ],
)
def test_options_that_do_not_fit_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build(name, D, U, **options)


def test_layers_start_alike_where_there_are_layers() -> None:
    with pytest.raises(ConfigError, match="GRU has no layers to start alike"):
        same_layers(backbone=partial(backbones.build, "gru"), in_dim=D, out_dim=U)
