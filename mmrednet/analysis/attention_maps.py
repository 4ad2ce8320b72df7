"""What the operators of a model apply to one image, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import OperatorChain
from ..layers.attention import Attention, TapWeights
from ..spelling import nearest
from .attention_views import ROLLOUT, VIEWS, Grid, chosen_position, spread, tap_shares, views_of
from .model_image import ModelImage, model_image

# heads of two-stage detectors whose forward takes the feature maps alone
DENSE_HEADS = ('rpn_head', 'semantic_head')


class AttentionMap(NamedTuple):
    """A view of one layer.

    Args:
        layer: Name of the layer in the model; from its second call on, with the number of the call.
        view: Name of the view.
        values: Values, of shape (B, N, h, w): N maps over the model's input, one for each head or
            group. A gate over channels has maps of one position. The view 'points' has (B, N, K,
            3): row and column, as fractions of the input's height and width, and factor.
    """

    layer: str
    view: str
    values: Tensor


def attention_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of a model that say what they apply, by their names.

    These are the modules whose class has a method ``attention``. A chain of operators is left out,
    since it has its operators.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if callable(getattr(type(module), 'attention', None))
        and not isinstance(module, OperatorChain)
    }


def attention_maps(
    model: nn.Module,
    image: str | Path | np.ndarray | Tensor | ModelImage,
    *,
    layers: str | list[str] = '*',
    view: str | None = None,
    at: tuple[float, float] | None = None,
    heads: str = 'each',
) -> list[AttentionMap]:
    """Run a model on an image and return what its operators apply.

    Weights of one layer at a time are in memory: each is viewed when the layer runs. The model runs
    in eval mode without gradients, and its mode is restored.

    Args:
        model: Detector of mmdet, segmenter of mmseg, classifier or backbone.
        image: Path of an image; array (H, W, 3), uint8, BGR; or an input (1, C, H, W) of the model.
        layers: Names of layers, or patterns such as 'backbone.layer3.*'. Layers of a pattern that
            do not have the view are left out. Default: '*', all layers.
        view: Name of the view, one of 'kernel-sum', 'distance', 'entropy', 'query', 'gate',
            'points' and 'rollout'. Default: None, the first view that each layer has.
        at: Point (x, y) in pixels of the image, for the views 'query', 'points' and 'rollout'.
            Default: None, the centre of the image.
        heads: 'each' for one map per head or group, or 'mean' for their mean. Default: 'each'.

    Returns:
        The views in the order in which layers run. A layer that runs several times has several. The
        rollout is a single map of all layers, named after the last.

    Raises:
        ValueError: A pattern matches no layer, no layer has the view or a named one does not, or an
            argument has no such value. The message lists what there is.
    """
    _check_choice('view', view, (*VIEWS, ROLLOUT, None))
    _check_choice('heads', heads, ('each', 'mean'))
    prepared = image if isinstance(image, ModelImage) else model_image(model, image)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    chosen = matching_layers(model, patterns)
    point = fraction_of(prepared, at)
    if view == ROLLOUT:
        return [_rollout(model, prepared, chosen, point, chosen.keys() & patterns)]
    maps: list[AttentionMap] = []
    calls: Counter[str] = Counter()
    missing = MissingViews(view, chosen.keys() & patterns)

    def look(name: str, layer: Any, x: Tensor) -> None:
        attention = layer.attention(x)
        chosen_view = missing.view_of(name, layer, attention)
        if chosen_view is None:
            return
        values = VIEWS[chosen_view].function(attention, _grid(prepared, x, point))
        if heads == 'mean' and chosen_view != 'points' and values.shape[-1] > 1:
            values = values.mean(1, keepdim=True)
        calls[name] += 1
        title = name if calls[name] == 1 else f'{name}, call {calls[name]}'
        maps.append(AttentionMap(title, chosen_view, values.cpu()))

    _run(model, prepared, chosen, look)
    if not maps:
        missing.report()
    return maps


def _check_choice(name: str, value: str | None, choices: tuple) -> None:
    if value not in choices:
        match = nearest(str(value), [choice for choice in choices if choice])
        hint = f'; did you mean {match!r}?' if match else '.'
        raise ValueError(f'{name} must be one of {choices}, got {value!r}{hint}')


def matching_layers(model: nn.Module, patterns: list[str]) -> dict[str, Any]:
    """Return the layers with attention that match one of the patterns, by their names.

    Raises:
        ValueError: A pattern matches no layer. The message lists the layers.
    """
    layers = attention_layers(model)
    if not layers:
        raise ValueError(
            f'{type(model).__name__} has no layer with a method attention(x), which the operators '
            'of mmrednet have.'
        )
    result = {}
    for pattern in patterns:
        matches = {name: layer for name, layer in layers.items() if fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(
                f'layers must match at least one of {", ".join(layers)}, got {pattern!r}.'
            )
        result.update(matches)
    return result


def fraction_of(image: ModelImage, at: tuple[float, float] | None) -> tuple[float, float]:
    """Return a point (x, y) of the image as fractions (row, column) of the model's input.

    Raises:
        ValueError: The point is outside of the image.
    """
    height, width = image.image.shape[:2]
    x, y = (width / 2, height / 2) if at is None else at
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f'at must be a point (x, y) of the image of {width} x {height} pixels, got {at}.'
        )
    # a pixel is chosen at its centre
    shares = ((y + 0.5) / height, (x + 0.5) / width)
    row, column = (
        min(share * shape / size, 1 - 1e-9)
        for share, shape, size in zip(shares, image.shape, image.inputs.shape[-2:], strict=True)
    )
    return row, column


def _grid(image: ModelImage, x: Tensor, point: tuple[float, float]) -> Grid:
    height, width = x.shape[-2:]
    rows, columns = image.pitch()
    inputs = image.inputs.shape[-2:]
    return Grid((height, width), (rows * inputs[0] / height, columns * inputs[1] / width), point)


class MissingViews:
    """A view, and the layers that were asked for it and do not have it.

    Args:
        view: Name of the view; None stands for the first view of each layer.
        named: Names of layers that must have the view, because no pattern chose them.
    """

    def __init__(self, view: str | None, named: Set[str]) -> None:
        self.view, self.named = view, named
        # views of each type of layer
        self.views: dict[str, list[str]] = {}

    def view_of(self, name: str, layer: nn.Module, attention: Any) -> str | None:
        """Return the view of a layer, or None if the layer does not have it.

        Raises:
            ValueError: The layer was named and does not have it.
        """
        views = views_of(attention)
        if self.view is None and views:
            return views[0]
        if self.view in views:
            return self.view
        self.views[type(layer).__name__] = views
        if name in self.named:
            self.report()
        return None

    def report(self) -> None:
        """Raise the error of a view that no layer has.

        Raises:
            ValueError: Always. The message lists the views of each type of layer.
        """
        lists = []
        for name, views in self.views.items():
            lists.append(f'{name} has the views {", ".join(views) or "none"}')
        raise ValueError(
            f'view must be one that a chosen layer has: {"; ".join(lists) or "none was run"}; got '
            f'view={self.view!r}.'
        )


@contextmanager
def _looking(layers: dict[str, Any], look: Callable[[str, Any, Tensor], None]) -> Iterator[None]:
    """Call a function with the name, the layer and its input before each layer runs."""
    is_inside = False

    def hook(name: str, layer: Any, inputs: tuple) -> None:
        nonlocal is_inside
        # attention() of a layer may run layers within it
        if is_inside:
            return
        is_inside = True
        try:
            look(name, layer, inputs[0])
        finally:
            is_inside = False

    handles = []
    for name, layer in layers.items():

        def before(module: nn.Module, inputs: tuple, name: str = name) -> None:
            hook(name, module, inputs)

        handles.append(layer.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients, and restore the mode of each module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _run(
    model: Any, image: ModelImage, layers: dict[str, Any], look: Callable[[str, Any, Tensor], None]
) -> None:
    """Run a model; of two-stage detectors, whose second stage needs proposals, what comes before
    it.
    """
    parts = {name.partition('.')[0] for name in layers}
    with evaluating(model), _looking(layers, look):
        if not hasattr(model, 'extract_feat'):
            model(image.inputs)
        elif hasattr(model, 'roi_head'):
            features = model.extract_feat(image.inputs)
            for name in DENSE_HEADS:
                if name in parts:
                    getattr(model, name)(features)
        else:
            model(image.inputs, [image.sample], mode='tensor')


def _rollout(
    model: nn.Module,
    image: ModelImage,
    layers: dict[str, Any],
    point: tuple[float, float],
    named: Set[str],
) -> AttentionMap:
    """Return how much each position contributes to the chosen one through all layers (Abnar and
    Zuidema, ACL 2020): each layer passes on half by its weights, averaged over heads, and half
    as it is, as a residual connection does.
    """
    # a layer's weights include those of layers within it
    layers = _without_inner(layers)
    steps: list[tuple[str, Any, Tensor]] = []
    # inputs are smaller than weights: these are computed again, one layer at a time
    _run(model, image, layers, lambda name, layer, x: steps.append((name, layer, x.clone())))
    mass: Tensor | None = None
    last, missing = '', MissingViews(ROLLOUT, named)
    with evaluating(model):
        for name, layer, x in reversed(steps):
            if mass is None:
                last = name
            mass = _through_layer(name, layer, x, mass, _grid(image, x, point), missing)
    if mass is None:
        missing.report()
    assert mass is not None
    return AttentionMap(last, ROLLOUT, mass.cpu())


def _without_inner(layers: dict[str, Any]) -> dict[str, Any]:
    """Return the layers that lie in no other of these layers."""
    result = {}
    for name, layer in layers.items():
        parts = name.split('.')
        outer = ['.'.join(parts[:count]) for count in range(1, len(parts))]
        if not any(prefix in layers for prefix in outer):
            result[name] = layer
    return result


def _through_layer(
    name: str, layer: Any, x: Tensor, mass: Tensor | None, grid: Grid, missing: MissingViews
) -> Tensor | None:
    """Return the mass of a layer's input; a function of its own, so that weights are freed.

    Layers without weights over positions, such as gates, pass all of it on.
    """
    attention = layer.attention(x)
    if missing.view_of(name, layer, attention) is None:
        return mass
    parts = [attention] if isinstance(attention, Attention) else list(attention)
    for part in reversed(parts):
        mass = _pass_on(part, mass, grid)
    return mass


def _pass_on(part: Any, mass: Tensor | None, grid: Grid) -> Tensor:
    """Return the mass of a layer's input from that of its output."""
    weight = tap_shares(part)[0].mean(1, keepdim=True)
    shares = part._replace(weight=weight)
    outputs = weight.shape[-2:] if isinstance(part, TapWeights) else weight.shape[2:4]
    mass = chosen_position(shares, grid) if mass is None else _resized(mass.to(weight), outputs)
    total = (spread(shares, mass, grid.size) + _resized(mass, grid.size)) / 2
    # what falls beyond the border is lost otherwise
    return total / total.sum((2, 3), keepdim=True).clamp_min(1e-30)


def _resized(mass: Tensor, size: Any) -> Tensor:
    """Return a distribution on a feature map of another size."""
    if tuple(mass.shape[-2:]) == tuple(size):
        return mass
    resized = F.interpolate(mass, tuple(size), mode='nearest')
    return resized / resized.sum((2, 3), keepdim=True).clamp_min(1e-30)
