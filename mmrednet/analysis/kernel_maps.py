"""What involution attends to: the sum of each position's kernel, as in figure 3 of the paper (Li et
al., CVPR 2021).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..layers import Involution
from .panels import titled


def kernel_maps(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Run a model and return, for each of its involutions, the sum of the K * K weights of every
    kernel.

        map[b, g, y, x] = sum over j of  W[b, g, j, y, x]

    Args:
        model: any module with involutions inside.
        inputs: of the model's forward.

    Returns:
        The name of each involution, in the order of use, and its map (B, G, Ho, Wo).

    Raises:
        ValueError: the model has no involution.
    """
    maps: dict[str, Tensor] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, Involution):

            def store(
                _: nn.Module, __: tuple, hidden: Tensor, name: str = name, layer: Involution = layer
            ) -> None:
                maps[name] = layer.generate(hidden.detach()).sum(2)

            hooks.append(layer.conv1.register_forward_hook(store))
    if not hooks:
        raise ValueError(
            f'model must have at least one Involution, {type(model).__name__} has none.'
        )
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def draw_kernel_maps(
    image: np.ndarray, maps: dict[str, Tensor], *, height: int = 256
) -> np.ndarray:
    """Lay each map over the image, side by side behind the image itself.

    Each map is averaged over its groups and scaled to its own range: blue is its least value, red
        its greatest.

    Args:
        image: (H, W, 3) uint8, BGR.
        maps: what :func:`kernel_maps` returns for this image; the first of the batch is drawn.
        height: of the picture in pixels.

    Returns:
        (height, about height * (1 + len(maps)), 3) uint8, BGR.
    """
    size = (round(image.shape[1] * height / image.shape[0]), height)
    base = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    panels = [titled(base, 'image')]
    for name, values in maps.items():
        heat = values[0].float().mean(0).cpu().numpy()
        heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-12)
        heat = cv2.resize(heat, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
        colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET)
        panels.append(titled(cv2.addWeighted(base, 0.5, colours, 0.5, 0), name))
    return np.concatenate(panels, 1)
