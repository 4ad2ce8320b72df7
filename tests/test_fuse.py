"""Folded networks: the same outputs with fewer layers, and whatever is looked at or changed is left
alone.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from mmrednet import fuse
from mmrednet.analysis import count_network
from mmrednet.backbones import (
    MSCAN,
    SAN,
    VAN,
    AxialResNet,
    LRNet,
    RedNet,
    SASAResNet,
    SpatialResNet,
)
from mmrednet.backbones.van import VANBlock
from mmrednet.backbones.van_folding import FoldedVANBlock
from mmrednet.fusion import FuseHook
from mmrednet.layers import AttentionStem, Involution, LocalRelation

CHANNELS = 16
BN = dict(type='BN')
LAYERS = {
    '1x1': lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
    '3x3': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=2, dilation=2),
    'grouped': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=4),
    'same': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding='same'),
    'reflect': lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode='reflect'),
    'involution': lambda: Involution(CHANNELS, kernel_size=3, group_channels=8),
    'involution, stride 2': lambda: Involution(CHANNELS, kernel_size=5, stride=2),
    'local relation': lambda: LocalRelation(CHANNELS, kernel_size=3),
}
# layers that keep the norm behind them
OTHERS = {
    'ConvModule': lambda: ConvModule(CHANNELS, CHANNELS, 3, padding=1),
    'pool': lambda: nn.AvgPool2d(3),
    'convolution of a class of its own': lambda: Halved(CHANNELS, CHANNELS, 1),
    'involution of a class of its own': lambda: HalvedInvolution(CHANNELS),
    'transposed': lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3),
}
NORMS = {
    'BN': lambda: nn.BatchNorm2d(CHANNELS),
    'SyncBN': lambda: nn.SyncBatchNorm(CHANNELS),
}
OTHER_NORMS = {
    'identity': nn.Identity,
    'BN, no weight': lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    'GN': lambda: nn.GroupNorm(4, CHANNELS),
    'BN of the batch': lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    'norm of a class of its own': lambda: Doubled(CHANNELS),
}
ACTS = {'ReLU': lambda: nn.ReLU(inplace=True), 'GELU': nn.GELU}


class Halved(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / 2


class HalvedInvolution(Involution):
    def forward(self, x):
        return super().forward(x) / 2


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def settle(module):
    """Give norms statistics and weights as training leaves them, and return the module in eval
    mode.
    """
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -1, 1),
                (norm.running_mean, -1, 1),
                (norm.running_var, 0.5, 2),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    # mmdet's networks return nothing from eval()
    module.eval()
    return module


def sequence(layer='involution', norm='BN', act='ReLU'):
    parts = (
        {**LAYERS, **OTHERS}[layer](),
        {**NORMS, **OTHER_NORMS}[norm](),
        ACTS[act](),
    )
    return settle(nn.Sequential(*parts))


def image(*size, channels=CHANNELS):
    return torch.randn(2, channels, *(size or (11, 14)))


class Calls(TorchDispatchMode):
    """Counts calls of operators."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def calls_of(model, x):
    with torch.no_grad(), Calls() as calls:
        model(x)
    return calls.counts


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('act', ACTS)
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('layer', LAYERS)
def test_a_layer_takes_its_norm(layer, norm, act, memory_format):
    model = sequence(layer, norm, act).to(memory_format=memory_format)
    x = image().contiguous(memory_format=memory_format)
    with torch.no_grad():
        expected = model(x)
        assert fuse(model) is model
        y = model(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert y.stride() == expected.stride()
    takes_act = act == 'ReLU' and 'involution' in layer or layer == '1x1'
    assert [type(part) is nn.Identity for part in model] == [False, True, takes_act]


@pytest.mark.parametrize(
    ('layer', 'norm'),
    [(layer, 'BN') for layer in OTHERS]
    + [(layer, norm) for layer in ('3x3', 'involution') for norm in OTHER_NORMS],
)
def test_other_layers_and_norms_stay(layer, norm):
    model = sequence(layer, norm)
    x, parts = image(), list(model)
    expected = model(x)
    fuse(model)
    assert list(model) == parts
    # the norm inside an involution is folded all the same
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert getattr(model[0], 'scale', None) is None


@pytest.mark.parametrize('layer', ['1x1', '3x3', 'involution'])
@pytest.mark.parametrize('position', [0, 1, 2])
@pytest.mark.parametrize('treatment', ['forward hook', 'pre-hook', 'forward', 'parametrization'])
def test_observed_and_changed_modules_stay(layer, position, treatment):
    model = sequence(layer)
    child, calls = model[position], []
    if treatment == 'forward hook':
        child.register_forward_hook(lambda *_: calls.append(1))
    elif treatment == 'pre-hook':
        child.register_forward_pre_hook(lambda *_: calls.append(1))
    elif treatment == 'forward':
        original = child.forward
        child.forward = lambda x: calls.append(1) or 1.5 * original(x)
    else:
        child = child.conv2.conv if isinstance(child, Involution) else child
        if isinstance(child, nn.ReLU):
            pytest.skip('a ReLU has no weight')
        parametrize.register_parametrization(child, 'weight', Half(calls))
    x = image()
    expected = model(x)
    fuse(model)
    calls.clear()
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert calls


class Half(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, weight):
        self.calls.append(1)
        return weight / 2


def test_an_involution_takes_one_norm():
    model, x = fuse(sequence()), image()
    model[1] = settle(nn.BatchNorm2d(CHANNELS))
    expected = model(x)
    torch.testing.assert_close(fuse(model)(x), expected, atol=1e-5, rtol=1e-5)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match='model must be in eval mode, .* got Sequential with'):
        fuse(sequence().train())


def test_a_norm_in_training_mode_stays():
    model = sequence('1x1')
    model[1].train()
    fuse(model)
    assert type(model[1]) is nn.BatchNorm2d


def test_convolutions_that_share_their_layers_stay():
    """Heads of RTMDet share a convolution, and have norms of their own for each level."""
    levels = [ConvModule(CHANNELS, CHANNELS, 1, norm_cfg=BN) for _ in range(2)]
    levels[1].conv = levels[0].conv
    model, x = settle(nn.ModuleList(levels)), image()
    expected = [level(x) for level in model]
    fuse(model)
    for level, y in zip(model, expected, strict=True):
        assert torch.equal(level(x), y)


@pytest.mark.parametrize(
    'order', [('conv', 'norm', 'act'), ('norm', 'act', 'conv'), ('conv', 'act', 'norm')]
)
def test_the_order_of_a_conv_module_counts(order):
    model = settle(ConvModule(CHANNELS, CHANNELS, 3, norm_cfg=BN, order=order))
    x = image()
    expected = model(x)
    fuse(model)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert (type(model.norm) is nn.Identity) == (order[:2] == ('conv', 'norm'))


class Residual(nn.Module):
    """A user's block, whose ReLU is applied behind the sum."""

    def __init__(self):
        super().__init__()
        self.conv = Involution(CHANNELS)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.norm(self.conv(x)))


def test_a_relu_behind_a_sum_stays():
    model, x = settle(Residual()), image()
    expected = model(x)
    fuse(model)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert type(model.norm) is nn.Identity


def test_a_stem_of_attention_keeps_its_projections():
    stem, x = settle(AttentionStem(3, CHANNELS, num_mixtures=1)), image(channels=3)
    expected = stem(x)
    torch.testing.assert_close(fuse(stem)(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('layer', ['1x1', 'involution'])
def test_other_dtypes(layer, dtype):
    model = sequence(layer).to(dtype)
    x = image().to(dtype)
    with torch.no_grad():
        expected = model(x)
        y = fuse(model)(x)
    assert y.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-12
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('layer', ['1x1', 'involution'])
def test_nan_stays_nan(layer):
    model, x = sequence(layer), image()
    x[0, 3, 4, 4] = torch.nan
    with torch.no_grad():
        expected = model(x)
        y = fuse(model)(x)
    assert expected.isnan().any()
    assert torch.equal(y.isnan(), expected.isnan())


def test_gradients_of_a_folded_involution():
    model, x = sequence(), image().double().requires_grad_()
    model.double()
    (expected,) = torch.autograd.grad(model(x).sin().sum(), x)
    (gradient,) = torch.autograd.grad(fuse(model)(x).sin().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_autocast_compilation_and_traces():
    model, x = sequence(), image()
    expected = fuse(model)(x)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model(x).float(), expected, atol=0.1, rtol=0.1)
    traced = torch.jit.trace(copy.deepcopy(model).requires_grad_(False), x)
    torch.testing.assert_close(traced(x), expected)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)


def test_a_folded_involution_is_one_operator():
    model, x = sequence(), image()
    assert calls_of(model, x)['mmrednet::involution'] == 1
    counts = calls_of(fuse(model), x)
    assert counts['mmrednet::involution_affine'] == 1
    # the norm and the ReLU of the kernel generator
    assert sum(count for name, count in counts.items() if 'relu' in name) == 1
    assert not any('batch_norm' in name for name in counts)


def test_counts_of_a_folded_network():
    model = settle(RedNet(26, base_channels=32))
    x = image(64, 64, channels=3)
    before, after = count_network(copy.deepcopy(model), x), count_network(fuse(model), x)
    assert not after.uncounted
    assert after.total(('op',)) == before.total(('op',))


CONTEXT = dict(type='ContextBlock', ratio=0.25)
PLUGINS = [
    dict(cfg=CONTEXT, position='after_conv3'),
    dict(cfg=dict(CONTEXT, postfix='_1'), position='after_conv1'),
]
SMALL = dict(
    arch=dict(embed_dims=(8, 16, 24), depths=(1, 2, 1), mlp_ratios=(2, 2, 2)), out_indices=(0, 1, 2)
)
# networks, and how many batch norms no layer can take
NETWORKS = {
    'ResNet': (lambda: SpatialResNet(26, base_channels=32), 0),
    'ResNet, plugins': (lambda: SpatialResNet(26, base_channels=32, plugins=PLUGINS), 0),
    'RedNet': (lambda: RedNet(26, base_channels=32), 0),
    'RedNet, plugins': (lambda: RedNet(26, base_channels=32, plugins=PLUGINS), 0),
    'RedNet of DCN': (lambda: RedNet(26, dict(type='DCN'), base_channels=32), 8),
    'SASA': (lambda: SASAResNet(26, base_channels=16), 8),
    'SASA, attention stem': (lambda: SASAResNet(26, base_channels=16, stem='attention'), 9),
    'LRNet': (lambda: LRNet(26, base_channels=16, operator_channels=20), 0),
    # two in a block, one of gamma's two, one behind a stage
    'SAN pairwise': (lambda: SAN(10, base_channels=32), 3 * 10 + 5),
    'SAN patchwise': (lambda: SAN(10, 'patchwise', base_channels=32), 3 * 10 + 5),
    # that of the logits in each of two attentions of eight blocks
    'AxialResNet': (lambda: AxialResNet(0.25, 26, input_size=64), 2 * 8),
    'AxialResNet, axial stem': (
        lambda: AxialResNet(0.25, 26, input_size=64, stem='axial'),
        2 * 11,
    ),
    'VAN': (lambda: VAN(**SMALL), 0),
    'MSCAN': (lambda: MSCAN(**SMALL), 0),
}


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', NETWORKS)
def test_backbones(name, memory_format):
    build, count = NETWORKS[name]
    network = settle(build()).to(memory_format=memory_format)
    x = image(65, 70, channels=3).contiguous(memory_format=memory_format)
    with torch.no_grad():
        expected = network(x)
        outputs = fuse(network)(x)
    for y, z in zip(outputs, expected, strict=True):
        assert y.stride() == z.stride()
        assert (y - z).abs().max() < 2e-5 * z.abs().max()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == count


def test_every_involution_of_a_folded_rednet_applies_its_norm_and_relu():
    network = fuse(settle(RedNet(26, base_channels=32)))
    counts = calls_of(network, image(65, 70, channels=3))
    assert counts['mmrednet::involution_affine'] == 9
    assert all(type(block.relu2) is nn.Identity for block in network.layer2)
    # of the two convolutions of the stem, and of the sum that ends each block
    assert sum(count for name, count in counts.items() if 'relu' in name) == 2 + 8


@pytest.mark.parametrize(
    'name', ['stem', 'layer1.0.downsample', 'layer2.0.conv2', 'layer2.0.conv2.conv1', 'layer2.0']
)
def test_hooks_on_containers_run(name):
    network, calls = settle(RedNet(26, base_channels=32)), []
    network.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        fuse(network)(image(33, 35, channels=3))
    assert len(calls) == 1


def test_a_stock_network_is_folded_as_by_mmcv():
    from mmdet.models import ResNet

    network, x = settle(ResNet(50, base_channels=16, stem_channels=16)), image(64, 64, channels=3)
    expected = fuse_conv_bn(copy.deepcopy(network))(x)
    for y, z in zip(fuse(network)(x), expected, strict=True):
        assert torch.equal(y, z)


def test_the_hook_of_a_runner_folds_a_copy():
    model = sequence().train()
    runner = SimpleNamespace(model=model)
    FuseHook().before_test_epoch(runner)
    assert type(runner.model[1]) is nn.Identity
    assert type(model[1]) is nn.BatchNorm2d


BLOCKS = {'VAN': VAN, 'MSCAN': MSCAN}


def settled_van(name, **arguments):
    network = BLOCKS[name](**SMALL, layer_scale=0.7, **arguments).double()
    for parameter_name, parameter in network.named_parameters():
        if 'layer_scale' in parameter_name:
            nn.init.uniform_(parameter, -1, 1)
    return settle(network)


@pytest.mark.parametrize('name', BLOCKS)
def test_blocks_take_their_norms_and_scales(name):
    network, x = settled_van(name, drop_path_rate=0.2), image(37, 42, channels=3).double()
    expected = network(x)
    for _ in range(2):
        fuse(network)
        for y, z in zip(network(x), expected, strict=True):
            torch.testing.assert_close(y, z, atol=1e-12, rtol=1e-12)
    assert all(type(block) is FoldedVANBlock for block in network.block2)
    assert not any('layer_scale' in key or 'norm2.running' in key for key in network.state_dict())


PARTS = ['norm1', 'norm2', 'attn', 'attn.proj_1', 'attn.proj_2', 'mlp', 'mlp.fc1', 'mlp.fc2']


@pytest.mark.parametrize('part', ['', *(f'.{name}' for name in PARTS), '.drop_path'])
def test_a_block_that_is_looked_at_stays(part):
    network, calls = settled_van('VAN', drop_path_rate=0.2), []
    x = image(37, 42, channels=3).double()
    expected = network(x)
    network.get_submodule(f'block2.1{part}').register_forward_hook(lambda *_: calls.append(1))
    fuse(network)
    assert [type(block) for block in network.block2] == [FoldedVANBlock, VANBlock]
    for y, z in zip(network(x), expected, strict=True):
        torch.testing.assert_close(y, z, atol=1e-12, rtol=1e-12)
    assert calls


def test_blocks_with_other_norms_and_shared_blocks_stay():
    network = settled_van('VAN', norm_cfg=dict(type='GN', num_groups=2))
    assert not any(isinstance(module, FoldedVANBlock) for module in fuse(network).modules())
    network = settled_van('VAN')
    network.block2[1].norm1 = network.block2[0].norm1
    fuse(network)
    assert [type(block) for block in network.block2] == [VANBlock, VANBlock]


@pytest.mark.parametrize('name', BLOCKS)
def test_operators_inside_folded_blocks_are_still_called(name):
    network, calls = settled_van(name), []
    operator = network.block1[0].attn.spatial_gating_unit
    operator.register_forward_hook(lambda *_: calls.append(1))
    fuse(network)(image(37, 42, channels=3).double())
    assert calls == [1]


@pytest.mark.parametrize('name', BLOCKS)
def test_counts_of_folded_blocks(name):
    network, x = settled_van(name).float(), image(64, 64, channels=3)
    before, after = count_network(copy.deepcopy(network), x), count_network(fuse(network), x)
    assert not after.uncounted
    assert after.total(('op',)) == before.total(('op',))
