"""Published files convert, load strictly, give the official outputs, and convert back to what they
were.
"""

import functools
import re
from pathlib import Path

import golden
import published
import pytest
import torch
from running import run_code
from torch import nn

from mmrednet.backbones import SpatialResNet
from mmrednet.backbones.block_counts import count_blocks
from mmrednet.checkpoints import (
    FORMATS,
    CheckpointError,
    Family,
    Format,
    choose_format,
    detect,
    read_checkpoint,
    register_family,
    sha256_of,
    shapes_of,
    to_mmrednet,
    write_checkpoint,
)
from mmrednet.checkpoints.formats import FAMILIES, MAX_WRAPPERS, inverse, keys_by_prefix, rename
from mmrednet.convert import Reversal, build_backbone, convert_file, reverse_file
from mmrednet.engine import load_config
from mmrednet.layers import CBAM, SE
from mmrednet.registry import MODELS

ROOT = Path(__file__).parents[1]


def golden_state(name):
    return published.official(name)[1]


def mscan_classifier():
    head = {
        f'head.{part}': golden.fill(f'head.{part}', shape)
        for part, shape in (('weight', (10, 256)), ('bias', (10,)))
    }
    return golden_state('mscan_t') | head


# format -> tensors of a file, the ending it comes with, the containers around them
FILES = {
    'rednet': (lambda: golden_state('rednet26_cls'), '.pth', ('state_dict',)),
    'rednet-paddle': (lambda: published.paddle_rednet(golden_state('rednet26_cls')), '.npz', ()),
    'san': (
        lambda: published.wrapped(golden_state('san10_patchwise'), 'module.'),
        '.pth',
        ('state_dict',),
    ),
    'axial': (lambda: published.wrapped(golden_state('axial26s'), 'module.'), '.pth.tar', ('net',)),
    'van': (lambda: golden_state('van_b0'), '.pth.tar', ('state_dict',)),
    'van-mmpretrain': (
        lambda: published.mmpretrain_van(golden_state('van_b0')),
        '.pth',
        ('state_dict',),
    ),
    'mscan': (mscan_classifier, '.pth', ('state_dict',)),
    'mscan-mmseg': (
        lambda: published.replaced(mscan_classifier(), ('dwconv.dwconv', 'dwconv')),
        '.safetensors',
        (),
    ),
    'nat': (published.nat, '.pth', ()),
    'dinat-s': (published.dinat_s, '.pth', ()),
    'se-resnet-mmpretrain': (published.mmpretrain_se_resnet, '.pth', ('state_dict',)),
    'se-resnet-timm': (lambda: published.resnet('SE', ('.se_layer.', '.se.')), '.safetensors', ()),
    'se-resnet': (published.caffe_se_resnet, '.pth', ()),
    'cbam-resnet': (published.cbam_resnet, '.pth', ('state_dict',)),
    'resnet': (published.resnet, '.pth', ()),
}


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """Return what makes the published file of a format and converts it: path, tensors, path of
    ours, and the result.
    """
    folder = tmp_path_factory.mktemp('published')

    @functools.cache
    def convert(name):
        make, ending, container = FILES[name]
        path, ours, state = folder / f'{name}{ending}', folder / f'{name}-ours.safetensors', make()
        write_checkpoint(path, state, container=container)
        return path, state, ours, convert_file(path, ours, to='classifier')

    return convert


@pytest.mark.parametrize('name', FILES)
def test_formats_are_told_by_their_names(name):
    state = FILES[name][0]()
    for wrapper in ('', 'module.', '_orig_mod.module.'):
        entry, prefix = detect(published.wrapped(state, wrapper))
        assert entry.name == name
        assert prefix.startswith(wrapper)


@pytest.mark.parametrize('name', FILES)
def test_there_and_back(name, converted, tmp_path):
    path, state, ours, conversion = converted(name)
    assert conversion.format == name
    assert (conversion.match.missing, conversion.match.unexpected, conversion.match.mismatched) == (
        (),
        (),
        {},
    )
    assert reverse_file(ours, tmp_path / path.name) == Reversal(name, '')
    first, second = read_checkpoint(path), read_checkpoint(tmp_path / path.name)
    assert (first.container, first.unused_keys, first.metadata) == (
        second.container,
        second.unused_keys,
        second.metadata,
    )
    # the names, their order, and every value
    assert list(first.state) == list(second.state) == list(state)
    for key, value in first.state.items():
        assert value.dtype == second.state[key].dtype
        assert torch.equal(value, second.state[key]), key


# channels that the classifiers of the files see; ResNets' here see 512, VAN's and MSCAN's 256
WIDTHS = {
    'nat': 128,
    'dinat-s': 128,
    'axial': 1024,
    'rednet-paddle': 2048,
    'rednet': 2048,
    'san': 2048,
}


@pytest.mark.parametrize('name', FILES)
def test_every_format_loads_strictly(name, converted):
    path, state, ours, conversion = converted(name)
    read = read_checkpoint(ours)
    backbone = {
        key.removeprefix('backbone.'): value
        for key, value in read.state.items()
        if 'backbone.' in key
    }
    model = MODELS.build(conversion.network)
    model.load_state_dict(backbone, strict=True)
    width = WIDTHS.get(name, 512 if 'resnet' in name else 256)
    assert read.state['head.fc.weight'].shape == (len(read.state['head.fc.bias']), width)
    assert (
        len(backbone) + 2
        == len(read.state)
        == sum(not key.endswith('flatten_index') for key in state)
    )
    assert read.metadata['source'] == path.name
    assert read.metadata['sha256'] == conversion.sha256 == sha256_of(path)


class Network(nn.Module):
    """A backbone and a linear classifier, under the names that a converted classifier has."""

    def __init__(self, cfg, classes):
        super().__init__()
        self.backbone = MODELS.build(cfg)
        self.head = nn.ModuleDict({'fc': nn.Linear(*classes)})


# file -> case, names of the outputs of the stages, size of the classifier
OUTPUTS = {
    'rednet': ('rednet26_cls', 'layer{}', (2048, 1000)),
    'san': ('san10_patchwise', 'layer{}', (2048, 1000)),
    'rednet-paddle': ('rednet26_cls', 'layer{}', (2048, 1000)),
    'axial': ('axial26s', 'layer{}', (1024, 1000)),
    'van-mmpretrain': ('van_b0', 'stage{}', (256, 1000)),
    'mscan': ('mscan_t', 'stage{}', (256, 10)),
    'mscan-mmseg': ('mscan_t', 'stage{}', (256, 10)),
}


@pytest.mark.parametrize('name', OUTPUTS)
def test_converted_classifiers_give_the_official_outputs(name, converted):
    case_name, stages, classes = OUTPUTS[name]
    case, _ = golden.load(case_name)
    _, _, ours, conversion = converted(name)
    model = Network(conversion.network, classes).double().eval()
    model.load_state_dict(read_checkpoint(ours).state, strict=True)
    with torch.no_grad():
        maps = model.backbone(golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape']))
        outputs = {stages.format(index + 1): x for index, x in enumerate(maps)}
        if any(output['name'] == 'logits' for output in case['outputs']):
            outputs['logits'] = model.head['fc'](maps[-1].mean((2, 3)))
        golden.assert_outputs(case, outputs)


# format -> golden gate, the place of gates in a block there and here, what its names become there
GATES = {
    'cbam-resnet': ('op_cbam_c32', '.cbam.', '.cbam.', ()),
    'se-resnet-timm': ('op_se_timm_c32', '.se.', '.se_layer.', ()),
    'se-resnet': ('op_se_timm_c32', '.se_module.', '.se_layer.', ()),
    'se-resnet-mmpretrain': (
        'op_se_timm_c32',
        '.se_layer.',
        '.se_layer.',
        (('fc1.', 'conv1.conv.'), ('fc2.', 'conv2.conv.')),
    ),
}


@pytest.mark.parametrize('name', GATES)
def test_gates_of_converted_files_give_the_official_outputs(name):
    case_name, theirs, ours, pairs = GATES[name]
    case, arrays = golden.load(case_name)
    state = published.replaced(golden.state_dict(case), *pairs)
    converted = to_mmrednet(
        published.wrapped(state, f'layer1.0{theirs}'), FORMATS[name], ''
    ).backbone
    gate = (CBAM(32, reduction_ratio=8) if 'cbam' in name else SE(32, divisor=8)).double().eval()
    gate.load_state_dict(
        {key.removeprefix(f'layer1.0{ours}'): value for key, value in converted.items()},
        strict=True,
    )
    x = golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape'])
    assert golden.relative_error(gate(x), arrays['output']) < 1e-12


@pytest.mark.parametrize(
    ('wrapper', 'classifier'),
    [
        ('', 'fc.'),
        ('', 'head.fc.'),
        ('module.', 'module.fc.'),
        ('backbone.', 'head.fc.'),
        ('backbone.', 'fc.'),
        ('backbone.', 'backbone.fc.'),
        ('model.backbone.', 'model.head.fc.'),
    ],
)
def test_classifiers_get_their_own_names_back(wrapper, classifier, tmp_path):
    state = published.resnet()
    head = {f'{classifier}{part}': state.pop(f'fc.{part}') for part in ('weight', 'bias')}
    state = published.wrapped(state, wrapper) | head
    write_checkpoint(tmp_path / 'w.pth', state)
    convert_file(tmp_path / 'w.pth', tmp_path / 'ours.pth', to='classifier')
    assert torch.equal(
        read_checkpoint(tmp_path / 'ours.pth').state['head.fc.weight'], head[f'{classifier}weight']
    )
    assert reverse_file(tmp_path / 'ours.pth', tmp_path / 'back.pth') == Reversal('resnet', '')
    back = read_checkpoint(tmp_path / 'back.pth').state
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_what_the_way_back_misses_is_said(converted, tmp_path):
    convert_file(converted('rednet')[0], tmp_path / 'ours.pth')
    lost = '2 left out (head.fc.weight, head.fc.bias)'
    assert reverse_file(tmp_path / 'ours.pth', tmp_path / 'back.pth') == Reversal('rednet', lost)
    shapes = shapes_of(build_backbone(dict(type='mmrednet.RedNet', depth=26, stem_kernel_size=7)))
    convert_file(converted('rednet')[0], tmp_path / 'larger.pth', shapes=shapes)
    lost = f'2 resized (stem.1.conv2.conv.weight, stem.1.conv2.conv.bias); {lost}'
    assert reverse_file(tmp_path / 'larger.pth', tmp_path / 'back.pth', force=True) == Reversal(
        'rednet', lost
    )


def test_a_format_that_is_asked_for_is_found_in_wrappers(tmp_path):
    hybrid = SpatialResNet(26, [dict(type='Involution'), None, None, None], base_channels=16)
    state = published.wrapped(hybrid.state_dict(), 'module.backbone.') | {
        'module.neck.weight': torch.ones(3)
    }
    write_checkpoint(tmp_path / 'w.pth', state)
    assert detect(state) is None
    conversion = convert_file(tmp_path / 'w.pth', tmp_path / 'ours.pth', format='resnet')
    assert conversion.network == dict(type='mmrednet.SpatialResNet', depth=26, base_channels=16)
    assert (conversion.match.other_parts, conversion.match.mismatched) == (('neck.weight',), {})
    assert choose_format(state, 'mmrednet', None)[1] == 'module.backbone.'


def outputs_of(backbone, state, case):
    backbone = backbone.double().eval()
    backbone.load_state_dict(state, strict=True)
    with torch.no_grad():
        return backbone(golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape']))


@pytest.mark.parametrize('stem', [7, 9])
def test_a_classifier_fills_a_backbone_with_a_larger_stem(stem, converted, tmp_path):
    case, _ = golden.load('rednet26_cls')
    model = MODELS.build(dict(type='mmrednet.RedNet', depth=26, stem_kernel_size=stem))
    conversion = convert_file(
        converted('rednet')[0], tmp_path / 'larger.npz', shapes=shapes_of(model)
    )
    assert conversion.match.changed == ('stem.1.conv2.conv.weight', 'stem.1.conv2.conv.bias')
    maps = outputs_of(model, read_checkpoint(tmp_path / 'larger.npz').state, case)
    golden.assert_outputs(case, {f'layer{index + 1}': x for index, x in enumerate(maps)})


def test_a_smaller_stem_is_named(tmp_path):
    cfg = dict(type='mmrednet.RedNet', depth=26, base_channels=32)
    write_checkpoint(tmp_path / 'w.pth', MODELS.build(cfg).state_dict())
    shapes = shapes_of(build_backbone(dict(cfg, stem_kernel_size=3)))
    conversion = convert_file(tmp_path / 'w.pth', tmp_path / 'ours.pth', shapes=shapes)
    assert conversion.match.mismatched == {
        'stem.1.conv2.conv.weight': ((49, 4, 1, 1), (9, 4, 1, 1)),
        'stem.1.conv2.conv.bias': ((49,), (9,)),
    }
    assert (
        list(conversion.match.details())[-1]
        == 'the stem of the file has 7x7 kernels: stem_kernel_size=7 takes them'
    )


def test_the_reordered_file_of_the_detectors(tmp_path):
    case, state = published.official('rednet26_cls')
    others = {
        f'layers.{index}.w': value
        for index, (key, value) in enumerate(state.items())
        if 'backbone.' in key
    }
    others |= {'fc.weight': torch.ones(10, 2048), 'fc.bias': torch.ones(10)}
    write_checkpoint(tmp_path / 'rednet50.pth', others)
    cfg = dict(type='mmrednet.RedNet', depth=26, stem_kernel_size=3)
    shapes = shapes_of(build_backbone(cfg))
    with pytest.raises(CheckpointError, match='the names are of no known format'):
        convert_file(tmp_path / 'rednet50.pth', tmp_path / 'ours.pth')
    with pytest.raises(
        CheckpointError, match="format 'rednet-ordered' matches tensors by their order"
    ):
        convert_file(tmp_path / 'rednet50.pth', tmp_path / 'ours.pth', format='rednet-ordered')
    conversion = convert_file(tmp_path / 'rednet50.pth', tmp_path / 'ours.pth', shapes=shapes)
    assert conversion.format == 'rednet-ordered'
    assert (len(conversion.match.state), len(conversion.match.renamed)) == (249, 249)
    maps = outputs_of(MODELS.build(cfg), read_checkpoint(tmp_path / 'ours.pth').state, case)
    golden.assert_outputs(case, {f'layer{index + 1}': x for index, x in enumerate(maps)})
    write_checkpoint(tmp_path / 'other.pth', dict(list(others.items())[1:]))
    with pytest.raises(
        CheckpointError, match="needs the network's 249 shapes in the network's order"
    ):
        convert_file(
            tmp_path / 'other.pth', tmp_path / 'no.pth', format='rednet-ordered', shapes=shapes
        )
    with pytest.raises(CheckpointError, match='cannot be written: its map is not one to one'):
        reverse_file(tmp_path / 'ours.pth', tmp_path / 'no.pth')


def test_variables_of_deeplab2(tmp_path):
    case, state = published.official('axial26s')
    write_checkpoint(tmp_path / 'variables.npz', published.deeplab2(state))
    # there every table has the same length; here each stage has that of its map
    model = build_backbone(dict(type='mmrednet.AxialResNet', depth=26))
    conversion = convert_file(
        tmp_path / 'variables.npz', tmp_path / 'ours.pth', shapes=shapes_of(model)
    )
    assert (conversion.format, conversion.match.mismatched, conversion.match.missing) == (
        'axial-deeplab2',
        {},
        (),
    )
    ours = read_checkpoint(tmp_path / 'ours.pth').state
    maps = outputs_of(MODELS.build(dict(type='mmrednet.AxialResNet', depth=26)), ours, case)
    golden.assert_outputs(case, {f'layer{index + 1}': x for index, x in enumerate(maps)})
    del state['layer1.0.hight_block.bn_similarity.weight']
    write_checkpoint(tmp_path / 'broken.npz', published.deeplab2(state))
    with pytest.raises(
        CheckpointError, match="format 'axial-deeplab2' needs all variables of every attention"
    ):
        convert_file(tmp_path / 'broken.npz', tmp_path / 'no.pth', shapes=shapes_of(model))


def test_the_stem_of_axial_deeplab(tmp_path):
    """Names of deeplab2 go round, and its tables have one size."""
    cfg = dict(type='mmrednet.AxialResNet', arch='s', depth=26, stem='inception', table_size=9)
    model = build_backbone(cfg)
    state = {
        key.replace('.height_block.', '.hight_block.'): golden.fill(key, value.shape)
        for key, value in model.state_dict().items()
    }
    write_checkpoint(tmp_path / 'variables.npz', published.deeplab2(state))
    conversion = convert_file(
        tmp_path / 'variables.npz', tmp_path / 'ours.pth', shapes=shapes_of(model)
    )
    assert (conversion.format, conversion.match.mismatched) == ('axial-deeplab2', {})
    ours = read_checkpoint(tmp_path / 'ours.pth').state
    for key in model.state_dict():
        if not key.endswith('num_batches_tracked'):
            expected = state[key.replace('.height_block.', '.hight_block.')]
            torch.testing.assert_close(ours[key].double(), expected)
    network = convert_file(tmp_path / 'variables.npz', tmp_path / 'inferred.pth').network
    assert (network['arch'], network['depth'], network['stem']) == ('s', 26, 'inception')


@pytest.mark.parametrize('length', [5, 21])
def test_tables_of_positions_keep_the_function_at_their_own_length(length):
    from mmrednet.backbones.axial_formats import resize_tables
    from mmrednet.layers import AxialAttention1d

    first, second = (
        AxialAttention1d(16, 16, num_heads=2, table_size=size).double().eval()
        for size in (8, length)
    )
    state = {f'a.{name}': value for name, value in first.state_dict().items()}
    fitted = resize_tables(
        state, {f'a.{name}': value.shape for name, value in second.state_dict().items()}
    )
    second.load_state_dict({name[2:]: value for name, value in fitted.items()}, strict=True)
    x = torch.randn(2, 16, 5 if length == 5 else 13, 3, dtype=torch.float64)
    torch.testing.assert_close(second(x), first(x))


@pytest.mark.parametrize(
    'spatial',
    [
        None,
        [None, None, dict(type='Involution'), dict(type='LocalRelation')],
        [None, *[dict(type='DCNv2')] * 3],
    ],
)
def test_resnets_start_hybrids(spatial, tmp_path):
    state = published.resnet()
    write_checkpoint(tmp_path / 'resnet.pth', state)
    model = SpatialResNet(26, spatial, base_channels=16)
    conversion = convert_file(
        tmp_path / 'resnet.pth', tmp_path / 'ours.pth', shapes=shapes_of(model)
    )
    replaced = {
        name for name in state if name.startswith(('layer3', 'layer4')) and '.conv2.weight' in name
    }
    kept = not spatial or spatial[1] is not None
    assert set(conversion.match.unexpected) == (set() if kept else replaced)
    assert (not conversion.match.missing) == (spatial is None)
    assert all('.conv2.' in name for name in conversion.match.missing)
    result = model.load_state_dict(read_checkpoint(tmp_path / 'ours.pth').state, strict=False)
    assert not result.unexpected_keys
    for name in ('layer1.0.conv2.weight', 'layer4.0.conv3.weight', 'layer3.1.bn2.running_var'):
        assert torch.equal(model.state_dict()[name], state[name])


def test_official_detectors_have_our_names():
    cfg = load_config(str(ROOT / 'configs/rednet/mask-rcnn_rednet50_inv-fpn-rpn-mask_1x_coco.py'))
    with torch.device('meta'), MODELS.switch_scope_and_registry('mmdet') as registry:
        shapes = shapes_of(registry.build(cfg.model))
    state = {}
    for name, prefix in (
        ('rednet50_det', 'backbone.'),
        ('fpn_involution_maxpool', 'neck.'),
        ('rpn_head_involution', 'rpn_head.'),
        ('fcn_mask_head_involution', 'roi_head.mask_head.'),
    ):
        for key, shape, _ in golden.load(name)[0]['state_dict']:
            state[prefix + key] = torch.empty(shape, device='meta')
    assert detect(state)[0].name == 'rednet'
    assert detect(state)[1] == 'backbone.'
    unknown = {name for name, value in state.items() if shapes.get(name) != value.shape}
    assert not unknown
    assert {name.split('.')[1] for name in set(shapes) - set(state)} == {'bbox_head'}


class TestConvertFile:
    def test_too_little(self, converted, tmp_path):
        path = converted('van')[0]
        shapes = shapes_of(build_backbone(dict(type='mmrednet.VAN', arch='b1')))
        with pytest.raises(
            CheckpointError, match='too little fits, .* where at least 50% must'
        ) as error:
            convert_file(path, tmp_path / 'no.pth', shapes=shapes)
        line = 'mismatch: patch_embed1.proj.weight is (32, 3, 7, 7) in the file and (64, 3, 7, 7)'
        assert line in str(error.value)
        other = shapes_of(build_backbone(dict(type='mmrednet.SAN')))
        with pytest.raises(CheckpointError, match='too little fits, 0%'):
            convert_file(path, tmp_path / 'no.pth', shapes=other, min_share=0)
        assert not list(tmp_path.iterdir())

    def test_hashes_in_names(self, tmp_path):
        write_checkpoint(tmp_path / 'rednet50-0123abcd.pth', {'a': torch.ones(1)})
        with pytest.raises(
            CheckpointError, match=r'must have the SHA-256 that its name states, 0123abcd'
        ):
            convert_file(tmp_path / 'rednet50-0123abcd.pth', tmp_path / 'ours.pth')

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(ValueError, match="to must be one of .*'segmentor'.*, got 'tracker'"):
            convert_file('x', tmp_path / 'y.pth', to='tracker')
        with pytest.raises(ValueError, match='min_share must be from 0 to 1, got 50'):
            convert_file('x', tmp_path / 'y.pth', min_share=50)
        write_checkpoint(tmp_path / 'w.pth', {'a': torch.ones(1)})
        with pytest.raises(CheckpointError, match="format must be one of .*, got 'detectron'"):
            convert_file(tmp_path / 'w.pth', tmp_path / 'y.pth', format='detectron')
        with pytest.raises(
            CheckpointError,
            match='format must be one of .* where the file does not say it, got None',
        ):
            reverse_file(tmp_path / 'w.pth', tmp_path / 'y.pth')


def test_a_wrong_format_that_is_asked_for_fits_nothing(converted, tmp_path):
    with pytest.raises(
        CheckpointError, match="a VAN must have stages named 'block' and a number, got"
    ):
        convert_file(converted('san')[0], tmp_path / 'no.pth', format='van')


@pytest.mark.parametrize('entry', FORMATS.values(), ids=list(FORMATS))
def test_pairs_are_read_in_both_directions(entry):
    for theirs, ours in entry.renames:
        name = f'x{theirs}y'.replace('{n}', '3').replace('x^', '').replace('$y', '')
        renamed = rename(name, [(theirs, ours)])
        assert renamed != name
        assert rename(renamed, inverse(((theirs, ours),))) == name


@pytest.fixture
def tables():
    """Restore the tables of formats after a test."""
    formats, families = dict(FORMATS), dict(FAMILIES)
    yield
    for table, content in ((FORMATS, formats), (FAMILIES, families)):
        table.clear()
        table.update(content)


class TestRegistration:
    def test_a_new_family_is_detected_and_converted(self, tables, tmp_path):
        def infer_config(entry, state):
            return dict(depth=26, base_channels=len(state['conv1.weight']))

        # 'resnet' would match as well, but comes later
        entry = Format(
            'caffe',
            family='SpatialResNet',
            priority=5,
            source='a test',
            required=(r'^res1\.conv\.weight$',),
            renames=(('^res1.conv.', '^conv1.'),),
        )
        register_family(Family('SpatialResNet', (entry,), infer_config))
        assert next(iter(FORMATS)) == 'caffe'
        state = published.resnet()
        state = {'res1.conv.weight': state.pop('conv1.weight'), **state}
        assert detect(state) == (entry, '')
        write_checkpoint(tmp_path / 'caffe.pth', state)
        conversion = convert_file(tmp_path / 'caffe.pth', tmp_path / 'ours.pth')
        assert conversion.match.renamed == ('conv1.weight',)
        assert conversion.network == dict(type='mmrednet.SpatialResNet', depth=26, base_channels=16)

    def test_the_example_of_the_page_runs(self, tables):
        page = (ROOT / 'docs/pretrained.md').read_text()
        snippets = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
        (snippet,) = [text for text in snippets if 'register_family(' in text]
        exec(snippet, {})
        entry, prefix = detect(['module.body.0.attention.weight', 'module.body.0.norm.bias'])
        assert (entry.name, prefix) == ('mynet-lab', 'module.')
        assert rename('body.0.attention.weight', entry.renames) == 'layer0.attention.weight'

    def test_formats_are_tried_by_priority(self):
        priorities = [entry.priority for entry in FORMATS.values()]
        assert priorities == sorted(set(priorities))
        assert len(FORMATS) == 18
        assert {entry.family for entry in FORMATS.values()} == {None, *FAMILIES}

    @pytest.mark.parametrize(
        ('name', 'priority', 'message'),
        [
            ('resnet', 7, "got 'resnet' with 7 and 'resnet' with 150"),
            ('new', 150, "got 'resnet' with 150 and 'new' with 150"),
        ],
    )
    def test_names_and_priorities_are_unique(self, name, priority, message, tables):
        entry = Format(name, family='New', priority=priority, source='a test')
        with pytest.raises(ValueError, match=message):
            register_family(Family('New', (entry,), lambda entry, state: {}))
        assert len(FORMATS) == 18
        assert 'New' not in FAMILIES


def test_the_table_alone_says_what_to_import():
    code = """
import sys
from mmrednet.checkpoints import CheckpointError, detect
packages = {name.split('.')[1] for name in sys.modules if name.startswith('mmrednet.')}
print(*packages)
try:
    detect(['conv1.weight'])
except CheckpointError as error:
    print(error)
import mmrednet.backbones
print(detect(['conv_in.weight', 'layer0.0.sam.conv1.weight'])[0].name)
"""
    run = run_code(code)
    assert run.returncode == 0, run.stderr
    packages, error, detected = run.stdout.splitlines()
    # it imports nothing of ours
    assert packages == 'checkpoints'
    assert error.startswith('no published format is registered: import mmrednet.backbones')
    assert detected == 'san'


def test_keys_are_grouped_by_their_wrappers():
    keys = ['module.backbone.a', 'module.b', 'c', 'module.' * 9 + 'd']
    groups = keys_by_prefix(keys)
    assert groups['module.'] == ['backbone.a', 'b', 'module.' * 8 + 'd']
    assert groups['module.backbone.'] == ['a']
    assert groups[''] == keys
    assert max(prefix.count('.') for prefix in groups) == MAX_WRAPPERS


def test_a_file_states_no_more_blocks_than_it_has():
    keys = ['block1.0.w', 'block1.1.w', 'block1.1.b', 'block2.999999999.w']
    assert count_blocks(keys, 'block', 'VAN') == (2, 1)
