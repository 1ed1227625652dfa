"""Pictures of colored objects, drawn here, so that everything about them is known: kinds, colors, places and masks.

A :class:`Scene` is a few numbers and words; drawing it is a pure function of them. An edited scene (an object
recolored, removed, replaced) equals the first one bit for bit outside the masks of that object.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = 112
"""Side of a picture in pixels; a thing's place and size are given in pixels of a picture of this size."""

RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "blue": (30, 60, 220),
    "green": (30, 150, 50),
    "yellow": (245, 220, 30),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "brown": (120, 70, 30),
    "pink": (250, 130, 190),
    "purple": (130, 40, 160),
    "gray": (128, 128, 128),
}
COLORS: tuple[str, ...] = tuple(RGB)

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    [
        ("red", "circle"),
        ("purple", "square"),
        ("yellow", "triangle"),
        ("blue", "star"),
        ("green", "cross"),
        ("black", "ring"),
        ("gray", "heart"),
        ("brown", "diamond"),
        ("pink", "arrow"),
        ("red", "moon"),
        ("white", "car"),
        ("purple", "house"),
        ("blue", "tree"),
        ("green", "fish"),
        ("yellow", "cup"),
        ("black", "flower"),
    ]
)
"""(color, kind) pairs that no training picture and no training text has; every kind once, a color at most twice."""


def _wheel(n: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    """``n`` points on a circle, the first at the top, turned by ``turn`` steps."""
    angles = [2 * math.pi * (k + turn) / n for k in range(n)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _disc(x: float, y: float, r: float, fill: int = 1) -> tuple[str, list[tuple[float, float]], int]:
    return "ellipse", [(x - r, y - r), (x + r, y + r)], fill


_STAR = [p for pair in zip(_wheel(5, 1.0), _wheel(5, 0.4, 0.5)) for p in pair]
_HEART = [
    (math.sin(t) ** 3, 0.1 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15)
    for t in (2 * math.pi * k / 48 for k in range(48))
]

# Each shape within [-1, 1] x [-1, 1], y downwards: what is drawn in order, 1 adds and 0 cuts out.
_SHAPES: dict[str, list[tuple[str, list[tuple[float, float]], int]]] = {
    "circle": [_disc(0, 0, 0.95)],
    "square": [("rectangle", [(-0.85, -0.85), (0.85, 0.85)], 1)],
    "triangle": [("polygon", [(0, -0.95), (1, 0.85), (-1, 0.85)], 1)],
    "star": [("polygon", _STAR, 1)],
    "cross": [("rectangle", [(-0.3, -1), (0.3, 1)], 1), ("rectangle", [(-1, -0.3), (1, 0.3)], 1)],
    "ring": [_disc(0, 0, 1), _disc(0, 0, 0.55, 0)],
    "heart": [("polygon", _HEART, 1)],
    "diamond": [("polygon", [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], 1)],
    "arrow": [
        ("polygon", [(-1, -0.25), (0.1, -0.25), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.25), (-1, 0.25)], 1),
    ],
    "moon": [_disc(0, 0, 1), _disc(0.5, -0.2, 0.8, 0)],
    "car": [
        ("polygon", [(-0.65, 0), (-0.4, -0.6), (0.35, -0.6), (0.7, 0)], 1),
        ("polygon", [(-0.4, -0.08), (-0.27, -0.43), (0.23, -0.43), (0.42, -0.08)], 0),
        ("rectangle", [(-1, 0), (1, 0.45)], 1),
        _disc(-0.55, 0.45, 0.3),
        _disc(0.55, 0.45, 0.3),
    ],
    "house": [
        ("polygon", [(0, -1), (1, -0.15), (-1, -0.15)], 1),
        ("rectangle", [(-0.75, -0.2), (0.75, 0.95)], 1),
        ("rectangle", [(-0.2, 0.3), (0.2, 0.95)], 0),
    ],
    "tree": [
        ("rectangle", [(-0.17, 0), (0.17, 1)], 1),
        _disc(0, -0.5, 0.5),
        _disc(-0.4, -0.05, 0.42),
        _disc(0.4, -0.05, 0.42),
    ],
    "fish": [
        ("ellipse", [(-1, -0.52), (0.55, 0.52)], 1),
        ("polygon", [(0.25, 0), (1, -0.6), (1, 0.6)], 1),
        _disc(-0.6, -0.12, 0.13, 0),
    ],
    "cup": [
        _disc(0.5, -0.05, 0.45),
        _disc(0.5, -0.05, 0.25, 0),
        ("polygon", [(-0.9, -0.75), (0.45, -0.75), (0.3, 0.8), (-0.75, 0.8)], 1),
    ],
    "flower": [*(_disc(x, y, 0.36) for x, y in _wheel(6, 0.6)), _disc(0, 0, 0.4), _disc(0, 0, 0.22, 0)],
}
KINDS: tuple[str, ...] = tuple(_SHAPES)

BACKGROUNDS = ("plain", "gradient", "stripes", "noise")

_SUPERSAMPLING = 4
_SMALLEST, _LARGEST = 32.0, 54.0  # 2 to 3.4 patches of 16 pixels
_GAP = 2.0  # pixels between two things' squares
_STEP = 14.0  # pixels between two centres from left to right, so that "left of" is never in doubt
_CONTRAST = 65.0  # distance in RGB that a background keeps from every color a thing can have
_MUTED = 60  # most a background's RGB values differ, so that no one would call it red or green


@dataclass(frozen=True)
class Thing:
    """One object: a kind, a color, its centre and its side, in pixels of a picture of :data:`SIZE`."""

    kind: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Background:
    """What is behind the things: a pattern of two colors near each other, far from those a thing can have.

    Attributes:
        pattern: one of :data:`BACKGROUNDS`.
        first, second: RGB; a plain background has the first alone.
        angle: in radians, of gradients and stripes.
        period: pixels from stripe to stripe.
        seed: of the noise; no other pattern uses it.
    """

    pattern: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    angle: float
    period: float
    seed: int

    def paint(self, size: int) -> np.ndarray:
        """The pattern alone, [size, size, 3], uint8."""
        first, second = np.array(self.first, np.float32), np.array(self.second, np.float32)
        if self.pattern == "plain":
            return np.broadcast_to(first.astype(np.uint8), (size, size, 3)).copy()
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        along = axis[None, :] * math.cos(self.angle) + axis[:, None] * math.sin(self.angle)  # -0.71 to 0.71
        if self.pattern == "gradient":
            mixed: np.ndarray = along / 1.42 + 0.5
        elif self.pattern == "stripes":
            mixed = (np.floor(along * SIZE / self.period) % 2).astype(np.float32)
        elif self.pattern == "noise":
            mixed = np.random.default_rng(self.seed).random((size, size), dtype=np.float32)
        else:
            raise ValueError(f"background is {self.pattern!r}, expected one of {BACKGROUNDS}")
        return (first + (second - first) * mixed[..., None] + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Scene:
    """Things before a background. ``dataclasses.asdict`` gives plain JSON, :meth:`from_dict` the scene back."""

    things: tuple[Thing, ...]
    background: Background

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Scene:
        """The scene whose ``asdict`` (also after a trip through JSON) is ``fields``."""
        back = dict(fields["background"])
        back["first"], back["second"] = tuple(back["first"]), tuple(back["second"])
        return cls(tuple(Thing(**thing) for thing in fields["things"]), Background(**back))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def draw(self, size: int = SIZE) -> Image.Image:
        """The picture, RGB, with soft edges."""
        return Image.fromarray(self.pixels(size))

    def pixels(self, size: int = SIZE) -> np.ndarray:
        """The picture as an array, [size, size, 3], uint8."""
        picture = self.background.paint(size)
        for thing in self.things:
            left, top, cover = _cover(thing.kind, thing.x, thing.y, thing.size, size)
            height, width = cover.shape
            region = picture[top : top + height, left : left + width]
            weight = cover[..., None].astype(np.uint16)
            mixed = (region * (255 - weight) + np.array(RGB[thing.color], np.uint16) * weight + 127) // 255
            region[...] = mixed.astype(np.uint8)
        return picture

    def masks(self, size: int = SIZE) -> np.ndarray:
        """Which pixels each thing touches, [n, size, size], bool; soft edges included."""
        masks = np.zeros((len(self.things), size, size), dtype=bool)
        for mask, thing in zip(masks, self.things):
            left, top, cover = _cover(thing.kind, thing.x, thing.y, thing.size, size)
            mask[top : top + cover.shape[0], left : left + cover.shape[1]] = cover > 0
        return masks

    def recolored(self, i: int, color: str) -> Scene:
        """The same scene with another color of thing ``i``; pixels outside its mask stay as they are."""
        return self.replaced(i, self.things[i].kind, color)

    def replaced(self, i: int, kind: str, color: str) -> Scene:
        """The same scene with another thing in the place of thing ``i``."""
        things = list(self.things)
        things[i] = replace(things[i], kind=kind, color=color)
        return replace(self, things=tuple(things))

    def without(self, i: int) -> Scene:
        """The same scene with the background in the place of thing ``i``; the things after it move up by one."""
        return replace(self, things=self.things[:i] + self.things[i + 1 :])

    @property
    def left_to_right(self) -> tuple[Thing, ...]:
        return tuple(sorted(self.things, key=lambda thing: thing.x))


@lru_cache(maxsize=4096)
def _cover(kind: str, x: float, y: float, side: float, size: int) -> tuple[int, int, np.ndarray]:
    """How much of each pixel a thing covers: left and top pixel of a window, and [height, width] from 0 to 255."""
    scale = size / SIZE
    left, top = (max(0, math.floor((centre - side / 2) * scale) - 1) for centre in (x, y))
    right, bottom = (min(size, math.ceil((centre + side / 2) * scale) + 1) for centre in (x, y))
    canvas = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for shape, points, fill in _SHAPES[kind]:
        placed = [
            (
                ((x + px * side / 2) * scale - left) * _SUPERSAMPLING,
                ((y + py * side / 2) * scale - top) * _SUPERSAMPLING,
            )
            for px, py in points
        ]
        getattr(pen, shape)(placed, fill=255 * fill)
    return left, top, np.asarray(canvas.reduce(_SUPERSAMPLING))


def random_background(rng: random.Random) -> Background:
    """A background that keeps its distance from every color in :data:`RGB`."""
    while True:
        first = tuple(rng.randrange(256) for _ in range(3))
        second = tuple(min(255, max(0, c + rng.randint(-45, 45))) for c in first)
        middle = tuple((a + b) / 2 for a, b in zip(first, second))
        if max(max(own) - min(own) for own in (first, second)) > _MUTED:
            continue
        if all(math.dist(own, rgb) >= _CONTRAST for own in (first, middle, second) for rgb in RGB.values()):
            return Background(
                pattern=rng.choice(BACKGROUNDS),
                first=(first[0], first[1], first[2]),
                second=(second[0], second[1], second[2]),
                angle=rng.uniform(0, 2 * math.pi),
                period=rng.uniform(6, 20),
                seed=rng.randrange(1 << 31),
            )


def random_scene(rng: random.Random, n: int, held_out: bool | None = False) -> Scene:
    """A scene of ``n`` things (1 to 3) of different kinds and different colors that do not overlap.

    Args:
        rng: all chance comes from here; equal states give equal scenes, in any process.
        n: how many things.
        held_out: False: no (color, kind) pair of :data:`HELD_OUT`, as in training. True: ``things[0]`` is such a pair
            and no other thing is. None: any pairs.
    """
    if not 1 <= n <= 3:
        raise ValueError(f"a scene of {n} things was asked for, expected 1 to 3")
    places = _random_places(rng, n)
    pairs = random_pairs(rng, n, held_out)
    things = tuple(Thing(kind, color, *place) for (color, kind), place in zip(pairs, places))
    return Scene(things, random_background(rng))


def random_pairs(rng: random.Random, n: int, held_out: bool | None = False) -> list[tuple[str, str]]:
    """``n`` pairs (color, kind) of different kinds and different colors; see :func:`random_scene`."""
    while True:
        kinds, colors = rng.sample(KINDS, n), rng.sample(COLORS, n)
        if held_out:
            colors[0], kinds[0] = rng.choice(sorted(HELD_OUT))
            if len(set(kinds)) < n or len(set(colors)) < n:
                continue
        pairs = list(zip(colors, kinds))
        if held_out is None or [pair in HELD_OUT for pair in pairs] == [bool(held_out), *[False] * (n - 1)]:
            return pairs


def _random_places(rng: random.Random, n: int) -> list[tuple[float, float, float]]:
    """(x, y, side) of ``n`` squares within the picture that keep apart, rounded to a quarter of a pixel."""
    while True:
        sides = [round(4 * rng.uniform(_SMALLEST, _LARGEST)) / 4 for _ in range(n)]
        places = [
            (round(4 * rng.uniform(s / 2, SIZE - s / 2)) / 4, round(4 * rng.uniform(s / 2, SIZE - s / 2)) / 4, s)
            for s in sides
        ]
        pairs = [(a, b) for i, a in enumerate(places) for b in places[:i]]
        if all(
            abs(a[0] - b[0]) >= _STEP and max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= (a[2] + b[2]) / 2 + _GAP
            for a, b in pairs
        ):
            return places
