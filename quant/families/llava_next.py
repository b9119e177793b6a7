"""LLaVA-NeXT (1.6: 7B to 110B): LLaVA-1.5 over the tiles of anyres.py, a LLaMA, Mistral or Qwen2 decoder.

MindIE loads it as LLaVA-1.5: tower and projector float, pixels in float16. It never reads image_newline and uses random
numbers in its place, whatever the weights are (MindIE-LLM 8b4871a, atb_llm.models.llava_next).
"""

from dataclasses import replace

from . import anyres
from .llava import LLAVA, outside_clip
from .llava import PROCESSING as LLAVA_PROCESSING
from .llava import VISION as CLIP
from .llava_decoder import RENAMES, Decoder
from .numbers import vision
from .shapes import Shapes

SIDES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
DECODER = Decoder("llama")


def _most_features(config: dict) -> int:
    side = vision(config, "image_size")
    return anyres.most_features(anyres.resolutions(config, SIDES), side, side // vision(config, "patch_size", 14))


def _outside(config: dict) -> Shapes:
    return outside_clip(config) | DECODER.outside(config, VISION.width(config))


PROCESSING = replace(
    LLAVA_PROCESSING,
    processor="LlavaNextProcessor",
    image_processors=("LlavaNextImageProcessor",),
    tiles=lambda config, settings: anyres.most_tiles(config, SIDES),
    most_features=_most_features,
)

VISION = replace(CLIP, tokens=lambda config, inputs: anyres.vision_tokens(config, inputs, SIDES, 1))  # class token

LLAVA_NEXT = replace(
    LLAVA,
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    model_type="llava_next",
    script="llava_next",
    processing=PROCESSING,
    towers=(VISION, DECODER.tower),
    holds=_outside,
    renames=RENAMES,
    vocab_size=DECODER.words,
    mindie_unlisted=lambda config: (
        "MindIE documents W8A16 alone for it, and puts random numbers in the place of image_newline"
    ),
)
