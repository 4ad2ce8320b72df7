"""The contract of spatial operators, run for every operator that is registered."""

import copy
import pickle
import re
import sys
from importlib import import_module
from pathlib import Path

import golden
import pytest
import torch
from operators import EXAMPLES, USERS, dynamic_conv, register_file
from running import run_code
from snippets import snippets
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize, prune

from mmrednet import fuse
from mmrednet.analysis import count_network
from mmrednet.backbones import SpatialResNet
from mmrednet.layers import OPERATORS as TABLE
from mmrednet.layers import AttentionStem, Hamburger, build_spatial, spatial_operator

ROOT = Path(__file__).parents[1]
CHANNELS = 16
# of these the result is contiguous, or permuted, when the input is channels-last
CONTIGUOUS = ('AxialAttention', 'DCN', 'DCNv2')


# an operator that a user registers
DynamicConv = dynamic_conv()
OPERATORS = {**EXAMPLES, **USERS, 'DynamicConv': dict(type='DynamicConv', **DynamicConv.example)}
LAYERS = {
    **{name: lambda cfg=cfg: build_spatial(cfg, CHANNELS) for name, cfg in OPERATORS.items()},
    'convolution': lambda: build_spatial(None, CHANNELS),
    'AttentionStem': lambda: AttentionStem(CHANNELS, CHANNELS, num_heads=2),
    'Hamburger': lambda: Hamburger(CHANNELS, norm_cfg=dict(type='BN'), ham_kwargs=dict(MD_R=4)),
}


def drawn(layer):
    """Return a layer in eval mode and float64, with weights and statistics that all matter."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return layer.double().eval()


def feature_map(*size, batch=2, **options):
    return torch.randn(batch, CHANNELS, *size, dtype=torch.float64, **options)


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('size', [(8, 6), (7, 9), (1, 2)])
@pytest.mark.parametrize('name', [*OPERATORS, 'convolution'])
def test_sizes_and_gradients(name, size, dilation, stride):
    cfg = OPERATORS.get(name)
    layer = drawn(build_spatial(cfg, CHANNELS, stride=stride, dilation=dilation)).train()
    x = feature_map(*size, requires_grad=True)
    y = layer(x)
    assert y.shape == (2, CHANNELS, *(-(-length // stride) for length in size))
    y.sin().sum().backward()
    gradients = dict(input=x.grad, **{key: p.grad for key, p in layer.named_parameters()})
    for key, gradient in gradients.items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
    assert all(gradient.abs().sum() > 0 for gradient in (x.grad, y))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', [*OPERATORS, 'convolution'])
def test_channels_last(name, stride):
    layer = drawn(build_spatial(OPERATORS.get(name), CHANNELS, stride=stride))
    x = feature_map(7, 6)
    expected = layer(x)
    y = layer.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last) != (name in CONTIGUOUS)


@pytest.mark.parametrize('name', OPERATORS)
def test_autocast(name):
    layer = drawn(build_spatial(OPERATORS[name], CHANNELS, stride=2)).float()
    x = feature_map(9, 7).float().requires_grad_()
    expected = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x)
    assert golden.relative_error(y.float(), expected) < 0.1
    y.float().square().sum().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in layer.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', OPERATORS)
def test_torch_sees_the_layout_of_one_image(name, stride):
    """Views may give a batch of one a stride by which torch takes a map for contiguous."""
    layer = drawn(build_spatial(OPERATORS[name], CHANNELS, stride=stride)).eval()
    x = feature_map(6, 5, batch=1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer.to(memory_format=torch.channels_last)(x)
    if name not in CONTIGUOUS:
        assert nn.AvgPool2d(2)(y).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('name', OPERATORS)
def test_an_empty_batch(name):
    layer = drawn(build_spatial(OPERATORS[name], CHANNELS, stride=2))
    x = feature_map(5, 4, batch=0, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, CHANNELS, 3, 2)
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize('name', OPERATORS)
def test_multiply_adds_are_counted(name):
    layer = drawn(build_spatial(OPERATORS[name], CHANNELS)).float()
    complexity = count_network(layer, feature_map(6, 5).float())
    assert not complexity.uncounted
    assert not complexity.never_ran
    assert complexity.total(('op',)) > 0


@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('name', OPERATORS)
def test_fuse_copies_and_state_dicts(name, relu):
    plain, other = (
        drawn(
            nn.Sequential(
                build_spatial(OPERATORS[name], CHANNELS),
                nn.BatchNorm2d(CHANNELS),
                nn.ReLU() if relu else nn.GELU(),
            )
        )
        for _ in range(2)
    )
    x = feature_map(5, 6)
    expected, keys = plain(x), list(plain.state_dict())
    fused = fuse(copy.deepcopy(plain))
    torch.testing.assert_close(fused(x), expected)
    assert list(plain.state_dict()) == keys
    twice = fuse(fuse(copy.deepcopy(fused)))
    assert list(twice.state_dict()) == list(fused.state_dict())
    other = fuse(other)
    other.load_state_dict(pickle.loads(pickle.dumps(fused.state_dict())), strict=True)
    for model in (twice, pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused), other):
        assert torch.equal(model(x), fused(x))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected)


@pytest.mark.parametrize('name', OPERATORS)
def test_state_dict_round_trip(name):
    layer, other = (drawn(build_spatial(OPERATORS[name], CHANNELS)) for _ in range(2))
    x = feature_map(5, 6)
    expected = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), expected)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize('name', EXAMPLES)
def test_the_documentation_has_a_row(name):
    text = (ROOT / 'docs/operators.md').read_text()
    assert re.search(rf'^\| `{name}` \|', text, re.MULTILINE)


def test_the_snippets_of_the_documentation_run():
    check = 'assert len(maps) == 4 and y.shape == q.shape'
    code = '\n'.join([*snippets('docs/operators.md'), check])
    result = run_code(code)
    assert result.returncode == 0, result.stderr


WEIGHT_NORMS = {
    'spectral norm': parametrizations.spectral_norm,
    'weight norm': parametrizations.weight_norm,
    'spectral norm by hooks': nn.utils.spectral_norm,
    'weight norm by hooks': nn.utils.weight_norm,
}


class TestChildren:
    """What is done to a child module takes effect, although fused operators read weights."""

    @pytest.fixture(params=LAYERS)
    def layer(self, request):
        return drawn(LAYERS[request.param]())

    @pytest.fixture
    def x(self):
        return feature_map(6, 5)

    def children(self, layer, with_weight=False):
        names = [name for name, _ in layer.named_modules() if name]
        if with_weight:
            names = [name for name in names if hasattr(layer.get_submodule(name), 'weight')]
        return names

    def test_hooks_run(self, layer, x):
        for name in self.children(layer):
            calls = []
            child = layer.get_submodule(name)
            for register in (child.register_forward_hook, child.register_forward_pre_hook):
                handle = register(lambda *_, calls=calls: calls.append(1))
                layer(x)
                handle.remove()
            # the modules of a chain and the projections of a gate may run several times
            assert len(calls) >= 2, name

    def test_hooks_on_all_modules_run(self, layer, x):
        called = set()
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, *_: called.add(module)
        )
        layer(x)
        handle.remove()
        assert called == set(layer.modules())

    def test_hooks_change_the_output(self, layer, x):
        expected = layer(x)
        for name in self.children(layer):
            child = layer.get_submodule(name)
            handle = child.register_forward_hook(lambda module, inputs, output: 1.5 * output)
            assert not torch.allclose(layer(x), expected), name
            handle.remove()
        assert torch.equal(layer(x), expected)

    def test_a_replaced_forward_runs(self, layer, x):
        expected = layer(x)
        for name in self.children(layer):
            child = layer.get_submodule(name)
            original = child.forward
            child.forward = lambda *inputs, original=original: 1.5 * original(*inputs)
            assert not torch.allclose(layer(x), expected), name
            del child.forward
        assert torch.equal(layer(x), expected)

    def test_subclasses_run(self, layer, x):
        expected = layer(x)
        for name in self.children(layer):
            child = layer.get_submodule(name)
            original = type(child)
            child.__class__ = type('Adapted', (Adapted, original), {})
            assert not torch.allclose(layer(x), expected), name
            child.__class__ = original
        assert torch.equal(layer(x), expected)

    def test_parametrizations_count(self, layer, x):
        for name in self.children(layer, with_weight=True):
            scaled, reference = copy.deepcopy(layer), copy.deepcopy(layer)
            parametrize.register_parametrization(scaled.get_submodule(name), 'weight', Scale())
            with torch.no_grad():
                reference.get_submodule(name).weight.mul_(1.5)
            torch.testing.assert_close(scaled(x), reference(x))
            scaled(x).sin().sum().backward()
            original = scaled.get_submodule(name).parametrizations.weight.original
            assert original.grad is not None, name

    def test_pruning_holds_while_training(self, layer, x):
        for name in self.children(layer, with_weight=True):
            pruned = copy.deepcopy(layer)
            child = pruned.get_submodule(name)
            prune.random_unstructured(child, 'weight', 0.5)
            optimizer = torch.optim.SGD(pruned.parameters(), 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                pruned(x).sin().sum().backward()
                optimizer.step()
            reference, state = copy.deepcopy(layer), pruned.state_dict()
            mask = state.pop(f'{name}.weight_mask')
            state[f'{name}.weight'] = mask * state.pop(f'{name}.weight_orig')
            reference.load_state_dict(state, strict=True)
            torch.testing.assert_close(pruned(x), reference(x))

    @pytest.mark.parametrize('norm', WEIGHT_NORMS)
    def test_norms_of_weights_count(self, layer, x, norm):
        keys = set(layer.train().state_dict())
        for name in self.children(layer, with_weight=True):
            normed = copy.deepcopy(layer)
            child = normed.get_submodule(name)
            # norms of vectors are norms of numbers
            if child.weight.dim() < 2:
                continue
            WEIGHT_NORMS[norm](child)
            # a vector of a power iteration moves, a factor of the weight learns
            state = normed.state_dict()
            # a unit vector of one number stays, in each row of a weight
            vectors = ('original1', 'weight_v')
            before = {
                key: value.clone()
                for key, value in state.items()
                if value.numel() > 1 and not (key.endswith(vectors) and value[0].numel() == 1)
            }
            optimizer = torch.optim.SGD(normed.parameters(), 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                normed(x).sin().sum().backward()
                optimizer.step()
            after = normed.state_dict()
            own = [key for key in before if key.startswith(f'{name}.') and key not in keys]
            assert own
            assert not [key for key in own if torch.equal(before[key], after[key])], name

    def test_quantisation_aware_training_counts(self, layer, x):
        layer, x = layer.float().train(), x.float()
        layer.qconfig = quantization.get_default_qat_qconfig('fbgemm')
        expected = layer(x)
        aware = quantization.prepare_qat(copy.deepcopy(layer))
        assert not torch.equal(aware(x), expected)
        observers = [
            module.activation_post_process
            for module in aware.modules()
            if isinstance(module, quantization.FakeQuantize)
        ]
        assert observers
        assert all(observer.min_val.isfinite().all() for observer in observers)

    @pytest.mark.parametrize('wrapper', ['Lora', 'Opaque'])
    def test_wrappers_learn(self, layer, x, wrapper):
        expected = layer(x)
        for name in self.children(layer):
            wrapped = copy.deepcopy(layer)
            child = globals()[wrapper](wrapped.get_submodule(name)).double()
            parent, _, attribute = name.rpartition('.')
            setattr(wrapped.get_submodule(parent), attribute, child)
            y = wrapped(x)
            assert not torch.allclose(y, expected), name
            y.sin().sum().backward()
            assert child.factor.grad.abs() > 0, name


class Adapted:
    """A subclass, as layers for quantisation-aware training are."""

    def forward(self, *inputs):
        return 1.5 * super().forward(*inputs)


class Scale(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 1.5 * weight


class Opaque(nn.Module):
    """A wrapper that shows nothing of what it wraps."""

    def __init__(self, base):
        super().__init__()
        self.base, self.factor = base, nn.Parameter(torch.tensor(1.5))

    def forward(self, *inputs):
        return self.factor * self.base(*inputs)


class Lora(Opaque):
    """A wrapper with the attributes of what it wraps, as low-rank adapters have them."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base, name)


class TestOperatorsOfUsers:
    """``DynamicConv`` is registered above: all of this file runs for it, and it enters stock
    models.
    """

    def test_it_is_in_the_table(self):
        assert TABLE['DynamicConv'] is DynamicConv
        assert 'DynamicConv' in OPERATORS

    def test_spatial_cfg(self):
        cfg = dict(type='mmrednet.DynamicConv', kernel_size=3)
        model = SpatialResNet(26, cfg, base_channels=16).eval()
        assert type(model.layer4[0].conv2) is DynamicConv
        assert [x.shape[-1] for x in model(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]

    @pytest.mark.parametrize('host', ['mmdet', 'mmseg', 'mmrednet'])
    def test_plugins(self, host):
        plugins = [dict(cfg=dict(type='mmrednet.DynamicConv'), position='after_conv2')]
        if host == 'mmrednet':
            model = SpatialResNet(50, base_channels=16, plugins=plugins)
        else:
            resnet = import_module(f'{host}.models.backbones').ResNet
            model = resnet(50, base_channels=16, stem_channels=16, plugins=plugins)
        layers = [module for module in model.modules() if type(module) is DynamicConv]
        assert len(layers) == 16
        sum(x.mean() for x in model(torch.randn(1, 3, 64, 64))).backward()
        assert all(layer.value.weight.grad.abs().sum() > 0 for layer in layers)

    def test_conv_cfg(self):
        from mmcv.cnn import ConvModule

        cfg = dict(type='mmrednet.SpatialConv', spatial_cfg=dict(type='DynamicConv', num_heads=4))
        module = ConvModule(8, 16, 3, stride=2, padding=1, conv_cfg=cfg)
        assert type(module.conv.operator) is DynamicConv
        assert module(torch.randn(1, 8, 7, 5)).shape == (1, 16, 4, 3)

    def test_it_is_counted(self):
        complexity = count_network(
            DynamicConv(4, kernel_size=3, num_heads=2), torch.randn(1, 4, 6, 5)
        )
        # three 1x1 convolutions, and the weighted sum
        assert complexity.total(('op',)) == 6 * 5 * (4 * 2 * 9 + 2 * 4 * 4 + 9 * 4)

    def test_the_page_compares_it_with_a_literal_formula(self):
        exec(snippets('docs/your_operator.md')[2], {})

    def test_an_example_is_asked_for(self):
        with pytest.raises(TypeError, match=r'Bare.example must be a dict, .* got None'):
            spatial_operator(type('Bare', (nn.Module,), {}))

    def test_a_file_of_a_user_is_registered(self, tmp_path):
        """As ``pytest --operator FILE`` does."""
        code = snippets('docs/your_operator.md')[0].replace('DynamicConv', 'OtherConv')
        (tmp_path / 'other_conv.py').write_text(code)
        try:
            register_file(tmp_path / 'other_conv.py')
            expected = dict(type='OtherConv', kernel_size=3, num_heads=2)
            assert USERS['OtherConv'] == expected
        finally:
            USERS.pop('OtherConv', None)
            sys.path.remove(str(tmp_path))
