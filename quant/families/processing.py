"""How images, videos and a prompt become a family's inputs: what a description says of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..base.choices import Choice
from .video import Video

AGREES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""Settings of the image processor -> keys of vision_config that they repeat."""


@dataclass(frozen=True)
class Processing:
    """How images and a prompt become the model's inputs."""

    processor: str
    """Class in transformers, or of the checkpoint's own code."""
    image_processors: tuple[str, ...]
    """Classes in transformers that preprocessor_config.json may name, without the "Fast" of some."""
    image_token: str
    """Stands for an image in the text; the processor repeats it once for each image feature."""
    image_token_id: Callable[[dict], int]
    """config.json -> its number, as the model knows it."""
    reserved: tuple[str, ...]
    """Placeholders that a prompt must not contain."""
    chat: str
    """One turn in the documented format, for checkpoints without a chat template; {images} and {prompt} are filled
    in.
    """
    chat_image: str
    """What {images} holds for each image."""
    patch: Callable[[dict], int]
    """config.json -> pixels a side of a patch."""
    merge: Callable[[dict], int]
    """config.json -> patches a side of the square that becomes one image feature."""
    limits: tuple[int, int] | None
    """The processor's own (min_pixels, max_pixels), within which it brings the area of every image; None: every image
    is made one size.
    """
    from_config: Callable[[dict], dict] = lambda config: {}
    """config.json -> the processor's arguments that must agree with it."""
    tiles: Callable[[dict, dict], int] | None = None
    """config.json, the image processor's settings -> into how many tiles an image is cut at most; None: into none."""
    tile: Callable[[dict], int] | None = None
    """config.json -> pixels a side of a tile, where the tower gets [1, tiles, patches, numbers]; None: its shape says
    it.
    """
    own: Choice | None = None
    """The class here that stands in for the processor, where the checkpoint's is code of its own (inputs/crops.py)."""
    alone: bool = False
    """Whether the inputs of several samples make no batch: answers are written one at a time."""
    most_features: Callable[[dict], int] | None = None
    """config.json -> image features that no image exceeds, where tiles do not all give as many; None: they do."""
    image_settings: Callable[[dict], dict] | None = None
    """config.json -> the image processor's settings, for checkpoints that have no file of them; None: they must."""
    added_tokens: tuple[str, ...] = ()
    """Tokens with the next free numbers, where the tokenizer does not know them."""
    video: Video | None = None
    """The same of videos; None: the model takes none."""
    agrees: dict[str, str] = field(default_factory=lambda: dict(AGREES))
    """The image processor's settings that must equal a number of vision_config -> its name there."""
    frames: int = 1
    """As how many frames an image counts in the areas that the processor's file limits."""
    at_least: Callable[[int, int, int], tuple[int, int]] | None = None
    """(height, width, m) -> what an image with a side below m pixels, a visual token's, is enlarged to before its area
    is looked at; None: it is not.
    """
