"""Parts of a picture: panels with captions, boxes and masks, a grid of panels, and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch

FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
# pixels between panels, and of the strip above a panel
GAP, CAPTION_HEIGHT = 4, 20
# colours that can be told apart, for data sets without a palette
COLOURS = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (240, 50, 230),
    (70, 240, 240),
    (145, 30, 180),
    (210, 245, 60),
    (250, 190, 212),
)


def check_indices(indices: Sequence[int]) -> None:
    """Check that there are images to draw.

    Raises:
        ValueError: There are no indices.
    """
    if not len(indices):
        raise ValueError('indices must name at least one image, got none.')


def predict_item(model: Any, item: dict[str, Any]) -> Any:
    """Return the data sample of one item of a data set, with the model's predictions."""
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    with torch.no_grad():
        return model.test_step(batch)[0].cpu()


def display_image(item: dict[str, Any]) -> np.ndarray:
    """Return the image of an item of a data set at its original size, (H, W, 3), uint8, RGB.

    An image that is no picture of three colours, such as one of six channels, is shown by the first
    channels of the network's input.

    Args:
        item: Item of a data set of mmdet or mmseg.
    """
    sample = item['data_samples']
    # images of several files have a list of paths
    if isinstance(sample.img_path, str):
        try:
            image = mmcv.imread(sample.img_path, channel_order='rgb')
        except (OSError, ValueError, cv2.error):
            image = None
        if image is not None:
            return image
    channels = item['inputs'].float().movedim(0, -1).cpu().numpy()
    channels = channels[..., :3] if channels.shape[-1] >= 3 else channels[..., :1].repeat(3, -1)
    span = max(float(channels.max() - channels.min()), 1e-12)
    pixels = (255 * (channels - channels.min()) / span).astype(np.uint8)
    height, width = sample.ori_shape[:2]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def palette_of(palette: Any, count: int) -> list[tuple[int, int, int]]:
    """Return the colours of the classes, distinct ones if the data set states none for them."""
    # data sets with classes of their own inherit COCO's colours; mmdet knows names such as 'random'
    if not palette or isinstance(palette, str) or len(palette) != count:
        palette = [COLOURS[index % len(COLOURS)] for index in range(count)]
    return [tuple(colour) for colour in palette]


def captioned(panel: np.ndarray, caption: str) -> np.ndarray:
    """Return (H, W, 3), uint8, below a white strip of ``CAPTION_HEIGHT`` with a caption."""
    strip = np.full((CAPTION_HEIGHT, panel.shape[1], 3), 255, np.uint8)
    position = (2, CAPTION_HEIGHT - 6)
    cv2.putText(strip, caption, position, FONT, FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, panel])


def with_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Return a copy of an image with boxes and masks.

    Args:
        image: Image (H, W, 3), uint8.
        boxes: Boxes (N, 4): left, top, right, bottom. They are clipped to the image.
        texts: Text at each box.
        colours: Colour of each box and mask.
        masks: Masks (N, H, W), bool. Default: None.
    """
    image = image.copy()
    height, width = image.shape[:2]
    limits = [width - 1, height - 1, width - 1, height - 1]
    corners = np.clip(boxes, 0, limits).round().astype(int)
    for index, colour in enumerate(colours):
        if masks is not None:
            _draw_mask(image, masks[index], colour)
    for (left, top, right, bottom), colour in zip(corners, colours, strict=True):
        # the black border separates a box from a background of its colour
        for line_colour, thickness in (((0, 0, 0), 4), (colour, 2)):
            cv2.rectangle(image, (left, top), (right, bottom), line_colour, thickness)
    # texts last, so that no box crosses one
    for (left, top, _, bottom), text, colour in zip(corners, texts, colours, strict=True):
        _draw_text(image, text, (left, top, bottom), colour)
    return image


def _draw_mask(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    image[mask] = (0.5 * image[mask] + 0.5 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    for line_colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.drawContours(image, outlines, -1, line_colour, thickness)


def _draw_text(
    image: np.ndarray, text: str, box: tuple[int, int, int], colour: tuple[int, int, int]
) -> None:
    """Write on a ground of the colour, above a box (left, top, bottom) or where there is room."""
    left, top, bottom = box
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    height, width = text_height + 6, text_width + 4
    left = max(0, min(left, image.shape[1] - width))
    # above the box, at the upper border below it
    top = top - height if top >= height else min(bottom, image.shape[0] - height)
    cv2.rectangle(image, (left, top), (left + width, top + height), colour, cv2.FILLED)
    # black or white, whichever differs more from the ground
    luminance = float(np.dot(colour, (0.299, 0.587, 0.114)))
    grey = 0 if luminance > 128 else 255
    position = (left + 2, top + text_height + 2)
    cv2.putText(image, text, position, FONT, FONT_SCALE, (grey, grey, grey), 1, cv2.LINE_AA)


def grid(panels: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return panels (h, w, 3) of any sizes in rows, with white between and beside them."""
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    widths = []
    for column in range(min(columns, len(panels))):
        widths.append(max(panel.shape[1] for panel in panels[column::columns]))
    strips = []
    for row in rows:
        height = max(panel.shape[0] for panel in row)
        strip = np.full((height + GAP, sum(widths) + GAP * (len(widths) - 1), 3), 255, np.uint8)
        left = 0
        for panel, width in zip(row, widths, strict=False):
            strip[: panel.shape[0], left : left + panel.shape[1]] = panel
            left += width + GAP
        strips.append(strip)
    return np.concatenate(strips)


def with_legend(
    picture: np.ndarray, entries: Sequence[tuple[str, tuple[int, int, int]]]
) -> np.ndarray:
    """Return a picture and, below it, a square of its colour before each name.

    Args:
        picture: Picture (H, W, 3), uint8.
        entries: Names and their colours. Without any, nothing is added.
    """
    if not entries:
        return picture
    line, square, margin = 22, 14, 6
    extents = []
    for name, _ in entries:
        text_width = cv2.getTextSize(name, FONT, FONT_SCALE, 1)[0][0]
        extents.append(square + 6 + text_width + 14)
    # a picture of one small image may be narrower than a name
    width = max(picture.shape[1], margin + max(extents))
    positions = []
    left, top = margin, 4
    for extent in extents:
        # a name that does not fit begins a line
        if left > margin and left + extent > width:
            left, top = margin, top + line
        positions.append((left, top))
        left += extent
    result = np.full((picture.shape[0] + top + line, width, 3), 255, np.uint8)
    result[: picture.shape[0], : picture.shape[1]] = picture
    strip = result[picture.shape[0] :]
    for (name, colour), (left, top) in zip(entries, positions, strict=True):
        strip[top : top + square, left : left + square] = colour
        position = (left + square + 6, top + square - 2)
        cv2.putText(strip, name, position, FONT, FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return result
