"""Detectors of mmdet as networks from an image to boxes, scores and labels.

mmdet's own prediction depends on the values of tensors in ways that an exported program cannot
have. The same steps are written here as operators of tensors: the heads are called as they are,
and candidates are chosen by indices in place of conditions in Python. An image is a batch of one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .detection_ops import nms, roi_align


class Candidates(NamedTuple):
    """Boxes that compete with each other.

    Args:
        boxes: Tensor (N, 4) of x1, y1, x2, y2.
        scores: Tensor (N,).
        groups: Tensor (N,): classes or levels. Boxes of different groups do not compete.
    """

    boxes: Tensor
    scores: Tensor
    groups: Tensor

    def select(self, index: Tensor) -> Candidates:
        """Return the candidates of these indices."""
        return Candidates(*(tensor.index_select(0, index) for tensor in self))


def decode(coder: Any, priors: Tensor, deltas: Tensor, size: tuple[Any, Any]) -> Tensor:
    """Return the boxes (N, 4) that deltas (N, 4) make of priors (N, 4), cut to the image.

    It is mmdet's ``delta2bbox``, which stops where there are no boxes.
    """
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    centre = (priors[:, :2] + priors[:, 2:]) * 0.5
    extent = priors[:, 2:] - priors[:, :2]
    # a box grows at most by the factor of mmdet
    limit = float(np.abs(np.log(16 / 1000)))
    move = extent * deltas[:, :2]
    if coder.add_ctr_clamp:
        move = move.clamp(-coder.ctr_clamp, coder.ctr_clamp)
        growth = deltas[:, 2:].clamp(max=limit)
    else:
        growth = deltas[:, 2:].clamp(-limit, limit)
    centre, half = centre + move, extent * growth.exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], 1)
    if not coder.clip_border:
        return boxes
    # tensors, since the size of an image may be symbolic
    height, width = (boxes.new_full((), length) for length in size)
    limits = torch.stack([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


def suppress(candidates: Candidates, threshold: float, limit: int) -> Candidates:
    """Return the candidates that no better one of their group overlaps, the best ones first."""
    # Groups are moved apart, as mmcv does. A zero keeps the maximum of no boxes defined.
    largest = F.pad(candidates.boxes.flatten(), (0, 1)).amax(0)
    moved = candidates.boxes + (candidates.groups * (largest + 1))[:, None]
    return candidates.select(nms(moved, candidates.scores, threshold, limit))


class DenseHead(nn.Module):
    """An anchor head of mmdet, such as RPN and RetinaNet, with the choice of its candidates.

    Args:
        head: The head.
        by_level: True if boxes of different levels do not compete, as in RPN. Otherwise boxes of
            different classes do not.

    Raises:
        ValueError: The head or its configuration is none that can be exported.
    """

    def __init__(self, head: Any, by_level: bool) -> None:
        super().__init__()
        self.head, self.by_level = head, by_level
        cfg = head.test_cfg
        check_suppression('test_cfg', cfg)
        self.nms_pre, self.limit = cfg.get('nms_pre', -1), cfg.max_per_img
        self.threshold = cfg.nms.iou_threshold
        self.min_score = 0.0 if by_level else cfg.get('score_thr', 0.0)
        self.min_size = cfg.get('min_bbox_size', -1)

    def forward(self, features: tuple[Tensor, ...], size: tuple[Any, Any]) -> Candidates:
        """Return the best boxes of the feature maps of an image of this size."""
        head = self.head
        outputs = list(zip(*head(features)[:2], strict=True))
        sizes = [scores.shape[-2:] for scores, _ in outputs]
        priors = head.prior_generator.grid_priors(sizes, dtype=torch.float32, device='cpu')
        levels = []
        for level, (scores, deltas) in enumerate(outputs):
            levels.append(self._level(level, scores[0], deltas[0], priors[level], size))
        candidates = Candidates(*(torch.cat(tensors) for tensors in zip(*levels, strict=True)))
        valid = candidates.scores > self.min_score if not self.by_level else None
        if self.min_size >= 0:
            extent = candidates.boxes[:, 2:] - candidates.boxes[:, :2]
            large = (extent > self.min_size).all(1)
            valid = large if valid is None else valid & large
        if valid is not None:
            candidates = candidates.select(valid.nonzero().flatten())
        return suppress(candidates, self.threshold, self.limit)

    def _level(
        self, level: int, scores: Tensor, deltas: Tensor, priors: Tensor, size: tuple[Any, Any]
    ) -> Candidates:
        """Return the candidates of one feature map: the best ``nms_pre`` of them."""
        head = self.head
        classes = head.cls_out_channels
        scores = scores.permute(1, 2, 0).reshape(-1, classes)
        if head.use_sigmoid_cls:
            scores = scores.sigmoid()
        else:
            # the last class is the background
            classes, scores = classes - 1, scores.softmax(-1)[:, :-1]
        deltas = deltas.permute(1, 2, 0).reshape(-1, 4)
        # one candidate for each pair of an anchor and a class
        flat = scores.flatten()
        best = flat.shape[0]
        if self.nms_pre > 0:
            best = torch.sym_min(best, self.nms_pre)
        flat, index = flat.topk(best)
        prior = index // classes if classes > 1 else index
        boxes = decode(
            head.bbox_coder, priors.index_select(0, prior), deltas.index_select(0, prior), size
        )
        groups = torch.full_like(index, level) if self.by_level else index % classes
        return Candidates(boxes, flat, groups)


class PyramidPooling(nn.Module):
    """mmdet's SingleRoIExtractor: a box takes its features from the level that fits its size."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        layers = list(extractor.roi_layers)
        for layer in layers:
            if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
                raise ValueError(
                    f'roi_layer must be RoIAlign with averages to be exported, got {layer}.'
                )
        self.finest, self.layers = extractor.finest_scale, layers

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """Return the features (N, C, size, size) of boxes (N, 4)."""
        features = features[: len(self.layers)]
        extent = boxes[:, 2:] - boxes[:, :2]
        scale = extent.prod(1).sqrt()
        level = (scale / self.finest + 1e-6).log2().floor().clamp(0, len(features) - 1)
        order, parts = [], []
        for index, (feature, layer) in enumerate(zip(features, self.layers, strict=True)):
            members = (level == index).nonzero().flatten()
            order.append(members)
            options = (
                layer.output_size[0],
                layer.spatial_scale,
                layer.sampling_ratio,
                layer.aligned,
            )
            parts.append(roi_align(feature, boxes.index_select(0, members), *options))
        # back into the order of the boxes
        return torch.cat(parts).index_select(0, torch.cat(order).argsort())


class BoxHead(nn.Module):
    """The second stage: classes and boxes of proposals."""

    def __init__(self, roi_head: Any) -> None:
        super().__init__()
        cfg = roi_head.test_cfg
        check_suppression('test_cfg.rcnn', cfg)
        self.head, self.pooling = roi_head.bbox_head, PyramidPooling(roi_head.bbox_roi_extractor)
        if self.head.custom_cls_channels:
            raise ValueError(
                'bbox_head.loss_cls must be a softmax or sigmoid loss to be exported, got '
                f'{type(self.head.loss_cls).__name__}.'
            )
        self.min_score, self.limit = cfg.score_thr, cfg.max_per_img
        self.threshold = cfg.nms.iou_threshold

    def forward(
        self, features: tuple[Tensor, ...], proposals: Tensor, size: tuple[Any, Any]
    ) -> Candidates:
        """Return the detections of proposals (N, 4)."""
        logits, deltas = self.head(self.pooling(features, proposals))
        classes = self.head.num_classes
        # the last class is the background
        scores = logits.softmax(1)[:, :classes].flatten()
        index = (scores > self.min_score).nonzero().flatten()
        proposal, label = index // classes, index % classes
        row = proposal if self.head.reg_class_agnostic else index
        deltas = deltas.reshape(-1, 4).index_select(0, row)
        boxes = decode(self.head.bbox_coder, proposals.index_select(0, proposal), deltas, size)
        # boxes of different classes do not compete
        candidates = Candidates(boxes, scores.index_select(0, index), label)
        return suppress(candidates, self.threshold, self.limit)


class DetectorNetwork(nn.Module):
    """A one-stage or two-stage detector.

    Args:
        model: Detector of mmdet: anchor heads with one stage, or Faster and Mask R-CNN.
        preprocess: Module that normalises and pads the image.

    Raises:
        ValueError: The detector is of another kind.
    """

    def __init__(self, model: Any, preprocess: nn.Module) -> None:
        super().__init__()
        check_detector(model)
        self.preprocess = preprocess
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else None
        self.box_head = self.mask_head = None
        if hasattr(model, 'roi_head'):
            self.dense = DenseHead(model.rpn_head, by_level=True)
            self.box_head = BoxHead(model.roi_head)
            if model.roi_head.with_mask:
                self.mask_head = model.roi_head.mask_head
                # a shared extractor serves boxes and masks alike
                self.mask_pooling = PyramidPooling(model.roi_head.mask_roi_extractor)
        else:
            self.dense = DenseHead(model.bbox_head, by_level=False)
        self.output_names = ['boxes', 'scores', 'labels']
        if self.mask_head is not None:
            self.output_names.append('masks')

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map an image (1, 3, H, W) to boxes (N, 4), scores (N,) and labels (N,), and to masks (N,
        M, M) of the boxes where the detector has them.
        """
        size = image.shape[-2:]
        features = self.backbone(self.preprocess(image))
        if self.neck is not None:
            features = self.neck(features)
        result = self.dense(features, size)
        if self.box_head is not None:
            result = self.box_head(features, result.boxes, size)
        if self.mask_head is None:
            return tuple(result)
        masks = self.mask_head(self.mask_pooling(features, result.boxes))
        if not self.mask_head.class_agnostic:
            index = result.groups[:, None, None, None].expand(-1, 1, *masks.shape[2:])
            masks = masks.gather(1, index)
        return *result, masks[:, 0].sigmoid()


def check_suppression(name: str, cfg: Any) -> None:
    """Raise a ValueError unless candidates compete by plain suppression."""
    suppression = cfg.nms.get('type', 'nms')
    if suppression != 'nms' or cfg.nms.get('class_agnostic') or cfg.get('max_per_img', -1) < 1:
        raise ValueError(
            f"{name} must have nms=dict(type='nms', ...) and max_per_img to be exported, got "
            f'{dict(cfg)}.'
        )


def check_detector(model: Any) -> None:
    """Raise a ValueError unless the steps of a detector are those of this module."""
    is_two_stage = hasattr(model, 'roi_head')
    head: Any = getattr(model, 'rpn_head' if is_two_stage else 'bbox_head', None)
    # by name: only other parts of the package import mmdet
    bases = [base.__name__ for base in type(head).__mro__]
    fits = 'AnchorHead' in bases and type(head.bbox_coder).__name__ == 'DeltaXYWHBBoxCoder'
    if fits and is_two_stage:
        roi_head = model.roi_head
        fits = type(roi_head).__name__ == 'StandardRoIHead' and not roi_head.with_shared_head
        fits = fits and type(roi_head.bbox_roi_extractor).__name__ == 'SingleRoIExtractor'
    if not fits:
        raise ValueError(
            'model must be a detector with an anchor head, or Faster or Mask R-CNN, to be '
            f'exported, got {type(model).__name__} with {type(head).__name__}.'
        )
