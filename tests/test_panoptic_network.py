"""Decoders and heads of Panoptic-DeepLab agree with the published implementations."""

import golden
import pytest
import torch
from torch import nn

from mmrednet.backbones import AxialResNet
from mmrednet.layers import AxialAttention1d
from mmrednet.panoptic.detector import PanopticDeepLab

THINGS = range(11, 19)
# the settings of each golden file: variant, and arguments of the decoders
NETWORKS = {
    'pdl_bowen_os16': ('bowenc0221', {}),
    'pdl_bowen_os16_even': ('bowenc0221', {}),
    'pdl_bowen_os16_pool5x7': ('bowenc0221', dict(pool_size=(5, 7))),
    'pdl_bowen_os32': ('bowenc0221', dict(dilations=(3, 6, 9))),
    'pdl_bowen_os16_proj1x1': ('bowenc0221', dict(context='projection')),
    # the layers of deeplab2, whose norms have another eps
    'pdl_bowen_os16_proj1x1 ': ('deeplab2', dict(context='projection', norm_cfg=dict(type='BN'))),
    'pdl_d2_os16': ('detectron2', {}),
    'pdl_d2_os16_dsconv': ('detectron2', dict(conv='separable', aspp_conv='separable')),
    'pdl_d2_os16_pool4x4': (
        'detectron2',
        dict(conv='separable', aspp_conv='separable', pool_size=(4, 4)),
    ),
    'pdl_d2_os16_proj1x1': ('detectron2', dict(conv='separable', context='projection')),
}


class Given(nn.Module):
    """Return feature maps instead of computing them."""

    def forward(self, _):
        return self.features


def build(variant, in_channels, num_classes=19, **decoder):
    model = PanopticDeepLab(
        dict(type='mmdet.ResNet', depth=18, base_channels=4),
        num_classes,
        THINGS,
        variant=variant,
        decoder=dict(in_channels=in_channels, **decoder),
    )
    model.backbone = Given()
    return model


def loaded(name, variant, decoder):
    case, _ = golden.load(f'panoptic/{name.strip()}')
    shapes = [entry['shape'] for entry in case['inputs']]
    model = build(variant, [shape[1] for shape in shapes], **decoder).double().eval()
    state = golden.state_dict(case)
    if 'proj1x1' in name:
        # no published code has this module, so the files chose its name
        state = {
            key.replace('.aspp.project.0.', '.context.conv.').replace(
                '.aspp.project.1.', '.context.bn.'
            ): value
            for key, value in state.items()
        }
    model.load_state_dict(state, strict=True)
    model.backbone.features = [
        golden.signed(entry['key'], entry['shape']) for entry in case['inputs']
    ]
    return case, model


def record(module, outputs, name):
    """Let a module store what it returns."""
    module.register_forward_hook(lambda *call: outputs.update({name: call[2].clone()}))


@pytest.mark.parametrize('name', NETWORKS)
def test_networks(name):
    case, model = loaded(name, *NETWORKS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == case['num_parameters']
    size = next(o['shape'][2:] for o in case['outputs'] if o['name'] == 'semantic_upsampled')
    outputs = {}
    branches = dict(semantic='sem_seg_head', instance='ins_embed_head')
    for branch, prefix in branches.items():
        decoder = getattr(model, f'{branch}_decoder')
        published = f'{branch}_decoder' if 'bowen' in name else f'{prefix}.decoder'
        context = f'{branch}_decoder.aspp' if 'bowen' in name else f'{prefix}.aspp'
        record(decoder.context, outputs, context)
        record(decoder, outputs, published)
    predictions = model._forward(None)
    large = model.upsample(predictions, size)
    for index, key in enumerate(('semantic', 'center', 'offset')):
        outputs[key], outputs[f'{key}_upsampled'] = predictions[index], large[index]
    assert set(outputs) == {output['name'] for output in case['outputs']}
    golden.assert_outputs(case, outputs)


COUNTS = golden.load('panoptic/pdl_parameter_counts')[0]['rows']
# channels of the maps of strides 4, 8 and 16 or 32
BACKBONES = {
    'R50': (256, 512, 2048),
    'R52': (256, 512, 2048),
    'axialS': (128, 256, 1024),
    'axialM': (192, 384, 1536),
    'axialL': (256, 512, 2048),
}


@pytest.mark.parametrize('row', COUNTS, ids=lambda row: row['name'])
def test_published_parameters(row):
    source, backbone, *options, classes = row['name'].split('_')
    channels = BACKBONES[backbone]
    if 'os32' in options:
        channels = (256, 512, 1024, 2048)
    decoder = {}
    if 'proj1x1' in options:
        decoder.update(context='projection')
    if 'dsconv' in options:
        decoder.update(conv='separable', aspp_conv='separable')
    variant = dict(d2='detectron2', bowen='bowenc0221')[source]
    with torch.device('meta'):
        model = build(variant, channels, int(classes), **decoder)
    assert sum(parameter.numel() for parameter in model.parameters()) == row['total']
    parts = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_children()
    }
    for name, count in row['parts'].items():
        if name in parts:
            assert parts[name] == count


def test_the_backbone_of_axial_deeplab():
    """Three convolutions, a last stage without stride or dilation, and tables of one size."""
    backbone = AxialResNet(
        's', stem='inception', output_stride=16, span=65, table_size=255, out_indices=(0, 1, 3)
    )
    convs = [module for module in backbone.stem.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convs] == [
        (32, 3, 2),
        (32, 3, 1),
        (64, 3, 1),
    ]
    tables = [module for module in backbone.modules() if isinstance(module, AxialAttention1d)]
    assert {module.relative.shape[1] for module in tables} == {509}
    assert {module.span for module in tables} == {65}
    backbone.eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 65, 97))
    assert [tuple(x.shape[1:]) for x in maps] == [(128, 17, 25), (256, 9, 13), (1024, 5, 7)]
    assert list(backbone.stem_modules()) == [backbone.stem]
    with pytest.raises(ValueError, match=r"stem must be one of \['conv', 'inception', 'axial'\]"):
        AxialResNet('s', stem='deep')
