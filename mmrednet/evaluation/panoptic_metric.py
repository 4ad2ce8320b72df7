"""The metric of panoptic networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from PIL import Image

from ..datasets.id_map import INSTANCE_OFFSET, VOID, encode_id_map
from ..registry import METRICS
from .mask_precision import average_precision, encode_instances
from .panoptic_quality import (
    PQStat,
    average_quality,
    count_pairs,
    match_segments,
    segment_positions,
)

FIGURES = ('PQ', 'AP', 'mIoU')


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """PQ, SQ and RQ of all classes, things and stuff; AP of the instances; mIoU. All in percent.

    Predictions are those of mmdet's panoptic detectors: ``pred_panoptic_seg.sem_seg`` with ids
    instance * 1000 + class, and the number of classes for void. The truth is
    ``gt_panoptic_seg.sem_seg`` and ``segments_info``, from :class:`LoadPanopticMap` behind the last
    transform of the image's size, so that both have the size of the original image.

    AP needs scores, in ``pred_segments_info``. mIoU is that of ``pred_sem_seg`` if there is one,
    and else of the classes in the panoptic map.

    Args:
        figures: Some of 'PQ', 'AP' and 'mIoU'. Default: all.
        classwise: Whether to return the PQ of each class too. Default: False.
        format_only: Whether to write predictions without comparing them. Default: False.
        outfile_prefix: Path of ``<prefix>.panoptic.json`` and of the folder ``<prefix>.panoptic``
            with PNG files, for predictions in COCO's panoptic format. Default: None, not written.
        ann_file: JSON file in COCO's panoptic format, whose categories are written. Default: None,
            ``category_ids`` of the data set, or the indices of the classes.
        collect_device: Device to collect results of processes on, 'cpu' or 'gpu'. Default: 'cpu'.
        prefix: Prefix of the figures' names. Default: 'panoptic'.

    Raises:
        ValueError: ``figures`` has another name, or ``format_only`` no ``outfile_prefix``.
    """

    default_prefix = 'panoptic'

    def __init__(
        self,
        *,
        figures: Sequence[str] = FIGURES,
        classwise: bool = False,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        ann_file: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not figures or not set(figures) <= set(FIGURES):
            raise ValueError(f'figures must be some of {FIGURES}, got {figures}')
        if format_only and outfile_prefix is None:
            raise ValueError('format_only needs outfile_prefix, the path to write to, got None')
        self.figures, self.classwise, self.format_only = figures, classwise, format_only
        self.outfile_prefix, self.ann_file = outfile_prefix, ann_file

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the data set."""
        return tuple(self.dataset_meta['classes'])

    @property
    def things(self) -> frozenset[int]:
        """Indices of the classes of things."""
        return frozenset(map(self.classes.index, self.dataset_meta['thing_classes']))

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch, and write its maps.

        Args:
            data_batch: Batch of the loader, which is not used.
            data_samples: Data samples with predictions, as dicts.
        """
        for sample in data_samples:
            ids = _to_array(sample['pred_panoptic_seg']['sem_seg'])
            segments = self._predicted_segments(sample, ids)
            result: dict[str, Any] = {}
            if self.outfile_prefix is not None:
                result['annotation'] = self._write_map(sample, ids, segments)
            if not self.format_only:
                try:
                    result.update(self._compare(sample, ids, segments))
                except ValueError as error:
                    raise ValueError(f'{sample.get("img_path")}: {error}') from error
            self.results.append(result)

    def _predicted_segments(self, sample: dict, ids: np.ndarray) -> list[dict]:
        stated = sample.get('pred_segments_info')
        if stated is not None:
            return list(stated)
        present = [int(value) for value in np.unique(ids) if value != len(self.classes)]
        return [dict(id=value, category=value % INSTANCE_OFFSET) for value in present]

    def _true_ids(self, sample: dict, shape: tuple[int, ...]) -> np.ndarray:
        if 'gt_panoptic_seg' not in sample:
            raise ValueError(
                'PanopticMetric needs gt_panoptic_seg, which mmrednet.LoadPanopticMap and '
                'PackPanopticInputs give. Set format_only for images without truth.'
            )
        true_ids = _to_array(sample['gt_panoptic_seg']['sem_seg'])
        if true_ids.shape != shape:
            raise ValueError(
                f'truth and prediction must have one size, got {true_ids.shape} and {shape}. '
                'LoadPanopticMap must follow Resize in the test pipeline.'
            )
        return true_ids

    def _compare(self, sample: dict, ids: np.ndarray, segments: list[dict]) -> dict[str, Any]:
        """Return what the figures need of one image."""
        true_ids = self._true_ids(sample, ids.shape)
        truths = sample['segments_info']
        true_positions = segment_positions(true_ids, truths, VOID)
        positions = segment_positions(ids, segments, len(self.classes))
        shape = (len(truths) + 1, len(segments) + 1)
        pairs = count_pairs(true_positions, positions, shape)
        result: dict[str, Any] = dict(quality=match_segments(pairs, truths, segments))
        if 'AP' in self.figures and all('score' in segment for segment in segments):
            result['instances'] = (
                encode_instances(true_positions, truths, self.things),
                encode_instances(positions, segments, self.things),
            )
        if 'mIoU' in self.figures:
            semantic = sample.get('pred_sem_seg')
            if semantic is None:
                labels = _class_table(segments)[positions]
            else:
                labels = _to_array(semantic['sem_seg'])
            result['areas'] = class_areas(
                _class_table(truths)[true_positions], labels, self.classes
            )
        return result

    def _write_map(self, sample: dict, ids: np.ndarray, segments: list[dict]) -> dict[str, Any]:
        """Write the map of an image, and return its entry in the JSON file."""
        # id 0 is void in files, and may be a stuff class in mmdet's maps
        written = np.where(ids == len(self.classes), VOID, ids + 1)
        name = f'{PurePosixPath(sample["img_path"]).stem}.png'
        folder = Path(f'{self.outfile_prefix}.panoptic')
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(encode_id_map(written)).save(folder / name)
        category_ids = self._category_ids()
        entries = []
        for segment in segments:
            entry = dict(id=segment['id'] + 1, category_id=category_ids[segment['category']])
            if 'score' in segment:
                entry['score'] = float(segment['score'])
            entries.append(entry)
        return dict(image_id=sample['img_id'], file_name=name, segments_info=entries)

    def _category_ids(self) -> Sequence[int]:
        """Return the category of each class in written files."""
        if self.ann_file is None:
            return self.dataset_meta.get('category_ids', range(len(self.classes)))
        if not hasattr(self, '_categories'):
            entries = json.loads(fileio.get_text(self.ann_file))['categories']
            ids = {category['name']: category['id'] for category in entries}
            self._categories = [ids[name] for name in self.classes]
        return self._categories

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Return the figures of all images, and write the JSON file of the predictions."""
        if self.outfile_prefix is not None:
            annotations = [result['annotation'] for result in results]
            path = Path(f'{self.outfile_prefix}.panoptic.json')
            path.write_text(json.dumps(dict(annotations=annotations)))
            MMLogger.get_current_instance().info(f'predictions are in {path}')
        if self.format_only:
            return {}
        figures: dict[str, float] = {}
        if 'PQ' in self.figures:
            figures.update(self._quality(results))
        if 'AP' in self.figures:
            figures.update(self._precision(results))
        if 'mIoU' in self.figures:
            figures['mIoU'] = mean_iou([result['areas'] for result in results])
        return figures

    def _quality(self, results: list[dict]) -> dict[str, float]:
        statistics = PQStat()
        for result in results:
            statistics += result['quality']
        averages = average_quality(statistics, self.classes, self.dataset_meta['thing_classes'])
        MMLogger.get_current_instance().info('\n' + quality_table(averages))
        figures = {}
        for key, suffix in (('all', ''), ('things', '_th'), ('stuff', '_st')):
            for name, value in averages[key].items():
                figures[name.upper() + suffix] = value
        if self.classwise:
            for name in self.classes:
                figures[f'PQ_{name}'] = averages[f'class {name}']['pq']
        return figures

    def _precision(self, results: list[dict]) -> dict[str, float]:
        images = [result['instances'] for result in results if 'instances' in result]
        if len(images) < len(results):
            MMLogger.get_current_instance().warning(
                'AP needs pred_segments_info with scores, which these predictions lack.'
            )
            return {}
        return average_precision(images, sorted(self.things))


def quality_table(averages: Mapping[str, Mapping[str, float]]) -> str:
    """Return PQ, SQ and RQ as a table with a row for each class and average.

    Args:
        averages: Result of :func:`average_quality`.
    """
    names = {key: key.removeprefix('class ') for key in averages}
    width = max(map(len, names.values()))
    lines = [f'{"":{width}}     PQ     SQ     RQ']
    # averages come last, as in a sum
    keys = [*(key for key in averages if key.startswith('class ')), 'all', 'things', 'stuff']
    for key in keys:
        values = [f'{averages[key][name]:6.2f}' for name in ('pq', 'sq', 'rq')]
        lines.append(f'{names[key]:{width}} {" ".join(values)}')
    return '\n'.join(lines)


def class_areas(truth: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the intersection, the predicted and the true area of each class, (3, classes).

    Args:
        truth: Map (H, W) of classes; -1 is void and does not count.
        labels: The same of a prediction. Its void counts as missed.
        classes: Names of the classes.
    """
    valid = truth >= 0
    truth, labels = truth[valid], labels[valid]
    predicted = labels[(labels >= 0) & (labels < len(classes))]
    areas = [
        np.bincount(values.ravel(), minlength=len(classes))
        for values in (truth[truth == labels], predicted, truth)
    ]
    return np.stack(areas)


def mean_iou(areas: Sequence[np.ndarray]) -> float:
    """Return the mean intersection over union in percent, of the classes that occur.

    Args:
        areas: Result of :func:`class_areas` for each image.
    """
    intersection, predicted, true = np.sum(areas, 0)
    union = predicted + true - intersection
    occurring = union > 0
    if not occurring.any():
        return float('nan')
    return 100 * float(np.mean(intersection[occurring] / union[occurring]))


def _class_table(segments: Sequence[Mapping]) -> np.ndarray:
    """Return the class of each position of a map of segments; -1 is void."""
    return np.array([-1, *(segment['category'] for segment in segments)])


def _to_array(ids: Any) -> np.ndarray:
    """Return (1, H, W), a tensor on any device or an array, as an array (H, W)."""
    return np.asarray(ids.cpu() if hasattr(ids, 'cpu') else ids).reshape(ids.shape[-2:])
