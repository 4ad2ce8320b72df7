"""mmdet's inferencer gives panoptic maps of a shipped config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, det_inferencer
from mmengine.config import Config

from mmrednet.datasets.cityscapes_panoptic import CityscapesPanopticDataset
from mmrednet.panoptic.merging import INSTANCE_OFFSET

META = CityscapesPanopticDataset._load_metainfo(CityscapesPanopticDataset.METAINFO)
ROOT = Path(__file__).parents[1]
BASE = ROOT / 'configs/axial/axial-deeplab-s_8xb4-60k_cityscapes-1025x2049.py'


@pytest.fixture(scope='module')
def inferencer():
    """An inferencer of a narrow form of the config, with random weights."""
    cfg = Config.fromfile(BASE)
    cfg.model.backbone.update(arch=0.25, depth=26, table_size=17)
    cfg.model.decoder.update(in_channels=[64, 128, 512])
    cfg.model.test_cfg.update(stuff_area=1, threshold=-10.0, top_k=5)
    cfg.test_dataloader.dataset.pipeline[1].update(scale=(96, 64))
    torch.manual_seed(0)
    result = DetInferencer(cfg, device='cpu', show_progress=False)
    # a checkpoint brings these
    result.model.dataset_meta = result.visualizer.dataset_meta = META
    return result


def test_data_samples_and_a_picture(inferencer, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 72, 3), dtype=np.uint8)
    result = inferencer(image, return_datasamples=True, return_vis=True)
    sample = result['predictions'][0]
    ids = sample.pred_panoptic_seg.sem_seg
    assert ids.shape == (1, 48, 72)
    present = set(ids.unique().tolist()) - {19}
    assert present == {info['id'] for info in sample.pred_segments_info}
    assert all(value % INSTANCE_OFFSET < 19 for value in present)
    assert result['visualization'][0].ndim == 3


def test_dicts(inferencer, monkeypatch):
    """They need panopticapi, for which two names stand in here."""
    monkeypatch.setattr(det_inferencer, 'VOID', 0)
    monkeypatch.setattr(
        det_inferencer, 'id2rgb', lambda ids: np.stack([ids >> s & 255 for s in (0, 8, 16)], 2)
    )
    image = np.zeros((48, 72, 3), dtype=np.uint8)
    colours = inferencer(image)['predictions'][0]['panoptic_seg'].astype(int)
    assert colours.shape == (48, 72, 3)
    ids = colours @ [1, 256, 65536]
    assert set((ids % INSTANCE_OFFSET).ravel().tolist()) <= set(range(19))
