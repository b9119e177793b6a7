"""The tiles of LLaVA-NeXT and LLaVA-OneVision ("any resolution"): an image is fitted into one of some resolutions,
padded there, and cut into squares of the vision tower's size; before them goes the whole image, as one square more.

Of the tiles' features those of the padding are taken off again, and each row that is left ends in image_newline. (Liu
et al., LLaVA-NeXT: Improved reasoning, OCR, and world knowledge, 2024; Li et al., LLaVA-OneVision, arXiv 2408.03326.)
"""

from collections.abc import Mapping

from ..base.errors import QuantError
from .numbers import MAX_NUMBER, vision

Sides = tuple[int, int]  # height, width


def resolutions(config: Mapping, default: tuple[Sides, ...]) -> tuple[Sides, ...]:
    """The resolutions that config.json lists as image_grid_pinpoints, in pixels. Raises QuantError for what is no list
    of pairs.
    """
    found = config.get("image_grid_pinpoints")
    if found is None:
        return default
    if not isinstance(found, list) or not found or not all(_is_pair(each) for each in found):
        raise QuantError(
            f"config.json: image_grid_pinpoints is {str(found):.60}, a list of [height, width] was expected"
        )
    return tuple((height, width) for height, width in found)


def _is_pair(each) -> bool:
    numbers = each if isinstance(each, list) and len(each) == 2 else [None]
    return all(type(number) is int and 0 < number <= MAX_NUMBER for number in numbers)


def chosen(height: int, width: int, among: tuple[Sides, ...]) -> Sides:
    """The resolution that keeps most pixels of an image, of several the one with the fewest besides."""

    def kept(sides: Sides) -> int:
        scale = min(sides[1] / width, sides[0] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    return max(among, key=lambda sides: (kept(sides), -sides[0] * sides[1]))  # of equal ones the first


def tiles(sides: Sides, side: int) -> int:
    """Into how many tiles a resolution is cut, the whole image as one of them."""
    return -(-sides[0] // side) * -(-sides[1] // side) + 1


def most_tiles(config: dict, default: tuple[Sides, ...]) -> int:
    """Into how many tiles an image is cut at most."""
    side = vision(config, "image_size")
    return max(tiles(sides, side) for sides in resolutions(config, default))


def most_features(among: tuple[Sides, ...], side: int, patches: int, kept: int | None = None) -> int:
    """Image features that no image exceeds. patches: along a tile's side; kept: of how many tiles features are kept, a
    tenth more of each side aside (LLaVA-OneVision's anyres_max_9); None: of all.
    """
    found = []
    for height, width in among:
        rows, columns = height // side * patches, width // side * patches
        area = rows * columns if kept is None else min(rows * columns, int(1.1**2 * kept * patches**2))
        found.append(area + rows)  # a newline for each row
    return patches**2 + max(found)


def frames(inputs: dict, video_token: int, features: int) -> int:
    """Frames of the videos, of `features` features each, counted by the text: the pixels may not be at hand."""
    return int((inputs["input_ids"] == video_token).sum()) // features


def vision_tokens(config: dict, inputs: dict, default: tuple[Sides, ...], extra: int, others: int = 0) -> int:
    """Tokens in the vision tower, counted by the images' sizes: the pixels may not be at hand. Where a model is told
    how many images belong together, several are shown as one tile each. extra: tokens of a tile beside its patches;
    others: tiles that are no image's, such as frames.
    """
    side, among = vision(config, "image_size"), resolutions(config, default)
    sizes, alone = inputs["image_sizes"].tolist() if "image_sizes" in inputs else [], True
    if "batch_num_images" in inputs:
        alone = int(inputs["batch_num_images"].max()) == 1
    cut = others + sum(tiles(chosen(height, width, among), side) if alone else 1 for height, width in sizes)
    return cut * ((side // vision(config, "patch_size", 14)) ** 2 + extra)
