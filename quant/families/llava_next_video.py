"""LLaVA-NeXT-Video (7B, 34B): LLaVA-NeXT, and frames of videos whose features are pooled before the projector, two by
two.

vLLM takes videos alone for it, no images, builds its projector of plain linears and has no image_newline.
"""

from dataclasses import replace

from .llava_next import LLAVA_NEXT, PROCESSING

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
    ),
)
