"""Blocks that are computed again train exactly as blocks that are not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from training_cases import BACKBONES, assert_equal_states, train

from mmrednet import backbones
from mmrednet.backbones.recomputation import keeping_input, recomputed


class Memory(nn.Module):
    """A norm of a user: it keeps a running mean, and its output depends on its number of calls."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer('mean', torch.zeros(channels, 1, 1))
        self.register_buffer('calls', torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2, 3))[:, None, None], 0.1)
            self.calls += 1
        return (x - self.mean) * self.calls


def test_every_backbone_is_here():
    classes = {name for name in backbones.__all__ if name[0].isupper()}
    assert classes - {'PyramidBackbone'} == set(BACKBONES)


@pytest.mark.parametrize('name', BACKBONES)
def test_state_dicts_are_equal(name):
    plain, recomputing = (BACKBONES[name](with_cp=flag).double() for flag in (False, True))
    recomputing.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = train(plain.train(), image)
    assert_equal_states(train(recomputing.train(), image), expected)
    counts = [value for key, value in expected.items() if key.endswith('num_batches_tracked')]
    # NAT has no batch norms
    assert set(map(int, counts)) == (set() if 'NAT' in name else {2})


NORMS = {
    'BatchNorm2d': nn.BatchNorm2d,
    'mean over all batches': lambda channels: nn.BatchNorm2d(channels, momentum=None),
    'SyncBatchNorm': nn.SyncBatchNorm,
    'InstanceNorm2d': lambda channels: nn.InstanceNorm2d(channels, track_running_stats=True),
    'a norm of a user': Memory,
    'spectral norm': lambda channels: parametrizations.spectral_norm(nn.Conv2d(channels, 4, 1)),
    'spectral norm by hooks': lambda channels: nn.utils.spectral_norm(nn.Conv2d(channels, 4, 1)),
    'a frozen norm': lambda channels: nn.BatchNorm2d(channels).eval(),
}


class Block(nn.Module):
    def __init__(self, norm, recomputes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.ReLU())
        self.recomputes = recomputes

    def forward(self, x):
        x = x.clone().requires_grad_()
        return [recomputed(self, self.layers, x) if self.recomputes else self.layers(x)]


@pytest.mark.parametrize('name', NORMS)
def test_every_norm(name):
    states = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        block = Block(NORMS[name](4), recomputes).double()
        image = torch.randn(2, 4, 9, 9, dtype=torch.float64)
        states.append(train(block, image, steps=3))
    assert_equal_states(states[1], states[0])


def test_two_backward_passes_and_two_forward_passes():
    gradients = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        block = Block(nn.BatchNorm2d(4), recomputes).double()
        first, second = (torch.randn(2, 4, 9, 9, dtype=torch.float64) for _ in range(2))
        total = block(first)[0].sum() + block(second)[0].square().sum()
        total.backward(retain_graph=True)
        total.backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
        assert block.layers[1].num_batches_tracked == 2
    for expected, gradient in zip(*gradients, strict=True):
        assert torch.equal(gradient, expected)


def test_an_error_in_the_second_computation_leaves_the_buffers():
    block = Block(nn.BatchNorm2d(4), True)
    output = block(torch.randn(2, 4, 9, 9))[0]
    buffers = dict(block.named_buffers())

    def fail(*_):
        raise OSError('stopped')

    handle = block.layers[3].register_forward_hook(fail)
    block.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(OSError, match='stopped'):
        output.sum().backward()
    handle.remove()
    assert all(buffer is buffers[name] for name, buffer in block.named_buffers())


def test_an_activation_before_a_linear_layer_keeps_its_input_alone():
    act, linear, stored = nn.GELU(), nn.Linear(8, 4), []
    x = torch.randn(3, 8, requires_grad=True)
    inputs = [x, *linear.parameters()]
    expected = torch.autograd.grad(linear(act(x)).sin().sum(), inputs)
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: stored.append(tensor.untyped_storage().data_ptr()) or tensor,
        lambda tensor: tensor,
    ):
        y = keeping_input(act, linear, x)
    assert not set(stored) - own
    for grad, value in zip(torch.autograd.grad(y.sin().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(grad, value)


@pytest.mark.parametrize('index', [0, 1])
def test_layers_that_are_looked_at_are_called_once(index):
    layers, calls = [nn.GELU(), nn.Linear(8, 4)], []
    layers[index].register_forward_hook(lambda *_: calls.append(1))
    keeping_input(*layers, torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert calls == [1]
