"""Published checkpoints of Axial-ResNet: csrhddlam/axial-deeplab, and google-research/deeplab2."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import CheckpointError, Family, Format, Layout, register_family
from ..checkpoints.formats import Shapes, State
from .axial_resnet import AxialResNet
from .block_counts import depth_of


def infer_config(_: Format, state: State) -> dict[str, Any]:
    """Return the arguments of the AxialResNet that these tensors fill."""
    # the first convolution of a stem has 64 channels times the factor of all widths
    is_inception = 'stem.0.conv.weight' in state
    factor = len(state['stem.0.conv.weight' if is_inception else 'conv1.weight']) / 64
    names = [name for name, value in AxialResNet.archs.items() if value == factor]
    # a table has 2 * length - 1 positions, and the first stage attends to maps of stride 4
    length = (state['layer1.0.height_block.relative'].shape[1] + 1) // 2
    config = dict(
        arch=names[0] if names else factor,
        depth=depth_of(state, AxialResNet.block_counts, 'AxialResNet'),
        input_size=4 * length,
    )
    return config | dict(stem='inception') if is_inception else config


def resize_tables(state: State, shapes: Shapes) -> State:
    """Cut or prolong tables of relative positions to the lengths of the network.

    The layer counts positions beyond the ends of a table as its ends. So a longer table repeats
    them, and a shorter one leaves out what only larger maps look up.
    """
    result = dict(state)
    for key, value in state.items():
        shape = shapes.get(key)
        if not key.endswith('.relative') or shape is None or value.shape == shape:
            continue
        if value.dim() == len(shape) and value.shape[0] == shape[0]:
            result[key] = _resize_table(value, shape[1])
    return result


def _resize_table(value: Tensor, length: int) -> Tensor:
    border = (length - value.shape[1]) // 2
    if border < 0:
        return value[:, -border : value.shape[1] + border].contiguous()
    first, last = value[:, :1], value[:, -1:]
    return torch.cat([first.expand(-1, border), value, last.expand(-1, border)], 1)


def _drop_indices(state: State, _: Shapes | None) -> State:
    """Leave out the official code's index of relative positions, which the network makes itself."""
    return {key: value for key, value in state.items() if not key.endswith('.flatten_index')}


def _add_indices(state: State) -> State:
    """Put the index of each attention back, behind its table."""
    result: State = {}
    for key, value in state.items():
        result[key] = value
        if key.endswith('.relative'):
            length = (value.shape[1] + 1) // 2
            position = torch.arange(length)
            index = position[:, None] - position + length - 1
            result[key.removesuffix('relative') + 'flatten_index'] = index.flatten()
    return result


# Keras adds the first to variances (batchnorm_epsilon of deeplab2's trainer.proto), torch the
# second
DEEPLAB2_EPSILON, TORCH_EPSILON = 1e-3, 1e-5
DEEPLAB2_BLOCKS = {
    'conv1_bn_act/conv': 'conv_down',
    'conv1_bn_act/batch_norm': 'bn1',
    'conv3_bn/conv': 'conv_up',
    'conv3_bn/batch_norm': 'bn2',
    'shortcut/conv': 'downsample.0',
    'shortcut/batch_norm': 'downsample.1',
    'attention/height_axis': 'height_block',
    'attention/width_axis': 'width_block',
}
# the 7x7 stem, and that of three convolutions
DEEPLAB2_STEM = {
    'stem/conv': 'conv1',
    'stem/batch_norm': 'bn1',
    'stem/conv1_bn_act/conv': 'stem.0.conv',
    'stem/conv1_bn_act/batch_norm': 'stem.0.bn',
    'stem/conv2_bn_act/conv': 'stem.1.conv',
    'stem/conv2_bn_act/batch_norm': 'stem.1.bn',
    'stem/conv3_bn/conv': 'stem.2.conv',
    'stem/conv3_bn/batch_norm': 'stem.2.bn',
}
DEEPLAB2_NORMS = {
    'batch_norm_qkv': 'bn_qkv',
    'batch_norm_similarity': 'bn_similarity',
    'batch_norm_retrieved_output': 'bn_output',
}
# names of a variable, Keras' and ours; kernels are weights as well
KERAS_VARIABLES = {
    'kernel': 'weight',
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}
# what training adds to the variables of the network
TRAINING_VARIABLES = re.compile(
    r'OPTIMIZER_SLOT|ExponentialMovingAverage|^optimizer|save_counter|global_step|iterations'
)


def _load_deeplab2(state: State, _: Shapes | None) -> State:
    """Name and arrange the variables of deeplab2's axial blocks and stems; others keep their
    names.
    """
    variables = {
        _variable_path(key): value
        for key, value in state.items()
        if not TRAINING_VARIABLES.search(key)
    }
    result: State = {}
    try:
        for path in variables:
            # the three tables of positions become one, at the place of the first
            if path.endswith(('key_rpe/embeddings', 'value_rpe/embeddings')):
                continue
            key = _own_key(path)
            value = _arrange_variable(path, variables)
            if key.endswith('.running_var'):
                value = value + (DEEPLAB2_EPSILON - TORCH_EPSILON)
            result[key] = value.contiguous()
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"format 'axial-deeplab2' needs all variables of every attention, with heads in the "
            f'third place of batch_norm_similarity: {type(error).__name__}: {error}.'
        ) from error
    return result


def _variable_path(name: str) -> str:
    """Return a variable's path from its stage on, from names of Keras and of object-based
    checkpoints alike.
    """
    name = name.split('/.ATTRIBUTES')[0].split(':')[0]
    path = '/'.join(part.removeprefix('_') for part in name.split('/'))
    match = re.search(r'(^|/)((stem|stage\d+/block\d+)/.*)', path)
    return match[2] if match else path


def _arrange_variable(path: str, variables: State) -> Tensor:
    """Return the values of a variable as our network has them."""
    value = variables[path]
    # (in, rows) to (rows, in, 1): the weight of a 1D convolution
    if path.endswith('qkv_kernel'):
        axis = path.removesuffix('qkv_kernel')
        return _by_head(value.T, _heads_of(axis, variables))[:, :, None]
    if path.endswith('query_rpe/embeddings'):
        axis = path.removesuffix('query_rpe/embeddings')
        query, key, content = (
            variables[f'{axis}{table}_rpe/embeddings'].T for table in ('query', 'key', 'value')
        )
        # they count from the attending position, our queries and values from the attended one
        return torch.cat([query.flip(1), key, content.flip(1)])
    if '/batch_norm_qkv/' in path:
        axis = path.split('batch_norm_qkv')[0]
        return _by_head(value, _heads_of(axis, variables))
    if '/batch_norm_retrieved_output/' in path:
        # (2, 1, heads, 1, channels) to channels by head, content and position next to each other
        return value[:, 0, :, 0].permute(1, 2, 0).reshape(-1)
    if '/batch_norm_similarity/' in path:
        return value.reshape(-1)
    if path.endswith('/kernel'):
        # (H, W, in, out) to (out, in, H, W)
        return value.permute(3, 2, 0, 1)
    return value


def _heads_of(axis: str, variables: State) -> int:
    return variables[f'{axis}batch_norm_similarity/gamma'].shape[2]


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """Reorder rows from (all queries, all keys, all values) to (query, key, value) of each head."""
    quarter = len(rows) // 4
    parts = rows.split([quarter, quarter, 2 * quarter])
    by_head = [part.unflatten(0, (heads, -1)) for part in parts]
    return torch.cat(by_head, 1).flatten(0, 1)


def _own_key(path: str) -> str:
    """Return our key of a variable, or its path if it has none."""
    *parts, last = path.split('/')
    variable = KERAS_VARIABLES.get(last, last)
    stem = DEEPLAB2_STEM.get('/'.join(parts))
    if stem is not None:
        return f'{stem}.{variable}'
    block = re.fullmatch(r'stage(\d+)/block(\d+)/(.+?)/(.+)', path)
    module = DEEPLAB2_BLOCKS.get('/'.join(parts[2:4]))
    if block is None or module is None:
        return path
    # deeplab2 counts the stem as the first stage, and both from 1
    prefix = f'layer{int(block[1]) - 1}.{int(block[2]) - 1}.{module}'
    if last == 'qkv_kernel':
        return f'{prefix}.qkv_transform.weight'
    if last == 'embeddings':
        return f'{prefix}.relative'
    norm = f'.{DEEPLAB2_NORMS[parts[4]]}' if len(parts) > 4 else ''
    return f'{prefix}{norm}.{variable}'


register_family(
    Family(
        'AxialResNet',
        formats=(
            Format(
                'axial',
                family='AxialResNet',
                priority=50,
                source='csrhddlam/axial-deeplab',
                required=(r'^layer1\.0\.hight_block\.qkv_transform\.weight$',),
                renames=(('.hight_block.', '.height_block.'),),
                layout=Layout(_drop_indices, _add_indices),
            ),
            Format(
                'axial-deeplab2',
                family='AxialResNet',
                priority=60,
                source='google-research/deeplab2: an npz of variables',
                required=(r'attention/_?height_axis/qkv_kernel',),
                layout=Layout(_load_deeplab2),
            ),
        ),
        infer_config=infer_config,
        resize=resize_tables,
    )
)
