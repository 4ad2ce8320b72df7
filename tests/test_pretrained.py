"""``init_cfg`` of the backbones and the converter's command: published files as they are, and what is said of them."""

import logging
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import golden
import published
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint

from mmrednet.backbones import MSCAN, SAN, VAN, AxialResNet, RedNet, SASAResNet, SpatialResNet
from mmrednet.checkpoints import CheckpointError, load_pretrained, read_checkpoint, sha256_of, write_checkpoint
from mmrednet.engine import load_config

ROOT = Path(__file__).parents[1]
NARROW = dict(embed_dims=(8, 16), depths=(1, 1), mlp_ratios=(2, 2))


@pytest.fixture
def lines(monkeypatch):
    """Return the level and the text of what is said about weights, without mmengine's list of all parameters."""
    logged = []

    def keep(message, logger=None, level=logging.INFO):
        if level >= logging.INFO:
            logged.append((level, message))

    monkeypatch.setattr('mmengine.logging.print_log', keep)
    monkeypatch.setattr(MMLogger.get_current_instance(), 'level', logging.ERROR)
    return logged


def initialised(backbone, checkpoint, **kwargs):
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), **kwargs)
    backbone.init_weights()
    return backbone.eval()


@pytest.mark.parametrize(('name', 'backbone', 'wrap'), [
    ('van_b0', lambda: VAN('b0'), lambda state: state), ('van_b0', lambda: VAN('b0'), published.mmpretrain_van),
    ('segnext_t', lambda: MSCAN('tiny'), lambda state: state),
    ('axial26s', lambda: AxialResNet(depth=26), lambda state: published.wrapped(state, 'module.')),
    ('san10_pairwise', lambda: SAN(10), lambda state: published.wrapped(state, 'module.')),
    # a detector's backbone, whose stem is larger than the classifier's
    ('rednet26_cls', lambda: RedNet(26), lambda state: state),
    # in the order of the network, under other names
    ('rednet26_cls', lambda: RedNet(26), lambda state: dict(zip(map(str, range(999)), state.values(), strict=False)))])
def test_published_files_give_the_official_outputs(name, backbone, wrap, tmp_path, lines):
    case, state = published.official(name)
    torch.save(dict(state_dict=wrap(state), epoch=7), tmp_path / 'official.pth.tar')
    model = initialised(backbone().double(), tmp_path / 'official.pth.tar')
    with torch.no_grad():
        maps = model(golden.signed(case['inputs'][0]['key'], case['inputs'][0]['shape']))
    names = [output['name'] for output in case['outputs'] if output['name'][:-1] in ('layer', 'stage')][-len(maps):]
    golden.assert_outputs(case, dict(zip(names, maps, strict=True)))
    (level, line), = lines
    total = len(model.state_dict())
    assert level == 20
    assert line.startswith(f'{type(model).__name__} from {tmp_path}/official.pth.tar: {total} of {total} tensors')
    assert '; 0 missing, 0 unexpected, 0 misshapen, ' in line


@pytest.mark.parametrize('name', ['w.safetensors', 'w.npz', 'w.pth.tar'])
def test_every_kind_of_file(name, tmp_path, lines):
    source = VAN(NARROW, out_indices=(0, 1))
    write_checkpoint(tmp_path / name, published.wrapped(source.state_dict(), 'backbone.'))
    model = initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / name)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_a_prefix_and_a_place_as_mmengine_takes_them(tmp_path, lines):
    first, second = (VAN(NARROW, out_indices=(0, 1)) for _ in range(2))
    torch.save(published.wrapped(first.state_dict(), 'student.net.')
               | published.wrapped(second.state_dict(), 'teacher.net.'), tmp_path / 'w.pth')
    for prefix in ('teacher.net', 'teacher.net.'):
        model = initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth', prefix=prefix, map_location='cpu')
        assert torch.equal(model.block1[0].mlp.fc1.weight, second.block1[0].mlp.fc1.weight)
    with pytest.raises(CheckpointError, match="prefix must be that of some names in .*, got 'pupil.'"):
        initialised(VAN(NARROW, out_indices=(0, 1)), tmp_path / 'w.pth', prefix='pupil')


def test_nothing_that_fits_is_an_error(tmp_path, lines):
    write_checkpoint(tmp_path / 'van.pth', VAN(NARROW, out_indices=(0, 1)).state_dict())
    for model in (SAN(10), SpatialResNet(26, base_channels=16)):
        with pytest.raises(CheckpointError, match=f'van.pth fits nothing of this {type(model).__name__}: 0 of'):
            initialised(model, tmp_path / 'van.pth')
    with pytest.raises(FileNotFoundError):
        initialised(SAN(10), tmp_path / 'other.pth')


def test_what_does_not_fit_is_a_warning(tmp_path, lines):
    write_checkpoint(tmp_path / 'w.pth', RedNet(26, base_channels=32).state_dict())
    initialised(RedNet(26, base_channels=32, stem_kernel_size=3), tmp_path / 'w.pth')
    (level, line), (_, details) = lines
    assert level == 30
    assert '2 misshapen' in line
    assert 'misshapen: stem.1.conv2.conv.weight is (49, 4, 1, 1) in the file and (9, 4, 1, 1)' in details
    assert 'stem_kernel_size=7 takes them' in details


@pytest.mark.parametrize('model', [
    lambda: SpatialResNet(26, [None, None, dict(type='Involution'), dict(type='StandAloneSelfAttention')],
                          base_channels=16), lambda: SASAResNet(26, base_channels=16)])
def test_warm_started_hybrids(model, tmp_path, lines):
    state = published.resnet()
    torch.save(state, tmp_path / 'resnet.pth')
    warm = initialised(model(), tmp_path / 'resnet.pth').state_dict()
    own = {name for name in warm if name not in state}
    assert own
    assert all('.conv2.' in name for name in own)
    for name in set(warm) - own:
        assert torch.equal(warm[name], state[name]), name
    assert f'; {len([name for name in own if "num_batches" not in name])} missing, ' in lines[0][1]


def test_the_whole_detector_initialises_its_backbone(tmp_path, lines):
    from mmengine.registry import MODELS

    write_checkpoint(tmp_path / 'w.pth', published.resnet())
    cfg = load_config(str(ROOT / 'configs/shapes/faster-rcnn_r26_fpn_shapes.py'))
    cfg.model.backbone = dict(type='mmrednet.SpatialResNet', depth=26, base_channels=16,
                              init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')))
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    with MODELS.switch_scope_and_registry('mmdet') as registry:
        model = registry.build(cfg.model)
    model.init_weights()
    assert torch.equal(model.backbone.layer2[0].conv2.weight, published.resnet()['layer2.0.conv2.weight'])


class TestDownloads:

    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """Let torch copy a file instead of fetching a URL, and keep downloads in a folder of the test."""
        source = tmp_path / 'source.pth'
        write_checkpoint(source, VAN(NARROW, out_indices=(0, 1)).state_dict())
        asked = []

        def copy(url, target, hash_prefix, progress):
            asked.append((url, hash_prefix))
            Path(target).write_bytes(source.read_bytes())

        monkeypatch.setattr(torch.hub, 'download_url_to_file', copy)
        monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
        return asked

    def test_urls_are_fetched_once_and_read_safely(self, served, lines):
        for _ in range(2):
            initialised(VAN(NARROW, out_indices=(0, 1)), 'https://example.org/a/van-0123abcd.pth?dl=1')
        assert served == [('https://example.org/a/van-0123abcd.pth?dl=1', '0123abcd')]

    def test_names_of_mmengine(self, served, lines):
        initialised(VAN(NARROW, out_indices=(0, 1)), 'open-mmlab://detectron2/resnet50_caffe')
        assert served[0][0].endswith('pretrain/third_party/resnet50_msra-5891d200.pth')
        assert served[0][1] == '5891d200'
        with pytest.raises(ValueError, match=r"open-mmlab:// must name one of mmengine's \d+ models, got 'resnet51'"):
            load_pretrained(SAN(10), 'open-mmlab://resnet51')

    def test_other_storage_is_mmengines(self, tmp_path, monkeypatch, lines):
        write_checkpoint(tmp_path / 'w.pth', VAN(NARROW, out_indices=(0, 1)).state_dict())
        monkeypatch.setattr('mmengine.fileio.get_local_path', lambda path: nullcontext(
            str(tmp_path / 'w.pth') if path == 's3://bucket/w.pth' else ''))
        initialised(VAN(NARROW, out_indices=(0, 1)), 's3://bucket/w.pth')
        assert len(lines) == 1


def test_mmengines_own_loader_renames_as_well(tmp_path):
    state = published.mmpretrain_van(published.official('van_b0')[1])
    torch.save(dict(state_dict=state), tmp_path / 'w.pth')
    model = VAN('b0')
    load_checkpoint(model, str(tmp_path / 'w.pth'), map_location='cpu', logger='silent')
    torch.testing.assert_close(model.block1[0].mlp.dwconv.weight.double(),
                               state['backbone.blocks1.0.mlp.dwconv.weight'], rtol=1e-6, atol=1e-7)


@pytest.fixture
def convert(monkeypatch, capsys):
    """Return what calls the command, and returns what it prints, or its error."""
    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convert.py', *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools/model_converters/convert.py'), run_name='__main__')
        except SystemExit as stop:
            return str(stop.code)
        return capsys.readouterr().out

    return call


def test_the_command(convert, tmp_path):
    state = published.official('segnext_t')[1]
    write_checkpoint(tmp_path / 'official.pth', state)
    config = ROOT / 'configs/segnext/segnext_mscan-t_1xb16-160k_ade20k-512x512.py'
    said = convert(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--to', 'segmentor', '--model', config)
    assert "official.pth: format 'mscan' (Visual-Attention-Network/SegNeXt" in said
    assert f'SHA-256: {sha256_of(tmp_path / "official.pth")}' in said
    assert '\n550 of 551 tensors matched' in said
    assert '26 renamed and 0 changed; 0 missing, 0 unexpected, 0 misshapen, 0 of other parts' in said
    assert read_checkpoint(tmp_path / 'ours.pth').container == ('state_dict',)
    assert convert(tmp_path / 'official.pth', tmp_path / 'ours.pth').startswith(
        f'FileExistsError: {tmp_path}/ours.pth exists; --force')
    assert "format 'mscan'" in convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--reverse')
    reversed_state = read_checkpoint(tmp_path / 'back.pth').state
    assert list(reversed_state) == list(state)
    assert all(torch.equal(reversed_state[key], value) for key, value in state.items())


def test_the_command_names_the_network_and_what_is_left_out(convert, tmp_path):
    write_checkpoint(tmp_path / 'r.pth', published.resnet())
    said = convert(tmp_path / 'r.pth', tmp_path / 'ours.safetensors')
    assert "network: {'type': 'mmrednet.SpatialResNet', 'depth': 26, 'base_channels': 16}" in said
    assert '\n  outside: head.fc.weight, head.fc.bias\n' in said
    detector = ROOT / 'configs/shapes/faster-rcnn_r26_fpn_shapes.py'
    said = convert(tmp_path / 'r.pth', tmp_path / 'd.pth', '--to', 'detector', '--model', detector)
    assert said.startswith('CheckpointError: ')
    assert 'too little fits' in said
    assert 'misshapen: backbone.conv1.weight is (16, 3, 7, 7) in the file and (' in said
    assert not (tmp_path / 'd.pth').exists()
