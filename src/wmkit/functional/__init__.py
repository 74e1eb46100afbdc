"""Pure maths: tensors in, tensors out, no parameters, no TensorDict."""

from wmkit.functional.embeddings import (
    covariance_penalty,
    cross_correlation,
    epps_pulley,
    sigreg,
    variance_hinge,
)
from wmkit.functional.latents import (
    categorical_kl,
    categorical_kl_logits,
    gaussian_kl,
    one_hot,
    sample_index,
    sample_one_hot,
    straight_through,
    unimix_probs,
)
from wmkit.functional.precision import autocast_dtype, rounded, widened
from wmkit.functional.returns import discount_sum, lambda_return_jumpy, replay_lambda_return
from wmkit.functional.shapes import check_equal, check_factor, check_least, check_samples, check_shape
from wmkit.functional.state_space import discretise, hippo_normal, linear_scan
from wmkit.functional.two_hot import (
    symexp,
    symexp_bins,
    symlog,
    symmetric_bins,
    two_hot,
    two_hot_cross_entropy,
    two_hot_mean,
)

__all__ = [
    "autocast_dtype",
    "categorical_kl",
    "categorical_kl_logits",
    "check_equal",
    "check_factor",
    "check_least",
    "check_samples",
    "check_shape",
    "covariance_penalty",
    "cross_correlation",
    "discount_sum",
    "discretise",
    "epps_pulley",
    "gaussian_kl",
    "hippo_normal",
    "lambda_return_jumpy",
    "linear_scan",
    "one_hot",
    "replay_lambda_return",
    "rounded",
    "sample_index",
    "sample_one_hot",
    "sigreg",
    "straight_through",
    "symexp",
    "symexp_bins",
    "symlog",
    "symmetric_bins",
    "two_hot",
    "two_hot_cross_entropy",
    "two_hot_mean",
    "unimix_probs",
    "variance_hinge",
    "widened",
]
