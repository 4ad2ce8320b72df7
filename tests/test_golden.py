"""Agreement with the official implementations: their keys, loaded strictly and unrenamed, give
their numbers.
"""

import golden
import pytest
import torch
from torch import nn

from mmrednet.backbones import MSCAN, SAN, VAN, AxialResNet, RedNet
from mmrednet.backbones.van import GatedAttention
from mmrednet.layers import (
    AxialAttention1d,
    Involution,
    LargeKernelAttention,
    MultiScaleConvAttention,
    SANPairwise,
    SANPatchwise,
)
from mmrednet.necks import SpatialFPN


def loaded(module, case):
    module = module.double().eval()
    module.load_state_dict(golden.state_dict(case), strict=True)
    assert sum(parameter.numel() for parameter in module.parameters()) == case['num_parameters']
    return module


def inputs(case):
    return [golden.signed(entry['key'], entry['shape']) for entry in case['inputs']]


def test_fill_formula():
    assert golden.signed('input:2x3x4x5', (2, 3, 4, 5)).flatten()[0] == pytest.approx(
        -0.65403545149607845, rel=1e-15
    )
    assert golden.fill('layer1.0.bn1.running_var', (4,))[0] == pytest.approx(
        0.66512685743802924, rel=1e-15
    )


OPERATORS = {
    'op_involution_c32_k3_s2': lambda: Involution(32, kernel_size=3, stride=2),
    'op_involution_c32_k7_s1': lambda: Involution(32, kernel_size=7),
    'op_involution_c64_k7_s2': lambda: Involution(64, kernel_size=7, stride=2),
    'op_van_lka_c24': lambda: LargeKernelAttention(24),
    'op_van_attention_c24': lambda: GatedAttention(
        24, dict(type='LargeKernelAttention'), dict(type='GELU')
    ),
    'op_segnext_msca_c24': lambda: MultiScaleConvAttention(24),
    'op_segnext_spatial_attention_c24': lambda: GatedAttention(
        24, dict(type='MultiScaleConvAttention'), dict(type='GELU')
    ),
    'op_axial_height': lambda: AxialAttention1d(32, 32, axis='height', table_size=12),
    'op_axial_width': lambda: AxialAttention1d(32, 32, axis='width', table_size=9),
    'op_axial_width_s2': lambda: Pooled(AxialAttention1d(32, 64, axis='width', table_size=10)),
    'op_san_pairwise_k3': lambda: SANPairwise(32, relation_channels=8, kernel_size=3),
    'op_san_pairwise_k3_s2_d2': lambda: SANPairwise(
        32, relation_channels=8, kernel_size=3, stride=2, dilation=2
    ),
    'op_san_pairwise_k7': lambda: SANPairwise(64, relation_channels=4, out_channels=16),
    'op_san_patchwise_k3': lambda: SANPatchwise(32, relation_channels=8, kernel_size=3),
    'op_san_patchwise_k7': lambda: SANPatchwise(64, relation_channels=4, out_channels=16),
}
# zero up to rounding: the biases cancel in the difference of positions and in the softmax
CANCELLED = ('conv_p.bias', 'conv_w.5.bias', 'bn_similarity.bias')


class Pooled(nn.Sequential):
    """Average the result of a layer over 2 x 2, under the names of the layer."""

    def load_state_dict(self, state_dict, strict):
        return self[0].load_state_dict(state_dict, strict)

    def named_parameters(self, *args, **kwargs):
        return self[0].named_parameters(*args, **kwargs)

    def forward(self, x):
        return nn.functional.avg_pool2d(self[0](x), 2)


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_operator_and_every_gradient(name, memory_format):
    case, arrays = golden.load(name)
    layer = loaded(OPERATORS[name](), case)
    x = inputs(case)[0].contiguous(memory_format=memory_format).requires_grad_()
    output = layer(x)
    golden.assert_outputs(case, {'output': output})
    assert golden.relative_error(output, arrays['output']) < 1e-12
    (output * golden.signed(case['grad_output_key'], output.shape)).sum().backward()
    gradients = {
        'grad_input': x.grad,
        **{f'grad.{key}': p.grad for key, p in layer.named_parameters()},
    }
    assert set(gradients) == {entry['name'] for entry in case['gradients']}
    for key, gradient in gradients.items():
        if 'pairwise' in name and key.endswith(CANCELLED[:2]) or key.endswith(CANCELLED[2]):
            assert float(gradient.abs().max()) < 1e-12, key
        else:
            assert golden.relative_error(gradient, arrays[key]) < 1e-11, key


class Classifier(nn.Module):
    """A backbone and a linear head under the names of mmcls."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({'fc': nn.Linear(2048, 1000)})


@pytest.mark.parametrize('depth', [26, 50])
def test_rednet_classifier(depth):
    case, _ = golden.load(f'rednet{depth}_cls')
    model = loaded(Classifier(RedNet(depth, stem_kernel_size=3)), case)
    with torch.no_grad():
        x = inputs(case)[0]
        outputs = dict(
            zip(['layer1', 'layer2', 'layer3', 'layer4'], model.backbone(x), strict=True)
        )
        outputs['stem'] = model.backbone.stem(x)
        outputs['logits'] = model.head['fc'](outputs['layer4'].mean((2, 3)))
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)


def test_rednet_detection_backbone():
    case, _ = golden.load('rednet50_det')
    model = loaded(RedNet(50), case)
    with torch.no_grad():
        outputs = dict(
            zip(['layer1', 'layer2', 'layer3', 'layer4'], model(inputs(case)[0]), strict=True)
        )
    golden.assert_outputs(case, outputs)


STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


def test_van_classifier():
    case, _ = golden.load('van_b0')
    backbone = VAN('b0')
    # the classifier's names are the backbone's, beside 'head'
    backbone.add_module('head', nn.Linear(256, 1000))
    model = loaded(backbone, case)
    with torch.no_grad():
        outputs = dict(zip(STAGES, model(inputs(case)[0]), strict=True))
        outputs['logits'] = model.head(outputs['stage4'].mean((2, 3)))
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)


def test_mscan_backbone():
    case, _ = golden.load('mscan_t')
    model = loaded(MSCAN('tiny'), case)
    with torch.no_grad():
        golden.assert_outputs(case, dict(zip(STAGES, model(inputs(case)[0]), strict=True)))


@pytest.mark.parametrize('relation', ['pairwise', 'patchwise'])
def test_san_classifier(relation):
    case, _ = golden.load(f'san10_{relation}')
    backbone = SAN(10, relation, out_indices=range(5))
    # the classifier's names are the backbone's, beside 'fc'
    backbone.add_module('fc', nn.Linear(2048, 1000))
    model = loaded(backbone, case)
    with torch.no_grad():
        x = inputs(case)[0]
        outputs = dict(zip([f'layer{index}' for index in range(5)], model(x), strict=True))
        outputs['stem'] = model.forward_stem(x)
        outputs['logits'] = model.fc(outputs['layer4'].mean((2, 3)))
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)


@pytest.mark.parametrize('depth', [26, 50])
def test_axial_classifier(depth):
    case, _ = golden.load(f'axial{depth}s')
    backbone = AxialResNet('s', depth)
    backbone.add_module('fc', nn.Linear(1024, 1000))
    model = loaded(backbone, case)
    with torch.no_grad():
        outputs = dict(
            zip(['layer1', 'layer2', 'layer3', 'layer4'], model(inputs(case)[0]), strict=True)
        )
        outputs['logits'] = model.fc(outputs['layer4'].mean((2, 3)))
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)


class Segmentor(nn.Module):
    """A backbone and a head under the names of mmseg."""

    def __init__(self, backbone, decode_head):
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head


def test_segnext():
    from mmrednet.heads import LightHamHead

    case, _ = golden.load('segnext_t')
    head = LightHamHead(
        256,
        dict(MD_R=16),
        in_channels=[64, 160, 256],
        in_index=[1, 2, 3],
        channels=256,
        num_classes=150,
        norm_cfg=dict(type='GN', num_groups=32),
    )
    model = loaded(Segmentor(MSCAN('tiny'), head), case)
    # the reference starts from bases of its own, others for each image
    bases = torch.from_numpy(golden.uniform('bases:2x256x16', (2, 256, 16)))
    bases = bases / bases.norm(dim=1, keepdim=True)
    seen = {
        'head_squeeze': head.squeeze,
        'head_ham_nmf': head.hamburger.ham,
        'head_hamburger': head.hamburger,
    }
    outputs = {name: [] for name in (*STAGES, *seen, 'seg_logits')}
    for name, module in seen.items():
        module.register_forward_hook(lambda _, __, out, name=name: outputs[name].append(out))
    with torch.no_grad():
        for image, start in zip(inputs(case)[0], bases, strict=True):
            head.hamburger.ham.bases.copy_(start[None])
            stages = model.backbone(image[None])
            outputs['seg_logits'].append(head(stages))
            for name, stage in zip(STAGES, stages, strict=True):
                outputs[name].append(stage)
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, {name: torch.cat(parts) for name, parts in outputs.items()})


@pytest.mark.parametrize(
    ('name', 'levels', 'arguments'),
    [
        ('fpn_involution_maxpool', 'p2 p3 p4 p5 p6', {}),
        (
            'fpn_involution_retinanet',
            'p3 p4 p5 p6 p7',
            dict(start_level=1, add_extra_convs='on_input'),
        ),
    ],
)
def test_involution_fpn(name, levels, arguments):
    case, _ = golden.load(name)
    neck = loaded(SpatialFPN([256, 512, 1024, 2048], 256, 5, **arguments), case)
    with torch.no_grad():
        golden.assert_outputs(case, dict(zip(levels.split(), neck(inputs(case)), strict=True)))


def test_involution_rpn_head():
    from mmrednet.heads import SpatialRPNHead

    case, _ = golden.load('rpn_head_involution')
    anchors = dict(type='mmdet.AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4])
    head = loaded(
        SpatialRPNHead(
            256,
            256,
            anchor_generator=anchors,
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='mmdet.L1Loss'),
        ),
        case,
    )
    with torch.no_grad():
        scores, deltas = head.forward_single(inputs(case)[0])
    golden.assert_outputs(case, {'rpn_cls_score': scores, 'rpn_bbox_pred': deltas})


def test_involution_mask_head():
    from mmrednet.heads import SpatialFCNMaskHead

    case, _ = golden.load('fcn_mask_head_involution')
    head = loaded(
        SpatialFCNMaskHead(loss_mask=dict(type='mmdet.CrossEntropyLoss', use_mask=True)), case
    )
    outputs = {}
    for index, conv in enumerate(head.convs):
        conv.register_forward_hook(
            lambda _, __, out, index=index: outputs.update({f'conv{index}': out.clone()})
        )
    head.upsample.register_forward_hook(
        lambda _, __, out: outputs.update(upsample_before_relu=out.clone())
    )
    with torch.no_grad():
        outputs['mask_pred'] = head(inputs(case)[0])
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)
