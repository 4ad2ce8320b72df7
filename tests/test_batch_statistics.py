"""The norm of the logits of axial attention: batch norm over chunks and over processes."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
from mmengine.model import revert_sync_batchnorm
from running import start_processes
from torch import nn

from mmrednet.layers import AxialAttention1d
from mmrednet.layers.batch_statistics import combined, moments


def attention_and_lines(dtype=torch.float64, lines=7, **options):
    torch.manual_seed(0)
    layer = AxialAttention1d(8, 8, num_heads=2, table_size=4, **options).to(dtype).train()
    nn.init.uniform_(layer.bn_similarity.weight, 0.5, 1.5)
    nn.init.uniform_(layer.bn_similarity.bias, -0.5, 0.5)
    query, key = torch.randn(2, lines, 2, 2, 6, dtype=dtype)
    return layer, query, key, torch.randn(lines, 2, 4, 6, dtype=dtype)


def attention_and_joined_lines(**options):
    layer, *lines = attention_and_lines(**options)
    return layer, torch.cat(lines, 2).unsqueeze(3)


def statistics_of(norm):
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def test_the_variance_of_large_logits_is_that_of_batch_norm():
    layer, query, key, value = attention_and_lines(torch.float32, 64, logits_budget=1)
    query, key = 30 + query, 30 + key
    norm = copy.deepcopy(layer.bn_similarity).double()
    logits = copy.deepcopy(layer).double().logits(query.double(), key.double())
    assert logits[:, :2].mean() > 1500
    norm(logits)
    layer.attend(torch.cat([query, key, value], 2).unsqueeze(3))
    relative = (layer.bn_similarity.running_var - norm.running_var).abs() / norm.running_var
    # the products themselves are rounded to float32, whose step at 2000 is 1.2e-4
    rounded = copy.deepcopy(layer.bn_similarity)
    rounded.reset_running_stats()
    rounded(layer.logits(query, key))
    torch.testing.assert_close(
        layer.bn_similarity.running_var, rounded.running_var, rtol=1e-6, atol=0
    )
    assert relative.max() < 1e-5


@pytest.mark.parametrize('momentum', [0.1, None])
def test_an_empty_batch_changes_no_statistics(momentum):
    layer = AxialAttention1d(8, 8, num_heads=2, table_size=4).train()
    layer.bn_similarity.momentum = momentum
    reference = nn.BatchNorm2d(6, momentum=momentum)
    for height in (3, 0, 3):
        x = torch.randn(height, 8, 4, 5, requires_grad=True)
        before = [value.clone() for value in statistics_of(layer.bn_similarity)]
        layer(x).sum().backward()
        after = statistics_of(layer.bn_similarity)
        reference(torch.zeros(height, 6, 4, 4))
        # an empty batch counts, as for torch's norm
        assert after[2] == reference.num_batches_tracked
        assert torch.equal(after[0], before[0]) == (height == 0)
        assert torch.equal(after[1], before[1]) == (height == 0)
        assert all(value.isfinite().all() for value in after)


def test_a_process_without_samples_has_no_share():
    full, empty = torch.randn(5, 4, 3, 3), torch.randn(0, 4, 3, 3)
    mean, variance, count = combined([moments(empty), moments(full)])
    torch.testing.assert_close(mean, full.mean((0, 2, 3)))
    torch.testing.assert_close(variance, full.var((0, 2, 3), correction=0))
    assert count == 45
    assert all(value.isfinite().all() for value in combined([moments(empty)]))


@pytest.mark.parametrize(
    'convert', [nn.Identity(), nn.SyncBatchNorm.convert_sync_batchnorm, 'revert']
)
@pytest.mark.parametrize('budget', [1 << 20, 2000, 1])
@pytest.mark.parametrize('momentum', [0.1, None])
def test_chunks_are_one_batch(budget, momentum, convert, monkeypatch):
    layer, lines = attention_and_joined_lines(logits_budget=budget)
    layer.bn_similarity.momentum = momentum
    reference = copy.deepcopy(layer)
    if convert == 'revert':
        layer = revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(layer))
    else:
        layer = convert(layer)
    leaves = [lines.clone().requires_grad_() for _ in range(2)]
    expected = reference.attend_by_modules(leaves[0])
    monkeypatch.setattr(layer, 'attend_by_modules', None)
    output = layer.attend(leaves[1])
    torch.testing.assert_close(output, expected)
    for result in (output, expected):
        result.sin().sum().backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad)
    for found, value in zip(
        statistics_of(layer.bn_similarity), statistics_of(reference.bn_similarity), strict=True
    ):
        torch.testing.assert_close(found, value)


# lines of the first process; the second one has the others
SPLIT = 2


def attend_in_process(rank, port, budget, folder):
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    layer, lines = attention_and_joined_lines(logits_budget=budget)
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    part = slice(SPLIT) if rank == 0 else slice(SPLIT, None)
    lines = lines[part].clone().requires_grad_()
    scale, _ = layer.similarity_norm(lines)
    layer.bn_similarity.reset_running_stats()
    output = layer.attend(lines)
    output.sin().sum().backward()
    result = dict(
        output=output.detach(),
        scale=scale.detach(),
        gradients=lines.grad,
        parameters={
            name: parameter.grad
            for name, parameter in layer.named_parameters()
            if parameter.grad is not None
        },
        statistics=statistics_of(layer.bn_similarity),
    )
    torch.save(result, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('budget', [1 << 20, 1])
def test_two_processes_are_one(budget, tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    assert start_processes(attend_in_process, (port, budget, str(tmp_path)), 2) == [0, 0]
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert torch.equal(first['scale'], second['scale'])
    layer, lines = attention_and_joined_lines()
    lines.requires_grad_()
    expected = layer.attend(lines)
    expected.sin().sum().backward()
    torch.testing.assert_close(torch.cat([first['output'], second['output']]), expected)
    torch.testing.assert_close(torch.cat([first['gradients'], second['gradients']]), lines.grad)
    for name, gradient in first['parameters'].items():
        # averaging over processes is the business of DistributedDataParallel
        total = gradient + second['parameters'][name]
        torch.testing.assert_close(total, layer.get_parameter(name).grad)
    for result in (first, second):
        for found, value in zip(
            result['statistics'], statistics_of(layer.bn_similarity), strict=True
        ):
            torch.testing.assert_close(found, value)
