"""Pictures for people: labels in colour, anomaly as heat, hazards by name, and all of it over the camera image."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import ImageFont

    from vl4ad_model.segmenter import Segmentation
    from vl4ad_model.vocabulary import Vocabulary

# Heat comes in from a score of 0.3 and covers from 0.8 on; below, the classes stay readable.
_HEAT_FROM, _HEAT_FULL, _HEAT_OPACITY = 0.3, 0.8, 0.85
_HAZARD_OPACITY = 0.6
_NAMES_PER_HAZARD = 3
_LEGEND_SHARE = 0.0005  # classes below this share of the picture are left out of the legend


def colorize_labels(labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """(H, W) uint8 ids to (H, W, 3) uint8 RGB in the vocabulary's colours; void is black."""
    import cv2

    return cv2.LUT(cv2.cvtColor(labels, cv2.COLOR_GRAY2RGB), vocabulary.color_table()[:, None])


@lru_cache(maxsize=1)
def _heat_table() -> np.ndarray:
    import cv2

    ramp = np.arange(256, dtype=np.uint8)[None]
    return cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[0, :, ::-1].copy()


@lru_cache(maxsize=1)
def _glow_tables() -> tuple[np.ndarray, np.ndarray]:
    """Per level of the score: how much heat covers the picture, (256,) uint8, and the heat times that, (256, 1, 3) uint8."""
    ramp = np.clip((np.arange(256) / 255 - _HEAT_FROM) / (_HEAT_FULL - _HEAT_FROM), 0, 1) * _HEAT_OPACITY
    return (ramp * 255).astype(np.uint8), (ramp[:, None, None] * _heat_table()[:, None]).astype(np.uint8)


def _levels(anomaly: np.ndarray) -> np.ndarray:
    """Scores 0..1 to 0..255; published scores are never clipped, pictures are."""
    import cv2

    return cv2.multiply(anomaly, 255.0, dtype=cv2.CV_8U)  # type: ignore[call-overload]  # saturates


def anomaly_heatmap(anomaly: np.ndarray) -> np.ndarray:
    """(H, W) float32 scores to (H, W, 3) uint8 RGB, perceptually uniform (inferno), always 0 = black to 1 = bright yellow."""
    return _heat_table()[_levels(anomaly)]


def overlay(rgb: np.ndarray, result: Segmentation, *, label_opacity: float = 0.45, names: bool = True) -> np.ndarray:
    """Class colours tinted over the image; what is anomalous glows; what is a named hazard has its colour, an outline and its name.

    Args:
        rgb: (H, W, 3) uint8; resized to the maps where they differ.
        result: the maps.
        label_opacity: 0..1, how much of the class colour is mixed in.
        names: write the names of hazards beside their largest areas.

    Returns:
        (H, W, 3) uint8 RGB of the maps' size.
    """
    import cv2

    height, width = result.labels.shape
    if rgb.shape[:2] != (height, width):
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    known, hazards = result.vocabulary.known_count, _hazards_in(result.labels, result.vocabulary)
    colors = colorize_labels(result.labels, result.vocabulary)
    tinted = cv2.addWeighted(rgb, 1 - label_opacity, colors, label_opacity, 0)
    levels = _levels(result.anomaly)
    if hazards:
        # A hazard that has a name shows its own colour; heat is for what has none.
        named = (result.labels >= known) & (result.labels < known + result.vocabulary.hazard_count)
        levels[named] = 0
        strong = cv2.addWeighted(rgb, 1 - _HAZARD_OPACITY, colors, _HAZARD_OPACITY, 0)
        cv2.copyTo(strong, named.view(np.uint8), tinted)
    cover, glow = _glow_tables()
    left = cv2.cvtColor(cv2.LUT(levels, 255 - cover), cv2.COLOR_GRAY2RGB)
    mixed = cv2.add(cv2.multiply(tinted, left, scale=1 / 255), cv2.LUT(cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB), glow))
    for index in hazards:
        _mark(mixed, result.labels == index, result.vocabulary.hazards[index - known].color)
    if names:
        taken = np.zeros((height, width), bool)
        for index in hazards:
            hazard = result.vocabulary.hazards[index - known]
            _write_names(mixed, taken, result.labels == index, hazard.name, hazard.color)
    return mixed


def _hazards_in(labels: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    """Ids of the hazards that some pixel has."""
    first = vocabulary.known_count
    counts = np.bincount(labels.ravel(), minlength=256)[first : first + vocabulary.hazard_count]
    return (first + np.flatnonzero(counts)).tolist()


def _mark(picture: np.ndarray, inside: np.ndarray, color: tuple[int, int, int]) -> None:
    """A white line around a colour line: seen on anything."""
    import cv2

    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, round(picture.shape[0] / 400))
    cv2.drawContours(picture, contours, -1, (255, 255, 255), thickness * 3, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, color, thickness, cv2.LINE_AA)


def _write_names(picture: np.ndarray, taken: np.ndarray, inside: np.ndarray, name: str, color: tuple[int, int, int]) -> None:
    """The name above the largest areas, or below, where it is in the picture and covers no other name (`taken`)."""
    import cv2

    height, width = inside.shape
    near = np.ones((max(3, height // 40), max(3, height // 40)), np.uint8)  # scattered pieces are one thing
    joined = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_CLOSE, near)
    contours, _ = cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    smallest = max(16, inside.size // 10000)
    chip = _chip(name, color, max(11, round(height / 32)))[:height, :width]
    for index in np.argsort(-areas)[:_NAMES_PER_HAZARD]:
        if areas[index] < smallest:
            break
        left, top, box_width, box_height = cv2.boundingRect(contours[index])
        x = min(max(0, left + box_width // 2 - chip.shape[1] // 2), width - chip.shape[1])
        above, below = top - chip.shape[0] - 4, top + box_height + 4
        for y in (above, min(below, height - chip.shape[0])):
            place = (slice(y, y + chip.shape[0]), slice(x, x + chip.shape[1]))
            if y >= 0 and not taken[place].any():
                picture[place], taken[place] = chip, True
                break


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _chip(text: str, color: tuple[int, int, int], size: int) -> np.ndarray:
    """Text on a plate of `color`, black or white by what reads better."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = _font(size).getbbox(text)
    pad = max(2, size // 4)
    plate = Image.new("RGB", (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad), color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ImageDraw.Draw(plate).text((pad - left, pad - top), text, fill="black" if luminance > 140 else "white", font=_font(size))
    return np.asarray(plate)


def with_legend(picture: np.ndarray, result: Segmentation) -> np.ndarray:
    """The picture with a strip below it: hazards and classes that are in it, largest first, and the scale of the heat.

    Returns:
        (H + strip, W, 3) uint8 RGB.
    """
    size = max(11, round(min(picture.shape[:2]) / 36))
    counts = np.bincount(result.labels.ravel(), minlength=256)
    return np.vstack((picture, legend_strip(result.vocabulary, counts, picture.shape[1], size=size, heat_from=_HEAT_FROM)))


def legend_strip(vocabulary: Vocabulary, counts: np.ndarray, width: int, *, size: int, heat_from: float = 0.0) -> np.ndarray:
    """A strip of colours and names, and the scale of the heat.

    Args:
        counts: (256,) pixels of each label. Hazards of which there are any and classes of which there are enough are shown, largest
            first.
        width: of the strip, pixels.
        size: of the text, pixels.
        heat_from: the score that is drawn darkest.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw

    gap, known = size // 2, vocabulary.known_count
    table = vocabulary.color_table()
    order = sorted((int(i) for i in np.flatnonzero(counts[: len(vocabulary.names)])), key=lambda i: (i < known, -counts[i]))
    shown = [i for i in order if i >= known or counts[i] >= _LEGEND_SHARE * counts.sum()]
    entries = [(vocabulary.names[i], tuple(int(c) for c in table[i]), i >= known) for i in shown]
    font = _font(size)
    scale_width = size * 6
    head = f"anomaly {heat_from:g}", "1"
    x, y, row = gap, gap, size + gap
    places = []
    start = int(font.getlength(head[0])) + scale_width + int(font.getlength(head[1])) + 5 * gap
    x = start
    for name, color, hazard in entries:
        needed = size + gap + int(font.getlength(name)) + 2 * gap
        if x + needed > width and x > gap:
            x, y = gap, y + row
        places.append((x, y, name, color, hazard))
        x += needed
    strip = Image.new("RGB", (width, y + row + gap // 2), (24, 24, 24))
    draw = ImageDraw.Draw(strip)
    draw.text((gap, gap), head[0], fill=(235, 235, 235), font=font)
    left = 2 * gap + int(font.getlength(head[0]))
    scores = np.linspace(heat_from, 1.0, scale_width, dtype=np.float32)[None].repeat(size, axis=0)
    strip.paste(Image.fromarray(anomaly_heatmap(scores)), (left, gap))
    draw.text((left + scale_width + gap, gap), head[1], fill=(235, 235, 235), font=font)
    for x, y, name, color, hazard in places:
        draw.rectangle(
            (x, y, x + size, y + size), fill=color, outline="white" if hazard else (90, 90, 90), width=2 if hazard else 1
        )
        draw.text((x + size + gap, y), name, fill="white" if hazard else (210, 210, 210), font=font)
    return np.asarray(strip)
