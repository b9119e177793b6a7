"""LLaVA-OneVision (0.5B, 7B, 72B): SigLIP over the tiles of anyres.py, a two-layer projector, a Qwen2 decoder.

The whole tower is used, but its last LayerNorm, whose output nobody reads. Several images in one prompt are shown as
one tile each. vLLM builds the projector of plain linears.
"""

from dataclasses import replace

from . import anyres
from .family import Family
from .llava import VISION as CLIP
from .llava import vision_blocks_used
from .llava_decoder import MODEL, RENAMES, Decoder
from .numbers import vision
from .processing import Processing
from .shapes import Shapes, norm
from .video import Video, sample_evenly

TOWER = "vision_tower.vision_model."
SIDES = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
DECODER = Decoder("qwen2")


def _patches(config: dict) -> int:
    return vision(config, "image_size") // vision(config, "patch_size", 14)


def _processor_arguments(config: dict) -> dict:
    return {
        "num_image_tokens": _patches(config) ** 2,
        "vision_feature_select_strategy": config.get("vision_feature_select_strategy", "full"),
        "vision_aspect_ratio": config.get("vision_aspect_ratio", "anyres_max_9"),
    }


def _most_features(config: dict) -> int:
    kept = str(config.get("vision_aspect_ratio", "anyres_max_9")).removeprefix("anyres_max_")
    among, side = anyres.resolutions(config, SIDES), vision(config, "image_size")
    return anyres.most_features(among, side, _patches(config), int(kept) if kept.isdecimal() else None)


def _video_token(config: dict) -> int:
    return config.get("video_token_id", config.get("video_token_index", 151647))


def _vision_tokens(config: dict, inputs: dict) -> int:
    pooled = -(-_patches(config) // 2)  # a frame's features are made half as many in each direction, rounded up
    frames = anyres.frames(inputs, _video_token(config), pooled**2)
    return anyres.vision_tokens(config, inputs, SIDES, 0, frames)


def _outside(config: dict) -> Shapes:
    width, patch = VISION.width(config), vision(config, "patch_size", 14)
    return {
        f"{TOWER}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{TOWER}embeddings.patch_embedding.bias": (width,),
        f"{TOWER}embeddings.position_embedding.weight": (_patches(config) ** 2, width),
        **norm(f"{TOWER}post_layernorm", width),
        **DECODER.outside(config, width),
    }


PROCESSING = Processing(
    processor="LlavaOnevisionProcessor",
    image_processors=("LlavaOnevisionImageProcessor",),
    image_token="<image>",
    image_token_id=lambda config: config.get("image_token_id", config.get("image_token_index", 151646)),
    reserved=("<image>", "<video>"),
    chat="<|im_start|>user {images}\n{prompt}<|im_end|><|im_start|>assistant\n",
    chat_image="<image>",
    patch=lambda config: vision(config, "patch_size", 14),
    merge=lambda config: 1,
    limits=None,
    from_config=_processor_arguments,
    tiles=lambda config, settings: anyres.most_tiles(config, SIDES),
    most_features=_most_features,
    video=Video(
        token="<video>",
        token_id=_video_token,
        chat="<video>",
        layout="frames",
        sample=sample_evenly,
        fps=None,
        most=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
)

VISION = replace(
    CLIP,
    used=lambda config: vision_blocks_used(config, layer=-1),
    tokens=_vision_tokens,
    inputs=("pixel_values", "pixel_values_videos"),
)

LLAVA_ONEVISION = Family(
    name="LLaVA-OneVision",
    architecture="LlavaOnevisionForConditionalGeneration",
    model_type="llava_onevision",
    script="llava_onevision",
    processing=PROCESSING,
    towers=(VISION, DECODER.tower),
    embedding=f"{MODEL}embed_tokens",
    final_norm=f"{MODEL}norm",
    head="language_model.lm_head",
    holds=_outside,
    renames=RENAMES,
    must_float={
        "language_model.lm_head": "servers load the head in float",
        "multi_modal_projector.*": "vLLM builds the projector of plain linears",
        f"{TOWER}encoder.layers.*.mlp.*": "vLLM builds this MLP, of 4304 channels, without quantization",
    },
    recipe_float={f"{MODEL}layers.*.mlp.down_proj": "kept float by the published recipes"},
    vision="float",
    vision_int8_refused=None,
    vision_int8_whole=(),
    dtype=None,
    flat_config=False,
    vocab_size=DECODER.words,
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=False,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Describe this image in detail.",
    mindie_refuses="NotImplementedError: unsupported model type: llava_onevision",
    also_called={f"{TOWER}encoder.layers.*.self_attn.q_proj": ("qkv_proj",)},  # vLLM's class does not say what it packs
)
