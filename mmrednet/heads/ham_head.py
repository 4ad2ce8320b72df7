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
from ..layers.safe_module import SafeModule


class LightHamHead(SafeModule, BaseDecodeHead):
    """Resize and join the feature maps, squeeze, decompose, align and classify.

    The decomposition is :class:`mmrednet.layers.Hamburger`. The state-dict keys are those of mmseg
    and of the official files. Unlike there, the output depends on the input alone, because the
    bases that the decomposition starts from are drawn once. ``ham_kwargs=dict(rand_init=True)``
    draws new ones in every call.

    Args:
        ham_channels: Number of channels of the decomposition.
        ham_kwargs: Keyword arguments of :class:`mmrednet.layers.hamburger.NMF2D`, such as ``MD_R``
            and ``seed``.
        **kwargs: Keyword arguments of mmseg's BaseDecodeHead.

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
                f'with 1 whatever their configs say, got {ham_kwargs}.'
            )
        options: dict[str, Any] = dict(
            conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg
        )
        self.squeeze = ConvModule(sum(self.in_channels), ham_channels, 1, **options)
        self.hamburger = Hamburger(ham_channels, norm_cfg=self.norm_cfg, ham_kwargs=ham_kwargs)
        self.align = ConvModule(ham_channels, self.channels, 1, **options)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the pyramid to logits (B, num_classes, H, W) of the size of its first map in
        ``in_index``.
        """
        maps = self._transform_inputs(inputs)
        options = dict(size=maps[0].shape[2:], mode='bilinear', align_corners=self.align_corners)
        x = torch.cat([resize(x, **options) for x in maps], dim=1)
        return self.cls_seg(self.align(self.hamburger(self.squeeze(x))))
