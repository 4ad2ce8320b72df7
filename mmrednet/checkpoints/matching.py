"""What of a file fits a network: counts, names, and one line that says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .conversion import OUR_CLASSIFIER, Converted
from .fitting import STEM_KERNEL, fit, stem_kernel_size

# a network makes these itself where a file has none
MADE_BY_THE_NETWORK = ('num_batches_tracked', '.bases')
# where whole networks have their other parts, beside the names of a backbone
OTHER_PARTS = (
    'fc.',
    'head.',
    'classifier.',
    'last_linear.',
    'neck.',
    'decode_head.',
    'auxiliary_head.',
    'rpn_head.',
    'bbox_head.',
    'mask_head.',
    'roi_head.',
)
BACKBONE = 'backbone.'


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
        replaced: missing and unexpected names where the file has a convolution and the network
            another operator.
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
    replaced: frozenset[str] = frozenset()

    @property
    def share(self) -> float:
        """Return which part of the network's tensors the file fills, counters left out."""
        filled = sum(not name.endswith(MADE_BY_THE_NETWORK) for name in self.state)
        return filled / max(1, filled + len(self.missing) + len(self.misshapen))

    @property
    def doubtful(self) -> frozenset[str]:
        """Return the missing and unexpected names that neither another operator nor another part
        explains.
        """
        unexplained = (
            name
            for name in self.unexpected
            if not name.startswith(OTHER_PARTS) and not name.endswith(MADE_BY_THE_NETWORK)
        )
        return frozenset((*self.missing, *unexplained)) - self.replaced

    @property
    def counts(self) -> str:
        """Return all counts in one line."""
        replaced = f', {len(self.replaced)} of replaced operators' if self.replaced else ''
        return (
            f'{len(self.state)} of {self.total} tensors matched ({self.source}), of them '
            f'{len(self.renamed)} '
            f'renamed and {len(self.changed)} changed; {len(self.missing)} missing, '
            f'{len(self.unexpected)} '
            f'unexpected, {len(self.misshapen)} misshapen, {len(self.outside)} of other parts'
            f'{replaced}'
        )

    def details(self, limit: int = 8) -> Iterator[str]:
        """Yield a line for each kind of names that matter, the doubtful ones first."""
        for kind in ('changed', 'missing', 'unexpected', 'outside'):
            names = sorted(getattr(self, kind), key=lambda name: name not in self.doubtful)
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
    changed = converted.changed | {
        name for name, value in fitted.items() if value is not converted.backbone[name]
    }
    return compare(
        fitted,
        shapes,
        source=f'format {converted.format.name!r}'
        + (f', behind {converted.wrapper!r}' if converted.wrapper else ''),
        renamed=converted.renamed,
        changed=changed,
        outside=tuple(converted.rest),
        hint=_hint(fitted, shapes),
    )


def compare(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    *,
    source: str,
    renamed: frozenset[str] = frozenset(),
    changed: frozenset[str] = frozenset(),
    outside: tuple[str, ...] = (),
    hint: str = '',
) -> Match:
    """Sort tensors by whether they fit a network of these shapes."""
    good = {name: value for name, value in state.items() if shapes.get(name) == value.shape}
    operators = _replaced(state, shapes)
    return Match(
        source,
        good,
        len(shapes),
        tuple(name for name in good if name in renamed),
        tuple(name for name in good if name in changed),
        tuple(
            name for name in shapes if name not in state and not name.endswith(MADE_BY_THE_NETWORK)
        ),
        tuple(name for name in state if name not in shapes),
        {
            name: (tuple(value.shape), tuple(shapes[name]))
            for name, value in state.items()
            if name in shapes and shapes[name] != value.shape
        },
        outside,
        hint,
        frozenset(
            name
            for name in {*state} ^ {*shapes}
            if not name.endswith(MADE_BY_THE_NETWORK) and not operators.isdisjoint(_modules(name))
        ),
    )


def _modules(name: str) -> list[str]:
    """Return the modules that a name lies in, from the inner to the outer."""
    parts = name.split('.')
    return ['.'.join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _replaced(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> set[str]:
    """Return the places where the file has a convolution and the network an operator made of
    modules.
    """
    outer_of_file = {outer for name in state for outer in _modules(name)[1:]}
    convolutions = {
        name.removesuffix('.weight')
        for name, value in state.items()
        if name.endswith('.weight') and value.dim() == 4
    }
    return (convolutions - outer_of_file) & {
        outer for name in shapes for outer in _modules(name)[1:]
    }


def match_whole(
    inner: Match,
    converted: Converted,
    to: str,
    backbone: Mapping[str, torch.Size],
    shapes: Mapping[str, torch.Size] | None,
) -> tuple[Match, tuple[str, ...]]:
    """Put the backbone back into its network, beside the other parts of the file.

    Args:
        inner: what fits of the backbone.
        converted: the file.
        to: what the network is; a classifier's linear layer is part of 'classifier' alone.
        backbone: its shapes.
        shapes: of the network, None if they are not known.

    Returns:
        What fits of the network, and the parts of it that the file does not have.
    """
    # without a network to compare with, other parts are as they should be, save for a classifier
    # elsewhere
    wanted = {
        name: value
        for name, value in converted.rest.items()
        if shapes is not None or name.startswith(OUR_CLASSIFIER) == (to == 'classifier')
    }
    unfit = (*inner.unexpected, *inner.misshapen)
    state: dict[str, Tensor] = {BACKBONE + name: value for name, value in inner.state.items()}
    state |= {BACKBONE + name: converted.backbone[name] for name in unfit} | wanted
    parts = {name.split('.')[0] for name in state}
    known = (
        {name: shape for name, shape in shapes.items() if name.split('.')[0] in parts}
        if shapes is not None
        else {
            **{BACKBONE + name: shape for name, shape in backbone.items()},
            **{name: value.shape for name, value in wanted.items()},
        }
    )
    result = compare(
        state,
        known,
        source=inner.source,
        hint=inner.hint,
        outside=tuple(name for name in converted.rest if name not in wanted),
        renamed=frozenset(BACKBONE + name for name in inner.renamed),
        changed=frozenset(BACKBONE + name for name in inner.changed),
    )
    return result, tuple(sorted({name.split('.')[0] for name in shapes or ()} - parts))


def left_out(result: Match, converted: Converted) -> dict[str, Tensor]:
    """Return the tensors of the file that did not fit."""
    return {
        name: value
        for name, value in (converted.backbone | converted.rest).items()
        if name not in result.state and BACKBONE + name not in result.state
    }


def _hint(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str:
    size, name = stem_kernel_size(state), f'{STEM_KERNEL}weight'
    if size is None or name not in shapes or state[name].shape == shapes[name]:
        return ''
    return f'the stem of the file has {size}x{size} kernels: stem_kernel_size={size} takes them'
