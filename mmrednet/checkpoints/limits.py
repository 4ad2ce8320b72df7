"""What a file may state before memory is taken for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

# more than any network here has
MAX_BYTES = 16 << 30
# how many times its own size a file may unpack to: compressed weights gain little, views of one
# tensor are rare
MAX_EXPANSION = 100
MAX_VIEWS = 4
# of a tensor; weights of a 3D convolution have five
MAX_RANK = 16


def plausible(shape: Sequence[object], itemsize: int) -> bool:
    """Return whether a tensor may have this shape: few integers, of which even those beside a zero
    multiply to sizes.

    The rank is looked at before anything is multiplied, since a product of thousands of large
    numbers takes long.
    """
    if len(shape) > MAX_RANK or not all(
        type(size) is int and 0 <= size <= MAX_BYTES for size in shape
    ):
        return False
    return (
        math.prod(max(1, size) for size in shape if isinstance(size, int)) * itemsize <= MAX_BYTES
    )
