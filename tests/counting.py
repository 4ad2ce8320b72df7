"""Multiply-adds as the papers' counters take them, with torch's own counter for products and
convolutions.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmrednet.layers import SANPairwise

COUNTED = (
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.ReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    SANPairwise,
)


def multiply_adds(model, forward, synced=()):
    """Count one forward in eval mode on the meta device.

    Returns:
        10^9 of: what convolutions, products and our operators take; two for each value of the norms
        in ``synced``; two for each value of the other norms, one for each value of biases, ReLUs,
        pools and SAN's differences.
    """
    extra = dict(synced=0, other=0)

    def count(module, inputs, output):
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            extra['synced' if module in synced else 'other'] += 2 * output.numel()
        elif isinstance(module, nn.ReLU) or (
            isinstance(module, nn.Conv2d) and module.bias is not None
        ):
            extra['other'] += output.numel()
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            extra['other'] += inputs[0].numel()
        if isinstance(module, SANPairwise):
            extra['other'] += (
                (module.relation_channels + 2) * module.window.taps * output[0, 0].numel()
            )

    # a hook on a child makes some layers call it, so only what is counted here gets one
    for module in model.modules():
        if isinstance(module, COUNTED) or getattr(module, 'bias', None) is not None:
            module.register_forward_hook(count)
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model)
    return counter.get_total_flops() / 2e9, extra['synced'] / 1e9, extra['other'] / 1e9
