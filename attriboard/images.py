"""Opens picture files: one sentence for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ExampleError

MAX_PIXELS = 50_000_000
"""The largest picture taken, in pixels."""
MIN_SIDE = 8
"""The smallest side taken, in pixels."""


def open_image(path: Path | str) -> Image.Image:
    """A picture file as RGB, turned upright as its EXIF data says; transparent pixels become white.

    Raises:
        ExampleError: the file is missing, not a picture, cut short, too large or too small.
    """
    path = Path(path)
    if not path.exists():
        raise ExampleError(f"there is no image {path}; check the path.")
    if path.is_dir():
        raise ExampleError(f"the image {path} is a folder; name a picture file in it.")
    try:
        with Image.open(path) as opened:
            check_size(opened.size, str(path))
            opened.load()
            return as_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise ExampleError(f"the image {path} is not a picture that can be read (PNG, JPEG, WebP, ...).") from error
    except Image.DecompressionBombError as error:
        raise ExampleError(f"the image {path} is too large: at most {MAX_PIXELS:,} pixels are taken.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ExampleError(f"the image {path} cannot be read ({error}); it may be cut short: save it again.") from error


def check_size(size: tuple[int, int], name: str) -> None:
    """Raises ExampleError for a picture of ``size`` (width, height) that is too large or too small."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ExampleError(
            f"the image {name} is {width} × {height} pixels; at most {MAX_PIXELS:,} are taken: make it smaller."
        )
    if min(size) < MIN_SIDE:
        raise ExampleError(
            f"the image {name} is {width} × {height} pixels; at least {MIN_SIDE} × {MIN_SIDE} are needed to see "
            f"anything."
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB; transparent pixels (also of a palette) become white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
