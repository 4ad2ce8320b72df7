"""Attention maps of one image during training."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..registry import HOOKS
from .attention_drawing import draw_attention_maps
from .attention_maps import attention_maps, matching_layers
from .attention_views import ROLLOUT, VIEWS
from .model_image import model_image, read_image


@HOOKS.register_module()
class AttentionMapHook(Hook):
    """Draw views of one image every N iterations, through mmengine's visualizer.

    Its local, TensorBoard and other backends show the pictures, under the name
    'attention_<view>'. They are drawn before the first iteration too. What is wrong with the
    arguments raises before training.

    Args:
        image: Path of the image.
        interval: Number of iterations between pictures. Default: 500.
        layers: Names of layers, or patterns such as 'backbone.layer3.*'. Default: '*', all layers.
        views: Names of the views, see :func:`mmrednet.analysis.attention_maps`. None stands for the
            first view that a layer has. Default: (None,).
        at: Point (x, y) in pixels of the image, for views of one point. Default: None, the centre.
        heads: 'each' for one map per head or group, or 'mean'. Default: 'mean'.

    Raises:
        ValueError: An argument has no such value.
    """

    priority = 'LOW'

    def __init__(
        self,
        image: str,
        *,
        interval: int = 500,
        layers: str | list[str] = '*',
        views: tuple[str | None, ...] = (None,),
        at: tuple[float, float] | None = None,
        heads: str = 'mean',
    ) -> None:
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}.')
        names = (*VIEWS, ROLLOUT, None)
        if not views or not set(views) <= set(names):
            raise ValueError(f'views must be some of {names}, got {views!r}.')
        self.image, self.interval, self.views = image, interval, views
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        self.at = None if at is None else (at[0], at[1])
        self.heads = heads

    def before_train(self, runner: Runner) -> None:
        """Draw the first pictures, which shows that image and layers can be found."""
        read_image(self.image)
        matching_layers(_model(runner), self.layers)
        self._draw(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw when the interval is over."""
        if self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    def _draw(self, runner: Runner, step: int) -> None:
        model = _model(runner)
        prepared = model_image(model, self.image, cfg=runner.cfg)
        for view in self.views:
            maps = attention_maps(
                model, prepared, layers=self.layers, view=view, at=self.at, heads=self.heads
            )
            picture = draw_attention_maps(prepared, maps, at=self.at)
            runner.visualizer.add_image(f'attention_{view or "default"}', picture, step=step)


def _model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
