"""What a checkpoint's processor files may say, before transformers acts on it: sizes of files, and numbers that become
time and memory.

    file     at most MAX_JSON bytes, of which 64 KB are usual and a tokenizer's 35 MB the most
    pixels   image_mean, image_std: 3 numbers each up to 1000; those of image_std, and rescale_factor, above a millionth
    patches  patch_size, merge_size, temporal_patch_size: as in config.json's vision_config, else at most MAX_PATCH
    tiles    min_patches, max_patches: at most MAX_TILES; image_grid_pinpoints: as in config.json
    sides    size, crop_size, pad_size: at most MAX_SIDE; where size is an area, processor.py checks it
    area     of the resized image, at most MAX_AREA pixels: 24 bytes a pixel in float32 patches, 85,598 image tokens

The limits lie far above any model and far below a machine's memory. What is wrong in other ways is for transformers to
refuse.
"""

from collections.abc import Iterable
from pathlib import Path

from ..base.errors import QuantError
from ..files.config_json import MAX_JSON, read_json

MAX_SIDE, MAX_PATCH, MAX_AREA, MAX_TILES, MAX_SAMPLED = 8192, 256, 1 << 26, 64, 1 << 14
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


def image_processor(directory: Path, known: dict | None = None) -> tuple[Path, dict]:
    """(file, the image processor's settings in it). known: those of a checkpoint without a file, which then is
    config.json. Raises QuantError when no file has them, and they are not known.
    """
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
        if known:
            return directory / "config.json", known
        raise QuantError(f"{directory}: preprocessor_config.json is missing")
    return directory / "preprocessor_config.json", {}


def video_processor(directory: Path, known: dict | None = None) -> tuple[Path, dict]:
    """(file, the video processor's settings in it), where transformers looks for them: a checkpoint without its own
    shares the image processor's. Raises QuantError as image_processor does.
    """
    file = directory / "processor_config.json"
    if isinstance(found := optional_json(file).get("video_processor"), dict):
        return file, found
    file = directory / "video_preprocessor_config.json"
    if found := optional_json(file):
        return file, found
    return image_processor(directory, known)


def check_video(file: Path, settings: dict) -> None:
    """Raises QuantError for a number that says how to sample videos and cannot be."""
    for key, most in (("min_frames", MAX_SAMPLED), ("max_frames", MAX_SAMPLED), ("num_frames", MAX_SAMPLED)):
        if settings.get(key) is not None:
            _check(file, key, settings[key], 1, most)
    if not _numbers([fps] if (fps := settings.get("fps")) is not None else None, 1, LOW):
        raise QuantError(f"{file}: fps is {fps!r:.40}, a number from {LOW} to {HIGH} was expected; {FETCH}")
    size = settings.get("size")
    for key, number in {**settings, **(size if isinstance(size, dict) else {})}.items():
        if key in ("min_pixels", "max_pixels", "shortest_edge", "longest_edge") and number is not None:
            _check(file, key, number, 1, 1 << 40)
        if key in ("height", "width") and number is not None:
            _check(file, f"size {key}", number, 1, MAX_SIDE)


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
    grid, expected = settings.get("image_grid_pinpoints"), config.get("image_grid_pinpoints")
    if grid is not None and expected is not None and grid != expected:
        raise QuantError(
            f"{file}: image_grid_pinpoints is {str(grid):.40}, config.json's is {str(expected):.40}; they are of"
            f" different models, {FETCH}"
        )
    if (resample := settings.get("resample")) is not None:
        _check(file, "resample", resample, 0, 5)  # Pillow's filters
    for key in SWITCHES:
        if not isinstance(settings.get(key, False), bool | None):
            raise QuantError(f"{file}: {key} is {settings[key]!r:.40}, true or false was expected; {FETCH}")


def check_tiles(file: Path, tiles: int | None) -> None:
    """tiles: into how many an image is cut at most. Raises QuantError for more than MAX_TILES."""
    if tiles and tiles > MAX_TILES:
        raise QuantError(f"{file}: cuts an image into {tiles} tiles, at most {MAX_TILES} are taken; {FETCH}")


def check_sides(file: Path, settings: dict, keys: Iterable[str] = SIZES) -> None:
    """Raises QuantError for one of `keys` with a number that is no side of an image."""
    for key in keys:
        value = settings.get(key)
        for edge, number in value.items() if isinstance(value, dict) else [("", value)]:
            if number is not None:
                _check(file, f"{key} {edge}".strip(), number, 1, MAX_SIDE)


def check_arguments(file: Path, arguments: dict) -> None:
    """The same for what a processor counts image tokens with, where it takes that as an argument."""
    for key, low, most in (
        ("patch_size", 1, MAX_PATCH),
        ("num_additional_image_tokens", 0, MAX_PATCH),
        ("image_seq_length", 1, MAX_PATCH),
        ("num_image_tokens", 1, MAX_PATCH**2),
    ):
        if key in arguments:
            _check(file, key, arguments[key], low, most)


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
