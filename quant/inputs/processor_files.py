"""What a checkpoint's processor files may say, before transformers acts on it: sizes of files, and numbers that become
time and memory.

    file     at most MAX_JSON bytes, of which 64 KB are usual and a tokenizer's 35 MB the most
    pixels   image_mean, image_std: 3 numbers each up to 1000; those of image_std, and rescale_factor, above a millionth
    patches  patch_size, merge_size, temporal_patch_size: as in config.json's vision_config, else at most MAX_PATCH
    tiles    min_patches, max_patches: at most MAX_TILES
    sides    size, crop_size, pad_size: at most MAX_SIDE; where size is an area, processor.py checks it
    area     of the resized image, at most MAX_AREA pixels: 24 bytes a pixel in float32 patches, 85,598 image tokens

The limits lie far above any model and far below a machine's memory. What is wrong in other ways is for transformers to
refuse.
"""

from collections.abc import Iterable
from pathlib import Path

from ..base.errors import QuantError
from ..files.config_json import MAX_JSON, read_json

MAX_SIDE, MAX_PATCH, MAX_AREA, MAX_TILES = 8192, 256, 1 << 26, 64
LOW, HIGH = 1e-6, 1000
HANDED_ON = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*")  # to transformers
SIZES = ("size", "crop_size", "pad_size")
SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad")
PATCHES = ("patch_size", "temporal_patch_size", "merge_size")
FETCH = "fetch the processor's files again"


def check_files(directory: Path) -> None:
    """Raises QuantError for a file too large for what it should hold, and for one that cannot be read: transformers
    would do without it.
    """
    for path in sorted(path for pattern in HANDED_ON for path in directory.glob(pattern)):
        if not path.is_file():
            continue
        if (size := path.stat().st_size) > MAX_JSON:
            raise QuantError(f"{path}: has {size} bytes, at most {MAX_JSON} are read; {FETCH}")
        try:
            path.read_bytes()
        except OSError as error:
            raise QuantError(f"{path}: cannot be read: {error.strerror}") from None


def image_processor(directory: Path) -> tuple[Path, dict]:
    """(file, the image processor's settings in it). Raises QuantError when no file does."""
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        content = optional_json(directory / name)
        found = content.get(key) if key else content
        if not isinstance(found, dict | None):
            raise QuantError(
                f"{directory / name}: {key} is a JSON {type(found).__name__}, an object was expected; {FETCH}"
            )
        if found:
            return directory / name, found
    if not (directory / "preprocessor_config.json").is_file():
        raise QuantError(f"{directory}: preprocessor_config.json is missing")
    return directory / "preprocessor_config.json", {}


def optional_json(file: Path) -> dict:
    """The object in a file that need not be there. Raises QuantError as read_json does."""
    return read_json(file) if file.is_file() else {}


def check_image_processor(file: Path, settings: dict, config: dict, agrees: dict[str, str]) -> None:
    """settings: image_processor's; config: config.json; agrees: setting -> the key of vision_config whose number it
    must be. Raises QuantError, with both numbers, for what the top of this file excludes.
    """
    vision = config.get("vision_config")
    for key in PATCHES:
        if (value := settings.get(key)) is not None:
            name = agrees.get(key)
            expected = vision.get(name) if name and isinstance(vision, dict) else None
            _check(file, key, value, 1, MAX_PATCH)
            if expected is not None and value != expected:
                raise QuantError(
                    f"{file}: {key} is {value}, config.json's {name} is {expected!r:.40}; they are of different models,"
                    f" {FETCH}"
                )
    for key, low in (("image_mean", -HIGH), ("image_std", LOW)):
        if not _numbers(value := settings.get(key), 3, low):
            raise QuantError(f"{file}: {key} is {value!r:.60}, 3 numbers from {low} to {HIGH} were expected; {FETCH}")
    factor = settings.get("rescale_factor")
    if not _numbers(factor if factor is None else [factor], 1, LOW):
        raise QuantError(
            f"{file}: rescale_factor is {factor!r:.40}, a number from {LOW} to {HIGH} was expected; {FETCH}"
        )
    for key in ("min_patches", "max_patches"):
        if (value := settings.get(key)) is not None:
            _check(file, key, value, 1, MAX_TILES)
    if (resample := settings.get("resample")) is not None:
        _check(file, "resample", resample, 0, 5)  # Pillow's filters
    for key in SWITCHES:
        if not isinstance(settings.get(key, False), bool | None):
            raise QuantError(f"{file}: {key} is {settings[key]!r:.40}, true or false was expected; {FETCH}")


def check_sides(file: Path, settings: dict, keys: Iterable[str] = SIZES) -> None:
    """Raises QuantError for one of `keys` with a number that is no side of an image."""
    for key in keys:
        value = settings.get(key)
        for edge, number in value.items() if isinstance(value, dict) else [("", value)]:
            if number is not None:
                _check(file, f"{key} {edge}".strip(), number, 1, MAX_SIDE)


def check_arguments(file: Path, arguments: dict) -> None:
    """The same for what a processor counts image tokens with, where it takes that as an argument."""
    for key, low in (("patch_size", 1), ("num_additional_image_tokens", 0), ("image_seq_length", 1)):
        if key in arguments:
            _check(file, key, arguments[key], low, MAX_PATCH)


def largest_area(width: int, height: int, settings: dict, limits: tuple[int, int] | None) -> int:
    """About how many pixels an image of these sides has at its largest on the way through the processor. limits: of the
    area, None where every image is made one size.
    """
    areas = [width * height]
    if limits:
        if settings.get("do_resize") is not False:
            areas = [min(max(width * height, limits[0]), limits[1])]
    elif settings.get("do_resize") is not False:
        size = settings.get("size")
        edge = size if type(size) is int else size.get("shortest_edge") if isinstance(size, dict) else None
        if edge:
            areas.append(edge * edge * max(width, height) // min(width, height))
    return max(areas)


def _check(file: Path, key: str, value, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise QuantError(f"{file}: {key} is {value!r:.40}, a whole number from {low} to {high} was expected; {FETCH}")


def _numbers(value, count: int, low: float) -> bool:
    """Whether it is a list of so many numbers from `low` to HIGH, or absent."""
    return (
        value is None
        or isinstance(value, list)
        and len(value) == count
        and all(type(number) in (int, float) and low <= number <= HIGH for number in value)
    )
