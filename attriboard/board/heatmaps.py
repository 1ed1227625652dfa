"""Scores of patches as pictures: a heat map over what the model saw, alone or as a sheet of many.

The picture under a map is pale gray, so that colors can be read off the color scale; a map has one flat square for each
patch, without smoothing, since a method says nothing finer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL.Image import Image

Array = NDArray[np.floating[Any]]

COLORS = "viridis"
"""The color scale: perceptually uniform, and readable in gray and for the color-blind."""
OPACITY = 0.65


@dataclass(frozen=True)
class SheetRow:
    """One picture of a sheet: what stands beside it, the picture, and its map ``[rows, columns]`` in each column."""

    label: str
    picture: Image
    maps: tuple[Array, ...]


def overlay(picture: Image, scores: Array, title: str, out: Path) -> None:
    """Writes a PNG: the picture, the heat map over it, and the color scale in the scores' own unit.

    Args:
        picture: what the model saw.
        scores: ``[rows, columns]``, one score for every patch, in row-major order from the top left.
        title: stands above.
        out: the file.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    plain, mapped = figure.subplots(1, 2)
    _picture(plain, picture)
    image = _map(mapped, picture, scores)
    figure.colorbar(image, ax=[plain, mapped], label="score", shrink=0.85)
    figure.suptitle(textwrap.fill(title, 90), fontsize=10)
    figure.savefig(out, dpi=120, bbox_inches="tight")


def contact_sheet(columns: Sequence[str], rows: Sequence[SheetRow], title: str, out: Path) -> None:
    """Writes a PNG: one row per picture, first the picture, then its map in every column.

    Each map runs over the whole color scale, from its own smallest score to its own largest; both stand below it.

    Args:
        columns: the heads of the columns, one for each map of a row.
        rows: at least one.
        title: stands above.
        out: the file.

    Raises:
        OSError: it cannot be written.
    """
    size = (1.5 * (len(columns) + 1) + 1.6, 1.75 * len(rows) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for axes, row in zip(grid, rows):
        _picture(axes[0], row.picture)
        axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center", fontsize=7)
        for axis, scores in zip(axes[1:], row.maps):
            _map(axis, row.picture, scores)
            axis.set_xlabel(f"{float(scores.min()):.2g} … {float(scores.max()):.2g}", fontsize=6)
    for axis, head in zip(grid[0], ("as the model saw it", *columns)):
        axis.set_title(textwrap.fill(head, 20), fontsize=7)
    scale = figure.colorbar(
        ScalarMappable(Normalize(0, 1), COLORS),
        ax=grid,
        location="bottom",
        shrink=0.5,
        aspect=40,
        ticks=[0, 1],
        alpha=OPACITY,
    )
    scale.ax.set_xticklabels(["the map's smallest score", "its largest"], fontsize=7)
    figure.suptitle(textwrap.fill(title, int(14 * size[0])), fontsize=9)
    figure.savefig(out, dpi=120, bbox_inches="tight")


def _picture(axis: Any, picture: Image) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])


def _map(axis: Any, picture: Image, scores: Array) -> Any:
    """Draws a map over the pale gray picture; returns what a color scale is made from."""
    width, height = picture.size
    axis.imshow(picture.convert("L"), cmap="gray", vmin=-255, vmax=255)
    axis.set(xticks=[], yticks=[])
    return axis.imshow(
        np.asarray(scores, dtype=np.float32),
        cmap=COLORS,
        alpha=OPACITY,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
