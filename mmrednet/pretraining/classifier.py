"""An image classifier: a backbone and a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.pretrained_init import SafelyPretrained
from ..registry import MODELS


@MODELS.register_module()
class ImageClassifier(SafelyPretrained, BaseModel):
    """A backbone, the mean of its last feature map, a linear layer and cross entropy.

    Its keys, ``backbone.`` and ``head.fc.``, are those of mmpretrain. ``init_cfg`` of a detector
    takes the backbone from its checkpoints as they are.

    Args:
        backbone: Config of the backbone.
        num_classes: Number of classes.
        channels: Number of channels of the backbone's last feature map.
        label_smoothing: Share of the target that is spread over all classes. Default: 0.
        mixup: Parameter alpha of the Beta distribution by which two images are blended (Zhang et
            al., ICLR 2018). Default: 0, none.
        cutmix: Parameter alpha for a rectangle of one image put into another (Yun et al., ICCV
            2019). With mixup as well, each batch gets one of both by equal chance. Default: 0,
            none.
        data_preprocessor: Config of the preprocessor, see mmengine's BaseModel. Default: None.
        init_cfg: Config of the initialization, see mmengine's BaseModule. A ``Pretrained``
            checkpoint is a published classifier or one of ours, see
            :func:`mmrednet.backbones.load_pretrained`. Default: None.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        *,
        channels: int,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if num_classes < 2 or not 0 <= label_smoothing < 1 or min(mixup, cutmix) < 0:
            raise ValueError(
                f'num_classes must be at least 2, label_smoothing in [0, 1), mixup and cutmix not '
                f'negative, got {num_classes=}, {label_smoothing=}, {mixup=}, {cutmix=}.'
            )
        self.backbone = MODELS.build(backbone)
        # initialized like mmpretrain's linear head; the ModuleDict gives its key, head.fc.
        linear = nn.Linear(channels, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.head = nn.ModuleDict({'fc': linear})
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixup, self.cutmix = mixup, cutmix

    def forward(
        self, inputs: Tensor, data_samples: list[Tensor] | None = None, mode: str = 'tensor'
    ) -> Any:
        """Map images (B, 3, H, W) to logits, with mode 'loss' to the loss, with 'predict' to scores
        and labels.
        """
        labels = data_samples or []
        if mode == 'loss':
            return dict(loss=self._loss(inputs, torch.stack(labels)))
        logits = self.logits(inputs)
        if mode == 'predict':
            scores = logits.softmax(1)
            return [
                dict(scores=row, label=label) for row, label in zip(scores, labels, strict=True)
            ]
        return logits

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        target = F.one_hot(labels, self.num_classes).to(inputs.dtype)
        inputs, target = self._mix(inputs, target)
        return F.cross_entropy(self.logits(inputs), target, label_smoothing=self.label_smoothing)

    def logits(self, inputs: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, num_classes)."""
        return self.head['fc'](self.backbone(inputs)[-1].mean((2, 3)))

    def _mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Blend each image and its target with those of the image at the other end of the batch."""
        methods = [name for name in ('mixup', 'cutmix') if getattr(self, name) > 0]
        if not methods:
            return inputs, target
        method = methods[int(torch.randint(len(methods), ()))]
        alpha = torch.tensor(float(getattr(self, method)))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if method == 'mixup':
            inputs = share * inputs + (1 - share) * inputs.flip(0)
        else:
            inputs, share = _paste_rectangles(inputs, share)
        return inputs, share * target + (1 - share) * target.flip(0)


def _paste_rectangles(inputs: Tensor, share: float) -> tuple[Tensor, float]:
    """Paste a rectangle of each image's counterpart into it.

    Args:
        inputs: Images (B, 3, H, W).
        share: Share of each image that should stay.

    Returns:
        The images, and the share that stays: sides are whole pixels.
    """
    slices = []
    area = 1
    for size in inputs.shape[2:]:
        # both sides shrink alike, so that the rectangle has the area 1 - share
        side = int(size * (1 - share) ** 0.5)
        start = int(torch.randint(size - side + 1, ()))
        slices.append(slice(start, start + side))
        area *= side
    result = inputs.clone()
    result[:, :, slices[0], slices[1]] = inputs.flip(0)[:, :, slices[0], slices[1]]
    return result, 1 - area / inputs[0, 0].numel()
