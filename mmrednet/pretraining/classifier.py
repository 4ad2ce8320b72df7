"""A backbone and a linear classifier."""

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
    """Mean of the last map, one linear layer, cross entropy.

    Its names, ``backbone.`` and ``head.fc.``, are those of mmpretrain, and a detector's
    ``init_cfg`` takes the backbone from its checkpoints as they are.

    Args:
        backbone: config of the backbone.
        num_classes: of the data.
        channels: of the backbone's last map.
        label_smoothing: the share of the target that is spread over all classes.
        mixup: alpha of the Beta distribution by which two images are blended (Zhang et al., ICLR
            2018); 0 for none.
        cutmix: alpha for a rectangle of one image put into another (Yun et al., ICCV 2019); 0 for
            none. With both, each batch gets one of them, by equal chance.
        data_preprocessor: see mmengine's BaseModel.
        init_cfg: see mmengine's BaseModule. A ``Pretrained`` checkpoint is a published or our own
            classifier, see :func:`mmrednet.backbones.load_pretrained`.

    Raises:
        ValueError: an argument is out of its range.
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
        if mode == 'loss':
            target = F.one_hot(torch.stack(list(data_samples or ())), self.num_classes).to(
                inputs.dtype
            )
            inputs, target = self._mix(inputs, target)
            return dict(
                loss=F.cross_entropy(
                    self.logits(inputs), target, label_smoothing=self.label_smoothing
                )
            )
        logits = self.logits(inputs)
        if mode == 'predict':
            return [
                dict(scores=row, label=label)
                for row, label in zip(logits.softmax(1), data_samples or (), strict=True)
            ]
        return logits

    def logits(self, inputs: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, num_classes)."""
        return self.head['fc'](self.backbone(inputs)[-1].mean((2, 3)))

    def _mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Blend each image and its target with those of the image at the other end of the batch."""
        kinds = [name for name in ('mixup', 'cutmix') if getattr(self, name) > 0]
        if not kinds:
            return inputs, target
        kind = kinds[int(torch.randint(len(kinds), ()))]
        alpha = torch.tensor(float(getattr(self, kind)))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if kind == 'mixup':
            inputs = share * inputs + (1 - share) * inputs.flip(0)
        else:
            height, width = inputs.shape[2:]
            sides = [int(size * (1 - share) ** 0.5) for size in (height, width)]
            top, left = (
                int(torch.randint(size - side + 1, ()))
                for size, side in zip((height, width), sides, strict=True)
            )
            rows, columns = slice(top, top + sides[0]), slice(left, left + sides[1])
            inputs = inputs.clone()
            inputs[:, :, rows, columns] = inputs.flip(0)[:, :, rows, columns].clone()
            share = 1 - sides[0] * sides[1] / (height * width)
        return inputs, share * target + (1 - share) * target.flip(0)
