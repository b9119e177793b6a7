"""Calibration input: a folder of images, or a JSONL of {"image", "prompt"}, becomes a list of checked samples.

A sample's key is sha256(image file's bytes + NUL + prompt): its identity is its content. Samples are sorted by key,
and the choice of `num_samples` ranks them by sha256(seed:key), so neither the order of files nor their names can change
a result. Every image is decoded in full before any work starts: a broken file is found in the first seconds, not in the
last hour.

`open_image` gives 8-bit RGB for every mode that a PNG, JPEG, WebP or BMP can have. Left out: embedded colour profiles
(the models' processors ignore them too), animation (the first frame counts) and folders inside the folder.
"""

import base64
import hashlib
import io
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..base.errors import QuantError, UsageError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # of the content, whatever the name says


class ReadError(QuantError):
    """The disk did not give a file that is there. Nothing is known of its content: unlike a broken image it is not
    skipped.
    """


@dataclass(frozen=True)
class Sample:
    """One calibration input. `key` depends on the image's bytes and the prompt only."""

    image: Path
    prompt: str
    key: str


def load_samples(
    source: Path, prompt: str | tuple[str, ...], num_samples: int | None, seed: int
) -> tuple[list[Sample], list[str]]:
    """Read a folder of images, or a JSONL with one {"image": path, "prompt": text} a line ("prompt" may be left out).

    `prompt` is asked of an image that brings none of its own; of several, the image's content chooses one. Returns the
    samples, sorted by key, and notices for the user: what was skipped and why, how many of how many count.
    `num_samples` (None: all) picks a subset that depends on the seed and the set of keys alone. Raises UsageError: no
    such source, no usable image in it, or (with file:line) a line of a JSONL that is of no use; ReadError.
    """
    source = Path(source)
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"num_samples is {num_samples}: it must be at least 1")
    if os.path.isdir(source):
        found, notices = _from_folder(source, prompt)
    elif os.path.isfile(source) and source.suffix.lower() == ".jsonl":
        found, notices = _from_jsonl(source, prompt), []
    elif os.path.exists(source):
        raise UsageError(f"{source}: calibration input is a folder of images or a .jsonl file, and this is neither")
    else:
        raise UsageError(f"{source}: no such folder or .jsonl file")

    unique: dict[str, Sample] = {}
    for sample in found:
        first = unique.setdefault(sample.key, sample)
        if first is not sample:
            notices.append(f"{sample.image.name}: the same image and prompt as {first.image.name}, counted once")
    if not unique:
        raise UsageError(f"{source}: no usable image (png, jpg, jpeg, webp or bmp){_reasons(notices)}")

    chosen = sorted(unique)
    if num_samples is not None and num_samples < len(chosen):
        chosen = choose(chosen, num_samples, seed)
        notices.append(f"using {len(chosen)} of {len(unique)} images, chosen with seed {seed}")
    elif num_samples is not None and num_samples > len(chosen):
        notices.append(f"using all {len(chosen)} images: num_samples asks for {num_samples}")
    return [unique[key] for key in chosen], notices


def choose(keys: list[str], count: int, seed: int) -> list[str]:
    """`count` of the keys, sorted: those first in an order that depends on the seed and each key alone."""
    return sorted(sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:count])


def open_image(path: Path) -> Image.Image:
    """Decode a PNG, JPEG, WebP or BMP file of any mode: 8-bit RGB, EXIF rotation applied, transparency laid on white.

    Raises QuantError in one line: not readable, not such an image, truncated, or more pixels than Pillow thinks safe.
    """
    return decode_image(read_bytes(Path(path)), path)


def reopen_image(sample: Sample) -> Image.Image:
    """The sample's image as open_image has it. Raises QuantError when the file has changed since its key was taken."""
    data = read_bytes(sample.image)
    if (key := _key(data, sample.prompt)) != sample.key:
        raise QuantError(
            f"{sample.image}: changed since it was checked: with its prompt sha256 {key[:16]}, it was {sample.key[:16]}"
        )
    return decode_image(data, sample.image)


def _key(data: bytes, prompt: str) -> str:
    return hashlib.sha256(data + b"\0" + prompt.encode()).hexdigest()


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


def decode_image(data: bytes, name: Path | str) -> Image.Image:
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


def _sample(path: Path, prompt: str | tuple[str, ...]) -> Sample:
    data = read_bytes(path)
    decode_image(data, path)
    if not isinstance(prompt, str):
        prompt = prompt[int(hashlib.sha256(data).hexdigest(), 16) % len(prompt)]
    return Sample(path, prompt, _key(data, prompt))


def _from_folder(folder: Path, prompt: str | tuple[str, ...]) -> tuple[list[Sample], list[str]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None
    samples, notices, others = [], [], []
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            notices.append(f"skipped {path.name}: a folder (images are not searched for in folders inside)")
        elif path.suffix.lower() not in SUFFIXES:
            others.append(path.name)
        else:
            try:
                samples.append(_sample(path, prompt))
            except ReadError:
                raise
            except QuantError as error:
                notices.append("skipped " + str(error).removeprefix(f"{folder}/"))
    if others:
        notices.append(f"skipped what is no image by its name: {', '.join(others)}")
    return samples, notices


def _from_jsonl(file: Path, prompt: str | tuple[str, ...]) -> list[Sample]:
    root, samples = file.parent.resolve(), []
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, own = _parse(line)
            samples.append(_sample(inside(root, name), prompt if own is None else own))
        except ReadError:
            raise
        except QuantError as error:
            raise UsageError(f"{file}:{number}: " + str(error).removeprefix(f"{root}/")) from None
    return samples


def parse_object(line: bytes) -> dict:
    """One line of a JSONL -> the object in it. Raises QuantError, without file and line."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise QuantError("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise QuantError(f"not JSON: {one_line(error)}") from None
    if not isinstance(row, dict):
        raise QuantError(f'expected an object with "image" and "prompt", found {type(row).__name__}')
    return row


def _parse(line: bytes) -> tuple[str, str | None]:
    """One line of a JSONL -> (image, prompt), None where it has no prompt."""
    row = parse_object(line)
    if unknown := sorted(set(row) - {"image", "prompt"}):
        raise QuantError(f'unknown key {json.dumps(unknown[0])}: only "image" and "prompt" are known')
    if not isinstance(row.get("image"), str) or not row["image"]:
        raise QuantError('"image" must be the path of an image, relative to the folder of this file')
    if not isinstance(row.get("prompt", ""), str):
        raise QuantError(f'"prompt" must be text, found {type(row["prompt"]).__name__}')
    try:
        row.get("prompt", "").encode()
    except UnicodeEncodeError:
        raise QuantError('"prompt" holds half a surrogate pair, which is no text') from None
    return row["image"], row.get("prompt")


def inside(root: Path, name: str) -> Path:
    """`root/name`. Raises QuantError where it is not below root: absolute, by way of .., or through a symbolic link."""
    if Path(name).is_absolute():
        raise QuantError(f"image {json.dumps(name)} is an absolute path: give it relative to the folder of this file")
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise QuantError(f"image {json.dumps(name)}: {one_line(error)}") from None
    if not path.is_relative_to(root):
        raise QuantError(f"image {json.dumps(name)} leaves the folder of this file")
    return root / name


def _reasons(notices: list[str]) -> str:
    shown = "; ".join(notices[:3])
    return f": {shown}" + (f"; and {len(notices) - 3} more" if len(notices) > 3 else "") if notices else ": it is empty"
