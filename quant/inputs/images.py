"""Image files -> 8-bit RGB, for every mode that a PNG, JPEG, WebP or BMP can have; or an error in one line.

Left out: embedded colour profiles (the models' processors ignore them too) and animation (the first frame counts).
"""

import base64
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..base.errors import QuantError, one_line
from .sample import Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # of the content, whatever the name says


class ReadError(QuantError):
    """The disk did not give a file that is there. Nothing is known of its content: unlike a broken image it is not
    skipped.
    """


def open_image(path: Path) -> Image.Image:
    """Decode a PNG, JPEG, WebP or BMP file of any mode: 8-bit RGB, EXIF rotation applied, transparency laid on white.

    Raises QuantError in one line: not readable, not such an image, truncated, or more pixels than Pillow thinks safe.
    """
    return decode_image(read_bytes(Path(path)), path)


def regular(path: Path) -> None:
    """Raises QuantError for what is no file: a pipe would hang, a folder would give an odd message."""
    if not os.path.isfile(path):
        raise QuantError(f"{path}: " + ("not a regular file" if os.path.exists(path) else "no such file"))


def read_bytes(path: Path) -> bytes:
    """Raises QuantError in one line, naming the file; ReadError when that is the disk's fault."""
    regular(path)
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise QuantError(f"{path}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from None


def decode_image(data: bytes, name: Path | Picture | str) -> Image.Image:
    """open_image for bytes at hand: 8-bit RGB. Raises QuantError as open_image does; `name` stands for them there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
            return flattened(_upright(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:  # its text holds both numbers
        raise QuantError(f"{name}: make it smaller: {one_line(error)}") from None
    except Image.UnidentifiedImageError:
        raise QuantError(f"{name}: not a PNG, JPEG, WebP or BMP image ({len(data)} bytes)") from None
    except Exception as error:  # on bad data Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error...
        raise QuantError(f"{name}: cannot be decoded: {one_line(error)}") from None


def thumbnail(image: Image.Image, size: tuple[int, int] = (160, 120)) -> str:
    """An image made to fit `size` pixels, as a data: URL of a JPEG, some kilobytes; the image itself stays."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail(size)
    small.save(buffer, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, which says nothing of the pixels: taken as they stand
        return image


def flattened(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, 8 bit, transparency laid on white."""
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip at 255 instead of scaling
        grey = np.asarray(image).astype(np.uint32)  # [H,W], 0..65535
        image = Image.fromarray(((grey.clip(0, 65535) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:  # RGBA, LA, PA, or P, L, RGB with a transparent colour
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def located(folder: Path, name: str, root: Path | None = None, what: str = "image") -> Path:
    """`folder/name`, or `name` where that is absolute. root: a folder, resolved, that it must not leave. Raises
    QuantError, calling it `what`, where it does: absolute, by way of .., or through a symbolic link.
    """
    if root is None:
        return folder / name
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise QuantError(f"{what} {json.dumps(name)}: {one_line(error)}") from None
    if not path.is_relative_to(root):
        raise QuantError(f"{what} {json.dumps(name)} leaves the folder {root}")
    return folder / name


def inside(root: Path, name: str, what: str = "image") -> Path:
    """`root/name`. Raises QuantError as `located` does, and where the name is absolute."""
    if Path(name).is_absolute():
        raise QuantError(f"{what} {json.dumps(name)} is an absolute path: give it relative to the folder of this file")
    return located(root, name, root, what)
