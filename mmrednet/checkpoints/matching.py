"""What of a file fits a network: counts, names, and one line that says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .conversion import Converted
from .fitting import STEM_KERNEL, fit, stem_kernel_size

# a network makes these itself where a file has none
MADE_BY_THE_NETWORK = ('num_batches_tracked', '.bases')


@dataclass(frozen=True)
class Match:
    """The tensors that fit, and the names of all that do not.

    Args:
        source: what the names come from: format and wrapper.
        state: what fits, by our names.
        total: tensors that the network has.
        renamed: of those that fit, the ones with another name in the file.
        changed: of those that fit, the ones whose values were arranged anew.
        missing: of the network, not in the file; it keeps its own values.
        unexpected: in the file, not of the network.
        misshapen: shapes in the file and in the network, where they differ.
        outside: in the file, of parts that the network is not made of, as a classifier.
        hint: what would help, or ''.
    """

    source: str
    state: dict[str, Tensor]
    total: int
    renamed: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    outside: tuple[str, ...]
    hint: str

    @property
    def share(self) -> float:
        """Return which part of the network's tensors the file fills, counters left out."""
        filled = sum(not name.endswith(MADE_BY_THE_NETWORK) for name in self.state)
        return filled / max(1, filled + len(self.missing) + len(self.misshapen))

    @property
    def counts(self) -> str:
        """Return all counts in one line."""
        return (f'{len(self.state)} of {self.total} tensors matched ({self.source}), of them {len(self.renamed)} '
                f'renamed and {len(self.changed)} changed; {len(self.missing)} missing, {len(self.unexpected)} '
                f'unexpected, {len(self.misshapen)} misshapen, {len(self.outside)} of other parts')

    def details(self, limit: int = 8) -> Iterator[str]:
        """Yield a line for each kind of names that matter."""
        for kind in ('changed', 'missing', 'unexpected', 'outside'):
            names = getattr(self, kind)
            if names:
                more = f' and {len(names) - limit} more' if len(names) > limit else ''
                yield f'{kind}: {", ".join(names[:limit])}{more}'
        for name, (file, network) in list(self.misshapen.items())[:limit]:
            yield f'misshapen: {name} is {file} in the file and {network} in the network'
        if len(self.misshapen) > limit:
            yield f'misshapen: {len(self.misshapen) - limit} more'
        if self.hint:
            yield self.hint


def match(converted: Converted, shapes: Mapping[str, torch.Size]) -> Match:
    """Compare a file with a backbone of these shapes, after what can be resized is.

    Args:
        converted: the file.
        shapes: of the backbone's state dict.
    """
    fitted = fit(converted.backbone, shapes)
    changed = converted.changed | {name for name, value in fitted.items() if value is not converted.backbone[name]}
    return compare(
        fitted, shapes, source=f'format {converted.format.name!r}'
        + (f', behind {converted.wrapper!r}' if converted.wrapper else ''),
        renamed=converted.renamed, changed=changed, outside=tuple(converted.rest), hint=_hint(fitted, shapes))


def compare(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], *, source: str,
            renamed: frozenset[str] = frozenset(), changed: frozenset[str] = frozenset(),
            outside: tuple[str, ...] = (), hint: str = '') -> Match:
    """Sort tensors by whether they fit a network of these shapes."""
    good = {name: value for name, value in state.items() if shapes.get(name) == value.shape}
    return Match(
        source, good, len(shapes), tuple(name for name in good if name in renamed),
        tuple(name for name in good if name in changed),
        tuple(name for name in shapes if name not in state and not name.endswith(MADE_BY_THE_NETWORK)),
        tuple(name for name in state if name not in shapes),
        {name: (tuple(value.shape), tuple(shapes[name])) for name, value in state.items()
         if name in shapes and shapes[name] != value.shape}, outside, hint)


def _hint(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str:
    size, name = stem_kernel_size(state), f'{STEM_KERNEL}weight'
    if size is None or name not in shapes or state[name].shape == shapes[name]:
        return ''
    return f"the stem of the file has {size}x{size} kernels: stem_kernel_size={size} takes them"
