"""torch.compile of layers and of a network, whose windows are attributes of modules."""

import pytest
import torch
from mmengine.registry import MODELS

from mmrednet import fuse
from mmrednet.backbones import RedNet
from mmrednet.export import largest_error
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


# one stage of each family, with a stride
STAGE = dict(num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,))
ARCH = dict(embed_dims=(8, 16), depths=(1, 1), mlp_ratios=(2, 2))
PYRAMID = dict(arch=ARCH, out_indices=(0, 1))
BACKBONES = {
    'RedNet': dict(depth=26, base_channels=32, **STAGE),
    'SASAResNet': dict(depth=26, base_channels=32, **STAGE),
    'LRNet': dict(depth=26, base_channels=32, **STAGE),
    'SAN pairwise': dict(type='SAN', base_channels=32, out_indices=(0,)),
    'SAN patchwise': dict(type='SAN', relation='patchwise', base_channels=32, out_indices=(0,)),
    'AxialResNet': dict(arch=0.25, depth=26, out_indices=(0,)),
    'MSCAN': PYRAMID,
    'VAN': PYRAMID,
    'NAT': dict(
        arch=(32, (1,), 2, None, 0.0),
        spatial_cfg=dict(type='NeighborhoodAttention', kernel_size=3),
        out_indices=(0,),
    ),
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


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_in_inference(name, dynamic):
    torch._dynamo.reset()
    torch.manual_seed(0)
    cfg = dict(dict(type=name), **BACKBONES[name])
    model = MODELS.build(dict(cfg, type=f'mmrednet.{cfg["type"]}'))
    # later stages have nothing new, but take as long
    if name.startswith(('SAN', 'Axial')):
        del model.stage_names[1:]
    model.eval()
    model = fuse(model)
    # of any size, torch's reasoning behind dynamo takes tens of seconds
    backend = 'eager' if dynamic else 'aot_eager'
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    # not a batch of one, for which torch compiles again
    shapes = [(2, 3, 32, 40), (3, 3, 51, 27)] if dynamic else [(2, 3, 32, 40)]
    for index, shape in enumerate(shapes):
        image = torch.randn(shape)
        stance = 'fail_on_recompile' if index else 'default'
        with torch.inference_mode(), torch.compiler.set_stance(stance):
            assert largest_error(compiled(image), model(image)) < 1e-5
