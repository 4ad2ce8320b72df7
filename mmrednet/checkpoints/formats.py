"""Published checkpoint formats: the table, detection by keys, and conversion of state dicts.

The table knows no model. Each model registers its formats in a ``*_formats.py`` file beside it,
with :func:`register_family`. Importing ``mmrednet.backbones`` registers all of them. The project's
own format is here from the start.

Keys are renamed by pairs of fragments, (published, own), which are read in both directions. In a
fragment ``{n}`` stands for a number, a leading ``^`` for the start of the key and a trailing ``$``
for its end.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reading import CheckpointError

State = dict[str, Tensor]
Shapes = Mapping[str, torch.Size]
Renames = tuple[tuple[str, str], ...]

# prefixes that training scripts put before keys, one or several of them
WRAPPERS = ('module.', '_orig_mod.', 'model.', 'backbone.')
# of wrappers inside each other; a compiled, distributed model of a detector has four
MAX_WRAPPERS = 6
BACKBONE = 'backbone.'
# prefix of our classifiers' linear layer
CLASSIFIER = 'head.fc.'


class Layout(NamedTuple):
    """How the values of a format are arranged.

    Args:
        load: Arranges a backbone's values as ours. Takes the state dict with renamed keys, and the
            shapes of the network to fill if they are known.
        save: Undoes ``load``, or None where that cannot be done exactly.
    """

    load: Callable[[State, Shapes | None], State]
    save: Callable[[State], State] | None = None


@dataclass(frozen=True)
class Format:
    """How one project names and arranges its weights.

    Args:
        name: Name of the format, for people and for the option that chooses it.
        family: Name of our backbone that its files fill, None if any.
        priority: Place in the order of detection. The lowest is tried first.
        source: Projects that write such files.
        required: Regular expressions, each of which matches some key of the backbone. A format
            without any is never detected by keys.
        forbidden: Regular expressions that match no key.
        renames: Pairs of key fragments, (published, own).
        layout: Arrangement of the values, None if it is ours.
        recognise: Function that tells, from all tensors and the shapes of the network to fill,
            a file whose keys say nothing.
        prefix: Prefix that its files put before the keys of the backbone.
        classifier: Prefix that they put before ``weight`` and ``bias`` of the linear classifier.
        transposed: Whether the classifier's matrix is (in, out).
    """

    name: str
    family: str | None
    priority: int
    source: str
    required: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    renames: Renames = ()
    layout: Layout | None = None
    recognise: Callable[[Mapping[str, Tensor], Shapes], bool] | None = None
    prefix: str = ''
    classifier: str = 'fc.'
    transposed: bool = False

    @property
    def reversible(self) -> bool:
        """Whether our keys and values lead back to the published ones."""
        return self.layout is None or self.layout.save is not None

    def matches(self, keys: str) -> bool:
        """Return whether keys, one per line, are those of this format."""
        return (
            bool(self.required)
            and all(re.search(pattern, keys, re.MULTILINE) for pattern in self.required)
            and not any(re.search(pattern, keys, re.MULTILINE) for pattern in self.forbidden)
        )


@dataclass(frozen=True)
class Family:
    """What the checkpoints of one backbone need.

    Args:
        name: Name of the backbone in the registry.
        formats: Published formats that fill it.
        infer_config: Function that returns the backbone's arguments, from the format and a state
            dict in our keys. It may raise KeyError, IndexError or AttributeError where tensors are
            missing.
        resize: Function that brings values whose size depends on an option of the network to the
            network's sizes, where the function of the network stays the same. It is called for
            every file, since our own format has no family, and leaves other keys alone.
        hint: Function that returns a line on what would make the file fit, or ''.
    """

    name: str
    formats: tuple[Format, ...]
    infer_config: Callable[[Format, State], dict[str, Any]]
    resize: Callable[[State, Shapes], State] | None = None
    hint: Callable[[State, Shapes], str] | None = None


OWN_FORMAT = Format(
    'mmrednet',
    family=None,
    priority=1000,
    source='networks trained here, and any file whose keys are ours',
    prefix=BACKBONE,
    classifier=CLASSIFIER,
)
FAMILIES: dict[str, Family] = {}
# in the order of detection
FORMATS: dict[str, Format] = {OWN_FORMAT.name: OWN_FORMAT}


def register_family(family: Family) -> None:
    """Add a backbone and its formats to the tables.

    Raises:
        ValueError: A name or a priority is taken, since the order of detection must be certain.
    """
    formats = sorted([*FORMATS.values(), *family.formats], key=lambda entry: entry.priority)
    for first, second in itertools.combinations(formats, 2):
        if first.name == second.name or first.priority == second.priority:
            raise ValueError(
                f'name and priority of a format must be unique, got {first.name!r} with '
                f'{first.priority} and {second.name!r} with {second.priority}.'
            )
    FAMILIES[family.name] = family
    FORMATS.clear()
    FORMATS.update({entry.name: entry for entry in formats})


@functools.cache
def _compiled(fragment: str, replacement: str) -> tuple[re.Pattern[str], str]:
    start, end = '^' * fragment.startswith('^'), '$' * fragment.endswith('$')
    escaped = re.escape(fragment.removeprefix('^').removesuffix('$'))
    body = re.sub(r'\\{(\w+)\\}', r'(?P<\1>\\d+)', escaped)
    template = re.sub(r'{(\w+)}', r'\\g<\1>', replacement.removeprefix('^').removesuffix('$'))
    return re.compile(f'{start}{body}{end}'), template


def rename(key: str, renames: Iterable[tuple[str, str]]) -> str:
    """Replace the first fragment of each pair by the second one, pair after pair."""
    for fragment, replacement in renames:
        pattern, template = _compiled(fragment, replacement)
        key = pattern.sub(template, key)
    return key


def inverse(renames: Renames) -> Renames:
    """Return the pairs that undo these."""
    return tuple((own, published) for published, own in reversed(renames))


def renames_within(module: str, renames: Renames) -> Renames:
    """Return pairs that hold from the start of a module's keys as pairs for the whole network."""
    return tuple((f'.{module}.{old[1:]}', f'.{module}.{new[1:]}') for old, new in renames)


def legacy_renames(families: frozenset[str]) -> Renames:
    """Return the renames of all formats of these backbones.

    mmengine's own loader does not convert files. A network renames what it is given with these.
    """
    pairs = (
        pair for entry in FORMATS.values() if entry.family in families for pair in entry.renames
    )
    return tuple(dict.fromkeys(pairs))


def keys_by_prefix(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys by the wrappers before them: all keys under '', and those that begin with a
    prefix, without it, under that prefix. The shortest prefix comes first.
    """
    groups: dict[str, list[str]] = {'': []}
    for key in keys:
        groups[''].append(key)
        prefix = ''
        for _ in range(MAX_WRAPPERS):
            wrapper = next((name for name in WRAPPERS if key.startswith(name, len(prefix))), None)
            if wrapper is None:
                break
            prefix += wrapper
            groups.setdefault(prefix, []).append(key[len(prefix) :])
    return dict(sorted(groups.items(), key=lambda item: len(item[0])))


def detect(keys: Iterable[str]) -> tuple[Format, str] | None:
    """Return the published format of these keys and the prefix of the backbone's, None if unknown.

    Raises:
        CheckpointError: No format is registered.
    """
    if not FAMILIES:
        raise CheckpointError(
            'no published format is registered: import mmrednet.backbones, which registers those '
            'of this package.'
        )
    # one search over all lines is faster than one per key
    texts = {prefix: '\n'.join(group) for prefix, group in keys_by_prefix(keys).items()}
    for entry in FORMATS.values():
        for prefix, text in texts.items():
            if entry.matches(text):
                return entry, prefix
    return None


def choose_format(
    state: Mapping[str, Tensor], name: str | None, shapes: Shapes | None
) -> tuple[Format, str]:
    """Return the requested or the detected format, and the prefix of the backbone's keys.

    Args:
        state: Tensors of the file by key.
        name: Name of the format, None to detect it.
        shapes: Shapes of the backbone to fill, if it is known.

    Raises:
        CheckpointError: There is no such format, or the keys are of none and no backbone is known.
    """
    if name is not None and name not in FORMATS:
        raise CheckpointError(f'format must be one of {list(FORMATS)}, got {name!r}.')
    detected = detect(state)
    if detected and name in (None, detected[0].name):
        return detected
    if shapes is None and name is None:
        raise CheckpointError(
            f'the names are of no known format: {list(state)[:8]} ... Give the format, one of '
            f'{list(FORMATS)}, or the network.'
        )
    entry = FORMATS[name or OWN_FORMAT.name]
    scores = {
        prefix: _score(group, prefix, entry, shapes)
        for prefix, group in keys_by_prefix(state).items()
    }
    prefix = max(scores, key=lambda prefix: scores[prefix])
    if name is None and shapes and scores[prefix] == (0,):
        for candidate in FORMATS.values():
            if candidate.recognise and candidate.recognise(state, shapes):
                return candidate, ''
    return entry, prefix


def _score(keys: list[str], prefix: str, entry: Format, shapes: Shapes | None) -> tuple[int, ...]:
    """Return how much the keys behind a prefix look like the backbone's: how many it has, or, where
    it is not known, how many patterns of the format they match.
    """
    if shapes is not None:
        return (sum(rename(key, entry.renames) in shapes for key in keys),)
    text = '\n'.join(keys)
    matches = [re.search(pattern, text, re.MULTILINE) for pattern in entry.required]
    return sum(match is not None for match in matches), prefix.endswith(BACKBONE), len(keys)


@dataclass(frozen=True)
class Converted:
    """A state dict in our keys and arrangement.

    Args:
        format: Format of the file.
        prefix: Prefix of the backbone's keys in the file.
        backbone: Tensors of the backbone.
        other_parts: Tensors of other parts, such as neck and heads; the classifier's under
            ``head.fc.``.
        renamed: Keys of the backbone that the file does not have.
        changed: Keys of the backbone whose values are arranged differently in the file.
        classifier: Prefix of the classifier's ``weight`` and ``bias`` in the file, '' if it has
            none.
    """

    format: Format
    prefix: str
    backbone: State
    other_parts: State
    renamed: frozenset[str]
    changed: frozenset[str]
    classifier: str = ''


def to_mmrednet(
    state: Mapping[str, Tensor], entry: Format, prefix: str, shapes: Shapes | None = None
) -> Converted:
    """Give tensors our keys and arrangement.

    Args:
        state: Tensors of a file by key.
        entry: Format of the file.
        prefix: Prefix of the backbone's keys in it.
        shapes: Shapes of the backbone to fill, if it is known; 'rednet-ordered' needs them.

    Raises:
        CheckpointError: The values cannot be arranged.
    """
    outer = prefix.removesuffix(BACKBONE)
    classifier = _classifier_prefix(state, entry, prefix)
    published: State = {}
    other_parts: State = {}
    for key, value in state.items():
        part = key.removeprefix(classifier) if classifier else key
        if classifier and part in ('weight', 'bias') and key != part:
            is_matrix = part == 'weight' and _is_transposed(entry, prefix, classifier)
            other_parts[CLASSIFIER + part] = value.T.contiguous() if is_matrix else value
        elif key.startswith(prefix):
            published[key.removeprefix(prefix)] = value
        else:
            other_parts[key.removeprefix(outer)] = value
    backbone = {rename(key, entry.renames): value for key, value in published.items()}
    if len(backbone) != len(published):
        raise CheckpointError(
            f'format {entry.name!r} gives two of the tensors the same name; is it the right one?'
        )
    if entry.layout is not None:
        backbone = entry.layout.load(backbone, shapes)
    originals = {id(value) for value in published.values()}
    return Converted(
        entry,
        prefix,
        backbone,
        other_parts,
        renamed=frozenset(backbone) - frozenset(published),
        changed=frozenset(key for key, value in backbone.items() if id(value) not in originals),
        classifier=classifier,
    )


def _classifier_prefix(state: Mapping[str, Tensor], entry: Format, prefix: str) -> str:
    """Return the prefix of the linear classifier's keys: beside the backbone or among its layers,
    in the format's words or in ours.
    """
    outer = prefix.removesuffix(BACKBONE)
    candidates = [prefix + entry.classifier, outer + entry.classifier, prefix + CLASSIFIER]
    if prefix.endswith(BACKBONE):
        candidates.insert(0, outer + CLASSIFIER)
    return next((name for name in candidates if f'{name}weight' in state), '')


def _is_transposed(entry: Format, prefix: str, classifier: str) -> bool:
    """Return whether the matrix of a classifier is (in, out): it is where the format names it."""
    own_names = (prefix + entry.classifier, prefix.removesuffix(BACKBONE) + entry.classifier)
    return entry.transposed and classifier in own_names


def to_published(
    backbone: Mapping[str, Tensor],
    other_parts: Mapping[str, Tensor],
    entry: Format,
    prefix: str | None = None,
    classifier: str | None = None,
) -> State:
    """Undo :func:`to_mmrednet`.

    Args:
        backbone: Tensors of the backbone, in our keys.
        other_parts: Tensors of other parts.
        entry: Format to write.
        prefix: Prefix of the backbone's keys. Default: that of the project's own files.
        classifier: Prefix of the classifier's ``weight`` and ``bias``. Default: likewise.

    Raises:
        CheckpointError: The format has no way back.
    """
    if not entry.reversible:
        raise CheckpointError(
            f'format {entry.name!r} cannot be written: its map is not one to one.'
        )
    if prefix is None:
        prefix = entry.prefix
    published = dict(backbone)
    if entry.layout is not None and entry.layout.save is not None:
        published = entry.layout.save(published)
    back = inverse(entry.renames)
    result = {prefix + rename(key, back): value for key, value in published.items()}
    outer = prefix.removesuffix(BACKBONE)
    classifier = classifier or outer + entry.classifier
    transposed = _is_transposed(entry, prefix, classifier)
    for key, value in other_parts.items():
        part = key.removeprefix(CLASSIFIER)
        if part in ('weight', 'bias') and key != part:
            is_matrix = transposed and part == 'weight'
            result[classifier + part] = value.T.contiguous() if is_matrix else value
        else:
            result[outer + key] = value
    return result
