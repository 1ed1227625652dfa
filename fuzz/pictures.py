"""Picture files of every format that Pillow writes, damaged, and files that only say they are pictures."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from attriboard.images import open_image

from .common import Case, mangled, scratch

FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "BLP", "IM",
    "MSP", "SPIDER", "XBM", "DIB", "ICNS", "AVIF", "QOI",
)  # fmt: skip


@functools.cache
def good(form: str, mode: str) -> bytes:
    """A small picture in a format and mode; empty where it has no such mode."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 40, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA").convert(mode)
    target = io.BytesIO()
    try:
        picture.save(target, form)
    except Exception:  # the format does not have the mode, or this Pillow not the format
        return b""
    return target.getvalue()


def _dds(rng: random.Random) -> bytes:
    """A DDS file by hand: its plugin knows many pixel formats, each decoded in its own way."""
    fourcc = rng.choice((b"DXT1", b"DXT3", b"DXT5", b"BC4U", b"BC5S", b"DX10", b"ATI1", b"XXXX", b"\x00\x00\x00\x00"))
    flags = rng.choice((0x4, 0x40, 0x41, 0x20, 0x20000, 0))
    masks = [rng.choice((0, 0xFF, 0xFF00, 0xFF0000, 0xF800, 2**32 - 1)) for _ in range(4)]
    bits = rng.choice((0, 8, 16, 24, 32, 7))
    header = struct.pack("<7I44x", 124, 0x1007, rng.choice((16, 0, 32)), rng.choice((16, 32)), 0, 0, 0)
    header += struct.pack("<2I4s5I", 32, flags, fourcc, bits, *masks) + bytes(20)
    if fourcc == b"DX10":
        header += struct.pack("<5I", rng.choice((71, 77, 80, 83, 95, 98, 28, 0, 999)), 3, 0, 1, 0)
    return b"DDS " + header + rng.randbytes(rng.choice((0, 64, 300, 4096)))


def _blp(rng: random.Random) -> bytes:
    """A BLP file by hand."""
    magic = rng.choice((b"BLP1", b"BLP2"))
    size = struct.pack("<II", rng.choice((16, 0, 64)), 16)
    if magic == b"BLP2":
        kinds = [rng.choice((0, 1, 2, 3)), rng.choice((0, 1, 8)), rng.choice((0, 1, 7)), rng.randrange(3)]
        head = struct.pack("<iBBBB", rng.choice((0, 1, 2)), *kinds) + size
    else:
        head = (
            struct.pack("<iI", rng.choice((0, 1, 7)), rng.choice((0, 8)))
            + size
            + struct.pack("<iI", rng.choice((3, 4, 5)), 0)
        )
    offsets = struct.pack("<16I", *(rng.choice((0, 156, 1180, 2**31)) for _ in range(16)))
    lengths = struct.pack("<16I", *(rng.choice((0, 16, 256, 2**31)) for _ in range(16)))
    return magic + head + offsets + lengths + rng.randbytes(rng.choice((0, 100, 1024, 3000)))


def _bomb(rng: random.Random) -> bytes:
    """A PNG that says it is very large."""
    width, height = rng.choice(((100_000, 100_000), (2**31 - 1, 1), (1, 60_000_001), (0, 5), (1_000_000, 8)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def cases(seed: int) -> Iterator[Case]:
    """A good picture is damaged, or one is made that its format's reader does not expect."""
    rng = random.Random(seed)
    made = {"dds": _dds, "blp": _blp, "bomb": _bomb}
    while True:
        kind = rng.random()
        if kind < 0.35:
            form = rng.choice(list(made))
            name, content = f"{form} by hand", made[form](rng)
        else:
            form, mode = rng.choice(FORMATS), rng.choice(("RGB", "RGBA", "L", "P", "1", "CMYK", "LA", "I;16", "F"))
            mode = mode if mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "LA", "F") else "I"
            content = good(form, mode) or good("PNG", "RGB")
            name = f"{form} {mode}"
            if rng.random() < 0.95:
                how, content = mangled(content, rng)
                name += f", {how}"
        yield name, functools.partial(_case, content, rng.random() < 0.01)


def _case(content: bytes, pipe: bool) -> None:
    with scratch() as folder:
        file = folder / "picture"
        if pipe:
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        open_image(file)
