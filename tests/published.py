"""Files in the official names, filled by the rule of ``golden``, as each project wraps them."""

import golden
import torch

from mmrednet.backbones import NAT, DiNATs, SpatialResNet


def official(name):
    """Return the official state dict of a case, with the index tables that the reference builds
    itself.
    """
    case, _ = golden.load(name)
    values, state = golden.state_dict(case), {}
    for key, shape, _ in case['state_dict']:
        if key.endswith('flatten_index'):
            place = torch.arange(int(shape[0] ** 0.5))
            values[key] = (place[:, None] - place + len(place) - 1).flatten()
        state[key] = values[key]
    return case, state


def wrapped(state, wrapper):
    """Return a state dict with something before all names."""
    return {wrapper + key: value for key, value in state.items()}


def replaced(state, *pairs):
    """Return a state dict with fragments of names replaced."""
    result = {}
    for key, value in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        result[key] = value
    return result


def filled(network, head, channels):
    """Return the state of a network and of a classifier of ten classes, filled in single
    precision."""
    state = {
        key: value if key.endswith('num_batches_tracked') else golden.fill(key, value.shape).float()
        for key, value in network.state_dict().items()
    }
    return state | {
        f'{head}{part}': golden.fill(f'{head}{part}', shape).float()
        for part, shape in (('weight', (10, channels)), ('bias', (10,)))
    }


def nat():
    """Return a small NAT classifier with scales of the branches."""
    network = NAT((16, (1, 2, 1, 1), 2, 1e-5, 0.0), out_indices=(3,))
    return replaced(filled(network, 'head.', 128), ('norm3.', 'norm.'))


def dinat_s():
    """Return a small DiNAT_s classifier."""
    network = DiNATs((16, (1, 2, 1, 1), 4, None, 0.0), out_indices=(3,))
    return replaced(filled(network, 'head.', 128), ('norm3.', 'norm.'))


def paddle_rednet(state):
    """Return a RedNet classifier in Paddle's names: no wrapper, no counters, the classifier's
    matrix is (in, out).
    """
    state = replaced(
        {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')},
        ('backbone.', ''),
        ('head.fc.', 'fc.'),
        ('running_mean', '_mean'),
        ('running_var', '_variance'),
    )
    return state | {'fc.weight': state['fc.weight'].T.contiguous()}


def mmpretrain_van(state):
    """Return a VAN classifier in mmpretrain's names."""
    head = {f'head.fc.{part}': state[f'head.{part}'] for part in ('weight', 'bias')}
    backbone = {key: value for key, value in state.items() if not key.startswith('head.')}
    return (
        wrapped(
            replaced(
                backbone,
                ('block', 'blocks'),
                ('.proj.', '.projection.'),
                ('conv0', 'DW_conv'),
                ('conv_spatial', 'DW_D_conv'),
                ('dwconv.dwconv', 'dwconv'),
            ),
            'backbone.',
        )
        | head
    )


def resnet(gate=None, *pairs, classifier='fc.'):
    """Return a narrow ResNet-26 with a gate per block and a classifier, in other names."""
    plugins = [dict(cfg=dict(type=f'mmrednet.{gate}'), position='after_conv3')] if gate else None
    return replaced(
        filled(SpatialResNet(26, base_channels=16, plugins=plugins), classifier, 512), *pairs
    )


def mmpretrain_se_resnet():
    """Return an SE-ResNet in mmpretrain's names."""
    state = resnet(
        'SE', ('.se_layer.fc1', '.se_layer.conv1.conv'), ('.se_layer.fc2', '.se_layer.conv2.conv')
    )
    head = {f'head.{key}': state.pop(key) for key in ('fc.weight', 'fc.bias')}
    return wrapped(state, 'backbone.') | head


def caffe_se_resnet():
    """Return an SE-ResNet in the names of pretrained-models.pytorch."""
    state = resnet('SE', ('.se_layer.', '.se_module.'), classifier='last_linear.')
    return {
        f'layer0.{key}' if key.startswith(('conv1.', 'bn1.')) else key: value
        for key, value in state.items()
    }


def cbam_resnet():
    """Return a CBAM-ResNet in the names of its authors, whose gates over channels are linear
    layers.
    """
    state = resnet(
        'CBAM',
        ('.cbam.channel.fc1', '.cbam.ChannelGate.mlp.1'),
        ('.cbam.channel.fc2', '.cbam.ChannelGate.mlp.3'),
        ('.cbam.spatial.', '.cbam.SpatialGate.spatial.'),
    )
    return wrapped(
        {
            key: value[..., 0, 0] if '.mlp.' in key and value.dim() == 4 else value
            for key, value in state.items()
        },
        'module.',
    )


def deeplab2(state):
    """Return an Axial-ResNet in the names and arrangement of deeplab2: object-based, kernels (H, W,
    in, out).
    """
    blocks = {
        'conv_down': '_conv1_bn_act/_conv',
        'bn1': '_conv1_bn_act/_batch_norm',
        'conv_up': '_conv3_bn/_conv',
        'bn2': '_conv3_bn/_batch_norm',
        'downsample.0': '_shortcut/_conv',
        'downsample.1': '_shortcut/_batch_norm',
        'hight_block': '_attention/_height_axis',
        'width_block': '_attention/_width_axis',
    }
    norms = {
        'bn_qkv': '_batch_norm_qkv',
        'bn_similarity': '_batch_norm_similarity',
        'bn_output': '_batch_norm_retrieved_output',
    }
    parts = {
        'weight': 'gamma',
        'bias': 'beta',
        'running_mean': 'moving_mean',
        'running_var': 'moving_variance',
    }
    result = {}
    for key, value in state.items():
        if key.endswith(('num_batches_tracked', 'flatten_index')) or key.startswith('fc.'):
            continue
        if key.endswith('running_var'):
            # epsilon is 1e-3 there
            value = value - (1e-3 - 1e-5)
        *path, last = key.split('.')
        if path[0] == 'stem':
            layer = ('_conv1_bn_act', '_conv2_bn_act', '_conv3_bn')[int(path[1])]
            place = f'_stem/{layer}/{dict(conv="_conv", bn="_batch_norm")[path[2]]}'
        elif path[0] in ('conv1', 'bn1'):
            place = '_stem/_conv' if path[0] == 'conv1' else '_stem/_batch_norm'
        else:
            kind, inner = (
                ('.'.join(path[2:4]), path[4:]) if path[2] == 'downsample' else (path[2], path[3:])
            )
            place = f'_stage{int(path[0][-1]) + 1}/_block{int(path[1]) + 1}/{blocks[kind]}'
            if last == 'relative':
                half = len(value) // 4
                for name, table in zip(
                    ('query', 'key', 'value'), value.split([half, half, 2 * half]), strict=True
                ):
                    table = table if name == 'key' else table.flip(1)
                    result[f'encoder/{place}/_{name}_rpe/_embeddings'] = table.T
                continue
            if inner == ['qkv_transform']:
                result[f'encoder/{place}/qkv_kernel'] = split_heads(value[..., 0]).T
                continue
            if inner:
                place += f'/{norms[inner[0]]}'
                if inner[0] == 'bn_qkv':
                    value = split_heads(value)
                elif inner[0] == 'bn_similarity':
                    value = value.reshape(3, 1, 8, 1, 1)
                else:
                    value = value.reshape(8, -1, 2).permute(2, 0, 1)[:, None, :, None, :]
        if value.dim() == 4 and last == 'weight':
            result[f'encoder/{place}/kernel'] = value.permute(2, 3, 1, 0)
        else:
            result[f'encoder/{place}/{parts[last]}'] = value
    slots = {f'{name}/.OPTIMIZER_SLOT/optimizer/m': value + 1 for name, value in result.items()}
    result |= slots | {'save_counter': torch.tensor(7)}
    return {
        f'{name}/.ATTRIBUTES/VARIABLE_VALUE': value.contiguous() for name, value in result.items()
    }


def split_heads(rows, heads=8):
    """Return rows of (query, key, value) of each head as all queries, all keys, all values."""
    parts = rows.unflatten(0, (heads, -1))
    quarter = parts.shape[1] // 4
    return torch.cat(
        [part.flatten(0, 1) for part in parts.split([quarter, quarter, 2 * quarter], 1)]
    )
