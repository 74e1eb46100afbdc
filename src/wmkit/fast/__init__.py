"""Every short cut, behind one switch.

Each function here has the signature of the plain function it replaces, computes it to rounding, and *is* it
where a short cut may not be taken (:func:`enabled`), also inside :func:`disabled`. A part calls it in one
place and knows no more of it.
"""

from wmkit.fast.allocator import keep_freed_memory
from wmkit.fast.conv import (
    doubling_conv,
    halving_conv,
    strided_conv,
    strided_transposed_conv,
    upsampling_conv,
)
from wmkit.fast.first_layers import FirstLayers, Products
from wmkit.fast.fused import (
    add_blocks,
    coded_cross_entropy,
    dropout,
    gated_update,
    rms_norm,
    sample_index,
    softmax,
    squared_norm,
    weighted_sum,
)
from wmkit.fast.groups import in_groups
from wmkit.fast.last_layer import LastLayer
from wmkit.fast.loop_weights import loop_weights
from wmkit.fast.products import (
    block_product,
    linear,
    linear_of_parts,
    matmul,
    one_hot_linear,
    onednn_is_quicker,
    transposed_matmul,
)
from wmkit.fast.room import Room
from wmkit.fast.switch import disabled, enabled, rows_are_free

__all__ = [
    "FirstLayers",
    "LastLayer",
    "Products",
    "Room",
    "add_blocks",
    "block_product",
    "coded_cross_entropy",
    "disabled",
    "doubling_conv",
    "dropout",
    "enabled",
    "gated_update",
    "halving_conv",
    "in_groups",
    "keep_freed_memory",
    "linear",
    "linear_of_parts",
    "loop_weights",
    "matmul",
    "one_hot_linear",
    "onednn_is_quicker",
    "rms_norm",
    "rows_are_free",
    "sample_index",
    "softmax",
    "squared_norm",
    "strided_conv",
    "strided_transposed_conv",
    "transposed_matmul",
    "upsampling_conv",
    "weighted_sum",
]
