"""Run an exported file. It needs NumPy, OpenCV and a runtime, but neither mmrednet nor, but for
``.pt2`` files, torch.

The file may be copied next to an exported model:

    from runtime import Model
    result = Model('detector.onnx')('photo.jpg')
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# from a probability of the foreground on
MASK_THRESHOLD = 0.5


class Model:
    """An exported model with its description, a JSON file of the same name.

    Args:
        path: Path of a file ``.onnx``, ``.xml`` of OpenVINO, or ``.pt2`` of torch. Code that is in
            a ``.pt2`` file or in the library ``.ops.so`` beside a file is executed: they need the
            trust that a program needs.
        threads: Number of threads; 0 leaves it to the runtime. Default: 0.

    Raises:
        ValueError: The file or its description is damaged, or is none of mmrednet.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        path = Path(path)
        self.description = read_description(path.with_suffix('.json'))
        self.names: list[str] = self.description['outputs']
        self.run = RUNS[self.description['format']](path, threads)

    def __call__(self, image: str | Path | np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs for an image, in its own size.

        Args:
            image: Path of an image, or array (H, W, 3), uint8, BGR.
        """
        pixels = read(image)
        inputs = self.prepare(pixels)
        outputs = dict(zip(self.names, self.run(inputs), strict=True))
        return restore(self.description['task'], outputs, inputs.shape[2:], pixels.shape[:2])

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Return the input (1, 3, h, w) of the network for an image (H, W, 3)."""
        entry = self.description['input']
        resized = resize(pixels, entry['resize'])
        if entry['shape'] and list(resized.shape[:2]) != entry['shape']:
            import cv2

            resized = cv2.resize(resized, tuple(entry['shape'][::-1]))
        return np.ascontiguousarray(resized.transpose(2, 0, 1)[None], dtype=np.float32)


def read_description(path: Path) -> dict[str, Any]:
    """Return the description of an exported file.

    Raises:
        ValueError: It is none that ``mmrednet export`` wrote.
    """
    try:
        description = json.loads(path.read_text())
        fits = description['format'] in RUNS and {'task', 'input', 'outputs'} <= set(description)
    # a text or a list has no keys
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f'{path} must be a description that mmrednet export wrote.')
    return description


def read(image: str | Path | np.ndarray) -> np.ndarray:
    """Return an image as (H, W, 3), uint8, BGR.

    Raises:
        FileNotFoundError: There is no picture of this name.
    """
    if isinstance(image, np.ndarray):
        return image
    import cv2

    pixels = cv2.imread(str(image))
    if pixels is None:
        raise FileNotFoundError(
            f'image must be a picture that OpenCV can read, got {str(image)!r}.'
        )
    return pixels


def resize(pixels: np.ndarray, rule: dict[str, Any] | None) -> np.ndarray:
    """Resize an image as the tests of the model do; None leaves it as it is."""
    if rule is None:
        return pixels
    import cv2

    height, width = pixels.shape[:2]
    if rule['type'] == 'ResizeEdge':
        factor = rule['scale'] / min(height, width)
    elif rule.get('scale') is None:
        factor = rule['scale_factor']
    elif not rule.get('keep_ratio', False):
        return cv2.resize(pixels, tuple(rule['scale']))
    else:
        long, short = max(rule['scale']), min(rule['scale'])
        factor = min(long / max(height, width), short / min(height, width))
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    return cv2.resize(pixels, size)


def restore(
    task: str, outputs: dict[str, np.ndarray], inner: tuple[int, ...], size: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return outputs for an image of (h, w) in the size (H, W) of the original."""
    rows, columns = size[0] / inner[0], size[1] / inner[1]
    if task in ('detection', 'instances'):
        scale = np.array([columns, rows, columns, rows], np.float32)
        outputs = dict(outputs, boxes=outputs['boxes'] * scale)
        if task == 'instances':
            outputs['masks'] = paste(outputs['masks'], outputs['boxes'], size)
    elif task in ('segmentation', 'panoptic'):
        name = 'labels' if task == 'segmentation' else 'ids'
        labels = outputs[name][0] if task == 'segmentation' else outputs[name]
        row = ((np.arange(size[0]) + 0.5) / rows).astype(int)
        column = ((np.arange(size[1]) + 0.5) / columns).astype(int)
        outputs = dict(outputs, **{name: labels[row][:, column]})
    return outputs


def paste(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return masks (N, H, W) of an image, from masks (N, M, M) of boxes (N, 4)."""
    result = np.zeros((len(masks), size[0], size[1]), bool)
    for index, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes, strict=True)):
        x0, y0 = max(0, int(left)), max(0, int(top))
        x1, y1 = min(size[1], int(np.ceil(right))), min(size[0], int(np.ceil(bottom)))
        if x1 <= x0 or y1 <= y0:
            continue
        # centres of pixels, as positions in the mask
        column = (np.arange(x0, x1) + 0.5 - left) / max(right - left, 1e-6) * mask.shape[1] - 0.5
        row = (np.arange(y0, y1) + 0.5 - top) / max(bottom - top, 1e-6) * mask.shape[0] - 0.5
        result[index, y0:y1, x0:x1] = _sample(mask, row, column) >= MASK_THRESHOLD
    return result


def _sample(mask: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return bilinear samples of a mask at all pairs of a row and a column; zero outside of it."""
    padded = np.pad(mask, 1)

    def parts(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.clip(position + 1, 0, length - 1)
        first = np.minimum(position.astype(int), length - 2)
        return first, first + 1, position - first

    top, bottom, down = parts(row, padded.shape[0])
    left, right, along = parts(column, padded.shape[1])
    upper = padded[top][:, left] * (1 - along) + padded[top][:, right] * along
    lower = padded[bottom][:, left] * (1 - along) + padded[bottom][:, right] * along
    return upper * (1 - down)[:, None] + lower * down[:, None]


def run_onnx(path: Path, threads: int) -> Any:
    """Return a function from an image (1, 3, H, W) to the outputs of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # notes about initialisers that are not used, and the like
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def run_openvino(path: Path, threads: int) -> Any:
    """Return a function from an image (1, 3, H, W) to the outputs of a file of OpenVINO."""
    import openvino

    # float32 as the file has it: the plugin would compute in bfloat16 where the CPU has it
    options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    core = openvino.Core()
    library = path.with_suffix('.ops.so')
    if library.is_file():
        _load_frontend(Path(openvino.__file__).parent)
        core.add_extension(str(library))
    compiled = core.compile_model(core.read_model(path), 'CPU', options)
    return lambda image: list(compiled([image]).values())


def run_program(path: Path, threads: int) -> Any:
    """Return a function from an image (1, 3, H, W) to the outputs of an exported program."""
    import torch

    return _run_torch(lambda: torch.export.load(path).module(), path, threads)


def run_package(path: Path, threads: int) -> Any:
    """Return a function from an image (1, 3, H, W) to the outputs of a package of AOTInductor."""
    import torch

    load: Any = torch._inductor.aoti_load_package
    library = path.with_suffix('.ops.so')
    # mmrednet defines the operators itself
    if library.is_file() and 'mmrednet.ops' not in sys.modules:
        torch.ops.load_library(str(library))
    return _run_torch(lambda: load(str(path)), path, threads)


def _run_torch(load: Callable[[], Any], path: Path, threads: int) -> Any:
    """Return a function from an image to the outputs of what is loaded.

    Raises:
        ValueError: The file cannot be loaded.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        module = load()
    # torch has errors of many types for files that are damaged or of another version
    except Exception as error:
        reason = (str(error).splitlines() or [''])[0]
        raise ValueError(
            f'{path} must be a file that mmrednet export wrote with torch {torch.__version__}: '
            f'{type(error).__name__}: {reason:.300}'
        ) from error

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(image))
        tensors = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return [tensor.numpy() for tensor in tensors]

    return run


def _load_frontend(folder: Path) -> None:
    """Load a library of OpenVINO that those of operators need, wherever it is installed."""
    import ctypes

    for file in (folder / 'libs').glob('libopenvino_onnx_frontend.so*'):
        ctypes.CDLL(str(file))


# key of FORMATS in formats.py, as a description has it: what returns the function that runs a file
RUNS: dict[str, Callable[[Path, int], Any]] = {
    'onnx': run_onnx,
    'openvino': run_openvino,
    'exported-program': run_program,
    'aoti': run_package,
}
