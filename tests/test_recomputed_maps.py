"""Maps that the backward pass computes again: the same gradients, with less memory."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from training_cases import BACKBONES, assert_equal_states, train

from mmrednet.layers.recomputed_maps import RecomputedMaps, recomputed_conv_module, recomputed_map


def batch_norm(norm_type=nn.BatchNorm2d, **options):
    norm = norm_type(4, **options)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm


CHAINS = {
    'batch norm': lambda: [batch_norm()],
    'batch norm and ReLU': lambda: [batch_norm(), nn.ReLU(inplace=True)],
    'ReLU with memory of its own': lambda: [batch_norm(), nn.ReLU()],
    'fixed statistics': lambda: [batch_norm().eval(), nn.ReLU(inplace=True)],
    'no running statistics': lambda: [batch_norm(track_running_stats=False)],
    'GELU': lambda: [nn.GELU(approximate='tanh')],
    'batch norm and GELU': lambda: [batch_norm(), nn.GELU()],
    'convolution': lambda: [nn.Conv2d(4, 4, 1), batch_norm(), nn.ReLU(inplace=True)],
    'a norm of another kind': lambda: [nn.InstanceNorm2d(4), nn.ReLU(inplace=True)],
    'ReLU first': lambda: [nn.ReLU(inplace=True)],
}


def run(modules, x, *, recomputes, after=torch.Tensor.sin):
    """Return what a convolution makes of a function of the map."""
    last = nn.Conv2d(4, 4, 3, bias=False)
    nn.init.constant_(last.weight, 0.1)
    if not recomputes:
        return last(after(nn.Sequential(*modules)(x)))
    with RecomputedMaps():
        return last(after(recomputed_map(x, *modules)))


@pytest.mark.parametrize('name', CHAINS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_gradients_are_the_same(name, memory_format):
    torch.manual_seed(0)
    modules = CHAINS[name]()
    state = nn.Sequential(*modules).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    image = torch.randn(2, 4, 9, 7).to(memory_format=memory_format)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    gradients, states = [], []
    for recomputes in (False, True):
        for key, value in before.items():
            state[key].copy_(value)
        x = image.clone().requires_grad_()
        # a ReLU may overwrite what is no leaf
        result = run(modules, x * 1, recomputes=recomputes)
        gradients.append(torch.autograd.grad(result.sin().sum(), [x, *parameters]))
        states.append({key: value.clone() for key, value in state.items()})
    assert all(map(torch.equal, *gradients))
    assert_equal_states(states[1], states[0])


def kept_bytes(function):
    """Return the memory that a function leaves allocated, beside its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        result = function()
    return sum(event.self_cpu_memory_usage for event in measured.key_averages()), result


@pytest.mark.parametrize(
    ('name', 'maps'),
    {'batch norm': 1, 'batch norm and ReLU': 1, 'GELU': 1, 'convolution': 2}.items(),
)
def test_the_map_is_not_kept(name, maps):
    x = torch.randn(2, 4, 64, 64, requires_grad=True)
    modules, last = CHAINS[name](), nn.Conv2d(4, 4, 3)

    def forward():
        with RecomputedMaps():
            y = x
            # a convolution is computed again for the norm and for what follows it
            for chain in (modules[:-2], modules[-2:]):
                y = recomputed_map(y, *chain) if chain else y
            return last(y)

    recomputing, _ = kept_bytes(forward)
    plain, _ = kept_bytes(lambda: last(nn.Sequential(*modules)(x)))
    assert plain - recomputing == maps * x.nbytes


@pytest.mark.parametrize('learns', [False, True])
def test_memory_is_free_without_garbage_collection(learns):
    x = torch.randn(2, 4, 9, 7, requires_grad=True)
    with RecomputedMaps():
        y = recomputed_map(x, batch_norm(), nn.ReLU(inplace=True))
        # exp keeps its own result
        result = y.exp()
    maps = [weakref.ref(y), weakref.ref(result)]
    if learns:
        result.sum().backward()
    del y, result
    assert [own() for own in maps] == [None, None]


def test_a_graph_that_is_kept_is_read_again():
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    norm = batch_norm().double()
    gradients = []
    for recomputes in (False, True):
        with RecomputedMaps() as context:
            y = recomputed_map(x, norm) if recomputes else norm(x)
            result = (y * y.sin()).sum()
            maps = [entry for entry, _ in context.maps.values()]
        assert len(maps) == int(recomputes)
        for _ in range(2):
            gradients += torch.autograd.grad(result, x, retain_graph=True)
            # three tensors were read, and none is kept longer
            assert [entry.value for entry in maps] == [None] * len(maps)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_second_derivatives():
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    norm = batch_norm().double()

    def penalty(context):
        with context:
            y = recomputed_map(x, norm, nn.ReLU(inplace=True))
            # exp keeps its result, and the product what is no map
            result = (y**3 * x.exp()).sum()
        (gradient,) = torch.autograd.grad(result, x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    torch.testing.assert_close(penalty(RecomputedMaps()), penalty(nullcontext()))


def test_a_map_that_is_overwritten_is_kept():
    x = torch.randn(2, 4, 9, 7, requires_grad=True)
    gradients = []
    for recomputes in (False, True):
        # a norm does not need its own result
        result = run([nn.BatchNorm2d(4)], x, recomputes=recomputes, after=lambda y: y.mul_(2).sin())
        gradients.append(torch.autograd.grad(result.sin().sum(), x)[0])
    assert torch.equal(*gradients)


def test_overwriting_what_is_kept_is_an_error():
    x = torch.randn(2, 4, 9, 7, requires_grad=True)
    with RecomputedMaps():
        y = x * 1
        result = recomputed_map(y, batch_norm())
    y.add_(1)
    with pytest.raises(RuntimeError, match=r'needs was overwritten: \(2, 4, 9, 7\) has version 1'):
        result.sum().backward()


def test_under_hooks_of_others_nothing_is_computed_twice():
    x, calls = torch.randn(2, 4, 9, 7, requires_grad=True), []
    modules = [batch_norm(), nn.ReLU(inplace=True)]

    def inner(x):
        calls.append(RecomputedMaps.current())
        return recomputed_map(x, *modules)

    with RecomputedMaps() as context:
        assert RecomputedMaps.current() is context
        checkpoint(inner, x, use_reentrant=False).sin().sum().backward()
    assert calls == [None, None]
    assert RecomputedMaps.current() is None


def test_autocast():
    torch.manual_seed(0)
    block = ConvModule(3, 4, 1, norm_cfg=dict(type='BN'))
    image = torch.randn(2, 3, 9, 7)
    gradients = []
    for recomputes in (False, True):
        block.zero_grad()
        with torch.autocast('cpu', torch.bfloat16), RecomputedMaps():
            y = recomputed_conv_module(image, block) if recomputes else block(image)
            result = nn.functional.avg_pool2d(y, 3).float().square().sum()
        result.backward()
        gradients.append([parameter.grad.clone() for parameter in block.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    'options',
    [dict(order=('norm', 'conv', 'act')), dict(norm_cfg=None), dict(act_cfg=None)],
    ids=str,
)
def test_other_blocks_are_called(options):
    options = dict(dict(norm_cfg=dict(type='BN')), **options)
    block, calls = ConvModule(4, 4, 1, **options), []
    forward = block.forward
    block.forward = lambda x: calls.append(1) or forward(x)
    with RecomputedMaps():
        recomputed_conv_module(torch.randn(2, 4, 5, 5), block)
    assert calls == [1]


@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_train_to_the_same_weights(name, norm_eval):
    models = [
        BACKBONES[name](recompute_norms=flag, norm_eval=norm_eval).double()
        for flag in (True, False)
    ]
    models[1].load_state_dict(models[0].state_dict())
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    states = [train(model.train(), image) for model in models]
    assert_equal_states(*states)


@pytest.mark.parametrize('name', sorted(set(BACKBONES) - {'NAT', 'DiNAT', 'DiNATs'}))
def test_backbones_keep_less(name):
    image = torch.randn(2, 3, 64, 64)
    kept = []
    for flag in (True, False):
        model = BACKBONES[name](recompute_norms=flag).train()
        kept.append(kept_bytes(lambda model=model: model(image))[0])
    # LR-Net computes its largest map again, the convolution of its stem
    assert kept[0] < (0.75 if name == 'LRNet' else 0.95) * kept[1]


def test_what_overwrites_its_input_is_kept():
    with RecomputedMaps() as context:
        recomputed_map(torch.randn(2, 4, 5, 5), nn.ReLU(inplace=True))
        assert not context.maps


@pytest.mark.parametrize('x', [torch.empty(2, 4, 5, 5, device='meta'), torch.empty(0, 4, 5, 5)])
def test_maps_without_memory(x):
    norm = batch_norm().eval().to(x.device)
    with RecomputedMaps() as context:
        recomputed_map(x.requires_grad_(), norm).sin().sum().backward()
        assert not context.maps
    assert x.grad.shape == x.shape


def test_norms_are_computed_again_where_it_saves_a_quarter():
    defaults = {name for name in BACKBONES if BACKBONES[name]().recompute_norms}
    assert defaults == {'LRNet', 'SAN', 'AxialResNet'}
