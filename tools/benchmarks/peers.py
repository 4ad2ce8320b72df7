"""What a user would run instead of eager torch: torch.compile, ONNX Runtime and OpenVINO.

None of them is needed. Those that are not installed are passed over.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrednet.layers import Involution
from mmrednet.ops.involution import finish

from .backbones import step
from .baselines import unfold_aggregate

# packages that a way needs, besides torch
PACKAGES = {
    'torch.compile': (),
    'ONNX Runtime': ('onnx', 'onnxscript', 'onnxruntime'),
    'OpenVINO': ('onnx', 'onnxscript', 'openvino'),
}
# largest difference from eager torch, as a share of the largest value
TOLERANCES = {'float32': 1e-3, 'bfloat16': 5e-2}
# OpenVINO's names of the precisions
HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}


class StandardInvolution(nn.Module):
    """Involution as published, out of operators that ONNX has: neighbours are gathered and summed.

    Args:
        layer: The layer to compute.
    """

    def __init__(self, layer: Involution) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, Ho, Wo)."""
        layer = self.layer
        kernels = layer.generate(layer.conv1(layer.pool(x)))
        out = unfold_aggregate(x.unflatten(1, (layer.groups, -1)), kernels, layer.window)
        if layer.scale is not None and layer.shift is not None:
            out = finish(out, layer.scale, layer.shift, layer.relu)
        return out.flatten(1, 2)


def exportable(model: nn.Module) -> nn.Module:
    """Return a copy of a model, with involution out of standard operators."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Involution):
            model.set_submodule(name, StandardInvolution(module))
    return model


def missing(way: str) -> list[str]:
    """Return the packages that a way of ``PACKAGES`` lacks."""
    return [package for package in PACKAGES[way] if find_spec(package) is None]


def write_onnx(model: nn.Module, image: Tensor, path: Path) -> None:
    """Export a model in float32 for images of one shape."""
    torch.onnx.export(exportable(model), (image,), path, dynamo=True, verbose=False)


def onnx_runtime(path: Path, image: Tensor) -> Callable[[], Any]:
    """Return the forward pass of a file under ONNX Runtime, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def openvino(path: Path, image: Tensor, precision: str) -> Callable[[], Any]:
    """Return the forward pass of a file under OpenVINO, with torch's number of threads."""
    import openvino

    core = openvino.Core()
    options = {
        'INFERENCE_PRECISION_HINT': HINTS[precision],
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
    }
    compiled = core.compile_model(core.read_model(path), 'CPU', options)
    request = compiled.create_infer_request()
    inputs = [image.numpy()]
    return lambda: list(request.infer(inputs).values())


def ways(model: nn.Module, image: Tensor, precision: str) -> dict[str, Callable[[], Any]]:
    """Return the forward pass of a model by way of running it, 'eager' first.

    Args:
        model: Backbone in eval mode, channels-last and in float32.
        image: Image in the same layout and dtype.
        precision: 'float32', or 'bfloat16' where a way has it.
    """
    dtype = getattr(torch, precision)
    cast, cast_image = copy.deepcopy(model).to(dtype), image.to(dtype)
    options: dict[str, Any] = dict(train=False, precision=precision)
    result = {'eager': step(cast, cast_image, **options)}
    # networks of one table may have one class, and torch compiles a class a few times only
    torch.compiler.reset()
    result['torch.compile'] = step(torch.compile(copy.deepcopy(cast)), cast_image, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        plain_image = image.contiguous()
        if not missing('ONNX Runtime') or not missing('OpenVINO'):
            write_onnx(model.to(memory_format=torch.contiguous_format), plain_image, path)
        if precision == 'float32' and not missing('ONNX Runtime'):
            result['ONNX Runtime'] = onnx_runtime(path, plain_image)
        if not missing('OpenVINO'):
            result['OpenVINO'] = openvino(path, plain_image, precision)
    return result


def differences(results: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return how far the outputs of each way are from those of eager torch.

    It is the largest difference, as a share of the largest value.
    """
    expected = [output.float() for output in results['eager']()]
    shares = {}
    for way, run in results.items():
        share = 0.0
        for output, reference in zip(run(), expected, strict=True):
            tensor = torch.as_tensor(output).float()
            error = (tensor - reference).abs().max() / reference.abs().max()
            share = max(share, float(error))
        shares[way] = share
    return shares
