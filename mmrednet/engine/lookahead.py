"""Lookahead Optimizer: k Steps Forward, 1 Step Back (Zhang et al., NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class Lookahead(Optimizer):
    r"""An optimizer whose parameters return to slow ones every k steps.

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \qquad \theta \leftarrow \phi

    Theta are the parameters, which another optimizer moves, and phi the slow ones, which start
    where theta starts.

    Args:
        params: Parameters, or groups of them.
        base: Registered name of the other optimizer. Default: 'RAdam'.
        interval: Number k of its steps between two of the slow parameters. Default: 5.
        alpha: Part of the way that the slow parameters take. Default: 0.5.
        **kwargs: Arguments of the other optimizer, such as ``lr``.

    Raises:
        ValueError: ``interval`` is below 1, or ``alpha`` is not in (0, 1].
    """

    def __init__(
        self,
        params: Iterable,
        base: str = 'RAdam',
        *,
        interval: int = 5,
        alpha: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if interval < 1 or not 0 < alpha <= 1:
            raise ValueError(
                f'interval must be at least 1 and alpha in (0, 1], got {interval=}, {alpha=}.'
            )
        self.base: Optimizer = OPTIMIZERS.build(dict(type=base, params=params, **kwargs))
        self.interval, self.alpha = interval, alpha
        super().__init__(self.base.param_groups, dict(self.base.defaults, steps=0))
        self._share()

    def _share(self) -> None:
        """Let both optimizers have one list of groups and one state, which is what is saved."""
        self.base.param_groups, self.base.state = self.param_groups, self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """Take one step of the other optimizer, and every ``interval`` steps a slow one.

        Args:
            closure: Function that computes the loss again. Default: None.
        """
        # the state must stay empty until the other optimizer has taken its first step
        starts = {
            parameter: parameter.clone()
            for group in self.param_groups
            for parameter in group['params']
            if 'slow' not in self.state[parameter]
        }
        loss = self.base.step(closure)
        for parameter, start in starts.items():
            # a parameter without a gradient has no state, and has not moved
            if parameter.grad is not None:
                self.state[parameter]['slow'] = start
        for group in self.param_groups:
            group['steps'] += 1
            if group['steps'] % self.interval == 0:
                self._step_slowly(group['params'])
        return loss

    def _step_slowly(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            slow = self.state[parameter].get('slow')
            if slow is not None:
                slow.lerp_(parameter, self.alpha)
                parameter.copy_(slow)
