"""Models of mmdet and mmseg as networks that map an image alone to tensors.

Their forward may need proposals and data samples as well. This module supplies both.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn


class UnrunnableError(RuntimeError):
    """A model cannot be built, or not be run for an image alone."""


class ImageNetwork(nn.Module):
    """A model whose forward takes images alone and returns the tensors of its heads.

    A two-stage detector gets a fixed number of random boxes in place of the proposals of its first
    stage, so that its cost does not depend on weights. Boxes are neither suppressed nor decoded.

    Args:
        model: Detector of mmdet, segmenter of mmseg, or backbone.
        proposals: Number of proposals for each image of a two-stage detector. Learned proposals
            keep their own number. Default: 1000.
        classes: Number of classes of a linear classifier on the mean of a backbone's last feature
            map. Default: None, no classifier.
    """

    # mmdet's and mmseg's models have methods that mypy cannot see
    model: Any

    def __init__(
        self, model: nn.Module, *, proposals: int = 1000, classes: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.proposals = model, proposals
        rpn_head = getattr(model, 'rpn_head', None)
        self.learned_proposals = hasattr(rpn_head, 'init_proposal_bboxes')
        self.two_stage = hasattr(model, 'roi_head') and not self.learned_proposals
        if self.learned_proposals:
            # random numbers are no boxes; these cover the middle of the image
            nn.init.constant_(self.model.rpn_head.init_proposal_bboxes.weight, 0.5)
        self.has_heads = hasattr(model, 'data_preprocessor')
        modules = [base.__module__ for base in type(model).__mro__]
        self.is_detector = any(name.startswith('mmdet.models.detectors') for name in modules)
        self.classifier: nn.Module | None = None
        if classes is not None:
            # eval() and self(...) in two lines: mmdet's backbones return None from eval()
            model.eval()
            with torch.no_grad():
                size = (1, image_channels(model), 64, 64)
                channels = self(torch.zeros(size))[-1].shape[1]
            self.classifier = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, channels, H, W) to the outputs of the heads, or of the stages of a backbone.

        Raises:
            UnrunnableError: The model failed, because it needs more than images, or larger ones.
        """
        try:
            outputs = _tensors(self._run(image))
        except Exception as error:
            size = ' x '.join(str(int(length)) for length in image.shape[-2:])
            reason = type(error).__name__
            message = ' '.join(str(error).split())
            if message:
                reason = f'{reason}: {message}'
            raise UnrunnableError(
                f'{type(self.model).__name__} cannot be run for an image of {size} alone: {reason}'
            ) from error
        if self.classifier is None:
            return outputs
        return [self.classifier(outputs[-1].mean((2, 3)))]

    def _run(self, image: Tensor) -> Any:
        if not self.has_heads:
            return self.model(image)
        if self.two_stage:
            return self._run_two_stages(image)
        if self.learned_proposals:
            return self._run_learned_proposals(image)
        if self.is_detector:
            return self.model(image, _data_samples(image), mode='tensor')
        head = getattr(self.model, 'decode_head', None)
        if head is None or isinstance(head, nn.ModuleList):
            return self.model(image, mode='tensor')
        features = self.model.extract_feat(image)
        # heads that mmseg takes from mmdet, such as MaskFormer's
        if 'batch_data_samples' in inspect.signature(head.forward).parameters:
            return head(features, _data_samples(image))
        return head(features)

    def _run_two_stages(self, image: Tensor) -> list[Any]:
        features = self.model.extract_feat(image)
        outputs = []
        # Fast R-CNN has no first stage, a panoptic detector has a third head
        for name in ('rpn_head', 'semantic_head'):
            head = getattr(self.model, name, None)
            if head is not None:
                outputs.append(head(features))
        proposals = [InstanceData(bboxes=boxes) for boxes in self.boxes(image)]
        outputs.append(self.model.roi_head(features, proposals, _data_samples(image)))
        return outputs

    def _run_learned_proposals(self, image: Tensor) -> list[dict[str, Any]]:
        """Refine learned proposals stage by stage, as ``predict`` does.

        mmdet's own mode 'tensor' computes losses here.
        """
        head = self.model.roi_head
        samples = _data_samples(image)
        metainfo = [sample.metainfo for sample in samples]
        features = self.model.extract_feat(image)
        proposals = self.model.rpn_head.predict(features, samples)
        boxes = [proposal.bboxes for proposal in proposals]
        queries = torch.stack([proposal.features for proposal in proposals])
        results: list[dict[str, Any]] = []
        for stage in range(head.num_stages):
            result = head._bbox_forward(stage, features, _rois(boxes), queries, metainfo)
            boxes, queries = result['detached_proposals'], result['object_feats']
            results.append(result)
        if head.with_mask:
            # the mask heads of the earlier stages serve training
            attended = results[-1]['attn_feats']
            results.append(
                head._mask_forward(head.num_stages - 1, features, _rois(boxes), attended)
            )
        return results

    def boxes(self, image: Tensor) -> list[Tensor]:
        """Return random boxes (N, 4) of all sizes for each image, the same at every call."""
        height, width = (int(length) for length in image.shape[-2:])
        generator = torch.Generator().manual_seed(0)
        # two corners in [0, 1], the smaller coordinates first
        corners = torch.rand(self.proposals, 2, 2, generator=generator).sort(1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        return [boxes] * len(image)


def image_channels(model: nn.Module) -> int:
    """Return the number of channels of a model's image, those of the first convolution of its
    backbone; 3 if it has none.
    """
    backbone = getattr(model, 'backbone', model)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _data_samples(image: Tensor) -> list[BaseDataElement]:
    """Return a data sample for each image with the sizes that heads ask for."""
    size = tuple(int(length) for length in image.shape[-2:])
    metainfo = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
    )
    return [BaseDataElement(metainfo=metainfo) for _ in image]


def _rois(boxes: Sequence[Tensor]) -> Tensor:
    """Return boxes (N, 4) of each image as (sum of N, 5): the index of the image, then the box."""
    rois = [nn.functional.pad(box, (1, 0), value=index) for index, box in enumerate(boxes)]
    return torch.cat(rois)


def _tensors(outputs: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    tensors = []
    if isinstance(outputs, Sequence):
        for item in outputs:
            tensors += _tensors(item)
    return tensors
