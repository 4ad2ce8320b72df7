"""From a model to a file that a runtime without Python reads, checked against the model."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from ..fusion import fuse
from ..ops._first_use import BuildError
from .formats import FORMATS, blocking_message, missing_message, run
from .networks import description, image_channels, network_of
from .openvino_extension import build_extension
from .programs import capture
from .verification import difference, predict, sample_image

# tasks whose networks take one image at a time
SINGLE = ('detection', 'instances', 'panoptic')
# (H, W) of the images that check a file for any size; the second is odd
CHECKED = ((256, 320), (203, 271))


class ExportError(RuntimeError):
    """A model cannot be exported, or the file computes something else."""


class Target(NamedTuple):
    """What is to be written.

    Args:
        format: Key of ``FORMATS``.
        form: 'portable' or 'native'; None is the default of the format.
        path: Path of the file.
        shape: (H, W) of the image, or None for images of any size.
    """

    format: str
    form: str | None
    path: Path
    shape: tuple[int, int] | None


def check_target(target: Target) -> str:
    """Check what a format needs before anything is computed, and return the form.

    Raises:
        ExportError: A package or a compiler is missing, or the format has no such form.
    """
    message = missing_message(target.format)
    if message:
        raise ExportError(message)
    forms = FORMATS[target.format].forms
    form = target.form or forms[0]
    if form not in forms:
        raise ExportError(
            f'--to {target.format} has the form {" or ".join(forms)} alone, got --form {form}. '
            'Its runtime cannot load the library of our kernels.'
        )
    if target.format == 'openvino' and form == 'native':
        build_operators()
    return form


def build_operators() -> Path:
    """Compile the operators of ours for OpenVINO, unless they are compiled, and return the library.

    Raises:
        ExportError: They cannot be compiled.
    """
    try:
        return build_extension()
    except BuildError as error:
        raise ExportError(f'The operators for OpenVINO cannot be built: {error}') from error


def export(model: Any, cfg: Any, meta: dict[str, Any], target: Target) -> Any:
    """Write a model, and a description of the same name with the ending .json.

    Args:
        model: Classifier, detector or segmenter in eval mode.
        cfg: Its config.
        meta: Classes and colours of its data set.
        target: What is to be written.

    Returns:
        The name of the task.

    Raises:
        ExportError: Something is missing, or operators have no form in the format.
    """
    form = check_target(target)
    network, task = network_of(fuse(copy.deepcopy(model)))
    program = _program(network, task, target)
    message = blocking_message(program, target.format, form)
    if message:
        raise ExportError(message)
    target.path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[target.format].write(program, target.path, network.output_names, form)  # type: ignore
    entry = description(task, network, cfg, meta, target.shape)
    entry.update(format=target.format, form=form)
    target.path.with_suffix('.json').write_text(json.dumps(entry, indent=1) + '\n')
    return task


def _program(network: nn.Module, task: str, target: Target) -> ExportedProgram:
    height, width = target.shape or CHECKED[0]
    batch = 1 if task in SINGLE or target.shape else 2
    example = torch.zeros(batch, image_channels(network), height, width)
    return capture(network, example, dynamic=target.shape is None)


def compare(
    model: Any, task: str, target: Target, photo: np.ndarray | None = None
) -> Iterator[tuple[tuple[int, ...], float, float, str]]:
    """Compare a file with the model's own predictions.

    Args:
        model: The model that was exported.
        task: Name of its task.
        target: The file.
        photo: Image (H, W, 3), uint8, BGR, as the network takes it. Default: None, smooth images.

    Yields:
        For each image its (H, W), the difference, the largest that may be, and its unit.
    """
    compute = run(target.format, target.path)
    for image in _images(target, photo):
        expected = predict(model, task, image)
        yield image.shape[2:], *difference(task, compute(image), expected)


def verify(
    model: Any, task: str, target: Target, photo: np.ndarray | None = None
) -> list[tuple[tuple[int, ...], float, str]]:
    """Compare a file with the model's own predictions, and remove it where they differ.

    Arguments: see :func:`compare`.

    Returns:
        For each image its (H, W), the difference and its unit.

    Raises:
        ExportError: The outputs differ.
    """
    results = []
    for shape, error, limit, unit in compare(model, task, target, photo):
        results.append((shape, error, unit))
        # a NaN is no small error either
        if not error <= limit:
            remove(target)
            raise ExportError(
                f'{target.path} was removed: for an image of {shape[0]} x {shape[1]}, '
                f'{error:.2g} {unit} (at most {limit:.2g} may).'
            )
    return results


def _images(target: Target, photo: np.ndarray | None) -> list[np.ndarray]:
    if photo is not None:
        images = [np.ascontiguousarray(photo.transpose(2, 0, 1)[None], dtype=np.float32)]
        return images if target.shape else [*images, sample_image(CHECKED[1])]
    shapes: Sequence[tuple[int, int]] = [target.shape] if target.shape else CHECKED
    return [sample_image(shape, seed) for seed, shape in enumerate(shapes)]


def remove(target: Target) -> None:
    """Remove all files of an export."""
    target.path.unlink(missing_ok=True)
    target.path.with_suffix('.json').unlink(missing_ok=True)
    for ending in FORMATS[target.format].beside:
        (target.path.parent / (target.path.stem + ending)).unlink(missing_ok=True)
