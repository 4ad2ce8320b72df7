"""Every shipped config parses, checks out and builds; the published detectors have the published sizes."""

from pathlib import Path

import pytest
import torch

from mmrednet.engine import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py'))
# millions of trainable parameters (stem and first stage are frozen), README of the involution repository
PUBLISHED = {
    'faster-rcnn_rednet50_fpn': 31.6, 'faster-rcnn_rednet50_inv-fpn': 29.5, 'faster-rcnn_rednet50_inv-fpn-rpn': 29.0,
    'mask-rcnn_rednet50_fpn': 34.2, 'mask-rcnn_rednet50_inv-fpn': 32.2, 'mask-rcnn_rednet50_inv-fpn-rpn-mask': 29.5,
    'retinanet_rednet50_fpn': 27.8, 'retinanet_rednet50_inv-fpn': 26.3,
}


def build(path):
    from mmdet.registry import MODELS

    cfg = load_config(str(ROOT / path))
    with torch.device('meta'):
        return cfg, MODELS.build(cfg.model)


@pytest.mark.parametrize('path', CONFIGS)
def test_every_config_builds(path):
    cfg, model = build(path)
    assert type(model.backbone).__module__.startswith('mmrednet.')
    assert all(parameter.numel() for parameter in model.parameters())
    assert cfg.optim_wrapper.optimizer.lr > 0


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_detectors(name):
    cfg, model = build(f'configs/rednet/{name}_1x_coco.py')
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # the source's counter printed two digits and its table one: 26.246 became 26.25, and then 26.3
    assert abs(round(trainable / 1e6, 2) - PUBLISHED[name]) <= 0.0501, trainable
    assert cfg.optim_wrapper.optimizer.lr == (0.01 if name.startswith('retinanet') else 0.02)
    neck = 'inv-fpn' in name
    assert cfg.param_scheduler[0].end == (2000 if neck or name.startswith('retinanet') else 500)
    clipped = {'faster-rcnn_rednet50_inv-fpn-rpn': 5, 'mask-rcnn_rednet50_inv-fpn-rpn-mask': 5,
               'retinanet_rednet50_inv-fpn': 40}
    assert (cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm') == clipped.get(name)


def test_all_published_detectors_are_shipped():
    assert {Path(path).stem.removesuffix('_1x_coco') for path in CONFIGS if 'configs/rednet' in path} == set(PUBLISHED)


def test_the_readme_shows_configs_that_work(tmp_path):
    blocks = [block for block in (ROOT / 'README.md').read_text().split('```python\n')[1:] if block[:6] == '_base_']
    own, raccoon = (block.split('```')[0] for block in blocks)
    assert raccoon == (ROOT / 'configs/custom/faster-rcnn_rednet26_raccoon.py').read_text()
    (tmp_path / 'own.py').write_text(own)
    _, model = build(tmp_path / 'own.py')
    assert (type(model.backbone).__name__, type(model.neck).__name__) == ('RedNet', 'SpatialFPN')
