"""ONNX files with 8-bit integers, by ONNX Runtime's static quantisation."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from .runtime import Model, read

# Operators whose inputs and weights become integers. The rest stays in float32: sums over windows,
# whose weights are computed from the image; softmax and norms, which need its range; the arithmetic
# of boxes, whose coordinates need more than 256 steps.
QUANTIZED = ('Conv', 'Gemm')
# how many photographs tell the ranges of the activations
MAX_PHOTOS = 100


def quantize(
    path: Path, photos: Sequence[Path], out: Path, float_layers: Sequence[str] = ()
) -> None:
    """Write an ONNX file with integer weights and activations, and its description.

    Weights are int8 with a scale for each output channel, activations uint8 with one scale for a
    tensor. The scale of an activation is that of its extremes over the photographs.

    Args:
        path: File that ``mmrednet export`` wrote, with its ``.json`` beside it.
        photos: Photographs like those that the model will see. The first ``MAX_PHOTOS`` are used.
        out: File to write.
        float_layers: Names of layers that stay in float32, or patterns of names as for files, such
            as ``'*.fc_reg'``. Default: (), none.

    Raises:
        ValueError: There are no photographs, or a pattern fits no layer.
    """
    if not photos:
        raise ValueError('photos must be at least one image, got none.')
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = Model(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / 'prepared.onnx'
        # types of all tensors, which the quantiser looks up; shapes stay symbolic
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            Photos(model, photos[:MAX_PHOTOS]),
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=nodes_of(prepared, float_layers),
        )
    shutil.copyfile(path.with_suffix('.json'), out.with_suffix('.json'))


def nodes_of(path: Path, patterns: Sequence[str]) -> list[str]:
    """Return the names of the nodes whose layers fit one of the patterns.

    Raises:
        ValueError: A pattern fits no convolution and no linear layer.
    """
    import onnx

    nodes = {}
    for node in onnx.load(path).graph.node:
        # weights have the names that they have in the model's state dict
        if node.op_type in QUANTIZED:
            nodes[node.input[1].removesuffix('.weight')] = node.name
    names = []
    for pattern in patterns:
        matches = [name for layer, name in nodes.items() if fnmatchcase(layer, pattern)]
        if not matches:
            raise ValueError(
                f'float_layers must fit layers such as {", ".join(list(nodes)[:3])}, got '
                f'{pattern!r}.'
            )
        names.extend(matches)
    return names


class Photos:
    """What ONNX Runtime's calibration reads: inputs of a model, one photograph at a time."""

    def __init__(self, model: Model, paths: Sequence[Path]) -> None:
        self.inputs: Iterator[np.ndarray] = (model.prepare(read(path)) for path in paths)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input by name, None at the end."""
        image = next(self.inputs, None)
        return None if image is None else dict(image=image)
