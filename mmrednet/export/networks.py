"""Models as networks from an image to tensors, with what a program around them has to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .detectors import DetectorNetwork


class Preprocess(nn.Module):
    """Normalise an image and pad it at the bottom and on the right, as a data preprocessor does.

    Args:
        preprocessor: Data preprocessor of a model.
        divisor: Divisor of the padded height and width. Default: 1, no padding.
        fill: Value of the padding. Default: 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any, divisor: int = 1, fill: float = 0.0) -> None:
        super().__init__()
        self.divisor, self.fill = divisor, fill
        self.swaps = bool(getattr(preprocessor, '_channel_conversion', False))
        mean = getattr(preprocessor, 'mean', torch.zeros(1, 1, 1))
        std = getattr(preprocessor, 'std', torch.ones(1, 1, 1))
        self.register_buffer('mean', mean.float(), persistent=False)
        self.register_buffer('std', std.float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (B, C, H, W) as its file has it to the input of the network."""
        if self.swaps:
            image = torch.cat([image[:, 2:3], image[:, 1:2], image[:, 0:1]], 1)
        image = (image - self.mean) / self.std
        if self.divisor == 1:
            return image
        height, width = image.shape[-2:]
        return F.pad(image, (0, -width % self.divisor, 0, -height % self.divisor), value=self.fill)


class BackboneNetwork(nn.Module):
    """A backbone, from a normalised image to its feature maps."""

    def __init__(self, backbone: nn.Module, count: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.output_names = [f'features{index}' for index in range(count)]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map a normalised image (B, C, H, W) to the feature maps of the stages."""
        return tuple(self.backbone(image))


class ClassifierNetwork(nn.Module):
    """A classifier, from an image to probabilities."""

    output_names = ('scores',)

    def __init__(self, model: Any, preprocess: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.model = preprocess, model

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Map an image (B, C, H, W) to the probabilities of the classes (B, classes)."""
        return (self.model(self.preprocess(image)).softmax(1),)


class WholeUpsample(nn.Module):
    """mmseg's Upsample by a whole factor. mmseg multiplies sizes by a float, and int() of that
    product is a constant in an exported program.

    Args:
        module: mmseg's module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.factor = int(module.scale_factor)
        self.options = dict(mode=module.mode, align_corners=module.align_corners)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, factor H, factor W)."""
        size = [self.factor * length for length in x.shape[-2:]]
        return F.interpolate(x, size, **self.options)


def with_whole_upsamples(model: Any) -> Any:
    """Replace mmseg's Upsample by whole factors in a model, in place, and return the model."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            factor = getattr(module, 'scale_factor', None) or 0
            # by name, since importing the class needs mmseg
            is_upsample = type(module).__module__ == 'mmseg.models.utils.wrappers'
            if is_upsample and factor and factor == int(factor):
                setattr(parent, name, WholeUpsample(module))
    return model


class SegmenterNetwork(nn.Module):
    """A segmenter of mmseg that takes whole images, from an image to classes.

    Raises:
        ValueError: The segmenter takes sliding windows.
    """

    output_names = ('labels',)

    def __init__(self, model: Any, preprocess: nn.Module) -> None:
        super().__init__()
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ValueError(
                "model.test_cfg.mode must be 'whole' to be exported, got "
                f'{model.test_cfg.mode!r}. A sliding window is a loop around the network: pass '
                "--cfg-options model.test_cfg=\"{'mode':'whole'}\", and run it window by window."
            )
        self.preprocess, self.model = preprocess, with_whole_upsamples(model)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Map an image (B, C, H, W) to the class of every pixel (B, H, W)."""
        head = self.model.decode_head
        inputs = self.preprocess(image)
        logits = head(self.model.extract_feat(inputs))
        options = dict(size=inputs.shape[2:], mode='bilinear', align_corners=head.align_corners)
        logits = F.interpolate(logits, **options)[..., : image.shape[2], : image.shape[3]]
        if self.model.out_channels == 1:
            return ((logits[:, 0].sigmoid() > head.threshold).long(),)
        return (logits.argmax(1),)


class PanopticNetwork(nn.Module):
    """Panoptic-DeepLab, from an image to its panoptic map and segments."""

    output_names = ('ids', 'categories', 'areas', 'scores')

    def __init__(self, model: Any, preprocess: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.model = preprocess, model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map an image (1, C, H, W) to ids (H, W) and to category, area and score of segments.

        Ids are those of mmdet, where the class count is void. Segments of area 0 do not exist.
        """
        model = self.model
        inputs = model._pad(self.preprocess(image))
        predictions = model.upsample(model._forward(inputs), inputs.shape[2:])
        # as in prediction, the padding has no part in merging
        maps = (x[..., : image.shape[2], : image.shape[3]] for x in predictions)
        semantic, heat, offset = maps
        result = model.merger(semantic[0].softmax(0), heat[0, 0], offset[0])
        return result.ids(model.num_classes), result.category, result.area, result.score


def network_of(model: Any) -> tuple[nn.Module, str]:
    """Return a model in eval mode as a network of one image, and the name of its task.

    Raises:
        ValueError: There is no network for a model of this kind.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        raise ValueError(
            'model must have a data_preprocessor: a classifier, detector or segmenter, got '
            f'{type(model).__name__}. Of a backbone, export BackboneNetwork in Python.'
        )
    # of mmdet, of mmseg
    fill = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    # by name, since importing the class of a detector needs mmdet
    bases = [base.__name__ for base in type(model).__mro__]
    network: nn.Module
    if 'ImageClassifier' in bases:
        network, task = ClassifierNetwork(model, Preprocess(preprocessor)), 'classification'
    elif 'PanopticDeepLab' in bases:
        network = PanopticNetwork(model, Preprocess(preprocessor, divisor, fill))
        task = 'panoptic'
    elif hasattr(model, 'decode_head'):
        test_cfg = preprocessor.test_cfg or {}
        divisor = test_cfg.get('size_divisor', 1)
        network, task = (
            SegmenterNetwork(model, Preprocess(preprocessor, divisor, fill)),
            'segmentation',
        )
    else:
        network = DetectorNetwork(model, Preprocess(preprocessor, divisor, fill))
        task = 'instances' if 'masks' in network.output_names else 'detection'
    return network.eval(), task


def image_channels(network: nn.Module) -> int:
    """Return the number of channels of the image, those of the first convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def description(
    task: str, network: Any, cfg: Any, meta: dict[str, Any], shape: Sequence[int] | None
) -> dict[str, Any]:
    """Return what a program has to know to feed the network and to read its outputs.

    Args:
        task: Name of the task, see :func:`network_of`.
        network: The network.
        cfg: Config with the transforms of its tests.
        meta: Classes and colours of the data set.
        shape: (H, W) of the image, or None for any size.
    """
    return dict(
        task=task,
        input=dict(
            name='image',
            layout='NCHW',
            dtype='float32',
            channels='BGR, from 0 to 255, as OpenCV reads a file',
            shape=list(shape) if shape else None,
            resize=resizing(cfg),
        ),
        inside=['order of the channels', 'normalisation', 'padding'],
        outputs=list(network.output_names),
        classes=list(meta.get('classes') or []),
        palette=[list(map(int, colour)) for colour in meta.get('palette') or []],
    )


def resizing(cfg: Any) -> dict[str, Any] | None:
    """Return how the tests of a config resize an image, or None if they do not."""
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    for transform in dataset.get('pipeline', []):
        if transform['type'].rpartition('.')[2] in ('Resize', 'ResizeEdge'):
            options = {key: value for key, value in transform.items() if key != 'type'}
            return dict(type=transform['type'].rpartition('.')[2], **options)
    return None
