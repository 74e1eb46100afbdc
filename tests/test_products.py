"""Products by oneDNN equal PyTorch's own, gradients included, and are counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from wmkit.functional import block_product, linear, matmul, products, transposed_matmul
from wmkit.nn import Linear

needs_onednn = pytest.mark.skipif(not products._HAS_ONEDNN, reason="PyTorch was built without oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As on a processor where oneDNN is quicker, whatever this one is; records how often it was called."""
    calls, plain = [], products._onednn_linear

    def count(*args: Tensor) -> Tensor:
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(products, "_onednn_linear", count)
    monkeypatch.setattr(products, "_WORTH", 0)
    yield calls


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["plain", "transposed", "part", "transposed part"])
def test_linear_and_its_gradient(onednn: list[int], bias: bool, layout: str) -> None:
    torch.manual_seed(0)
    whole = torch.randn(70, 90)
    weight = {
        "plain": whole,
        "transposed": whole.t().contiguous().t(),
        "part": torch.cat([whole, whole], 1)[:, 90:],
        "transposed part": torch.cat([whole.t(), whole.t()], 1)[:, :70].t(),
    }[layout].detach()
    assert torch.equal(weight, whole)
    x, weight = torch.randn(3, 11, 90).requires_grad_(), weight.requires_grad_()
    b = torch.randn(70, requires_grad=True) if bias else None
    grad = torch.randn(3, 11, 70)
    linear(x, weight, b).backward(grad)
    assert len(onednn) == 3  # the product and two gradients
    learned = [t for t in (x, weight, b) if t is not None]
    copies = [t.detach().double().requires_grad_() for t in learned]
    expected = F.linear(*copies)
    expected.backward(grad.double())
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, b).double(), expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(learned, copies, strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad.double(), wanted.grad, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_products_of_matrices_and_blocks(onednn: list[int]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(33, 20), torch.randn(33, 50)
    for x, y in ((a, b), (b, a)):
        wanted = x.double().t() @ y.double()
        torch.testing.assert_close(transposed_matmul(x, y).double(), wanted, rtol=1e-5, atol=1e-5)
        wanted = x.double().t() @ y.double()
        torch.testing.assert_close(matmul(x.t(), y).double(), wanted, rtol=1e-5, atol=1e-5)
    x, weight, bias = torch.randn(9, 32), torch.randn(4, 8, 12), torch.randn(48)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = block_product(x, weight, bias)
    blocks = block_product(x, weight, bias)
    assert plain.is_contiguous() and not blocks.is_contiguous()  # two ways were taken
    torch.testing.assert_close(blocks, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        block_product(x[:1], weight.mT.contiguous().mT), plain[:, :1] - bias.view(4, 1, 12)
    )
    assert block_product(x, weight.requires_grad_(), bias).requires_grad


@needs_onednn
def test_gradient_of_a_gradient(onednn: list[int]) -> None:
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)

    def second(layer: object) -> Tensor:
        (first,) = torch.autograd.grad(layer(x, weight).square().sum(), x, create_graph=True)  # type: ignore[operator]
        return torch.autograd.grad(first.square().sum(), weight)[0]

    torch.testing.assert_close(second(linear), second(F.linear))
    assert onednn


@needs_onednn
def test_when_pytorchs_own_is_called(onednn: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(3, 2), torch.ones(4, 3)
    with torch.backends.mkldnn.flags(enabled=False):
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    linear(x.double(), layer.weight.double())
    linear(x.to("meta"), layer.weight.to("meta"))
    monkeypatch.setattr(products, "_WORTH", 25)  # 24 multiplications are too few
    layer(x)
    monkeypatch.setattr(products, "_WORTH", 0)
    layer(x[:3])  # as are three rows
    assert not onednn
    layer(x)
    assert len(onednn) == 1


@needs_onednn
def test_under_transforms_as_pytorchs_own(onednn: list[int]) -> None:
    layer, x = Linear(3, 2), torch.randn(4, 5, 3)
    weights = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    tangent = torch.func.jvp(layer, (x,), (x,))[1]
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    assert not onednn
    wanted = torch.autograd.grad(loss(weights, x), layer.weight)[0]
    torch.testing.assert_close(each["weight"].sum(0), wanted)
    torch.testing.assert_close(tangent, x @ layer.weight.t())
    torch.testing.assert_close(traced(x), layer(x))


@needs_onednn
def test_flops_are_counted(onednn: list[int]) -> None:
    x, weight, blocks = torch.randn(5, 8), torch.randn(6, 8), torch.randn(2, 4, 3)
    counts = []
    for enabled in (False, True):
        with torch.backends.mkldnn.flags(enabled=enabled), FlopCounterMode(display=False) as counter:
            linear(x, weight)
            block_product(x, blocks)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 5 * 8 * 6 + 2 * 5 * 8 * 3] * 2
    assert onednn
