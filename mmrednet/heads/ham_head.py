"""The light hamburger head of SegNeXt (Guo et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor

from ..layers.hamburger import Hamburger


class LightHamHead(BaseDecodeHead):
    """Resize and join the maps, squeeze, decompose (see :class:`mmrednet.layers.Hamburger`), align,
    classify.

    The names are mmseg's and those of the official files. Unlike there, the answer is a function of
    the input alone: the bases that the decomposition starts from are drawn once, unless
    ``ham_kwargs`` has ``rand_init=True``.

    Args:
        ham_channels: of the decomposition.
        ham_kwargs: arguments of :class:`mmrednet.layers.hamburger.NMF2D`: ``MD_S``, ``MD_R``,
            ``train_steps``, ``eval_steps``, ``rand_init``, ``seed``.
        **kwargs: see mmseg's BaseDecodeHead.

    Raises:
        ValueError: ``ham_kwargs`` has ``inv_t``, which the published code overwrites with 1.
    """

    def __init__(
        self, ham_channels: int = 512, ham_kwargs: dict | None = None, **kwargs: Any
    ) -> None:
        super().__init__(input_transform='multiple_select', **kwargs)
        if 'inv_t' in (ham_kwargs or {}):
            raise ValueError(
                'ham_kwargs must not have inv_t: the published networks are trained and evaluated '
                'with 1 '
                f'whatever their configs say, got {ham_kwargs}.'
            )
        conv: dict[str, Any] = dict(
            conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg
        )
        self.squeeze = ConvModule(sum(self.in_channels), ham_channels, 1, **conv)
        self.hamburger = Hamburger(ham_channels, norm_cfg=self.norm_cfg, ham_kwargs=ham_kwargs)
        self.align = ConvModule(ham_channels, self.channels, 1, **conv)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the pyramid to the logits (B, num_classes, H, W) at the size of the finest map in
        ``in_index``.
        """
        maps = self._transform_inputs(inputs)
        size = maps[0].shape[2:]
        x = torch.cat(
            [resize(x, size=size, mode='bilinear', align_corners=self.align_corners) for x in maps],
            dim=1,
        )
        return self.cls_seg(self.align(self.hamburger(self.squeeze(x))))
