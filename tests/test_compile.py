"""torch.compile of layers and of a network, whose windows are attributes of modules."""

import pytest
import torch

from mmrednet.backbones import RedNet
from mmrednet.layers import build_spatial

LAYERS = {
    'Involution': dict(type='Involution', kernel_size=3, group_channels=8),
    'Involution with a stride': dict(type='Involution', kernel_size=3, group_channels=8, stride=2),
    'StandAloneSelfAttention': dict(type='StandAloneSelfAttention', kernel_size=3, num_heads=2),
    'LocalRelation': dict(type='LocalRelation', kernel_size=3),
    'SANPairwise': dict(type='SANPairwise', kernel_size=3),
    'SANPatchwise': dict(type='SANPatchwise', kernel_size=3),
    'AxialAttention': dict(type='AxialAttention', num_heads=2, table_size=4),
}


def same_when_compiled(model, x, fullgraph):
    """Compare outputs and all gradients with those of eager mode."""
    # in eval mode, norms use the same statistics in both
    torch._dynamo.reset()
    model, x = model.double().eval(), x.double().requires_grad_()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=fullgraph)
    leaves = [x, *model.parameters()]
    results = []
    for call in (model, compiled):
        outputs = call(x)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        total = sum(output.sin().sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(total, leaves, allow_unused=True)])
    assert any(grad is not None and grad.any() for grad in results[0][1:])
    for expected, result in zip(*results, strict=True):
        assert (expected is None) == (result is None)
        if expected is not None:
            torch.testing.assert_close(result, expected)


@pytest.mark.parametrize('name', LAYERS)
def test_layers(name):
    same_when_compiled(build_spatial(LAYERS[name], 16), torch.randn(2, 16, 5, 6), fullgraph=True)


def test_a_network():
    model = RedNet(
        26, base_channels=32, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)
    )
    same_when_compiled(model, torch.randn(1, 3, 32, 33), fullgraph=True)
