"""Image files -> 8-bit RGB, for every mode that a PNG, JPEG, WebP or BMP can have; or an error in one line.

Left out: embedded colour profiles (the models' processors ignore them too) and animation (the first frame counts).
"""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..base.errors import QuantError, one_line
from .sample import Picture, Sample, key_of

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


def reopen_images(sample: Sample) -> list[Image.Image]:
    """The sample's images as open_image has them. Raises QuantError when a file has changed since the key was taken."""
    data = [image.data if isinstance(image, Picture) else read_bytes(image) for image in sample.images]
    if (key := key_of(data, sample.prompt, sample.answer)) != sample.key:
        raise QuantError(
            f"{', '.join(map(str, sample.images))}: changed since it was checked: with its prompt sha256 {key[:16]},"
            f" it was {sample.key[:16]}"
        )
    return [decode_image(each, image) for each, image in zip(data, sample.images)]


def read_bytes(path: Path) -> bytes:
    """Raises QuantError in one line, naming the file; ReadError when that is the disk's fault."""
    if not os.path.isfile(path):  # a pipe would hang, a folder would give an odd message
        raise QuantError(f"{path}: " + ("not a regular file" if os.path.exists(path) else "no such file"))
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
            return _rgb(_upright(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:  # its text holds both numbers
        raise QuantError(f"{name}: make it smaller: {one_line(error)}") from None
    except Image.UnidentifiedImageError:
        raise QuantError(f"{name}: not a PNG, JPEG, WebP or BMP image ({len(data)} bytes)") from None
    except Exception as error:  # on bad data Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error...
        raise QuantError(f"{name}: cannot be decoded: {one_line(error)}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, which says nothing of the pixels: taken as they stand
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, 8 bit."""
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip at 255 instead of scaling
        grey = np.asarray(image).astype(np.uint32)  # [H,W], 0..65535
        image = Image.fromarray(((grey.clip(0, 65535) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:  # RGBA, LA, PA, or P, L, RGB with a transparent colour
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def located(folder: Path, name: str, root: Path | None = None) -> Path:
    """`folder/name`, or `name` where that is absolute. root: a folder, resolved, that it must not leave. Raises
    QuantError where it does: absolute, by way of .., or through a symbolic link.
    """
    if root is None:
        return folder / name
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise QuantError(f"image {json.dumps(name)}: {one_line(error)}") from None
    if not path.is_relative_to(root):
        raise QuantError(f"image {json.dumps(name)} leaves the folder {root}")
    return folder / name


def inside(root: Path, name: str) -> Path:
    """`root/name`. Raises QuantError as `located` does, and where the name is absolute."""
    if Path(name).is_absolute():
        raise QuantError(f"image {json.dumps(name)} is an absolute path: give it relative to the folder of this file")
    return located(root, name, root)
