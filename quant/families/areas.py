"""The sides that processors with limits on an area give an image, or every frame of a video."""

import math

from ..base.errors import QuantError

STEEPEST = 200  # times as long as wide; beyond it the processors refuse an image


def resize(
    height: int, width: int, multiple: int, min_pixels: int, max_pixels: int, frames: int = 1, counted: int = 1
) -> tuple[int, int]:
    """(height, width) in pixels, multiples of `multiple`, so that the area is within the limits; where these are of all
    frames of a video together, `frames` and how many of them are counted for it.

    Raises QuantError for an image more than STEEPEST times as long as wide.
    """
    if max(height, width) > STEEPEST * min(height, width):
        raise QuantError(
            f"an image of {height}x{width}: one side is over {STEEPEST} times the other, the processor refuses it;"
            " crop it"
        )
    area = counted * (multiple * round(height / multiple)) * (multiple * round(width / multiple))
    if area > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        height, width = (max(multiple, multiple * math.floor(side / shrink / multiple)) for side in (height, width))
        return height, width
    if area < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return multiple * math.ceil(height * grow / multiple), multiple * math.ceil(width * grow / multiple)
    return multiple * round(height / multiple), multiple * round(width / multiple)
