"""The light hamburger head of SegNeXt (Guo et al., NeurIPS 2022)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor

from ..layers.hamburger import Hamburger
from ..layers.safe_module import SafeModule


@functools.cache
def _warn_of_inv_t(inv_t: float) -> None:
    """Say that a config's ``inv_t`` has no effect, once for each value."""
    print_log(
        f'ham_kwargs.inv_t={inv_t} is ignored: the published code overwrites it with 1, with which '
        'the networks are trained and evaluated.',
        'current',
        logging.WARNING,
    )


class LightHamHead(SafeModule, BaseDecodeHead):
    """Resize and join the feature maps, squeeze, decompose, align and classify.

    The decomposition is :class:`mmrednet.layers.Hamburger`. The state-dict keys are those of mmseg
    and of the official files. Unlike there, the output depends on the input alone, because the
    bases that the decomposition starts from are drawn once. ``ham_kwargs=dict(rand_init=True)``
    draws new ones in every call.

    Args:
        ham_channels: Number of channels of the decomposition.
        ham_kwargs: Keyword arguments of :class:`mmrednet.layers.hamburger.NMF2D`, such as ``MD_R``
            and ``seed``. ``inv_t``, which stock configs have, is ignored as in the published code:
            the networks are trained and evaluated with 1. A warning says so once.
        **kwargs: Keyword arguments of mmseg's BaseDecodeHead.
    """

    def __init__(
        self, ham_channels: int = 512, ham_kwargs: dict | None = None, **kwargs: Any
    ) -> None:
        super().__init__(input_transform='multiple_select', **kwargs)
        ham_kwargs = dict(ham_kwargs or {})
        inv_t = ham_kwargs.pop('inv_t', 1)
        if inv_t != 1:
            _warn_of_inv_t(inv_t)
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
