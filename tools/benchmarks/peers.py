"""What a user would run instead of eager torch: torch.compile, AOTInductor, ONNX Runtime and
OpenVINO.

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
from torch.export import ExportedProgram

from mmrednet.export import capture, onnx_file
from mmrednet.export.networks import BackboneNetwork
from mmrednet.export.openvino_extension import build_extension

from .backbones import step

# packages that a way needs, besides torch
PACKAGES = {
    'torch.compile': (),
    'AOTInductor': (),
    'ONNX Runtime': ('onnx', 'onnxscript', 'onnxruntime'),
    'OpenVINO': ('onnx', 'onnxscript', 'openvino'),
    'OpenVINO, native': ('onnx', 'onnxscript', 'openvino'),
}
# largest difference from eager torch, as a share of the largest value
TOLERANCES = {'float32': 1e-3, 'bfloat16': 5e-2}
# OpenVINO's names of the precisions
HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}


def missing(way: str) -> list[str]:
    """Return the packages that a way of ``PACKAGES`` lacks."""
    return [package for package in PACKAGES[way] if find_spec(package) is None]


def exported(model: nn.Module, image: Tensor) -> tuple[ExportedProgram, list[str]]:
    """Return a backbone as a program for images of one shape, and the names of its outputs."""
    with torch.inference_mode():
        count = len(model(image))
    network = BackboneNetwork(copy.deepcopy(model), count).eval()
    return capture(network, image, dynamic=False), network.output_names


def write_onnx(model: nn.Module, image: Tensor, path: Path, *, native: bool = False) -> None:
    """Export a backbone in float32 for images of one shape, with operators in one of two forms."""
    program, names = exported(model, image)
    onnx_file.write_onnx(program, path, names, native=native)


def aoti(model: nn.Module, image: Tensor, path: Path) -> Callable[[], Any]:
    """Return the forward pass of a package of AOTInductor."""
    torch._inductor.aoti_compile_and_package(exported(model, image)[0], package_path=str(path))
    package = torch._inductor.aoti_load_package(str(path))

    def infer() -> Any:
        with torch.inference_mode():
            return package(image)

    return infer


def onnx_runtime(path: Path, image: Tensor) -> Callable[[], Any]:
    """Return the forward pass of a file under ONNX Runtime, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def openvino(
    path: Path, image: Tensor, precision: str, *, native: bool = False
) -> Callable[[], Any]:
    """Return the forward pass of a file under OpenVINO, with torch's number of threads."""
    import openvino

    core = openvino.Core()
    if native:
        core.add_extension(str(build_extension()))
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
        result['AOTInductor'] = aoti(cast, cast_image, path.with_name('model.aoti.pt2'))
        plain_image = image.contiguous()
        plain_model = model.to(memory_format=torch.contiguous_format)
        if not missing('ONNX Runtime') or not missing('OpenVINO'):
            write_onnx(plain_model, plain_image, path)
        if precision == 'float32' and not missing('ONNX Runtime'):
            result['ONNX Runtime'] = onnx_runtime(path, plain_image)
        if not missing('OpenVINO'):
            result['OpenVINO'] = openvino(path, plain_image, precision)
            native_path = path.with_name('native.onnx')
            write_onnx(plain_model, plain_image, native_path, native=True)
            result['OpenVINO, native'] = openvino(native_path, plain_image, precision, native=True)
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
