"""LLaVA-NeXT-Video (7B, 34B): LLaVA-NeXT, and frames of videos whose features are pooled before the projector, two by
two.

vLLM takes videos alone for it, no images, builds its projector of plain linears and has no image_newline.
"""

from dataclasses import replace

from . import anyres
from .llava_next import LLAVA_NEXT, PROCESSING, SIDES, VISION
from .numbers import vision
from .video import Video, sample_evenly


def _video_token(config: dict) -> int:
    return config.get("video_token_id", config.get("video_token_index", 32000))


def _vision_tokens(config: dict, inputs: dict) -> int:
    patches = (vision(config, "image_size") // vision(config, "patch_size", 14)) ** 2
    return anyres.vision_tokens(config, inputs, SIDES, 1, anyres.frames(inputs, _video_token(config), patches // 4))


LLAVA_NEXT_VIDEO = replace(
    LLAVA_NEXT,
    name="LLaVA-NeXT-Video",
    architecture="LlavaNextVideoForConditionalGeneration",
    model_type="llava_next_video",
    script="llava_next_video",
    processing=replace(
        PROCESSING,
        processor="LlavaNextVideoProcessor",
        image_token_id=lambda config: config.get("image_token_id", config.get("image_token_index", 32001)),
        reserved=("<image>", "<video>"),
        video=Video(
            token="<video>",
            token_id=_video_token,
            chat="<video>\n",
            layout="frames",
            sample=sample_evenly,
            fps=None,
            most=8,  # of 144 features each, in a context of 4096
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
    ),
    towers=(
        replace(VISION, tokens=_vision_tokens, inputs=("pixel_values", "pixel_values_videos")),
        LLAVA_NEXT.tower("language"),
    ),
)
