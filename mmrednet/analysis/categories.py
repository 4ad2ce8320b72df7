"""The operators that are counted, by category, and the two conventions: MACs and FLOPs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# The operators of each category, without their namespace. `--count` of get_flops.py takes both.
CATEGORIES: dict[str, tuple[str, ...]] = {
    'op': (
        'conv',
        'linear',
        'addmm',
        'mm',
        'bmm',
        'baddbmm',
        'matmul',
        'einsum',
        'scaled_dot_product_attention',
        'aggregate',
        'correlate',
        'scatter',
        'deform_conv',
    ),
    'norm': ('batch_norm', 'group_norm', 'layer_norm', 'instance_norm'),
    'pool': (
        'max_pool2d',
        'avg_pool2d',
        'adaptive_avg_pool2d',
        'adaptive_max_pool2d',
        'mean',
        'amax',
    ),
    'resize': (
        'upsample_nearest2d',
        'upsample_bilinear2d',
        'upsample_bicubic2d',
        'affine_grid_generator',
        'grid_sampler',
        'sampling',
        'roi_align',
    ),
    'bias': ('bias',),
    'act': (
        'relu',
        'relu6',
        'leaky_relu',
        'elu',
        'gelu',
        'silu',
        'mish',
        'sigmoid',
        'tanh',
        'hardtanh',
        'hardswish',
        'hardsigmoid',
        'softplus',
        'prelu',
        'clamp',
        'clamp_min',
    ),
    'softmax': ('softmax', 'log_softmax'),
    'elementwise': (
        'add',
        'sub',
        'rsub',
        'mul',
        'div',
        'neg',
        'abs',
        'square',
        'pow',
        'sqrt',
        'rsqrt',
        'exp',
        'log',
        'log2',
        'sin',
        'cos',
        'reciprocal',
        'minimum',
        'maximum',
        'lerp',
        'addcmul',
        'sum',
        'cumsum',
        'norm',
        'linalg_vector_norm',
    ),
}
OPERATORS = tuple(name for names in CATEGORIES.values() for name in names)

# what mmengine.analysis.get_model_complexity_info counts
DEFAULT_COUNT = ('op', 'norm', 'resize', 'adaptive_avg_pool2d')

# These count multiply-adds, each of which is two FLOPs. All other counts are the same in both
# conventions; upsampling to the nearest neighbour copies values.
PRODUCTS = {*CATEGORIES['op'], *CATEGORIES['resize']} - {'upsample_nearest2d'}


def check_count(count: Sequence[str]) -> None:
    """Check a list of categories and operators.

    Raises:
        ValueError: The list is empty, or an item is neither a category nor an operator in one.
    """
    unknown = set(count) - set(CATEGORIES) - set(OPERATORS)
    if unknown or not count:
        raise ValueError(
            f'count must be categories, {", ".join(CATEGORIES)}, or operators in them such as '
            f"'relu', got {list(count)}."
        )


def select(counts: Counter[str], count: Sequence[str], *, flops: bool = False) -> Counter[str]:
    """Return the counts of the operators in some categories.

    Args:
        counts: Multiply-adds, or values, of each operator.
        count: Categories (keys of ``CATEGORIES``) or operators to keep.
        flops: Whether to count a multiply-add as two.

    Raises:
        ValueError: See :func:`check_count`.
    """
    check_count(count)
    selected: Counter[str] = Counter()
    for item in count:
        for name in CATEGORIES.get(item, (item,)):
            if counts[name]:
                factor = 2 if flops and name in PRODUCTS else 1
                selected[name] = factor * counts[name]
    return selected
