"""Values that published files arrange differently: functions on the dicts of a backbone, there and
back.

``to_ours`` takes a dict in our names, as far as names alone could be changed, and the shapes of the
network to fill if they are known; ``to_theirs`` undoes it, and is None where that cannot be done
exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError
from .fitting import STEM_KERNEL

State = dict[str, Tensor]
Shapes = Mapping[str, torch.Size]


class Layout(NamedTuple):
    """How values become ours, and theirs again."""

    to_ours: Callable[[State, Shapes | None], State]
    to_theirs: Callable[[State], State] | None = None


LINEAR_GATE = re.compile(r'\.cbam\.channel\.fc\d\.weight$')


def _gates_to_convolutions(state: State, _: Shapes | None) -> State:
    return {
        name: value[:, :, None, None] if LINEAR_GATE.search(name) and value.dim() == 2 else value
        for name, value in state.items()
    }


def _gates_to_linear(state: State) -> State:
    return {
        name: value.flatten(1) if LINEAR_GATE.search(name) else value
        for name, value in state.items()
    }


# a linear layer's matrix is the kernel of a 1x1 convolution
LINEAR_GATES = Layout(_gates_to_convolutions, _gates_to_linear)


def _drop_indices(state: State, _: Shapes | None) -> State:
    return {name: value for name, value in state.items() if not name.endswith('.flatten_index')}


def _add_indices(state: State) -> State:
    """Put back the table of relative positions that each attention of length K has, behind its
    embeddings.
    """
    result: State = {}
    for name, value in state.items():
        result[name] = value
        if name.endswith('.relative'):
            place = torch.arange((value.shape[1] + 1) // 2)
            result[name.removesuffix('relative') + 'flatten_index'] = (
                place[:, None] - place + len(place) - 1
            ).flatten()
    return result


AXIAL = Layout(_drop_indices, _add_indices)


def in_order(state: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Return whether tensors have a network's shapes one by one, with a linear classifier or
    nothing behind them.

    The kernels of a RedNet's stem may have another size.
    """
    values = list(state.values())
    return (
        len(values) >= len(shapes)
        and [value.dim() for value in values[len(shapes) :]] in ([], [2, 1])
        and all(
            value.shape == shape or name.startswith(STEM_KERNEL) and value.dim() == len(shape)
            for value, (name, shape) in zip(values, shapes.items(), strict=False)
        )
    )


def _by_order(state: State, shapes: Shapes | None) -> State:
    """Name tensors by their place: the file's order is that of the network."""
    if shapes is None:
        raise CheckpointError(
            "format 'rednet-ordered' matches tensors by their order, and needs the network to fill."
        )
    if not in_order(state, shapes):
        raise CheckpointError(
            f"format 'rednet-ordered' needs the network's {len(shapes)} shapes in the network's "
            'order, and a linear '
            f'classifier or nothing behind them; the file has {len(state)} tensors, and other ones '
            'or another order.'
        )
    return dict(zip(shapes, state.values(), strict=False))


ORDERED = Layout(_by_order)

# Keras adds this to the variances (batchnorm_epsilon of deeplab2's trainer.proto), torch's norms
# 1e-5
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
DEEPLAB2_NORMS = {
    'batch_norm_qkv': 'bn_qkv',
    'batch_norm_similarity': 'bn_similarity',
    'batch_norm_retrieved_output': 'bn_output',
}
KERAS_NORM = {
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}


# what training adds to the variables of the network
DEEPLAB2_OTHERS = re.compile(
    r'OPTIMIZER_SLOT|ExponentialMovingAverage|^optimizer|save_counter|global_step|iterations'
)


def _deeplab2_path(name: str) -> str:
    """Return a variable's path from its stage on, of names of Keras and of object-based checkpoints
    alike.
    """
    name = name.split('/.ATTRIBUTES')[0].split(':')[0]
    path = '/'.join(part.removeprefix('_') for part in name.split('/'))
    found = re.search(r'(^|/)((stem|stage\d+/block\d+)/.*)', path)
    return found[2] if found else path


def _from_deeplab2(state: State, _: Shapes | None) -> State:
    try:
        return _arrange_deeplab2(
            {
                _deeplab2_path(name): value
                for name, value in state.items()
                if not DEEPLAB2_OTHERS.search(name)
            }
        )
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"format 'axial-deeplab2' needs all variables of every attention, with heads in the "
            f'third place of batch_norm_similarity: {type(error).__name__}: {error}.'
        ) from error


def _arrange_deeplab2(variables: State) -> State:
    """Name and arrange the variables of deeplab2's axial blocks and 7x7 stem; others keep their
    names.
    """
    result: State = {}
    for path, value in variables.items():
        name = _deeplab2_name(path)
        if path.endswith('qkv_kernel'):
            axis = path.removesuffix('qkv_kernel')
            heads = variables[f'{axis}batch_norm_similarity/gamma'].shape[2]
            result[name] = _per_head(value.T, heads)[:, :, None]
        elif path.endswith('query_rpe/embeddings'):
            axis = path.removesuffix('query_rpe/embeddings')
            query, key, content = (
                variables[f'{axis}{kind}_rpe/embeddings'].T for kind in ('query', 'key', 'value')
            )
            # theirs count from the attending position, our queries and values from the attended one
            result[name] = torch.cat([query.flip(1), key, content.flip(1)])
        elif path.endswith('_rpe/embeddings'):
            continue
        elif '/batch_norm_qkv/' in path:
            heads = variables[
                path.split('batch_norm_qkv')[0] + 'batch_norm_similarity/gamma'
            ].shape[2]
            result[name] = _per_head(value, heads)
        elif '/batch_norm_retrieved_output/' in path:
            result[name] = value[:, 0, :, 0].permute(1, 2, 0).reshape(-1)
        elif path.endswith('/kernel'):
            result[name] = value.permute(3, 2, 0, 1)
        else:
            result[name] = value.reshape(-1) if '/batch_norm_similarity/' in path else value
        if name.endswith('.running_var'):
            result[name] = result[name] + (DEEPLAB2_EPSILON - TORCH_EPSILON)
    return {name: value.contiguous() for name, value in result.items()}


def _per_head(rows: Tensor, heads: int) -> Tensor:
    """Reorder rows from (all queries, all keys, all values) to (query, key, value) of each head."""
    query, key, content = rows.split([len(rows) // 4, len(rows) // 4, len(rows) // 2])
    return torch.cat([part.unflatten(0, (heads, -1)) for part in (query, key, content)], 1).flatten(
        0, 1
    )


def _deeplab2_name(path: str) -> str:
    *parts, last = path.split('/')
    last = KERAS_NORM.get(last, 'weight' if last == 'kernel' else last)
    if parts[:2] in (['stem', 'conv'], ['stem', 'batch_norm']):
        return f'{"conv1" if parts[1] == "conv" else "bn1"}.{last}'
    block = re.fullmatch(r'stage(\d+)/block(\d+)/(.+?)/(.+)', path)
    ours = DEEPLAB2_BLOCKS.get('/'.join(parts[2:4])) if block else None
    if block is None or ours is None:
        return path
    # the stem is their first stage
    prefix = f'layer{int(block[1]) - 1}.{int(block[2]) - 1}.{ours}'
    if last == 'qkv_kernel':
        return f'{prefix}.qkv_transform.weight'
    if last == 'embeddings':
        return f'{prefix}.relative'
    return f'{prefix}.{DEEPLAB2_NORMS[parts[4]]}.{last}' if len(parts) > 4 else f'{prefix}.{last}'


DEEPLAB2 = Layout(_from_deeplab2)
