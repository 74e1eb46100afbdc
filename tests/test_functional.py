"""Pure maths against golden values and oracles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmkit.errors import SpecError
from wmkit.functional import (
    categorical_kl,
    categorical_kl_logits,
    lambda_return_jumpy,
    sample_one_hot,
    straight_through,
    symexp,
    symlog,
    symmetric_bins,
    two_hot_cross_entropy,
    two_hot_mean,
    unimix_probs,
)
from wmkit.nn import (
    OneHotCategorical,
    SquaredError,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(-1)


def test_lambda_return_golden_of_ls_imagine() -> None:
    returns = lambda_return_jumpy(
        column(0.1, 0.5, 1.0, 0.2),
        column(2.0, 3.0, 4.0, 5.0),
        1 - column(0.0, 0.0, 0.1, 0.0),
        column(1.0, 40.0, 1.0, 3.0),
        column(0.0, 2.5, 0.0, 0.4),
        gamma=0.997,
        lmbda=0.95,
        continuation_at="current",
    )
    torch.testing.assert_close(returns, column(7.75363, 7.97543, 5.81383, 5.55394), atol=2e-5, rtol=0)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@settings(max_examples=20, deadline=None)
def test_lambda_return_is_the_literal_recursion(seed: int, lmbda: float) -> None:
    torch.manual_seed(seed)
    reward, value, gain = torch.randn(3, 2, 6, 1).double()
    steps = torch.randint(1, 20, (2, 6, 1)).double()
    keep = torch.rand(2, 6, 1).double()
    for at in ("next", "current"):
        got = lambda_return_jumpy(
            reward, value, keep, steps, gain, gamma=0.9, lmbda=lmbda, continuation_at=at
        )
        for b in range(2):
            ahead = value[b, -1, 0]
            for t in reversed(range(6)):
                r, v, c, d, g = (x[b, t, 0] for x in (reward, value, keep, steps, gain))
                mixed = (1 - lmbda) * v + lmbda * ahead
                if at == "next":
                    ahead = 0.9 ** (d - 1) * r + g + c * 0.9**d * mixed
                else:
                    ahead = c * (0.9 ** (d - 1) * r + g + 0.9**d * mixed)
                torch.testing.assert_close(got[b, t, 0], ahead)


def test_lambda_return_names_what_is_wrong() -> None:
    one = torch.ones(2, 3, 1)
    with pytest.raises(SpecError, match=r"wanted one shape \[\*B, T, 1\]"):
        lambda_return_jumpy(one, one[:, :2], one, one, one, gamma=0.9, lmbda=0.9)
    with pytest.raises(SpecError, match="'next' or 'current'"):
        lambda_return_jumpy(one, one, one, one, one, gamma=0.9, lmbda=0.9, continuation_at="now")  # type: ignore[arg-type]


@given(st.floats(-1e6, 1e6))
def test_symlog_round_trip(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(value)), value, rtol=1e-9, atol=1e-9)


def test_two_hot_equals_the_built_code() -> None:
    bins = symmetric_bins(20.0, 255)
    assert bins[127] == 0 and torch.equal(bins, -bins.flip(0))
    target = torch.cat([torch.randn(50) * 8, bins[[0, 3, 254]], torch.tensor([-99.0, 99.0])])
    logits = torch.randn(len(target), 255)
    code = torch.zeros(len(target), 255)
    for row, y in enumerate(target.clamp(-20, 20)):
        distance = (bins - y).abs() / (bins[1] - bins[0])
        code[row] = (1 - distance).clamp(min=0)
    expected = -(code * logits.log_softmax(-1)).sum(-1)
    found = two_hot_cross_entropy(logits, target, bins)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(code @ bins, target.clamp(-20, 20), atol=1e-3, rtol=1e-4)
    assert two_hot_mean(torch.zeros(1, 255).softmax(-1), bins).item() == 0.0


def test_sampling_follows_the_probabilities() -> None:
    probs = unimix_probs(torch.tensor([[2.0, 0.0, -1.0, 0.5]]), 0.01).expand(200_000, 4)
    sample = sample_one_hot(probs, torch.rand(200_000, 1))
    assert torch.equal(sample.sum(-1), torch.ones(200_000))
    torch.testing.assert_close(sample.mean(0), probs[0], atol=5e-3, rtol=0)
    edge = sample_one_hot(torch.tensor([0.5, 0.0, 0.5]), torch.tensor([1.0 - 1e-7]))
    assert edge.tolist() == [0.0, 0.0, 1.0]


def test_straight_through_and_kl_gradients() -> None:
    logits = torch.randn(3, 2, 4, requires_grad=True)
    probs = unimix_probs(logits, 0.01)
    sample = sample_one_hot(probs, torch.rand(3, 2, 1))
    weight = torch.randn(3, 2, 4)
    (grad,) = torch.autograd.grad((straight_through(sample, probs) * weight).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((probs * weight).sum(), logits)
    torch.testing.assert_close(grad, expected)
    p, q = torch.randn(2, 5, 3, 4)
    oracle = torch.distributions.kl_divergence(
        torch.distributions.Categorical(unimix_probs(p, 0.01)),
        torch.distributions.Categorical(unimix_probs(q, 0.01)),
    ).sum(-1)
    found = categorical_kl(unimix_probs(p, 0.01), unimix_probs(q, 0.01))
    torch.testing.assert_close(found, oracle, atol=1e-5, rtol=1e-5)


def test_squared_error_has_the_gradient_of_its_definition() -> None:
    mean = torch.rand(3, 2, 4, 4, dtype=torch.double, requires_grad=True)
    target = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8)
    plain = (mean - target / 255).square().sum((1, 2, 3))
    same_with_gradients(SquaredError(mean, 3).loss(target), plain, [mean])


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: SquaredError(x, 1).loss(torch.linspace(-1, 1, 7).expand(5, 7)),
        lambda x: SquaredError(x, 1).loss(torch.arange(7, dtype=torch.uint8).expand(5, 7)),
        lambda x: OneHotCategorical(x).entropy,
        lambda x: categorical_kl_logits(x.unsqueeze(-2), torch.zeros(5, 1, 7)),
        lambda x: two_hot_mean(unimix_probs(x, 0.0), symmetric_bins(20.0, 7)),
    ],
    ids=["squares", "pixels", "entropy", "kl", "bins"],
)
def test_losses_stay_in_float32_under_autocast(loss) -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(x)
    torch.testing.assert_close(found, loss(x.float()), rtol=1e-5, atol=1e-6)


def same_with_gradients(found, expected, inputs) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    weight = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
