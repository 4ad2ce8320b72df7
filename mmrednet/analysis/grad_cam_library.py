"""Class activation maps by the library grad-cam, where it is installed.

The library wants a network that maps a batch to scores, and a layer whose output is one tensor. A
detector has neither, so it gets both from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

# class of the library for each method
CLASSES = {'eigen-cam': 'EigenCAM', 'grad-cam': 'GradCAM'}


def has_library() -> bool:
    """Return True if the library grad-cam and torchvision, which it needs, are installed."""
    return find_spec('pytorch_grad_cam') is not None and find_spec('torchvision') is not None


class ScoreNetwork(nn.Module):
    """A network in the library's form, from an image (1, C, H, W) to the score (1,) of a target.

    Args:
        score: Function that runs a model on the image and returns the score, a scalar. What it
            returns for methods that need no score is not used.
        device: Device of the model.
    """

    def __init__(self, score: Callable[[], Any], device: torch.device) -> None:
        super().__init__()
        self.score = score
        # the feature map passes through it, so the library finds it here
        self.tap = nn.Identity()
        # the library reads the device of the first parameter
        self.place = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, _: Tensor) -> Tensor:
        """Return the score (1,), or zero where there is none."""
        score = self.score()
        is_score = isinstance(score, Tensor) and score.numel() == 1
        return score.reshape(1) if is_score else self.place


def library_activation(
    model: nn.Module, module: nn.Module, method: str, inputs: Tensor, score: Callable[[], Any]
) -> Tensor:
    """Return the library's map (H, W), scaled to the size of the input and to [0, 1].

    Args:
        model: Model, in eval mode.
        module: Module of the model whose last output is the feature map.
        method: Method, 'eigen-cam' or 'grad-cam'.
        inputs: Input of the model, of shape (1, C, H, W).
        score: Function that runs the model on the input and returns the score of the target.
    """
    import pytorch_grad_cam

    network = ScoreNetwork(score, inputs.device)

    def pass_through_tap(_: nn.Module, __: Any, output: Any) -> Any:
        return _with_last(output, network.tap)

    handle = module.register_forward_hook(pass_through_tap)
    try:
        with _frozen(model), torch.enable_grad():
            cam = getattr(pytorch_grad_cam, CLASSES[method])(network, [network.tap])
            values = cam(inputs, targets=[lambda value: value])
            cam.activations_and_grads.release()
    finally:
        handle.remove()
    return torch.from_numpy(values[0])


def _with_last(output: Any, tap: nn.Module) -> Any:
    """Return an output whose last tensor has passed through a module."""
    if isinstance(output, Tensor):
        # the gradient ends here, and the model's parameters get none
        return tap(output.detach().requires_grad_())
    if isinstance(output, (tuple, list)) and output:
        return type(output)([*output[:-1], _with_last(output[-1], tap)])
    return output


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter get a gradient, and restore which ones do."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
