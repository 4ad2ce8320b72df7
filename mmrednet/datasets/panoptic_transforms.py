"""Panoptic annotations in a pipeline: one map of segment ids for each image.

mmdet's transforms move ``gt_seg_map`` with the image, by the nearest pixel. An id map is therefore
augmented as a single channel, however many instances it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..packages import require

require('mmrednet.LoadPanopticMap and PackPanopticInputs', 'mmdet', 'mmcv')

from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmengine import fileio
from mmengine.structures import PixelData

from ..registry import TRANSFORMS
from .id_map import decode_id_map, present_ids, remove_others


@TRANSFORMS.register_module()
class LoadPanopticMap(BaseTransform):
    """Load the id map of an image as ``gt_seg_map``, (H, W), int32; 0 is void.

    ``segments_info`` becomes a list of dicts with ``id``, ``category``, the index of the class, and
    ``iscrowd``. It reads the items of the panoptic data sets of mmrednet and of mmdet. Items
    without ``seg_map_path`` stay as they are, so that a pipeline serves images without truth.

    Pads must fill the map with void: ``dict(type='Pad', ..., pad_val=dict(img=..., seg=0))``.

    Args:
        num_things: Number of thing classes, which come first in the classes of mmdet's panoptic
            data sets. Their items do not tell crowds from stuff otherwise. Default: None.
        backend_args: Arguments of mmengine's file backend. Default: None.

    Raises:
        ValueError: A map cannot be read or has another size than its image, an id has no segment,
            a segment has no pixels, or the item does not tell crowds from stuff.
    """

    def __init__(self, num_things: int | None = None, backend_args: dict | None = None) -> None:
        self.num_things = num_things
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Add ``gt_seg_map`` and ``segments_info`` to an item."""
        path = results.get('seg_map_path')
        if path is None:
            return results
        ids = decode_id_map(fileio.get(path, backend_args=self.backend_args), path)
        _check_size(ids, results)
        present = present_ids(ids)
        rule = results.get('id_rule')
        if rule is not None:
            segments = rule.segments(present, path)
            if len(segments) < len(present):
                ids = remove_others(ids, segments)
        else:
            segments = self._stated_segments(results['segments_info'])
            _check_segments(segments, present, path)
        results['gt_seg_map'] = ids
        results['segments_info'] = segments
        return results

    def _stated_segments(self, entries: Sequence[dict]) -> list[dict[str, int]]:
        segments = []
        for entry in entries:
            segment = dict(id=entry['id'], category=entry['category'])
            segment['iscrowd'] = self._is_crowd(entry)
            segments.append(segment)
        return segments

    def _is_crowd(self, entry: dict) -> int:
        if 'iscrowd' in entry:
            return int(entry['iscrowd'])
        if self.num_things is None:
            raise ValueError(
                'num_things of LoadPanopticMap must be the number of thing classes for mmdet data '
                f'sets, which do not tell crowds from stuff, got None and a segment {entry}'
            )
        return int(entry['category'] < self.num_things and not entry['is_thing'])


def _check_size(ids: np.ndarray, results: dict) -> None:
    size = tuple(results.get('ori_shape', ids.shape)[:2])
    if ids.shape != size:
        raise ValueError(
            f'id map must have the size of its image, got {ids.shape} in '
            f'{results["seg_map_path"]} and {size} in {results.get("img_path")}'
        )


def _check_segments(segments: Sequence[dict], present: Sequence[int], path: str) -> None:
    """Check that a map has exactly the ids of its segments."""
    stated = {segment['id'] for segment in segments}
    unstated = sorted(set(present) - stated)
    if unstated:
        raise ValueError(
            f'ids of a map must have an entry in segments_info, or be 0, got {len(unstated)} '
            f'without in {path}, such as {unstated[0]}'
        )
    absent = sorted(stated - set(present))
    if absent:
        raise ValueError(
            f'segments must have pixels, got {len(absent)} without in {path}, such as {absent[0]}'
        )


@TRANSFORMS.register_module()
class PackPanopticInputs(PackDetInputs):
    """Pack an image, and its panoptic truth if it has one.

    The truth is ``gt_panoptic_seg.sem_seg``, (1, H, W), int64, in the data sample, and
    ``segments_info`` in its metainfo. Segments that a crop has cut off stay in the list.

    Args:
        meta_keys: Keys of the metainfo. Default: those of mmdet's PackDetInputs.
    """

    def transform(self, results: dict) -> dict[str, Any]:
        """Return ``inputs`` and ``data_samples``."""
        results = dict(results)
        ids = results.pop('gt_seg_map', None)
        packed = super().transform(results)
        if ids is not None:
            sample = packed['data_samples']
            truth = torch.from_numpy(ids.astype(np.int64))[None]
            sample.gt_panoptic_seg = PixelData(sem_seg=truth)
            sample.set_metainfo(dict(segments_info=results['segments_info']))
        return packed
