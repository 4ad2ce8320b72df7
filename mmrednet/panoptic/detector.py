"""Panoptic-DeepLab (Cheng et al., CVPR 2020), and with an axial backbone Axial-DeepLab (Wang et
al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from ..layers.safe_module import SafeModule
from .decoder import PanopticDecoder
from .formats import rename
from .heads import PanopticHead
from .losses import PanopticLoss, Predictions
from .merging import PanopticMap, PanopticMerger, most_probable
from .resizing import Upsampling, resize, scale_offset
from .targets import PanopticTargets, Targets
from .variants import arguments


class ImageMaps(NamedTuple):
    """Predictions for one image at its original size and orientation.

    Args:
        probability: Probabilities of the classes (C, H, W).
        heat: Heat map of the centres (H, W).
        offset: Rows and columns to the centre (2, H, W), in pixels.
    """

    probability: Tensor
    heat: Tensor
    offset: Tensor


class PanopticDeepLab(SafeModule, BaseDetector):
    """A detector without boxes: classes, centres of instances, and offsets to them.

    Two decoders take the feature maps of the backbone. The semantic one has one head, for the
    classes. The instance one has two, for the heat map of the centres and for the offsets.

    A data sample for training has ``gt_panoptic_seg``, whose ``sem_seg`` (1, H, W) holds segment
    ids with 0 for void, and ``segments_info``, a dict with 'id', 'category' and 'iscrowd' for each
    segment. A prediction adds ``pred_panoptic_seg`` with mmdet's ids (1, H, W), ``pred_sem_seg``
    with classes (1, H, W), and ``pred_segments_info`` with 'id', 'category' and 'score'.

    Args:
        backbone: Config of the backbone.
        num_classes: Number of classes, things and stuff.
        thing_classes: Indices of the classes that are things.
        variant: Preset of the published implementation that all other arguments differ from:
            'deeplab2', 'detectron2' or 'bowenc0221'. Default: 'deeplab2'.
        neck: Config of a neck between backbone and decoders. Default: None.
        decoder: Arguments of both decoders, see :class:`PanopticDecoder`, of which ``in_channels``
            is required. ``conv``, ``spatial_cfg`` and ``norm_cfg`` are those of the heads too.
        semantic_decoder: Arguments of the semantic decoder.
        instance_decoder: Arguments of the instance decoder.
        head: Arguments of the heads, see :class:`PanopticHead`.
        center_head: Arguments of the centre head.
        upsampling: Arguments of :class:`Upsampling`.
        targets: Arguments of :class:`PanopticTargets`.
        losses: Arguments of :class:`PanopticLoss`.
        test_cfg: Arguments of :class:`PanopticMerger`, and ``rescale_offsets``: False if offsets
            stay as they are where predictions are resized to the original image, as in detectron2.
            Default of that: True.
        stride: Stride of the coarsest feature map. Images are padded to a multiple of it, and one
            more where corners are aligned, so that all maps are. Default: 16.
        train_cfg: Not used; mmdet's configs may have it.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Initialisation, see mmengine's BaseModule.

    Raises:
        ValueError: A thing class is no class, or an argument has no such value.
    """

    # mmdet's base class has methods that mypy cannot see
    backbone: Any

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        thing_classes: Sequence[int],
        *,
        variant: str = 'deeplab2',
        neck: dict | None = None,
        decoder: dict,
        semantic_decoder: dict | None = None,
        instance_decoder: dict | None = None,
        head: dict | None = None,
        center_head: dict | None = None,
        upsampling: dict | None = None,
        targets: dict | None = None,
        losses: dict | None = None,
        test_cfg: dict | None = None,
        stride: int = 16,
        train_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        _check_classes(num_classes, thing_classes)
        parts = arguments(
            variant,
            decoder=decoder,
            semantic_decoder=semantic_decoder,
            instance_decoder=instance_decoder,
            head=head,
            center_head=center_head,
            upsampling=upsampling,
            targets=targets,
            losses=losses,
            test_cfg=test_cfg,
        )
        self.num_classes, self.stride = num_classes, stride
        self.backbone = MMDET_MODELS.build(backbone)
        self.neck = None if neck is None else MMDET_MODELS.build(neck)
        self._build_branches(parts)
        self.rescale_offsets = parts['test_cfg'].pop('rescale_offsets', True)
        self.upsample = Upsampling(**parts['upsampling'])
        self.make_targets = PanopticTargets(thing_classes, **parts['targets'])
        self.criterion = PanopticLoss(**parts['losses'])
        self.merger = PanopticMerger(num_classes, thing_classes, **parts['test_cfg'])
        self.register_load_state_dict_pre_hook(_rename_keys)

    def _build_branches(self, parts: dict[str, dict]) -> None:
        """Build decoders and heads from the arguments of the parts."""
        shared = parts['decoder']
        semantic = {**shared, **parts['semantic_decoder']}
        instance = {**shared, **parts['instance_decoder']}
        self.semantic_decoder = PanopticDecoder(**semantic)
        self.instance_decoder = PanopticDecoder(**instance)
        common = {
            name: shared[name] for name in ('conv', 'spatial_cfg', 'norm_cfg') if name in shared
        }
        options = {**common, **parts['head']}
        width = semantic['channels']
        self.semantic_head = PanopticHead(width, width, self.num_classes, **options)
        width = instance['channels']
        self.center_head = PanopticHead(width, 32, 1, **{**options, **parts['center_head']})
        self.offset_head = PanopticHead(width, 32, 2, **options)

    def extract_feat(self, batch_inputs: Tensor) -> Sequence[Tensor]:
        """Return the feature maps of the images (B, 3, H, W)."""
        features = self.backbone(batch_inputs)
        return features if self.neck is None else self.neck(features)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Predictions:
        """Return the outputs of the heads at the stride of the finest feature map."""
        features = self.extract_feat(batch_inputs)
        semantic = self.semantic_decoder(features)
        instance = self.instance_decoder(features)
        return Predictions(
            self.semantic_head(semantic), self.center_head(instance), self.offset_head(instance)
        )

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[BaseDataElement]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        batch_inputs = self._pad(batch_inputs)
        size = batch_inputs.shape[2:]
        targets = [self._targets(sample, size) for sample in batch_data_samples]
        batch = Targets(*(torch.stack(values) for values in zip(*targets, strict=True)))
        return self.criterion(self.upsample(self._forward(batch_inputs), size), batch)

    def _pad(self, images: Tensor) -> Tensor:
        """Return images padded at the bottom and on the right by the mean of normalised ones."""
        extra = int(self.upsample.align_corners)
        height, width = (-(length - extra) % self.stride for length in images.shape[2:])
        return nn.functional.pad(images, (0, width, 0, height))

    def _targets(self, sample: BaseDataElement, size: Sequence[int]) -> Targets:
        ids = sample.gt_panoptic_seg.sem_seg[0]
        # the data preprocessor pads images alone; what it adds is void
        padding = (0, size[1] - ids.shape[1], 0, size[0] - ids.shape[0])
        return self.make_targets(nn.functional.pad(ids, padding), sample.segments_info)

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: Sequence[BaseDataElement],
        rescale: bool = True,
    ) -> Sequence[BaseDataElement]:
        """Return the data samples with predictions, at the original size of the images.

        Args:
            batch_inputs: Images (B, 3, H, W).
            batch_data_samples: Data samples, whose ``img_shape`` and ``ori_shape`` count.
            rescale: False for predictions at the size of the resized images. Default: True.
        """
        maps = self.predict_maps(batch_inputs, batch_data_samples, rescale)
        for sample, image in zip(batch_data_samples, maps, strict=True):
            self.add_prediction(sample, image)
        return batch_data_samples

    def predict_maps(
        self,
        batch_inputs: Tensor,
        batch_data_samples: Sequence[BaseDataElement],
        rescale: bool = True,
    ) -> list[ImageMaps]:
        """Return what the panoptic map of each image is made of."""
        batch_inputs = self._pad(batch_inputs)
        predictions = self._forward(batch_inputs)
        size = batch_inputs.shape[2:]
        maps = []
        for index, sample in enumerate(batch_data_samples):
            single = Predictions(*(x[index : index + 1] for x in predictions))
            maps.append(self._image_maps(self.upsample(single, size), sample.metainfo, rescale))
        return maps

    def _image_maps(self, predictions: Predictions, metainfo: dict, rescale: bool) -> ImageMaps:
        """Return the predictions without padding, resized and flipped back."""
        height, width = metainfo['img_shape'][:2]
        target = metainfo['ori_shape'][:2] if rescale else (height, width)
        align = self.upsample.align_corners
        cut = (x[..., :height, :width] for x in predictions)
        semantic, heat, offset = (resize(x, target, align) for x in cut)
        if self.rescale_offsets:
            offset = scale_offset(offset, (target[0] / height, target[1] / width))
        if metainfo.get('flip'):
            direction = metainfo.get('flip_direction', 'horizontal')
            semantic, heat, offset = _flip(semantic, heat, offset, direction)
        return ImageMaps(semantic[0].softmax(0), heat[0, 0], offset[0])

    def add_prediction(self, sample: BaseDataElement, maps: ImageMaps) -> PanopticMap:
        """Add the panoptic map to the data sample of its image, and return it."""
        semantic = most_probable(maps.probability)
        result = self.merger(*maps, semantic=semantic)
        sample.pred_panoptic_seg = PixelData(sem_seg=result.ids(self.num_classes)[None])
        sample.pred_sem_seg = PixelData(sem_seg=semantic[None])
        sample.set_metainfo(dict(pred_segments_info=result.segments_info()))
        return result


def _check_classes(num_classes: int, thing_classes: Sequence[int]) -> None:
    valid = range(num_classes)
    wrong = [index for index in thing_classes if index not in valid]
    if wrong or not thing_classes:
        raise ValueError(
            f'thing_classes must be some of the classes from 0 to {num_classes - 1}, got '
            f'{list(thing_classes)}.'
        )


def _flip(
    semantic: Tensor, heat: Tensor, offset: Tensor, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions (B, ..., H, W) flipped, with offsets in the flipped direction."""
    dims = dict(horizontal=[3], vertical=[2], diagonal=[2, 3])[direction]
    signs = [-1.0 if dim in dims else 1.0 for dim in (2, 3)]
    return semantic.flip(dims), heat.flip(dims), scale_offset(offset.flip(dims), signs)


def _rename_keys(
    detector: PanopticDeepLab, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Give the names of published decoders and heads their counterparts here."""
    levels = len(detector.semantic_decoder.projections)
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + rename(key[len(prefix) :], levels)] = state_dict.pop(key)
