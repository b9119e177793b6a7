"""What an image becomes on its way into the model: the numbers that a deployment's fixed shapes and sequence length
follow from.

Qwen's processors bring the area of an image into [min_pixels, max_pixels], keep its proportions, and make both sides
multiples of m = patch_size * merge_size = 28 pixels, since a visual token is made of 2 x 2 patches of 14 x 14 pixels:

    h', w' = m round(h / m), m round(w / m)                                          if that area is within the limits
           = max(m, m floor(h / (b m))), the same for w, b = sqrt(h w / max_pixels)   if it is above
           = m ceil(h b / m), m ceil(w b / m), b = sqrt(min_pixels / (h w))           if it is below
    patches = h' w' / 14^2      visual tokens = h' w' / m^2      input = visual tokens + tokens of chat template and prompt

LLaVA makes every image one size. There, and for the text, the checkpoint's own processor is asked. Left out: video,
several images in one request (each adds its visual tokens and two more).
"""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..base.errors import QuantError
from ..families.family import vision
from ..files.config_json import read_json
from .encode import Encoder

STEEPEST = 200  # times as long as wide; beyond it the processors refuse an image
PATCH, MERGE = 14, 2  # what Qwen's configurations mean when they leave it out


@dataclass(frozen=True)
class Sizes:
    """An image of (height, width) in pixels: what it is resized to, and what the towers then see.

    pixel_values: shape of the vision tower's input. text: tokens of chat template and prompt.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    patches: int
    pixel_values: tuple[int, ...]
    visual: int
    text: int

    @property
    def input(self) -> int:
        """Tokens that the language model is prefilled with."""
        return self.visual + self.text


def resize(height: int, width: int, multiple: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) after Qwen's resize. Raises QuantError for an image more than STEEPEST times as long as wide."""
    if max(height, width) > STEEPEST * min(height, width):
        raise QuantError(
            f"an image of {height}x{width}: one side is over {STEEPEST} times the other, the processor refuses it;"
            " crop it"
        )
    area = multiple * round(height / multiple) * multiple * round(width / multiple)
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(multiple, multiple * math.floor(side / shrink / multiple)) for side in (height, width))
    if area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(multiple * math.ceil(side * grow / multiple) for side in (height, width))
    return multiple * round(height / multiple), multiple * round(width / multiple)


class Measure:
    """Sizes for the checkpoint or export in `directory`, of which config.json, tokenizer and processor files are read.

    limits: (min_pixels, max_pixels) in force, the checkpoint's own where none are given; None where every image becomes
    one size. Raises what Encoder raises.
    """

    def __init__(
        self,
        directory: Path,
        prompt: str,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
    ):
        encoder = Encoder(directory, min_pixels=min_pixels, max_pixels=max_pixels, trust_remote_code=trust_remote_code)
        self.config, described = read_json(Path(directory) / "config.json"), encoder.describe()
        self.limits = (described["min_pixels"], described["max_pixels"]) if "min_pixels" in described else None
        self._blank = encoder(Image.new("RGB", (PATCH * MERGE, PATCH * MERGE)), prompt)
        self._blank_visual = int((self._blank["input_ids"] == encoder.image_token_id).sum())
        self.text = self._blank["input_ids"].numel() - self._blank_visual

    def __call__(self, height: int, width: int) -> Sizes:
        """Raises QuantError for an image that the processor would refuse."""
        pixels = self._blank["pixel_values"]
        if self.limits is None:
            resized, patch = tuple(pixels.shape[-2:]), vision(self.config, "patch_size")
            patches = resized[0] // patch * (resized[1] // patch)
            return Sizes((height, width), resized, patches, tuple(pixels.shape), self._blank_visual, self.text)
        patch, merge = vision(self.config, "patch_size", PATCH), vision(self.config, "spatial_merge_size", MERGE)
        resized = resize(height, width, patch * merge, *self.limits)
        patches = resized[0] // patch * (resized[1] // patch)
        return Sizes((height, width), resized, patches, (patches, pixels.shape[1]), patches // merge**2, self.text)
