"""Products by oneDNN equal PyTorch's own, gradients included, and are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from wmkit import fast
from wmkit.fast import block_product, linear, matmul, products, transposed_matmul
from wmkit.nn import Linear

needs_onednn = pytest.mark.skipif(not products._HAS_ONEDNN, reason="PyTorch was built without oneDNN")


class Operations(TorchDispatchMode):
    """What PyTorch is asked to do inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def by_onednn(fn: Callable[[], object]) -> bool:
    """Whether ``fn`` asks oneDNN for a product."""
    with Operations() as asked:
        fn()
    return any("mkldnn" in name for name in asked.names)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN is quicker for products of any size, whatever this one is."""
    monkeypatch.setattr(products, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(products, "_WORTH", 0)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["plain", "transposed", "part", "transposed part"])
def test_linear_and_its_gradient(onednn: None, bias: bool, layout: str) -> None:
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
def test_products_of_matrices_and_blocks(onednn: None) -> None:
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
    assert by_onednn(lambda: block_product(x, weight, bias))
    torch.testing.assert_close(blocks, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        block_product(x[:1], weight.mT.contiguous().mT), plain[:, :1] - bias.view(4, 1, 12)
    )
    assert block_product(x, weight.requires_grad_(), bias).requires_grad


@needs_onednn
def test_gradient_of_a_gradient(onednn: None) -> None:
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)

    def second(layer: object) -> Tensor:
        (first,) = torch.autograd.grad(layer(x, weight).square().sum(), x, create_graph=True)  # type: ignore[operator]
        return torch.autograd.grad(first.square().sum(), weight)[0]

    torch.testing.assert_close(second(linear), second(F.linear))
    assert by_onednn(lambda: second(linear)) and not by_onednn(lambda: second(F.linear))


@needs_onednn
def test_when_pytorchs_own_is_called(onednn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(3, 2), torch.ones(4, 3)
    assert by_onednn(lambda: layer(x))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(lambda: layer(x))
    with fast.disabled():
        assert not by_onednn(lambda: layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not by_onednn(lambda: linear(x.double(), layer.weight.double()))
    assert not by_onednn(lambda: linear(x.to("meta"), layer.weight.to("meta")))
    assert not by_onednn(lambda: layer(x[:3]))  # three rows are too few
    monkeypatch.setattr(products, "_WORTH", 25)  # as are 24 multiplications
    assert not by_onednn(lambda: layer(x))


@needs_onednn
def test_under_transforms_as_pytorchs_own(onednn: None) -> None:
    layer, x = Linear(3, 2), torch.randn(4, 5, 3)
    weights = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    tangent = torch.func.jvp(layer, (x,), (x,))[1]
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    assert "mkldnn" not in str(traced.graph)
    wanted = torch.autograd.grad(loss(weights, x), layer.weight)[0]
    torch.testing.assert_close(each["weight"].sum(0), wanted)
    torch.testing.assert_close(tangent, x @ layer.weight.t())
    torch.testing.assert_close(traced(x), layer(x))


@needs_onednn
def test_flops_are_counted(onednn: None) -> None:
    x, weight, blocks = torch.randn(5, 8), torch.randn(6, 8), torch.randn(2, 4, 3)
    counts = []
    for enabled in (False, True):
        with torch.backends.mkldnn.flags(enabled=enabled), FlopCounterMode(display=False) as counter:
            linear(x, weight)
            block_product(x, blocks)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 5 * 8 * 6 + 2 * 5 * 8 * 3] * 2
