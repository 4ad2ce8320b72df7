"""Models that map an image to tensors: whatever mmdet, mmseg and backbones ask for besides the
image is made up.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn


class UnrunnableError(RuntimeError):
    """A model that cannot be run for an image alone, or not be built."""


class ImageNetwork(nn.Module):
    """A model whose forward takes images alone, and returns the tensors that its heads make of
    them.

    A two-stage detector gets a stated number of proposals, random boxes on the image, in place of
    what its first stage finds, so that its count does not depend on weights; nothing is suppressed
    or decoded behind the heads.

    Args:
        model: a detector of mmdet, a segmenter of mmseg, or a backbone.
        proposals: of a two-stage detector, for each image; one whose proposals are learned keeps
            its own.
        classes: a backbone gets a classifier for this many, behind the mean of its last map; None:
            it gets none.
    """

    # mmdet's and mmseg's have methods that mypy cannot see
    model: Any

    def __init__(
        self, model: nn.Module, *, proposals: int = 1000, classes: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.proposals = model, proposals
        first = getattr(model, 'rpn_head', None)
        self.learned_proposals = hasattr(first, 'init_proposal_bboxes')
        self.two_stage = hasattr(model, 'roi_head') and not self.learned_proposals
        if self.learned_proposals:
            # random numbers are no boxes: all are the middle of the image
            nn.init.constant_(self.model.rpn_head.init_proposal_bboxes.weight, 0.5)
        self.has_heads = hasattr(model, 'data_preprocessor')
        self.is_detector = any(
            base.__module__.startswith('mmdet.models.detectors') for base in type(model).__mro__
        )
        self.classifier: nn.Module | None = None
        if classes is not None:
            # mmdet's backbones return nothing from eval()
            model.eval()
            with torch.no_grad():
                channels = self(torch.zeros(1, 3, 64, 64))[-1].shape[1]
            self.classifier = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to what the heads, or the stages of a backbone, return.

        Raises:
            UnrunnableError: the model failed, as one does that needs more than images, or larger
                ones.
        """
        try:
            outputs = _tensors(self._run(image))
        except Exception as error:
            size = ' x '.join(str(int(length)) for length in image.shape[-2:])
            why = ' '.join(str(error).split())
            raise UnrunnableError(
                f'{type(self.model).__name__} cannot be run for an image of {size} alone: '
                f'{type(error).__name__}{": " if why else ""}{why}'
            ) from error
        return outputs if self.classifier is None else [self.classifier(outputs[-1].mean((2, 3)))]

    def _run(self, image: Tensor) -> Any:
        if not self.has_heads:
            return self.model(image)
        if self.two_stage:
            return self._two_stages(image)
        if self.learned_proposals:
            return self._refine_learned_proposals(image)
        if self.is_detector:
            return self.model(image, _samples(image), mode='tensor')
        head = getattr(self.model, 'decode_head', None)
        if head is None or isinstance(head, nn.ModuleList):
            return self.model(image, mode='tensor')
        maps = self.model.extract_feat(image)
        # heads that mmseg borrows from mmdet
        borrowed = 'batch_data_samples' in inspect.signature(head.forward).parameters
        return head(maps, _samples(image)) if borrowed else head(maps)

    def _two_stages(self, image: Tensor) -> list[Any]:
        maps = self.model.extract_feat(image)
        found = [InstanceData(bboxes=boxes) for boxes in self.boxes(image)]
        # a Fast R-CNN has no first stage, a panoptic detector a third head
        heads = [getattr(self.model, name, None) for name in ('rpn_head', 'semantic_head')]
        return [
            *(head(maps) for head in heads if head is not None),
            self.model.roi_head(maps, found, _samples(image)),
        ]

    def _refine_learned_proposals(self, image: Tensor) -> list[dict[str, Any]]:
        """Do what ``predict`` does before it chooses boxes; the losses are in what mmdet does in
        the mode 'tensor'.
        """
        from mmdet.structures.bbox import bbox2roi

        maps, samples, head = self.model.extract_feat(image), _samples(image), self.model.roi_head
        found = self.model.rpn_head.predict(maps, samples)
        boxes, features = (
            [item.bboxes for item in found],
            torch.stack([item.features for item in found]),
        )
        results: list[dict[str, Any]] = []
        for stage in range(head.num_stages):
            results.append(
                head._bbox_forward(
                    stage, maps, bbox2roi(boxes), features, [sample.metainfo for sample in samples]
                )
            )
            boxes, features = results[-1]['detached_proposals'], results[-1]['object_feats']
        if head.with_mask:
            results.append(
                head._mask_forward(
                    head.num_stages - 1, maps, bbox2roi(boxes), results[-1]['attn_feats']
                )
            )
        return results

    def boxes(self, image: Tensor) -> list[Tensor]:
        """Return boxes (N, 4) of all sizes for each image, the same at every call."""
        height, width = (int(length) for length in image.shape[-2:])
        drawn = (
            torch.rand(self.proposals, 2, 2, generator=torch.Generator().manual_seed(0))
            .sort(1)
            .values
        )
        return [(drawn * torch.tensor([width, height])).flatten(1)] * len(image)


def _samples(image: Tensor) -> list[Any]:
    from mmdet.structures import DetDataSample

    size = tuple(int(length) for length in image.shape[-2:])
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return [
        DetDataSample(metainfo=dict(dict.fromkeys(names, size), scale_factor=(1.0, 1.0)))
        for _ in image
    ]


def _tensors(outputs: Any) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        return [outputs]
    items = (
        outputs.values()
        if isinstance(outputs, Mapping)
        else outputs
        if isinstance(outputs, Sequence)
        else ()
    )
    return [tensor for item in items for tensor in _tensors(item)]
