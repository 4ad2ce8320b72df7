"""Class activation maps: which parts of an image a detection or a class depends on.

The library grad-cam computes them where it can be imported. It needs torchvision, which the
OpenMMLab stack does not; without it the formulas here are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..spelling import nearest
from .attention_maps import AttentionMap, evaluating
from .grad_cam_library import has_library, library_activation
from .model_image import ModelImage, model_image

METHODS = ('eigen-cam', 'grad-cam')


def class_activation(
    model: nn.Module,
    image: str | Path | np.ndarray | Tensor | ModelImage,
    *,
    layer: str = 'backbone',
    method: str = 'eigen-cam',
    target: int | None = None,
    use_library: bool | None = None,
) -> AttentionMap:
    r"""Return where a feature map is active, or where a result depends on it.

    With the feature map A_c of channel c:

    .. math:: \text{eigen-cam} = \sum_c u_c A_c, \qquad
              \text{grad-cam} = \mathrm{ReLU} \Big(\sum_c \bar g_c A_c\Big)

    u is the first principal component of the channels over positions (Muhammad and Yeasin, IJCNN
    2020), with the sign that makes the greatest magnitude positive. g is the gradient of the target
    by A, averaged over positions (Selvaraju et al., ICCV 2017).

    Where the library grad-cam can be imported, it computes the map. It leaves the sign of u
    arbitrary, centres A, cuts off negative values, and scales the map to the input and to [0, 1].

    Args:
        model: Detector of mmdet, segmenter of mmseg, classifier or backbone.
        image: Path of an image; array (H, W, 3), uint8, BGR; or an input (1, C, H, W) of the model.
        layer: Name of the module whose output is the feature map; of several outputs the last one
            is taken. Default: 'backbone'.
        method: 'eigen-cam', which needs no gradient and no target, or 'grad-cam'.
        target: For grad-cam, the index of a detection in order of scores, or of a class of a
            segmenter or classifier. Default: None, the best detection or class.
        use_library: True for the library grad-cam, False for the formulas here. Default: None, the
            library if it can be imported.

    Returns:
        A map of shape (1, 1, h, w).

    Raises:
        ValueError: There is no such layer, method or target, or the layer gives no feature map.
        ImportError: ``use_library`` is True and the library cannot be imported.
    """
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}.')
    module = _find(model, layer)
    prepared = image if isinstance(image, ModelImage) else model_image(model, image)
    needs_score = method == 'grad-cam'

    def score() -> Any:
        return _score(model, prepared, target, needs_score=needs_score)

    if has_library() if use_library is None else use_library:
        with evaluating(model):
            values = library_activation(model, module, method, prepared.inputs, score)
        return AttentionMap(layer, method, values[None, None])
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        with evaluating(model), torch.set_grad_enabled(needs_score):
            result = score()
            features = _feature_map(outputs, layer)
            if needs_score:
                values = _weighted_by_gradient(features, result)
            else:
                values = _first_component(features)
    finally:
        handle.remove()
    return AttentionMap(layer, method, values.detach()[None, None].cpu())


def _find(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        match = nearest(layer, [name for name in modules if name])
        hint = f'; did you mean {match!r}?' if match else '.'
        raise ValueError(f'layer must be the name of a module of the model, got {layer!r}{hint}')
    return modules[layer]


def _feature_map(outputs: list[Any], layer: str) -> Tensor:
    output = outputs[-1] if outputs else None
    while isinstance(output, Sequence) and output:
        output = output[-1]
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise ValueError(f'the output of layer {layer!r} must be a feature map (B, C, h, w).')
    return output


def _score(model: Any, image: ModelImage, target: int | None, *, needs_score: bool) -> Any:
    """Run the model and return the number that the target stands for."""
    if not needs_score:
        if hasattr(model, 'extract_feat'):
            return model.extract_feat(image.inputs)
        return model(image.inputs)
    if hasattr(model, 'roi_head') or hasattr(model, 'bbox_head'):
        result = model.predict(image.inputs, [image.sample], rescale=False)[0]
        return _entry(result.pred_instances.scores, target, 'detection')
    outputs = model(image.inputs)
    logits = outputs[-1] if isinstance(outputs, (tuple, list)) else outputs
    # of a segmenter, the sum over all pixels of the class
    totals = logits[0].flatten(1).sum(1) if logits.dim() == 4 else logits[0]
    return _entry(totals, target, 'class')


def _entry(scores: Tensor, target: int | None, kind: str) -> Tensor:
    if not len(scores):
        raise ValueError('the model must detect something for grad-cam, got no detection.')
    if target is None:
        return scores.max()
    if not 0 <= target < len(scores):
        raise ValueError(f'target must be a {kind} from 0 to {len(scores) - 1}, got {target}.')
    return scores[target]


def _weighted_by_gradient(features: Tensor, score: Tensor) -> Tensor:
    gradient = torch.autograd.grad(score, features)[0]
    return (gradient.mean((2, 3), keepdim=True) * features)[0].sum(0).relu()


def _first_component(features: Tensor) -> Tensor:
    activation = features[0].flatten(1).T.to(torch.promote_types(features.dtype, torch.float32))
    direction = torch.linalg.svd(activation - activation.mean(0), full_matrices=False).Vh[0]
    values = (activation @ direction).unflatten(0, features.shape[-2:])
    # the sign of a component is arbitrary
    return values * values.flatten()[values.abs().argmax()].sign()
