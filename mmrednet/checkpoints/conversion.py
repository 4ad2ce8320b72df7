"""From a file's names and values to ours and back: pure functions over dicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CheckpointError
from .fitting import STEM_KERNEL
from .formats import FORMATS, Format
from .layouts import in_order
from .naming import inverse, rename

# what training scripts put before names, one or several of them
WRAPPERS = ('module.', '_orig_mod.', 'model.', 'backbone.')
OUR_CLASSIFIER = 'head.fc.'


@dataclass(frozen=True)
class Converted:
    """A file in our names.

    Args:
        format: of the file.
        wrapper: what stood before the backbone's names.
        backbone: its tensors.
        rest: those of other parts (neck, heads) in our names, the classifier's as ``head.fc.``.
        renamed: our names of the backbone that the file did not have.
        changed: our names whose values are arranged otherwise than in the file.
        classifier: what the file has before ``weight`` and ``bias`` of its classifier, '' if it has
            none.
    """

    format: Format
    wrapper: str
    backbone: dict[str, Tensor]
    rest: dict[str, Tensor]
    renamed: frozenset[str]
    changed: frozenset[str]
    classifier: str = ''


def wrappers_in(names: Iterable[str]) -> list[str]:
    """Return what may stand before the backbone's names: nothing, or wrappers that some name begins
    with.
    """
    found = {''}
    for name in names:
        start = ''
        while wrapper := next((w for w in WRAPPERS if name.startswith(w, len(start))), None):
            start += wrapper
            found.add(start)
    return sorted(found, key=len)


def unwrapped(names: Iterable[str], wrapper: str) -> list[str]:
    """Return the names behind a wrapper, without it."""
    return [name[len(wrapper) :] for name in names if name.startswith(wrapper)]


def detect(names: Iterable[str]) -> tuple[Format, str] | None:
    """Return the published format of these names and the wrapper before the backbone's, None if it
    is none.
    """
    names = list(names)
    inside = {wrapper: '\n'.join(unwrapped(names, wrapper)) for wrapper in wrappers_in(names)}
    for entry in FORMATS.values():
        for wrapper, text in inside.items():
            if (
                entry.marks
                and all(re.search(mark, text, re.MULTILINE) for mark in entry.marks)
                and not any(re.search(mark, text, re.MULTILINE) for mark in entry.absent)
            ):
                return entry, wrapper
    return None


def choose(
    state: Mapping[str, Tensor], format: str | None, shapes: Mapping[str, torch.Size] | None
) -> tuple[Format, str]:
    """Return the format that is asked for, or the one that a file tells, and the wrapper.

    Args:
        state: the file's tensors.
        format: one of ``FORMATS``, None to detect it.
        shapes: of the backbone to fill, if it is known.

    Raises:
        CheckpointError: there is no such format, or the names are of none and no backbone is known.
    """
    if format is not None and format not in FORMATS:
        raise CheckpointError(f'format must be one of {list(FORMATS)}, got {format!r}.')
    detected = detect(state)
    if detected and format in (None, detected[0].name):
        return detected
    if shapes is None and format is None:
        raise CheckpointError(
            f'the names are of no known format: {list(state)[:8]} ... Give the format, one of '
            f'{list(FORMATS)}, or the network.'
        )
    entry = FORMATS[format or 'mmrednet']
    wrapper = max(
        wrappers_in(state),
        key=lambda wrapper: _likeness(unwrapped(state, wrapper), wrapper, entry, shapes),
    )
    if (
        format is None
        and shapes
        and f'{STEM_KERNEL}weight' in shapes
        and in_order(state, shapes)
        and not any(rename(name, entry.renames) in shapes for name in unwrapped(state, wrapper))
    ):
        return FORMATS['rednet-ordered'], ''
    return entry, wrapper


def _likeness(
    names: Iterable[str], wrapper: str, entry: Format, shapes: Mapping[str, torch.Size] | None
) -> tuple[int, ...]:
    """Return how much names behind a wrapper look like a backbone's: by its own ones, or by the
    marks of the format.
    """
    names = list(names)
    if shapes is not None:
        return (sum(rename(name, entry.renames) in shapes for name in names),)
    marks = sum(any(re.search(mark, name) for name in names) for mark in entry.marks)
    return marks, wrapper.endswith('backbone.'), len(names)


def to_ours(
    state: Mapping[str, Tensor],
    entry: Format,
    wrapper: str,
    shapes: Mapping[str, torch.Size] | None = None,
) -> Converted:
    """Give tensors our names and arrangement.

    Args:
        state: a file's tensors.
        entry: its format.
        wrapper: what stands before the names of its backbone.
        shapes: of the backbone to fill, if it is known; 'rednet-ordered' needs them.

    Raises:
        CheckpointError: the values cannot be arranged, see :mod:`mmrednet.checkpoints.layouts`.
    """
    theirs = {
        name[len(wrapper) :]: value for name, value in state.items() if name.startswith(wrapper)
    }
    outer = wrapper.removesuffix('backbone.')
    rest = {
        name.removeprefix(outer): value
        for name, value in state.items()
        if not name.startswith(wrapper)
    }
    classifier = _set_apart(theirs, wrapper, rest, outer, entry)
    ours = {rename(name, entry.renames): value for name, value in theirs.items()}
    if len(ours) != len(theirs):
        raise CheckpointError(
            f'format {entry.name!r} gives two of the tensors the same name; is it the right one?'
        )
    if entry.layout is not None:
        ours = entry.layout.to_ours(ours, shapes)
    originals = {id(value) for value in theirs.values()}
    return Converted(
        entry,
        wrapper,
        ours,
        rest,
        frozenset(ours) - frozenset(theirs),
        frozenset(name for name, value in ours.items() if id(value) not in originals),
        classifier,
    )


def _set_apart(
    theirs: dict[str, Tensor], wrapper: str, rest: dict[str, Tensor], outer: str, entry: Format
) -> str:
    """Put the classifier among the other parts, under our name, and return what it was called."""
    if f'{OUR_CLASSIFIER}weight' in rest:
        return outer + OUR_CLASSIFIER
    for source, place, name in (
        (theirs, wrapper, entry.classifier),
        (rest, outer, entry.classifier),
        (theirs, wrapper, OUR_CLASSIFIER),
    ):
        if f'{name}weight' in source:
            transposed = entry.transposed and name == entry.classifier
            weight, bias = source.pop(f'{name}weight'), source.pop(f'{name}bias', None)
            rest[f'{OUR_CLASSIFIER}weight'] = weight.T.contiguous() if transposed else weight
            rest |= {} if bias is None else {f'{OUR_CLASSIFIER}bias': bias}
            return place + name
    return ''


def to_theirs(
    backbone: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    entry: Format,
    wrapper: str | None = None,
    classifier: str | None = None,
) -> dict[str, Tensor]:
    """Undo :func:`to_ours`.

    Args:
        backbone: its tensors, in our names.
        rest: those of other parts.
        entry: the format to write.
        wrapper: what to put before the backbone's names; by default what the project's own files
            have.
        classifier: what to put before ``weight`` and ``bias`` of the classifier; likewise.

    Raises:
        CheckpointError: the format has no way back.
    """
    if not entry.reversible:
        raise CheckpointError(
            f'format {entry.name!r} cannot be written: its map is not one to one.'
        )
    wrapper = entry.wrapper if wrapper is None else wrapper
    theirs = dict(backbone)
    if entry.layout is not None and entry.layout.to_theirs is not None:
        theirs = entry.layout.to_theirs(theirs)
    result = {
        wrapper + rename(name, inverse(entry.renames)): value for name, value in theirs.items()
    }
    # a classifier named beside the backbone stands outside its wrapper, one named among its layers
    # inside
    outer = wrapper.removesuffix('backbone.')
    classifier = classifier or outer + entry.classifier
    transposed = entry.transposed and classifier in (
        outer + entry.classifier,
        wrapper + entry.classifier,
    )
    for name, value in rest.items():
        part = name.removeprefix(OUR_CLASSIFIER)
        if part in ('weight', 'bias') and name != part:
            result[classifier + part] = (
                value.T.contiguous() if transposed and part == 'weight' else value
            )
        else:
            result[outer + name] = value
    return result
