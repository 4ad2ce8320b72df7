"""Linear layers and convolutions with an activation behind them, as one call of oneDNN."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmrednet import fuse
from mmrednet.backbones import NAT
from mmrednet.layers import FusedConv2d, FusedLinear
from mmrednet.layers.depth_wise import DepthWiseConv2d, activated
from mmrednet.ops import onednn

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='torch was built without oneDNN'
)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
FUNCTIONS = {'none': lambda x: x, 'relu': torch.relu, 'gelu': F.gelu}


class Names(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def names_of(function, *arguments):
    with torch.no_grad(), Names() as recorder:
        function(*arguments)
    return {name for name in recorder.names if name.startswith('mkldnn')}


def tolerance(dtype):
    return dict(atol=3e-2, rtol=2e-2) if dtype == torch.bfloat16 else dict(atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('activation', FUNCTIONS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_linear_layers(dtype, activation, bias):
    layer = nn.Linear(19, 13, bias=bias).to(dtype)
    x = torch.randn(2, 5, 7, 19, dtype=dtype)
    expected = FUNCTIONS[activation](layer(x).float()).to(dtype)
    fused = FusedLinear.of(layer, activation)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected, **tolerance(dtype))
    if dtype == torch.float32:
        assert names_of(fused, x) == {'mkldnn::_linear_pointwise'}
    assert fused.weight is layer.weight
    assert list(fused.state_dict()) == list(layer.state_dict())


@pytest.mark.parametrize('stride', [1, 2, (1, 3)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('activation', FUNCTIONS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_convolutions(dtype, activation, memory_format, stride):
    layer = nn.Conv2d(19, 13, 1, stride).to(dtype=dtype, memory_format=memory_format)
    x = torch.randn(2, 19, 5, 7, dtype=dtype).contiguous(memory_format=memory_format)
    expected = FUNCTIONS[activation](layer(x).float()).to(dtype)
    fused = FusedConv2d.of(layer, activation)
    with torch.no_grad():
        y = fused(x)
    torch.testing.assert_close(y, expected, **tolerance(dtype))
    assert y.stride() == layer(x).stride()
    is_fast = dtype == torch.float32 and memory_format == torch.channels_last
    if dtype != torch.bfloat16:
        assert names_of(fused, x) == ({'mkldnn::_linear_pointwise'} if is_fast else set())


def test_a_part_of_the_channels():
    layer = nn.Conv2d(19, 13, 1)
    x = torch.randn(1, 24, 5, 7).contiguous(memory_format=torch.channels_last)[:, :19]
    fused = FusedConv2d.of(layer, 'none')
    with torch.no_grad():
        torch.testing.assert_close(fused(x), layer(x), atol=1e-5, rtol=1e-5)
    assert names_of(fused, x) == {'mkldnn::_linear_pointwise'}


def test_threads_do_not_change_a_convolution():
    """Torch computes convolutions of few elements in another way where it has one thread."""
    fused = FusedConv2d.of(nn.Conv2d(64, 32, 1), 'relu')
    x = torch.randn(1, 64, 14, 14).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    results = []
    with torch.no_grad():
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(fused(x))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize('kernel', [(3, 3), (1, 7)])
def test_gelu_of_depth_wise_convolutions(kernel):
    layer = DepthWiseConv2d(24, kernel).to(memory_format=torch.channels_last)
    x = torch.randn(2, 24, 9, 11).contiguous(memory_format=torch.channels_last)
    expected = F.gelu(F.conv2d(x, layer.weight, layer.bias, padding=layer.padding, groups=24))
    with torch.no_grad():
        torch.testing.assert_close(activated(nn.GELU(), layer, x), expected, atol=1e-5, rtol=1e-5)
    assert names_of(activated, nn.GELU(), layer, x) == {'mkldnn::_convolution_pointwise'}


def fused_pair():
    """A linear layer with GELU behind it, and the layer that fuses them."""
    layer = nn.Linear(6, 4)
    return nn.Sequential(layer, nn.GELU()), FusedLinear.of(layer, 'gelu')


def test_gradients():
    plain, fused = fused_pair()
    x = torch.randn(3, 6, requires_grad=True)
    expected = torch.autograd.grad(plain(x).sin().sum(), [x, *plain.parameters()])
    gradients = torch.autograd.grad(fused(x).sin().sum(), [x, *fused.parameters()])
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value)


def test_transforms_of_torch():
    plain, fused = fused_pair()
    x, tangent = torch.randn(2, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(fused)(x), plain(x))
        for y, z in zip(
            torch.func.jvp(fused, (x,), (tangent,)),
            torch.func.jvp(plain, (x,), (tangent,)),
            strict=True,
        ):
            torch.testing.assert_close(y, z)


def test_autocast_and_dtypes_of_parameters():
    _, fused = fused_pair()
    x = torch.randn(3, 6)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
    with torch.no_grad(), pytest.raises(RuntimeError, match='dtype'):
        fused(x.bfloat16())


def test_programs_have_the_layers():
    _, fused = fused_pair()
    x = torch.randn(3, 6)
    with torch.no_grad():
        exported = torch.export.export(fused, (x,)).module()
        traced = torch.jit.trace(fused, x)
        symbolic = torch.fx.symbolic_trace(nn.Sequential(fused))
        for program in (exported, traced, symbolic):
            torch.testing.assert_close(program(x), fused(x), atol=1e-6, rtol=1e-5)
    assert 'mkldnn' not in str(exported.graph)
    assert 'mkldnn' not in str(traced.graph)
    assert [node.op for node in symbolic.graph.nodes] == ['placeholder', 'call_module', 'output']


def test_errors_are_those_of_torch():
    _, fused = fused_pair()
    convolution = FusedConv2d.of(nn.Conv2d(6, 4, 1), 'relu')
    x = torch.randn(2, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match='3x5 and 6x4'):
            fused(torch.randn(3, 5))
        with pytest.raises(RuntimeError, match='to have 6 channels, but got 5'):
            convolution(x)


def test_flops():
    _, fused = fused_pair()
    convolution, x = DepthWiseConv2d(6, (3, 3)), torch.randn(2, 6, 5, 7)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused(torch.randn(3, 5, 6))
    assert counter.get_total_flops() == 2 * 15 * 6 * 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        activated(nn.GELU(), convolution, x)
    assert counter.get_total_flops() == 2 * 9 * x.numel()


def test_a_switched_off_library_is_not_called():
    _, fused = fused_pair()
    with torch.backends.mkldnn.flags(enabled=False):
        assert names_of(fused, torch.randn(3, 6)) == set()


def test_empty_maps_and_tensors_of_other_classes():
    class Named(torch.Tensor):
        pass

    plain, fused = fused_pair()
    with torch.no_grad():
        assert fused(torch.randn(0, 6)).shape == (0, 4)
        x = torch.randn(3, 6).as_subclass(Named)
        torch.testing.assert_close(fused(x), plain(x))
    assert not onednn.can_compute(x)


def test_fuse_leaves_layers_that_are_shared_or_looked_at():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Sequential(shared), nn.Linear(6, 6), nn.ReLU()).eval()
    model[2].register_forward_hook(lambda *_: None)
    fuse(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Sequential, nn.Linear, nn.ReLU]


def test_blocks_of_nat():
    network = NAT(arch=(8, (1, 1), 2, None, 0.0), out_indices=(0, 1)).eval()
    fused = fuse(copy.deepcopy(network))
    x = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        for y, z in zip(fused(x), network(x), strict=True):
            torch.testing.assert_close(y, z, atol=1e-5, rtol=1e-5)
    block = fused.levels[0].blocks[0]
    assert [type(layer) for layer in (block.attn.qkv, block.attn.proj)] == [FusedLinear] * 2
    assert (block.mlp.fc1.activation, block.mlp.fc2.activation) == ('gelu', 'none')
    assert type(block.mlp.act) is nn.Identity
    assert list(fused.state_dict()) == list(network.state_dict())
