"""S5: initialisation, discretisation, the scans and the layer against slow dense systems."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wmkit import backbones
from wmkit.errors import ConfigError
from wmkit.functional import discretise, hippo_normal, linear_scan

C128 = torch.complex128


def hippo(size: int) -> Tensor:
    """LegS plus its rank-one part, entry by entry."""
    normal = torch.zeros(size, size, dtype=torch.float64)
    for n in range(size):
        for k in range(size):
            legs = -(((2 * n + 1) * (2 * k + 1)) ** 0.5) if n > k else -(n + 1.0) if n == k else 0.0
            normal[n, k] = legs + ((n + 0.5) * (k + 0.5)) ** 0.5
    return normal


def test_hippo_normal() -> None:
    eigenvalues, vectors = hippo_normal(64)
    assert (eigenvalues.real + 0.5).abs().max() < 1e-12
    torch.testing.assert_close(eigenvalues[:32].conj(), eigenvalues[32:].flip(0))
    torch.testing.assert_close(vectors.mH @ vectors, torch.eye(64, dtype=C128))
    torch.testing.assert_close((vectors * eigenvalues) @ vectors.mH, hippo(64).to(C128))
    assert eigenvalues.imag.abs().min().item() == pytest.approx(0.264, abs=1e-3)
    assert eigenvalues.imag.abs().max().item() == pytest.approx(1303, abs=1)


@pytest.mark.parametrize("delta", [1e-6, 0.1])
def test_zero_order_hold_is_a_matrix_exponential(delta: float) -> None:
    """exp of ``[[A, B], [0, 0]] Δ`` holds Ā and B̄."""
    eigenvalues, vectors = hippo_normal(8)
    b = torch.randn(8, 3, dtype=torch.float64)
    augmented = torch.zeros(11, 11, dtype=torch.float64)
    augmented[:8, :8], augmented[:8, 8:] = hippo(8), b
    exponential = torch.linalg.matrix_exp(augmented * delta)
    decay, factor = discretise(eigenvalues, torch.full((8,), delta, dtype=torch.float64))
    torch.testing.assert_close((vectors * decay) @ vectors.mH, exponential[:8, :8].to(C128))
    held = (vectors * factor) @ vectors.mH @ b.to(C128)
    torch.testing.assert_close(held / delta, exponential[:8, 8:].to(C128) / delta)


def test_bilinear_is_a_solve() -> None:
    eigenvalues, vectors = hippo_normal(8)
    decay, factor = discretise(eigenvalues, torch.full((8,), 0.1, dtype=torch.float64), "bilinear")
    one = torch.eye(8, dtype=torch.float64)
    step = torch.linalg.solve(one - 0.05 * hippo(8), one)
    torch.testing.assert_close((vectors * decay) @ vectors.mH, (step @ (one + 0.05 * hippo(8))).to(C128))
    torch.testing.assert_close((vectors * factor) @ vectors.mH, (0.1 * step).to(C128))


def systems(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(length)
    decay = torch.polar(torch.rand(4).double(), torch.randn(4).double())
    inputs, initial = torch.randn(3, length, 4, dtype=C128), torch.randn(3, 4, dtype=C128)
    reset = torch.rand(3, length) < 0.15
    reset[0], reset[1, 0] = False, True
    return decay, inputs, initial, reset


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_scans_equal_the_loop_with_gradients(length: int) -> None:
    decay, inputs, initial, reset = systems(length)
    leaves = [x.requires_grad_() for x in (decay, inputs, initial)]
    expected = []
    for b in range(3):  # one number at a time
        x = list(initial[b])
        for t in range(length):
            x = [(0 if reset[b, t] else decay[p] * x[p]) + inputs[b, t, p] for p in range(4)]
            expected += x
    expected = torch.stack(expected).view(3, length, 4)
    weight = torch.randn(3, length, 4, dtype=C128)
    wanted = torch.autograd.grad((expected * weight).sum().abs(), leaves)
    for form in ("loop", "doubling", "masked_dual"):
        got = linear_scan(*leaves, reset, form)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
        grads = torch.autograd.grad((got * weight).sum().abs(), leaves)
        torch.testing.assert_close(grads, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_half_of_each_pair_is_the_dense_real_system(method: str) -> None:
    """The layer's system, rebuilt from both halves as real matrices and stepped with a real state."""
    torch.manual_seed(0)
    delta, states, width = 0.07, 8, 3
    layer = backbones.build("s5", width, width, states=states, discretisation=method).double().layers[0]
    torch.nn.init.constant_(layer.log_delta, torch.tensor(delta).double().log())
    half = hippo_normal(states)[1][:, : states // 2]  # eigenvectors; the others are their conjugates
    half_b = torch.view_as_complex(layer.write.weight.view(-1, 2, width).mT.contiguous())  # [P/2, H]
    half_c = torch.view_as_complex(layer.read.weight.view(width, -1, 2).contiguous()).conj() / 2
    a, b, c = hippo(states), 2 * (half @ half_b).real, 2 * (half_c @ half.mH).real
    torch.testing.assert_close(half.mH @ b.to(C128), half_b, atol=1e-6, rtol=0)  # a real matrix, rotated
    if method == "zoh":
        decay = torch.linalg.matrix_exp(a * delta)
        b = torch.linalg.solve(a, (decay - torch.eye(states).double()) @ b)
    else:
        inverse = torch.linalg.inv(torch.eye(states).double() - delta / 2 * a)
        decay, b = inverse @ (torch.eye(states).double() + delta / 2 * a), delta * inverse @ b

    u, x, expected = torch.randn(20, width).double(), torch.zeros(states).double(), []
    for u_t in u:
        x = decay @ x + b @ u_t
        expected.append(c @ x)
    gate, factor = layer.discretised()
    none = torch.zeros(1, 20, dtype=torch.bool)
    inputs = (factor * layer.written(u)).unsqueeze(0)
    visited = linear_scan(gate, inputs, torch.zeros(1, states // 2, dtype=C128), none)
    got = layer.read(torch.view_as_real(visited[0]).flatten(-2))
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["doubling", "masked_dual"])
def test_stack_scans_as_it_steps(form: str) -> None:
    torch.manual_seed(0)
    model = backbones.build(
        "s5", 5, 12, width=8, states=16, blocks=2, hidden=10, discretisation="bilinear", scan_form=form
    ).double()
    x, reset = torch.randn(3, 33, 5).double(), torch.rand(3, 33) < 0.1
    u, last = model.scan(x, model.initial(3), reset)
    loop, carry, outputs = model.bind(), model.initial(3), []
    for t in range(33):
        out, carry = loop.step(x[:, t], carry, reset[:, t])
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 1), u, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(carry, last, atol=1e-12, rtol=1e-12)
    u.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert len(model.system_parameters()) == 2 * 4


def test_a_loop_discretises_once_and_learns_as_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(eigenvalues: Tensor, delta: Tensor, method: str) -> tuple[Tensor, Tensor]:
        made.append(method)
        return discretise(eigenvalues, delta, method)

    model, x = backbones.build("s5", 3, 8, layers=2), torch.randn(2, 6, 3)
    monkeypatch.setattr("wmkit.backbones.s5.discretise", counted)
    gradients = []
    for bound in (True, False):
        made.clear()
        loop, carry, reset = model.bind(), model.initial(2), torch.zeros(2, dtype=torch.bool)
        for t in range(6):
            u, carry = loop.step(x[:, t], carry) if bound else model.step(x[:, t], carry, reset)
        gradients.append(torch.autograd.grad(u.square().sum(), model.system_parameters()))
        assert len(made) == 2 * (1 if bound else 7)  # once per layer
    torch.testing.assert_close(*gradients)


def test_no_parameters_are_unstable() -> None:
    for method in ("zoh", "bilinear"):
        model = backbones.build("s5", 4, 4, states=32, discretisation=method)
        with torch.no_grad():
            for p in model.system_parameters():
                p.copy_(5 * torch.randn_like(p))
            assert all(layer.discretised()[0].abs().max() <= 1 for layer in model.layers)


def test_bad_options() -> None:
    for options, message in (
        ({"states": 12, "blocks": 4}, "12 states cannot be cut into 4 blocks"),
        ({"discretisation": "euler"}, "discretisation 'euler' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            backbones.build("s5", 4, 4, **options)
    with pytest.raises(ConfigError, match="scan 'fft' is unknown"):
        linear_scan(*systems(3), "fft")
