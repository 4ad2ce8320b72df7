"""Compares a checkpoint with a network: what fits, what does not, and one line that says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .formats import (
    BACKBONE,
    CLASSIFIER,
    FAMILIES,
    Converted,
    Shapes,
    State,
    choose_format,
    to_mmrednet,
)

# What a file becomes: the backbone alone, as init_cfg takes it, or the state dict of a whole
# network, as load_from takes it.
TARGETS = ('backbone', 'classifier', 'detector', 'segmentor')
# A network makes these itself where a file has none: batch counters, and the Hamburger's bases.
OPTIONAL_KEYS = ('num_batches_tracked', '.bases')
# where whole networks keep parts that a backbone does not have
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


@dataclass(frozen=True)
class Match:
    """The tensors that fit a network, and the keys of all that do not.

    Args:
        source: Format and prefix of the file, in words.
        state: Tensors that fit, by our keys.
        total: Number of tensors in the network.
        renamed: Keys that fit and have another name in the file.
        changed: Keys that fit and whose values were rearranged or resized.
        missing: Keys of the network that are not in the file; they keep their own values.
        unexpected: Keys of the file that are not in the network.
        mismatched: Shapes in the file and in the network, by key, where they differ.
        other_parts: Keys of the file in parts that the network does not have, such as a classifier.
        absent_parts: Parts of the network that the file does not have.
        hint: Line on what would help, or ''.
        replaced: Missing and unexpected keys where the file has a convolution and the network
            another operator.
    """

    source: str
    state: State
    total: int
    renamed: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    other_parts: tuple[str, ...]
    absent_parts: tuple[str, ...]
    hint: str
    replaced: frozenset[str]

    @property
    def share(self) -> float:
        """The share of the network's tensors that the file fills, optional ones left out."""
        filled = sum(not key.endswith(OPTIONAL_KEYS) for key in self.state)
        return filled / max(1, filled + len(self.missing) + len(self.mismatched))

    @property
    def doubtful(self) -> frozenset[str]:
        """Missing and unexpected keys that no replaced operator and no other part explains."""
        unexpected = [key for key in self.unexpected if not key.startswith(OTHER_PARTS)]
        unexplained = [key for key in unexpected if not key.endswith(OPTIONAL_KEYS)]
        return frozenset((*self.missing, *unexplained)) - self.replaced

    @property
    def counts(self) -> str:
        """All counts in one line."""
        replaced = f', {len(self.replaced)} of replaced operators' if self.replaced else ''
        return (
            f'{len(self.state)} of {self.total} tensors matched ({self.source}), of them '
            f'{len(self.renamed)} renamed and {len(self.changed)} changed; '
            f'{len(self.missing)} missing, {len(self.unexpected)} unexpected, '
            f'{len(self.mismatched)} shape mismatches, {len(self.other_parts)} of other parts'
            f'{replaced}'
        )

    def details(self, limit: int = 8) -> Iterator[str]:
        """Yield a line for each group of keys that matter, the doubtful ones first."""
        groups = {
            'changed': self.changed,
            'missing': self.missing,
            'unexpected': self.unexpected,
            'other parts': self.other_parts,
        }
        doubtful = self.doubtful
        for label, keys in groups.items():
            in_order = sorted(keys, key=lambda key: key not in doubtful)
            more = f' and {len(keys) - limit} more' if len(keys) > limit else ''
            if keys:
                yield f'{label}: {", ".join(in_order[:limit])}{more}'
        for key, (in_file, in_network) in list(self.mismatched.items())[:limit]:
            yield f'shape mismatch: {key} is {in_file} in the file and {in_network} in the network'
        if len(self.mismatched) > limit:
            yield f'shape mismatch: {len(self.mismatched) - limit} more'
        if self.hint:
            yield self.hint


def shapes_of(network: nn.Module) -> Shapes:
    """Return the shapes of a network's state dict by key."""
    return {key: value.shape for key, value in network.state_dict().items()}


def match_state(
    state: Mapping[str, Tensor],
    shapes: Shapes,
    *,
    target: str = 'backbone',
    format: str | None = None,
) -> tuple[Converted, Match]:
    """Convert a file's tensors and compare them with a network.

    Args:
        state: Tensors of the file by key.
        shapes: Shapes of the state dict of the backbone or, for another target, of the whole
            network.
        target: One of ``TARGETS``.
        format: Name of the file's format. Default: detected.

    Raises:
        CheckpointError: The format is unknown, or the values cannot be arranged.
    """
    if target == 'backbone':
        backbone_shapes, network_shapes = shapes, None
    else:
        inner = {key: shape for key, shape in shapes.items() if key.startswith(BACKBONE)}
        backbone_shapes = {key.removeprefix(BACKBONE): shape for key, shape in inner.items()}
        network_shapes = shapes
    entry, prefix = choose_format(state, format, backbone_shapes)
    converted = to_mmrednet(state, entry, prefix, backbone_shapes)
    return converted, match(
        converted, backbone_shapes, target=target, network_shapes=network_shapes
    )


def match(
    converted: Converted,
    shapes: Shapes,
    *,
    target: str = 'backbone',
    network_shapes: Shapes | None = None,
) -> Match:
    """Compare a converted file with a network, after what can be resized is.

    Args:
        converted: State dict in our keys.
        shapes: Shapes of the backbone.
        target: One of ``TARGETS``.
        network_shapes: Shapes of the whole network, if the target is one and it is known. Default:
            those of the backbone and of the other parts that the file has.
    """
    backbone, hint = _resize(converted.backbone, shapes)
    resized = {key for key, value in backbone.items() if value is not converted.backbone[key]}
    parts = _target_parts(converted.other_parts, target, network_shapes)
    prefix = '' if target == 'backbone' else BACKBONE
    state = {prefix + key: value for key, value in backbone.items()} | parts
    if network_shapes is None:
        network_shapes = {prefix + key: shape for key, shape in shapes.items()}
        network_shapes |= {key: value.shape for key, value in parts.items()}
    absent_parts: set[str] = set()
    if target != 'backbone':
        absent_parts = {_part_of(key) for key in network_shapes} - {_part_of(key) for key in state}
    prefix_note = f', prefix {converted.prefix!r}' if converted.prefix else ''
    return _compare(
        state,
        {key: shape for key, shape in network_shapes.items() if _part_of(key) not in absent_parts},
        source=f'format {converted.format.name!r}{prefix_note}',
        renamed={prefix + key for key in converted.renamed},
        changed={prefix + key for key in converted.changed | resized},
        other_parts=tuple(key for key in converted.other_parts if key not in parts),
        absent_parts=tuple(sorted(absent_parts)),
        hint=hint,
    )


def _part_of(key: str) -> str:
    return key.split('.')[0]


def _target_parts(other_parts: State, target: str, network_shapes: Shapes | None) -> State:
    """Return the tensors outside the backbone that belong to a target.

    With a network to compare with, all are compared. Without one they are taken as they are, but
    for a linear classifier, which belongs to classifiers alone.
    """
    if target == 'backbone':
        return {}
    if network_shapes is not None:
        return other_parts
    wants_classifier = target == 'classifier'
    return {
        key: value
        for key, value in other_parts.items()
        if key.startswith(CLASSIFIER) == wants_classifier
    }


def _resize(state: State, shapes: Shapes) -> tuple[State, str]:
    """Return tensors of which all families have resized theirs, and what would make more fit."""
    for family in FAMILIES.values():
        if family.resize is not None:
            state = family.resize(state, shapes)
    hints = [family.hint(state, shapes) for family in FAMILIES.values() if family.hint is not None]
    return state, next(filter(None, hints), '')


def _compare(
    state: State,
    shapes: Shapes,
    *,
    source: str,
    renamed: set[str],
    changed: set[str],
    other_parts: tuple[str, ...],
    absent_parts: tuple[str, ...],
    hint: str,
) -> Match:
    """Sort tensors by whether they fit a network of these shapes."""
    fitting = {key: value for key, value in state.items() if shapes.get(key) == value.shape}
    absent = [key for key in shapes if key not in state]
    mismatched = {}
    for key, value in state.items():
        if key in shapes and key not in fitting:
            mismatched[key] = tuple(value.shape), tuple(shapes[key])
    return Match(
        source=source,
        state=fitting,
        total=len(shapes),
        renamed=tuple(key for key in fitting if key in renamed),
        changed=tuple(key for key in fitting if key in changed),
        missing=tuple(key for key in absent if not key.endswith(OPTIONAL_KEYS)),
        unexpected=tuple(key for key in state if key not in shapes),
        mismatched=mismatched,
        other_parts=other_parts,
        absent_parts=absent_parts,
        hint=hint,
        replaced=_replaced_keys(state, shapes),
    )


def _replaced_keys(state: State, shapes: Shapes) -> frozenset[str]:
    """Return the keys of one side where the file has a convolution and the network an operator that
    is made of modules.
    """
    containers = {module for key in state for module in _modules_of(key)[1:]}
    convolutions = {
        key.removesuffix('.weight')
        for key, value in state.items()
        if key.endswith('.weight') and value.dim() == 4
    }
    network_containers = {module for key in shapes for module in _modules_of(key)[1:]}
    operators = (convolutions - containers) & network_containers
    one_sided = {key for key in {*state} ^ {*shapes} if not key.endswith(OPTIONAL_KEYS)}
    return frozenset(key for key in one_sided if not operators.isdisjoint(_modules_of(key)))


def _modules_of(key: str) -> list[str]:
    """Return the modules that a key lies in, from the inner to the outer."""
    parts = key.split('.')
    return ['.'.join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def left_out(result: Match, converted: Converted) -> State:
    """Return the tensors of the file that did not fit."""
    tensors = converted.backbone | converted.other_parts
    return {
        key: value
        for key, value in tensors.items()
        if key not in result.state and BACKBONE + key not in result.state
    }
