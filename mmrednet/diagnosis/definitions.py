"""Operators as their kernels and as their definitions compute them: results and gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]


def computed(layer: nn.Module, x: Tensor, direction: Tensor, device: str) -> Tensors:
    """Return the result of a layer on a device and its gradients, in float64 on the CPU.

    Args:
        layer: Layer in float32, in training.
        x: Input (B, C, H, W).
        direction: Gradient of the result.
        device: Device on which the layer runs.
    """
    layer = copy.deepcopy(layer).to(device)
    x = x.detach().to(device).requires_grad_()
    result = layer(x)
    result.backward(direction.to(device))
    tensors = dict(result=result, input=x.grad)
    for name, parameter in layer.named_parameters():
        tensors[name] = parameter.grad
    return {name: tensor.detach().cpu().double() for name, tensor in tensors.items()}


def defined(layer: nn.Module, x: Tensor, direction: Tensor) -> Tensors:
    """Return the same by the definition in float64. Arguments: see :func:`computed`."""
    layer = _without_running_statistics(copy.deepcopy(layer).double())
    x, direction = x.double(), direction.double()
    if hasattr(layer, 'mmcv_class'):
        return _deformable(layer, x, direction)

    def run(tensors: Tensors) -> Tensor:
        parameters = dict(tensors)
        return torch.func.functional_call(layer, parameters, parameters.pop('input'))

    # under a transform of torch.func, torch's own operators compute instead of our kernels
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    result, pull_back = torch.func.vjp(run, dict(input=x, **parameters))[:2]
    return dict(result=result, **pull_back(direction)[0])


def _without_running_statistics(layer: nn.Module) -> nn.Module:
    """Let the norms of a layer keep no running statistics, which transforms cannot update. In
    training they do not matter.
    """
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            norm.track_running_stats = False
    return layer


def _deformable(layer: Any, x: Tensor, direction: Tensor) -> Tensors:
    """Compute a deformable convolution from its sampling points: transforms cannot see into mmcv's
    operators.
    """
    x.requires_grad_()
    position, factor = layer.attention(x)
    samples = _sampled(x, position[:, 0]) * factor
    result = torch.einsum('ock,bckhw->bohw', layer.weight.flatten(2), samples)
    result.backward(direction)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return dict(result=result.detach(), input=x.grad, **gradients)


def _sampled(x: Tensor, position: Tensor) -> Tensor:
    """Sample (B, C, H, W) at positions (B, K, 2, Ho, Wo), linearly between pixels and with zeros
    outside. Returns (B, C, K, Ho, Wo).
    """
    size = torch.tensor(x.shape[-2:]).to(x)[:, None, None]
    # from -1 at the first pixel to 1 at the last one, x before y
    grid = (2 * position / (size - 1) - 1).flip(2).movedim(2, -1)
    samples = F.grid_sample(x, grid.flatten(1, 2), 'bilinear', 'zeros', align_corners=True)
    return samples.unflatten(2, grid.shape[1:3])
