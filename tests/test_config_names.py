"""Configs by name, in a clone and in a wheel, and the command that lists and copies them."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.registry import MODELS, TRANSFORMS
from running import run_code

from mmrednet import cli, config_names, shipped
from mmrednet.engine import load_config, read_config

ROOT = Path(__file__).parents[1]
NAME = 'mmrednet::rednet/faster-rcnn_rednet50_fpn_1x_coco.py'
PATH = ROOT / 'configs/rednet/faster-rcnn_rednet50_fpn_1x_coco.py'


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """Let the package be one of a wheel, whose folder is returned."""
    monkeypatch.setattr(shipped, 'PACKAGE', tmp_path / 'site' / 'mmrednet')
    monkeypatch.setattr(shipped, 'MIM', tmp_path / 'site' / 'mmrednet' / '.mim')
    return tmp_path / 'site' / 'mmrednet'


class TestNames:
    def test_a_clone_reads_its_own_file(self):
        assert config_names.resolve_config(NAME) == PATH
        assert read_config(NAME).filename == str(PATH)
        assert load_config(NAME).work_dir == 'work_dirs/faster-rcnn_rednet50_fpn_1x_coco'

    def test_a_wheel_reads_its_copy(self, wheel):
        shipped.copy_shipped(ROOT, wheel / '.mim')
        path = wheel / '.mim/configs/rednet/faster-rcnn_rednet50_fpn_1x_coco.py'
        assert config_names.resolve_config(NAME) == path
        assert read_config(NAME).filename == str(path)

    def test_those_of_the_frameworks(self):
        path = config_names.resolve_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
        assert path.parts[-4:-1] == ('.mim', 'configs', 'faster_rcnn')

    def test_as_a_base(self, tmp_path):
        (tmp_path / 'own.py').write_text(
            f"_base_ = '{NAME}'\nmodel = dict(backbone=dict(depth=26))"
        )
        backbone = read_config(str(tmp_path / 'own.py')).model.backbone
        assert (backbone.type, backbone.depth) == ('mmrednet.RedNet', 26)

    @pytest.mark.parametrize('name', ['shapes/faster-rcnn_r26_fpn', 'streets/segnext_mscan-narrow'])
    def test_the_frameworks_read_such_a_base(self, name, tmp_path):
        """mmengine gives it our scope, where names of the framework are found as well."""
        config_names.register_configs()
        name = f'mmrednet::{name}_{name.partition("/")[0]}.py'
        (tmp_path / 'own.py').write_text(f"_base_ = '{name}'")
        cfg = Config.fromfile(tmp_path / 'own.py')
        transform = cfg.train_pipeline[1]
        assert transform._scope_ == 'mmrednet'
        host = load_config(name).default_scope
        with MODELS.switch_scope_and_registry(host) as registry, torch.device('meta'):
            model = registry.build(cfg.model)
            step = TRANSFORMS.build(transform)
        assert type(model).__module__.partition('.')[0] == host
        assert type(step).__module__.partition('.')[0] == host

    def test_nothing_is_registered_by_an_import(self):
        code = """
import mmrednet, mmrednet.registry, mmrednet.engine, mmrednet.config_names
from mmengine.config.utils import MODULE2PACKAGE
assert 'mmrednet' not in MODULE2PACKAGE
"""
        result = run_code(code)
        assert result.returncode == 0, result.stderr

    def test_in_the_hub(self):
        config_names.register_configs()
        assert get_config(NAME).model.backbone.type == 'mmrednet.RedNet'

    @pytest.mark.parametrize(
        ('name', 'model'),
        [
            (NAME, 'FasterRCNN'),
            ('mmrednet::segnext/segnext_mscan-t_1xb16-160k_ade20k-512x512.py', 'EncoderDecoder'),
            ('mmrednet::shapes/panoptic-deeplab_axial26-narrow_shapes.py', 'PanopticDeepLab'),
            ('mmrednet::shapes/rednet26-narrow_single-shapes.py', 'ImageClassifier'),
        ],
    )
    def test_models_of_the_hub(self, name, model):
        config_names.register_configs()
        with torch.device('meta'):
            assert (
                type(get_model(name.partition('::')[2] and name or f'mmrednet::{name}')).__name__
                == model
            )


class TestErrors:
    @pytest.mark.parametrize(
        ('config', 'message'),
        [
            (NAME.replace('faster', 'fatser'), f'mmrednet has no config .*; did you mean {NAME}'),
            # the right file in a wrong folder, and a path from outside of the clone
            (NAME.replace('rednet/', 'rednett/'), rf'did you mean {NAME}\?$'),
            (
                f'none/{PATH.name}',
                rf'config must be an existing file, got .*; did you mean {NAME}\?$',
            ),
            ('xyzzy', "must be an existing file, got 'xyzzy'; `mmrednet configs list` names"),
            (
                'other::a/b.py',
                "'mmrednet::', 'mmdet::' or 'mmseg::', got 'other::'",
            ),
            (
                'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_cocoo.py',
                'mmdet has no config .*; did you mean mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_co',
            ),
        ],
    )
    def test_misspelt(self, config, message):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            read_config(config)

    def test_a_misspelt_base(self, tmp_path):
        (tmp_path / 'own.py').write_text(f"_base_ = '{NAME[:-3]}x.py'")
        with pytest.raises(FileNotFoundError, match=f'cannot be read: .*did you mean {NAME}'):
            read_config(str(tmp_path / 'own.py'))

    def test_without_configs(self, wheel, capsys):
        assert cli.main(['configs', 'list']) == 1
        assert capsys.readouterr().err == (
            'mmrednet configs: error: the configs of mmrednet must be in '
            f'{wheel}/.mim/configs, but it does not exist: install the wheel that `make dist` '
            'builds, or work in a clone.\n'
        )
        with pytest.raises(FileNotFoundError, match="got 'none.py'; the configs of mmrednet must"):
            read_config('none.py')


class TestCopies:
    @pytest.fixture
    def clone(self, tmp_path):
        root = tmp_path / 'clone'
        for name in ('configs/rednet/a.py', 'configs/rednet/b.py', 'tools/train.py'):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
        (root / 'tools/__pycache__').mkdir()
        (root / 'tools/__pycache__/train.pyc').touch()
        (root / 'model-index.yml').write_text('Import: []')
        return root

    def files(self, folder):
        paths = (path for path in folder.rglob('*') if path.is_file())
        return {str(path.relative_to(folder)): path.read_text() for path in paths}

    def test_they_follow_the_clone(self, clone, tmp_path):
        shipped.copy_shipped(clone, tmp_path / 'mim')
        assert set(self.files(tmp_path / 'mim')) == {
            'configs/rednet/a.py',
            'configs/rednet/b.py',
            'tools/train.py',
            'model-index.yml',
        }
        unchanged = (tmp_path / 'mim/tools/train.py').stat().st_ino
        (clone / 'configs/rednet/a.py').write_text('changed')
        (clone / 'configs/rednet/b.py').unlink()
        shipped.copy_shipped(clone, tmp_path / 'mim')
        files = self.files(tmp_path / 'mim')
        assert files['configs/rednet/a.py'] == 'changed'
        assert 'configs/rednet/b.py' not in files
        assert (tmp_path / 'mim/tools/train.py').stat().st_ino == unchanged

    def test_they_are_current_once_registered(self):
        config_names.register_configs()
        copy = shipped.MIM / 'configs' / PATH.relative_to(ROOT / 'configs')
        assert copy.read_text() == PATH.read_text()


class TestCommand:
    def test_list(self, capsys):
        assert cli.main(['configs', 'list', 'streets']) == 0
        assert capsys.readouterr().out == 'mmrednet::streets/segnext_mscan-narrow_streets.py\n'
        assert cli.main(['configs', 'list']) == 0
        names = capsys.readouterr().out.split()
        shipped_files = (ROOT / 'configs').rglob('*.py')
        assert len(names) == sum('_base_' not in path.parts for path in shipped_files)

    def test_search(self, capsys):
        assert cli.main(['configs', 'search', 'Mask', 'van-b0']) == 0
        assert capsys.readouterr().out == 'mmrednet::van/mask-rcnn_van-b0_fpn_1x_coco.py\n'
        assert cli.main(['configs', 'search', 'xyzzy']) == 1
        assert capsys.readouterr().err == 'no config of mmrednet has xyzzy\n'

    @pytest.mark.parametrize('flags', [[], ['--flat']])
    @pytest.mark.parametrize(
        'name', [NAME, 'mmrednet::segnext/segnext_mscan-t_1xb16-160k_ade20k-512x512.py']
    )
    def test_a_copy_is_the_same_config(self, name, flags, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.main(['configs', 'copy', name, *flags]) == 0
        copy = capsys.readouterr().out.strip()
        assert copy == Path(name).name
        assert read_config(copy).to_dict() == read_config(name).to_dict()
        # a flat one has no base, and the other one names it
        text = Path(copy).read_text()
        assert ('_base_ = ' in text) == ('::' in text) == (not flags)
        assert '../' not in text
        assert cli.main(['configs', 'copy', name]) == 1
        assert capsys.readouterr().err.endswith(f'{copy} exists; --force overwrites it.\n')
        assert cli.main(['configs', 'copy', name, '--force']) == 0

    def test_a_config_of_ones_own(self, tmp_path, capsys):
        (tmp_path / 'base.py').write_text('a = 1')
        (tmp_path / 'own.py').write_text("_base_ = './base.py'\nb = 2")
        target = tmp_path / 'copies' / 'copy.py'
        assert cli.main(['configs', 'copy', str(tmp_path / 'own.py'), str(target)]) == 0
        cfg = Config.fromfile(target)
        assert (cfg.a, cfg.b) == (1, 2)
