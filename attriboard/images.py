"""Opens picture files: one sentence for whatever is wrong with them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ExampleError
from .files import kind_and_reason, kind_of

MAX_PIXELS = 50_000_000
"""The largest picture taken, in pixels."""
MIN_SIDE = 8
"""The smallest side taken, in pixels."""


def open_image(path: Path | str) -> Image.Image:
    """A picture file as RGB, turned upright as its EXIF data says; transparent pixels become white.

    Raises:
        ExampleError: the file is missing, not a picture, cut short, too large or too small, or its pixels have no
            known range.
    """
    path = Path(path)
    kind = kind_of(path, "the image", ExampleError)
    if kind == "missing":
        raise ExampleError(f"there is no image {path}; check the path.")
    if kind == "folder":
        raise ExampleError(f"the image {path} is a folder; name a picture file in it.")
    if kind == "other":
        raise ExampleError(f"the image {path} is no regular file (a pipe, socket or device), and is not read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
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
    except ExampleError:
        raise
    except Exception as error:  # the decoders of rare formats each raise their own kinds where a file is damaged
        raise ExampleError(
            f"the image {path} cannot be read ({kind_and_reason(error)}); save it again as PNG or JPEG."
        ) from error


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
    """Any picture as RGB.

    Transparent pixels (also of a palette) become white, and gray of 16 bits keeps its upper 8. Of several frames the
    first is taken.

    Raises:
        ExampleError: the pixels are floating-point numbers, whose range is not known.
    """
    if image.mode == "F":
        raise ExampleError("an image of floating-point pixels has no known range; save it with 8 bits per channel.")
    if image.mode.startswith("I"):  # 16 bits in a PNG or TIFF; convert() would cut everything above 255 to white
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
