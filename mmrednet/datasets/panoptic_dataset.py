"""Images with a map of segment ids each: one's own data, and the base of other data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..packages import require

require('mmrednet.PanopticMapDataset', 'mmengine')

from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.fileio import join_path

from ..registry import DATASETS
from .id_map import VOID, IdRule


@DATASETS.register_module()
class PanopticMapDataset(BaseDataset):
    """Images in a folder, and maps of segment ids in another.

    Without ``ann_file`` the ids alone tell the segments, see :class:`IdRule`. An 8 or 16 bit PNG
    that is drawn with category * 1000 + number for each thing, and category for stuff, is enough.
    With ``ann_file``, a JSON file in COCO's panoptic format tells them.

    The metainfo must have ``classes`` and ``thing_classes``, a part of them. ``category_ids`` are
    the categories of the classes in the files. Default: 1, 2, 3 and so on; 0 is void. ``palette``
    may be left out.

    Args:
        img_suffix: Suffix of the images. Default: '.png'.
        seg_map_suffix: Suffix of the maps, in place of that of the image. Default: '.png'.
        divisor: Number of ids of each category in maps without ``ann_file``. Default: 1000.
        ignored_ids: Categories that count as void in maps without ``ann_file``. Default: (0,).
        **kwargs: Other arguments of mmengine's BaseDataset. ``data_prefix`` must have ``img`` and
            ``seg``.

    Raises:
        ValueError: The metainfo lacks classes, there are no images, or a segment of the JSON file
            is of no class.
    """

    METAINFO: dict[str, Any] = {}

    def __init__(
        self,
        *,
        img_suffix: str = '.png',
        seg_map_suffix: str = '.png',
        divisor: int = 1000,
        ignored_ids: Sequence[int] = (VOID,),
        **kwargs: Any,
    ) -> None:
        self.img_suffix, self.seg_map_suffix = img_suffix, seg_map_suffix
        self.divisor, self.ignored_ids = divisor, ignored_ids
        super().__init__(**kwargs)

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping | None = None) -> dict[str, Any]:
        return complete_metainfo(super()._load_metainfo(metainfo))

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the paths of each image and its map, with its segments or the rule for them."""
        return self._items_of_json() if self.ann_file else self._items_of_folder()

    def _items_of_folder(self) -> list[dict[str, Any]]:
        rule = self.id_rule()
        folder = self.data_prefix['img']
        names = sorted(fileio.list_dir_or_file(folder, False, True, self.img_suffix, True))
        if not names:
            raise ValueError(f'there are no images that end in {self.img_suffix} in {folder}')
        items = []
        for name in names:
            stem = name.removesuffix(self.img_suffix)
            seg_map_path = join_path(self.data_prefix['seg'], stem + self.seg_map_suffix)
            items.append(
                dict(
                    img_id=self.image_id(stem),
                    img_path=join_path(folder, name),
                    seg_map_path=seg_map_path,
                    id_rule=rule,
                )
            )
        return items

    def id_rule(self) -> IdRule:
        """Return how the ids of maps without JSON file tell the segments."""
        classes = self._metainfo['classes']
        things = [classes.index(name) for name in self._metainfo['thing_classes']]
        categories = {number: index for index, number in enumerate(self._metainfo['category_ids'])}
        return IdRule(categories, frozenset(things), frozenset(self.ignored_ids), self.divisor)

    def _items_of_json(self) -> list[dict[str, Any]]:
        content = json.loads(fileio.get_text(self.ann_file))
        class_indices = class_indices_of(content, self._metainfo['classes'])
        annotations = {entry['image_id']: entry for entry in content.get('annotations', [])}
        items = []
        for image in content['images']:
            annotation = annotations.get(image['id'])
            item = dict(
                img_id=image['id'],
                img_path=join_path(self.data_prefix['img'], self.image_name(image, annotation)),
                height=image.get('height'),
                width=image.get('width'),
            )
            # files of test images have no annotations
            if annotation is not None:
                name = annotation['file_name']
                item['seg_map_path'] = join_path(self.data_prefix['seg'], name)
                item['segments_info'] = self._segments(annotation, class_indices)
            items.append(item)
        return items

    def _segments(
        self, annotation: dict[str, Any], class_indices: Mapping[int, int]
    ) -> list[dict[str, int]]:
        segments = []
        for entry in annotation['segments_info']:
            if entry['category_id'] not in class_indices:
                raise ValueError(
                    f'category_id of a segment must be one of {sorted(class_indices)}, got '
                    f'{entry["category_id"]} of {annotation["file_name"]} in {self.ann_file}'
                )
            category = class_indices[entry['category_id']]
            crowd = int(entry.get('iscrowd', 0))
            segments.append(dict(id=entry['id'], category=category, iscrowd=crowd))
        return segments

    def image_id(self, stem: str) -> str:
        """Return the id of an image from its path in the folder, without suffix."""
        return stem

    def image_name(self, image: dict[str, Any], annotation: dict[str, Any] | None) -> str:
        """Return the path in the folder of an image of the JSON file."""
        return image['file_name']


class PanopticClass(NamedTuple):
    """A class of a published data set.

    Args:
        name: Official name.
        category_id: Category in the official files.
        is_thing: Whether instances are told apart.
        colour: Official colour, RGB.
    """

    name: str
    category_id: int
    is_thing: bool
    colour: tuple[int, int, int]


def metainfo_of(classes: Sequence[PanopticClass]) -> dict[str, Any]:
    """Return the metainfo of a table of classes."""
    return dict(
        classes=tuple(entry.name for entry in classes),
        thing_classes=tuple(entry.name for entry in classes if entry.is_thing),
        category_ids=tuple(entry.category_id for entry in classes),
        palette=[entry.colour for entry in classes],
    )


def complete_metainfo(metainfo: dict[str, Any]) -> dict[str, Any]:
    """Return a metainfo with ``stuff_classes``, ``category_ids`` and ``palette``.

    Args:
        metainfo: Metainfo with ``classes`` and ``thing_classes``.

    Raises:
        ValueError: One of these is missing, or they contradict each other.
    """
    for key in ('classes', 'thing_classes'):
        if key not in metainfo or isinstance(metainfo[key], str):
            raise ValueError(
                f'metainfo.{key} of panoptic data must be a sequence of names, got '
                f'{metainfo.get(key)!r}'
            )
    classes, things = tuple(metainfo['classes']), tuple(metainfo['thing_classes'])
    unknown = [name for name in things if name not in classes]
    if unknown:
        raise ValueError(f'thing_classes must be a part of classes {classes}, got {unknown}')
    stuff = tuple(name for name in classes if name not in things)
    defaults: dict[str, Any] = dict(
        category_ids=tuple(range(1, len(classes) + 1)), palette=distinct_colours(len(classes))
    )
    completed = {**defaults, **metainfo}
    completed.update(classes=classes, thing_classes=things, stuff_classes=stuff)
    for key in defaults:
        if len(completed[key]) != len(classes):
            raise ValueError(
                f'metainfo.{key} must have one entry for each of {len(classes)} classes, got '
                f'{len(completed[key])}'
            )
    return completed


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Return colours (RGB) for classes, by the bits of each number, as PASCAL VOC does."""
    colours = []
    for number in range(1, count + 1):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                # bits 0, 3, 6 of the number are the highest bits of red, and so on
                channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return colours


def class_indices_of(content: dict[str, Any], classes: Sequence[str]) -> dict[int, int]:
    """Return the class index of each category of a JSON file, by its name."""
    indices = {}
    for category in content['categories']:
        if category['name'] in classes:
            indices[category['id']] = classes.index(category['name'])
    return indices
