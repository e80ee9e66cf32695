"""Small pictures for TensorBoard, drawn with Pillow, which it brings: a plotting library would be one more to install and to import."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 76, 64
INK, FAINT, BLUE = "#202124", "#dadce0", "#2a6fb0"

Picture = NDArray[np.uint8]
"""[HEIGHT, WIDTH, 3]."""


class Axes:
    """A frame with a title, names of both axes and ticks, on which `point` and `bar` draw in the data's own units."""

    def __init__(self, title: str, x_name: str, y_name: str, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self._image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font, self._small = ImageFont.load_default(15), ImageFont.load_default(12)
        self._x, self._y = x_range, y_range
        self._draw.text((LEFT, 14), title, INK, self._font)
        self._draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18), x_name, INK, self._small, anchor="mm")
        self._draw.text((LEFT - 60, TOP - 20), y_name, INK, self._small, anchor="lm")
        self._draw.line([(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], INK)

    def place(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        across = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    def x_tick(self, x: float, label: str) -> None:
        self._draw.text((self.place(x, self._y[0])[0], HEIGHT - BOTTOM + 14), label, INK, self._small, anchor="mm")

    def y_ticks(self, values: Sequence[float]) -> None:
        for value in values:
            _, y = self.place(self._x[0], value)
            self._draw.line([(LEFT, y), (WIDTH - RIGHT, y)], FAINT)
            self._draw.text((LEFT - 8, y), f"{value:.3g}", INK, self._small, anchor="rm")

    def bar(self, x: float, half_width: float, y: float, note: str) -> None:
        left, top = self.place(x - half_width, y)
        right, bottom = self.place(x + half_width, self._y[0])
        self._draw.rectangle([left, min(top, bottom), right, bottom], BLUE)
        self._draw.text(((left + right) / 2, top - 4), note, INK, self._small, anchor="mb")

    def point(self, x: float, y: float) -> None:
        across, down = self.place(x, y)
        self._draw.ellipse([across - 2, down - 2, across + 2, down + 2], BLUE)

    def done(self) -> Picture:
        return np.asarray(self._image)


def round_values(low: float, high: float) -> list[float]:
    """Three to eight round numbers from low to high.

    >>> [round(value, 3) for value in round_values(0.03, 0.48)]
    [0.1, 0.2, 0.3, 0.4]
    """
    span = max(high - low, 1e-9)
    unit = 10.0 ** math.floor(math.log10(span))
    step = unit / 5 if span < 1.5 * unit else unit / 2 if span < 3 * unit else unit
    return [float(place * step) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def bars(title: str, x_name: str, y_name: str, labels: Sequence[str], values: Sequence[float], notes: Sequence[str]) -> Picture:
    """A bar for each value, with a note above it."""
    top = 1.15 * max([*values, 1e-9])
    axes = Axes(title, x_name, y_name, (-0.6, len(values) - 0.4), (0.0, top))
    axes.y_ticks(round_values(0, top))
    for place, (label, value, note) in enumerate(zip(labels, values, notes, strict=True)):
        axes.x_tick(place, label)
        axes.bar(place, 0.38, value, note)
    return axes.done()


def scatter_log(title: str, x_name: str, y_name: str, x: NDArray[np.integer], y: NDArray[np.floating]) -> Picture:
    """Points over a logarithmic axis of counts; a count of 0 stands before 1."""
    placed = np.where(x > 0, np.log10(np.maximum(x, 1)), -0.5)
    low, high = float(y.min(initial=0.0)), float(y.max(initial=0.0))
    room = 0.05 * (high - low) or 1.0
    decades = int(np.ceil(placed.max(initial=0.0)))
    axes = Axes(title, x_name, y_name, (-0.8, max(decades, 1) + 0.1), (low - room, high + room))
    axes.y_ticks(round_values(low, high))
    for power in range(decades + 1):
        axes.x_tick(power, f"{10**power:,}")
    if (x == 0).any():
        axes.x_tick(-0.5, "0")
    for across, up in zip(placed.tolist(), y.tolist(), strict=True):
        axes.point(across, up)
    return axes.done()
