"""The norms of vector attention under ``sync_bn``: two processes are one batch."""

import socket

import pytest
import torch
import torch.distributed as dist
from running import start_processes
from torch import nn

from mmrednet.layers import SANPairwise

LAYERS = {'pairwise': SANPairwise}
# images of the first process: the two have different shares
SPLIT = 1


def layer_and_images(name):
    torch.manual_seed(0)
    layer = LAYERS[name](16, kernel_size=3, relation_channels=3).double().train()
    return layer, torch.randn(3, 16, 5, 6, dtype=torch.float64)


def statistics_of(layer):
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def run_in_process(rank, port, name, folder):
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    layer, images = layer_and_images(name)
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    part = images[:SPLIT] if rank == 0 else images[SPLIT:]
    part = part.clone().requires_grad_()
    output = layer(part)
    output.sin().sum().backward()
    result = dict(output=output.detach(), grad=part.grad, statistics=statistics_of(layer))
    torch.save(result, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('name', LAYERS)
def test_two_processes_are_one(name, tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    assert start_processes(run_in_process, (port, name, str(tmp_path)), 2) == [0, 0]
    results = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    layer, images = layer_and_images(name)
    images.requires_grad_()
    expected = layer(images)
    expected.sin().sum().backward()
    torch.testing.assert_close(torch.cat([result['output'] for result in results]), expected)
    torch.testing.assert_close(torch.cat([result['grad'] for result in results]), images.grad)
    for result in results:
        torch.testing.assert_close(result['statistics'], statistics_of(layer))
