"""Maps of segment ids: how images encode them, and which class and segment an id stands for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# PIL's names of one channel, whose values are ids
ID_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L')
# id of pixels that belong to no segment
VOID = 0
# mmdet's id of a predicted segment is its number times this, plus its class
INSTANCE_OFFSET = 1000
# below this, counting every possible id is faster than sorting the pixels
COUNTABLE_IDS = 1 << 20


def decode_id_map(content: bytes, path: str) -> np.ndarray:
    """Return the segment ids of an image, (H, W), int32.

    An id is the value of a single channel of up to 16 bits, or of the three channels
    R + 256 G + 65536 B, as in COCO's panoptic format.

    Args:
        content: Bytes of the file.
        path: Path of the file, for messages.

    Raises:
        ValueError: The file is no image, or has other channels.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f'id map must be a readable image, got {path}: {error}') from error
    if image.mode in ID_MODES:
        return np.asarray(image).astype(np.int32)
    if image.mode != 'RGB':
        raise ValueError(
            'id map must have one channel of ids or the three channels of '
            f'R + 256 G + 65536 B, got mode {image.mode!r} in {path}'
        )
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int32), 2, 0)
    return red + 256 * green + 65536 * blue


def encode_id_map(ids: np.ndarray) -> np.ndarray:
    """Return segment ids (H, W) as colours (H, W, 3), uint8, with id = R + 256 G + 65536 B."""
    channels = [ids % 256, ids // 256 % 256, ids // 65536]
    return np.stack(channels, 2).astype(np.uint8)


def present_ids(ids: np.ndarray) -> list[int]:
    """Return the ids that occur in a map, in ascending order, without void."""
    if ids.size and ids.min() >= 0 and ids.max() < COUNTABLE_IDS:
        values = np.flatnonzero(np.bincount(ids.ravel()))
    else:
        values = np.unique(ids)
    return values[values != VOID].tolist()


@dataclass(frozen=True)
class IdRule:
    """How ids alone tell the segments, as in Cityscapes' ``instanceIds``.

    An id of at least ``divisor`` is category * divisor + number of the instance. A smaller id is a
    category: all pixels of a stuff class, or a group of things that are not told apart (a crowd).

    Args:
        categories: Index of the class of each category.
        things: Indices of the classes whose instances are told apart.
        ignored: Categories that count as void.
        divisor: Number of ids of each category. Default: 1000.
    """

    categories: Mapping[int, int]
    things: frozenset[int]
    ignored: frozenset[int]
    divisor: int = 1000

    def segments(self, ids: Sequence[int], path: str) -> list[dict[str, int]]:
        """Return ``id``, ``category`` and ``iscrowd`` of the ids that are no void.

        Args:
            ids: Ids that occur in a map.
            path: Path of the map, for messages.

        Raises:
            ValueError: An id belongs to no category.
        """
        segments, unknown = [], []
        for value in ids:
            is_numbered = value >= self.divisor
            category = value // self.divisor if is_numbered else value
            if category in self.ignored:
                continue
            if category not in self.categories:
                unknown.append(value)
                continue
            index = self.categories[category]
            is_crowd = index in self.things and not is_numbered
            segments.append(dict(id=value, category=index, iscrowd=int(is_crowd)))
        if unknown:
            raise ValueError(
                f'ids of segments must be category or category * {self.divisor} + number, with a '
                f'category of {sorted(self.categories)} (void: {sorted(self.ignored)}), got '
                f'{unknown} in {path}'
            )
        return segments


def remove_others(ids: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return a map in which ids without a segment are void."""
    kept = [segment['id'] for segment in segments]
    return np.where(np.isin(ids, kept, kind='table' if ids.max() < COUNTABLE_IDS else None), ids, 0)
