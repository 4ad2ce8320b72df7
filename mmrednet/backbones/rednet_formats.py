"""Published checkpoints of RedNet: d-li14/involution, and PaddleClas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..checkpoints import CheckpointError, Family, Format, Layout, register_family
from ..checkpoints.formats import Shapes, State
from .block_counts import depth_of
from .rednet import RedNet

# channels that share a kernel in the published involution, and so in the stem
GROUP_CHANNELS = 16
# the convolution of the stem's involution that generates its kernels
STEM_KERNEL = 'stem.1.conv2.conv.'
STEM_INPUT = 'stem.0.conv.weight'


def stem_kernel_size(state: Mapping[str, Tensor]) -> int | None:
    """Return the kernel size of the involution in the stem, None if it cannot be told.

    The generating convolution has a row for each tap of each group's kernel.
    """
    rows, first = state.get(f'{STEM_KERNEL}weight'), state.get(STEM_INPUT)
    if rows is None or first is None or rows.dim() != 4 or first.dim() != 4:
        return None
    groups = len(first) // GROUP_CHANNELS
    size = math.isqrt(len(rows) // max(1, groups))
    return size if size and size * size * groups == len(rows) else None


def resize_stem(state: State, shapes: Shapes) -> State:
    """Put zeros around the kernels of the stem where the network has larger ones.

    The stem of a classifier has 3x3 kernels, that of a detector 7x7 ones. With zeros around them,
    the larger kernels compute the same.
    """
    size = stem_kernel_size(state)
    if size is None:
        return state
    result = dict(state)
    rows = len(state[f'{STEM_KERNEL}weight'])
    for part in ('weight', 'bias'):
        value, shape = state.get(STEM_KERNEL + part), shapes.get(STEM_KERNEL + part)
        if value is None or shape is None or value.dim() != len(shape) or len(value) != rows:
            continue
        result[STEM_KERNEL + part] = _enlarge(value, rows // size**2, size, shape[0])
    return result


def _enlarge(value: Tensor, groups: int, size: int, rows: int) -> Tensor:
    """Return the rows of kernels with zeros around them, or the same rows if the new size is not a
    larger one of the same parity.
    """
    target = math.isqrt(rows // groups)
    border = (target - size) // 2
    if target * target * groups != rows or border < 1 or size + 2 * border != target:
        return value
    kernels = value.unflatten(0, (groups, size, size))
    larger = kernels.new_zeros(groups, target, target, *value.shape[1:])
    larger[:, border : border + size, border : border + size] = kernels
    return larger.flatten(0, 2)


def stem_hint(state: State, shapes: Shapes) -> str:
    """Return a line on the option that takes the file's stem, '' if it fits."""
    size, key = stem_kernel_size(state), f'{STEM_KERNEL}weight'
    if size is None or key not in shapes or state[key].shape == shapes[key]:
        return ''
    return f'the stem of the file has {size}x{size} kernels: stem_kernel_size={size} takes them'


def infer_config(_: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the RedNet that these tensors fill."""
    config = dict(
        depth=depth_of(state, RedNet.block_counts, 'RedNet'),
        base_channels=len(state['stem.4.conv.weight']),
    )
    size = stem_kernel_size(state)
    if size:
        config['stem_kernel_size'] = size
    return config


def is_in_order(state: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Return whether tensors have a RedNet's shapes one by one, with a linear classifier or nothing
    behind them. The kernels of the stem may have another size.
    """
    values = list(state.values())
    behind = [value.dim() for value in values[len(shapes) :]]
    if (
        f'{STEM_KERNEL}weight' not in shapes
        or len(values) < len(shapes)
        or behind not in ([], [2, 1])
    ):
        return False
    for value, (key, shape) in zip(values, shapes.items(), strict=False):
        same_rank = key.startswith(STEM_KERNEL) and value.dim() == len(shape)
        if value.shape != shape and not same_rank:
            return False
    return True


def _name_by_order(state: State, shapes: Shapes | None) -> State:
    """Give tensors the keys of the network, one by one."""
    if shapes is None:
        raise CheckpointError(
            "format 'rednet-ordered' matches tensors by their order, and needs the network to fill."
        )
    if not is_in_order(state, shapes):
        raise CheckpointError(
            f"format 'rednet-ordered' needs the network's {len(shapes)} shapes in the network's "
            'order, and a linear classifier or nothing behind them; the file has '
            f'{len(state)} tensors, and other ones or another order.'
        )
    return dict(zip(shapes, state.values(), strict=False))


REDNET_KEYS = (r'^stem\.0\.conv\.weight$', r'^layer1\.0\.conv2\.conv2\.conv\.weight$')

register_family(
    Family(
        'RedNet',
        formats=(
            Format(
                'rednet-paddle',
                family='RedNet',
                # before 'rednet', whose keys it has as well
                priority=10,
                source='PaddleClas and Paddle-Image-Models, saved as npz or safetensors',
                required=(*REDNET_KEYS, r'\._variance$'),
                renames=(('._mean$', '.running_mean$'), ('._variance$', '.running_var$')),
                transposed=True,
            ),
            Format(
                'rednet',
                family='RedNet',
                priority=20,
                source='d-li14/involution: classifiers, detectors, segmenters',
                required=REDNET_KEYS,
                prefix='backbone.',
                classifier='head.fc.',
            ),
            Format(
                'rednet-ordered',
                family='RedNet',
                priority=30,
                source='d-li14/involution: rednet50.pth for detectors, whose names are matched by '
                'their order',
                layout=Layout(_name_by_order),
                recognise=is_in_order,
            ),
        ),
        infer_config=infer_config,
        resize=resize_stem,
        hint=stem_hint,
    )
)
