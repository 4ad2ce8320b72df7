"""An exported file in the place of its model, so that the metric of a config evaluates it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from ..registry import MODELS
from .runtime import Model, restore

ENDINGS = ('.onnx', '.xml')


def is_exported(path: str | Path) -> bool:
    """Return whether a path is that of an exported file, by its ending."""
    return Path(path).suffix in ENDINGS


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Predicts with an exported file, from the data that a config's test pipeline loads.

    It takes the images that the pipeline has resized, and returns predictions in the size of the
    original image. Class maps are enlarged without interpolation. mmseg interpolates logits, so
    that a segmenter whose pipeline resizes images gets slightly other results.

    Args:
        path: Path of the file, ``.onnx`` or ``.xml``. Its description, ``.json``, lies beside it.

    Raises:
        FileNotFoundError: The file or its description does not exist.
        ValueError: Its task has no evaluation: it must be detection, with or without masks,
            semantic segmentation, or panoptic segmentation.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        for file in (Path(path), Path(path).with_suffix('.json')):
            if not file.is_file():
                raise FileNotFoundError(f'path must be an exported file with its .json, no {file}.')
        self.exported = Model(path, threads=torch.get_num_threads())
        self.task: str = self.exported.description['task']
        if self.task not in PREDICTIONS:
            raise ValueError(
                f'path must be a model for one of {", ".join(PREDICTIONS)}, got {path} for '
                f'{self.task}.'
            )

    def forward(
        self, inputs: list[Tensor], data_samples: list[Any], mode: str = 'predict'
    ) -> list[BaseDataElement]:
        """Return the data samples with predictions.

        Args:
            inputs: Images (3, H, W), uint8, BGR.
            data_samples: Data sample of each image.
            mode: 'predict' alone, since a file cannot be trained.
        """
        if mode != 'predict':
            raise ValueError(f"mode must be 'predict' for an exported file, got {mode!r}.")
        for image, sample in zip(inputs, data_samples, strict=True):
            outputs = self._outputs(image, sample.ori_shape[:2])
            name, prediction = PREDICTIONS[self.task](outputs)
            setattr(sample, name, prediction)
        return data_samples

    def _outputs(self, image: Tensor, size: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the outputs of the file in the size (H, W) of the original image."""
        shape = self.exported.description['input']['shape']
        if shape and list(image.shape[1:]) != shape:
            raise ValueError(
                f'images must be resized to {shape} by the test pipeline, as the file was exported '
                f'with --shape, got {tuple(image.shape[1:])}.'
            )
        arrays = self.exported.run(image[None].float().numpy())
        outputs = dict(zip(self.exported.names, arrays, strict=True))
        return restore(self.task, outputs, tuple(image.shape[1:]), tuple(size))


def _instances(outputs: dict[str, np.ndarray]) -> tuple[str, InstanceData]:
    names = dict(boxes='bboxes')
    tensors = {names.get(key, key): torch.from_numpy(x) for key, x in outputs.items()}
    return 'pred_instances', InstanceData(**tensors)


def _class_map(outputs: dict[str, np.ndarray]) -> tuple[str, PixelData]:
    return 'pred_sem_seg', PixelData(data=torch.from_numpy(outputs['labels'])[None])


def _panoptic_map(outputs: dict[str, np.ndarray]) -> tuple[str, PixelData]:
    return 'pred_panoptic_seg', PixelData(sem_seg=torch.from_numpy(outputs['ids'])[None])


# task of a file: what makes the name and the value of the prediction in a data sample
PREDICTIONS = dict(
    detection=_instances, instances=_instances, segmentation=_class_map, panoptic=_panoptic_map
)
