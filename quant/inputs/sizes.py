"""What an image becomes on its way into the model: the numbers that a deployment's fixed shapes and sequence length
follow from.

Where a family has limits, its processor brings the area of an image into [min_pixels, max_pixels], keeps its
proportions, and makes both sides multiples of m = patch * merge pixels, since a visual token is made of merge x merge
patches of patch x patch pixels (2 and 14 for Qwen's):

    h', w' = m round(h / m), m round(w / m)                                          if that area is within the limits
           = max(m, m floor(h / (b m))), the same for w, b = sqrt(h w / max_pixels)   if it is above
           = m ceil(h b / m), m ceil(w b / m), b = sqrt(min_pixels / (h w))           if it is below
    patches = h' w' / patch^2    visual tokens = h' w' / m^2    input = visual tokens + those of template and prompt

Some families enlarge an image with a side below m first (`Processing.at_least`), in some an image counts as several
frames (`Processing.frames`). Other families (LLaVA) make every image one size. There, for videos, and for the text, the
checkpoint's own processor is asked. Left out: several images in one request (each adds its visual tokens and two more).
"""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..families.areas import resize
from ..files.config_json import read_json
from .encoder import Encoder


@dataclass(frozen=True)
class Sizes:
    """An image of (height, width) in pixels, or frames of that size of a video: what it is resized to, and what the
    towers then see.

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


class Measure:
    """Sizes for the checkpoint or export in `directory`, of which config.json, tokenizer and processor files are read.

    limits: (min_pixels, max_pixels) in force, the checkpoint's own where none are given; None where every image becomes
    one size. text: tokens of chat template and prompt. Raises what Encoder raises.
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
        config, processing = read_json(Path(directory) / "config.json"), encoder.family.processing
        self.limits, self._patch, self._merge = encoder.limits, processing.patch(config), processing.merge(config)
        self._encoder, self._prompt = encoder, prompt
        self._at_least = processing.at_least
        self._encode = lambda height, width: encoder(Image.new("RGB", (width, height)), prompt)
        self._image_token, self._tiles = encoder.image_token_id, encoder.tiles
        self._most = processing.most_features(config) if processing.most_features else None
        self._side = processing.tile(config) if processing.tile else None
        blank = self._encode(self._patch * self._merge, self._patch * self._merge)
        self._pixels = encoder.family.tower("vision").inputs[0]
        self._blank_pixels = tuple(blank[self._pixels].shape)
        self._blank_visual = int((blank["input_ids"] == encoder.image_token_id).sum())
        self.text = blank["input_ids"].numel() - self._blank_visual

    def __call__(self, height: int, width: int) -> Sizes:
        """Raises QuantError for an image that the processor would refuse."""
        if self._tiles:  # which grid of tiles suits an image best is the processor's to say
            inputs = self._encode(height, width)
            pixels, visual = tuple(inputs[self._pixels].shape), int((inputs["input_ids"] == self._image_token).sum())
            rows, columns = (self._side, self._side) if self._side else pixels[-2:]
            patches = self._tiles_of(pixels) * (rows // self._patch) * (columns // self._patch)
            text = inputs["input_ids"].numel() - visual  # tokens that set off rows and tiles are more in some images
            return Sizes((height, width), (rows, columns), patches, pixels, visual, text)
        if self.limits is None:
            rows, columns = self._blank_pixels[-2:]
        else:
            multiple, sides = self._patch * self._merge, (height, width)
            if self._at_least and min(sides) < multiple:
                sides = self._at_least(height, width, multiple)
            rows, columns = resize(*sides, multiple, *self.limits)
        patches = rows // self._patch * (columns // self._patch)
        if self.limits is None:
            pixels, visual = self._blank_pixels, self._blank_visual
        else:
            pixels, visual = (patches, *self._blank_pixels[1:]), patches // self._merge**2
        return Sizes((height, width), (rows, columns), patches, pixels, visual, self.text)

    def video(self, frames: int, height: int, width: int) -> Sizes:
        """So many frames that are taken of a video. Raises QuantError where the processor refuses them, and for a
        family that takes none.
        """
        clip = self._encoder.blank_clip(frames, height, width)
        inputs = self._encoder(None, self._prompt, clips=[clip])
        pixels = tuple(inputs["pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"].shape)
        rows, columns = clip.frames.shape[2:]
        patches = pixels[0] if len(pixels) == 2 else frames * (rows // self._patch) * (columns // self._patch)
        visual = inputs["input_ids"].flatten().tolist().count(self._encoder.video_token_id)
        text = inputs["input_ids"].numel() - visual
        return Sizes((height, width), (rows, columns), patches, pixels, visual, text)

    def _tiles_of(self, pixels: tuple[int, ...]) -> int:
        """How many tiles are in the tower's input of this shape."""
        return pixels[1] if self._side else math.prod(pixels[:-3])

    def largest(self) -> tuple[int, int]:
        """(patches, visual tokens) that no image exceeds."""
        if self.limits is None:
            one = self(self._patch, self._patch)
            tile = one.resized[0] // self._patch * (one.resized[1] // self._patch)
            tiles = self._tiles or 1
            visual = one.visual * -(-tiles // self._tiles_of(one.pixel_values))
            return tile * tiles, self._most or visual
        return self.limits[1] // self._patch**2, self.limits[1] // (self._patch * self._merge) ** 2
