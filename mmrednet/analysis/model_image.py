"""An image as a model sees it: resized and normalised as its config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

# mean and standard deviation of ImageNet's images in RGB, for models that do not state their own
IMAGENET_STATISTICS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class ModelImage(NamedTuple):
    """An image and the input that a model makes of it.

    Args:
        image: Image, of shape (H, W, 3), uint8, RGB.
        inputs: Input of the model, of shape (1, C, h, w), padded at the bottom and on the right.
        shape: Height and width of the resized image in ``inputs``, without the padding.
        sample: Data sample with the sizes that heads ask for.
    """

    image: np.ndarray
    inputs: Tensor
    shape: tuple[int, int]
    sample: BaseDataElement

    def pitch(self) -> tuple[float, float]:
        """Return the rows and columns of the image for each row and column of the input."""
        height, width = self.image.shape[:2]
        return height / self.shape[0], width / self.shape[1]


def read_image(image: str | Path | np.ndarray) -> np.ndarray:
    """Return an image as (H, W, 3), uint8, BGR.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no image, or the array has another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                'image must be an array (H, W, 3), uint8, BGR, got shape '
                f'{image.shape}, {image.dtype}.'
            )
        return image
    if not Path(image).is_file():
        raise FileNotFoundError(f'image must be an existing file, got {str(image)!r}.')
    pixels = mmcv.imread(str(image))
    if pixels is None:
        raise ValueError(f'image must be a picture that OpenCV can read, got {str(image)!r}.')
    return pixels


def model_image(
    model: nn.Module, image: str | Path | np.ndarray | Tensor, *, cfg: Any = None
) -> ModelImage:
    """Prepare an image for a model.

    A detector or segmenter with a config resizes and normalises it as in its tests. Other models
    get it in its own size: normalised by their data preprocessor, or by ImageNet's statistics if
    they have none.

    Args:
        model: Detector of mmdet, segmenter of mmseg, classifier or backbone.
        image: Path of an image; array (H, W, 3), uint8, BGR; or an input (1, C, H, W) of the model.
        cfg: Config with ``test_dataloader``. Default: None, the ``cfg`` of the model, if it has
            one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The image is of another form.
    """
    if isinstance(image, Tensor):
        return _from_tensor(image)
    pixels = read_image(image)
    path = str(image) if isinstance(image, (str, Path)) else None
    cfg = getattr(model, 'cfg', None) if cfg is None else cfg
    pipeline = _test_pipeline(cfg or {})
    if pipeline and hasattr(model, 'data_preprocessor'):
        scope = cfg.get('default_scope')
        inputs, sample = _from_pipeline(model, pipeline, scope, pixels, path)
        height, width = sample.img_shape[:2]
    else:
        inputs = _normalised(model, pixels)
        height, width = pixels.shape[:2]
        sample = _sample((height, width), (inputs.shape[2], inputs.shape[3]))
    return ModelImage(mmcv.bgr2rgb(pixels), inputs, (height, width), sample)


def _from_tensor(inputs: Tensor) -> ModelImage:
    if inputs.dim() != 4 or len(inputs) != 1:
        raise ValueError(
            f'an input must be of shape (1, channels, H, W), got {tuple(inputs.shape)}.'
        )
    # scaled to its own range, for a background that can be seen
    grey = inputs[0].detach().float().mean(0).cpu()
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-12)
    pixels = (255 * grey).byte().numpy()
    shape = (inputs.shape[2], inputs.shape[3])
    return ModelImage(np.stack([pixels] * 3, 2), inputs, shape, _sample(shape, shape))


def _sample(shape: tuple[int, int], padded: tuple[int, int]) -> BaseDataElement:
    sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=padded, batch_input_shape=padded)
    return BaseDataElement(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))


def _test_pipeline(cfg: Any) -> list[dict]:
    """Return the transforms of a config's tests without those that load files."""
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    # wrappers of a data set have it inside
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    transforms = []
    for transform in dataset.get('pipeline', []):
        name = transform['type'].rpartition('.')[2]
        if not name.startswith('Load'):
            transforms.append(transform)
    return transforms


def _from_pipeline(
    model: Any, pipeline: list[dict], scope: str | None, pixels: np.ndarray, path: str | None
) -> tuple[Tensor, Any]:
    size = pixels.shape[:2]
    item: Any = dict(img=pixels, img_path=path, img_id=0, img_shape=size, ori_shape=size)
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        for transform in pipeline:
            item = registry.build(transform)(item)
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    prepared = model.data_preprocessor(batch, False)
    return prepared['inputs'], prepared['data_samples'][0]


def _normalised(model: Any, pixels: np.ndarray) -> Tensor:
    parameter = next(model.parameters())
    inputs = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    if hasattr(getattr(model, 'data_preprocessor', None), 'mean'):
        return model.data_preprocessor(dict(inputs=[inputs]))['inputs'].to(parameter)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET_STATISTICS)
    # the statistics are of RGB
    return ((inputs.flip(0) - mean) / std)[None].to(parameter)
