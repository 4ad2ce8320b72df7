"""An exported file in the place of its model, so that the metric of a config evaluates it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from ..registry import MODELS
from .formats import library_beside
from .runtime import Model, restore

ENDINGS = ('.onnx', '.xml', '.pt2')


def is_exported(path: str | Path) -> bool:
    """Return whether a path is that of an exported file, by its ending."""
    return Path(path).suffix in ENDINGS


def add_trust_option(parser: ArgumentParser) -> None:
    """Add ``--trust``, without which no file is read that executes code."""
    parser.add_argument(
        '--trust',
        action='store_true',
        help='read an exported file that executes code which is in it or beside it: .pt2, or a '
        'file with a library .ops.so',
    )


def check_files(path: Path, trust: bool) -> None:
    """Check that an exported file and its description exist, and that code in them is trusted.

    Raises:
        FileNotFoundError: The file or its description does not exist.
        ValueError: Reading it would execute code, and ``trust`` is False.
    """
    for file in (path, path.with_suffix('.json')):
        if not file.is_file():
            raise FileNotFoundError(f'path must be an exported file with its .json, no {file}.')
    library = library_beside(path)
    # torch executes conditions on sizes that are written in a program; a package is machine code
    source = path if path.suffix == '.pt2' else library
    if source.is_file() and not trust:
        raise ValueError(
            f'{source} executes code when it is read. If you trust where it comes from, pass '
            '--trust, in Python trust=True.'
        )


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Predicts with an exported file, from the data that a config's test pipeline loads.

    It takes the images that the pipeline has resized, and returns predictions in the size of the
    original image. Class maps are enlarged without interpolation. mmseg interpolates logits, so
    that a segmenter whose pipeline resizes images gets slightly other results.

    Args:
        path: Path of the file, ``.onnx``, ``.xml`` or ``.pt2``. Its description, ``.json``, lies
            beside it.
        trust: True if code that is in the file or beside it may be executed. Default: False.

    Raises:
        FileNotFoundError: The file or its description does not exist.
        ValueError: The file is damaged; or it executes code, and ``trust`` is False; or its task
            has no evaluation: it must be detection, with or without masks, semantic segmentation,
            or panoptic segmentation.
    """

    def __init__(self, path: str | Path, trust: bool = False) -> None:
        super().__init__()
        check_files(Path(path), trust)
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
