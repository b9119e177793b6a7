"""The vision tower of InternVL3.5's -hf form: a ViT with layer scale over the tiles, all of one size, that an image is
cut into.

vLLM builds its attention of plain linears, which are float whatever the description says; mlp.fc1 and mlp.fc2 it looks
up.
"""

from .family import Group, Tower
from .llava import vision_blocks_used
from .numbers import vision, vision_side
from .processing import Processing
from .shapes import Shapes, linear, norm
from .video import Video, sample_middles

TOWER = "vision_tower."


def patches(config: dict) -> int:
    """Patches of a tile."""
    return (vision_side(config, "image_size", 448) // vision_side(config, "patch_size", 14)) ** 2


def _vision_tokens(config: dict, inputs: dict) -> int:
    """Counted by the image tokens in the text, of which every tile has as many: the pixels may not be at hand."""
    ids = inputs["input_ids"]
    tokens = int((ids == PROCESSING.image_token_id(config)).sum())
    return tokens // int(config.get("image_seq_length", 256)) * (patches(config) + 1)  # class token


PROCESSING = Processing(
    processor="InternVLProcessor",
    image_processors=("GotOcr2ImageProcessor",),
    image_token="<IMG_CONTEXT>",
    image_token_id=lambda config: config.get("image_token_id", 151667),
    reserved=("<IMG_CONTEXT>", "<video>"),
    chat="<|im_start|>user\n{images}{prompt}<|im_end|>\n<|im_start|>assistant\n",
    chat_image="<IMG_CONTEXT>\n",
    patch=lambda config: vision_side(config, "patch_size", 14),
    merge=lambda config: round(1 / config.get("downsample_ratio", 0.5)),
    limits=None,
    from_config=lambda config: {"image_seq_length": config.get("image_seq_length", 256)},
    tiles=lambda config, settings: settings.get("max_patches", 12) + 1,  # and all of it once more, small
    video=Video(  # a tile for each frame, and in the text the number of each
        token="<video>",
        token_id=lambda config: config.get("image_token_id", 151667),
        chat="<video>\n",
        layout="frames",
        sample=sample_middles,
        fps=None,
        most=8,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
)


def _vision_block(config: dict, index: int) -> Shapes:
    said, width, mlp = config["vision_config"], VISION.width(config), VISION.mlp(config)
    bias, layer_norm = bool(said.get("attention_bias")), said.get("norm_type", "layer_norm") == "layer_norm"
    names = ("q_proj", "k_proj", "v_proj")
    return {
        "lambda_1": (width,),
        "lambda_2": (width,),
        **norm("layernorm_before", width, layer_norm),
        **norm("layernorm_after", width, layer_norm),
        **{name: shape for part in names for name, shape in linear(f"attention.{part}", width, width, bias).items()},
        **({f"attention.{part}_norm.weight": (width,) for part in "qk"} if said.get("use_qk_norm") else {}),
        **linear("attention.projection_layer", width, width),
        **linear("mlp.fc1", mlp, width),
        **linear("mlp.fc2", width, mlp),
    }


VISION = Tower(
    name="vision",
    prefix=f"{TOWER}encoder.layer.",
    groups=(
        Group(("attention.q_proj", "attention.k_proj", "attention.v_proj"), source="layernorm_before", kind="norm"),
        Group(("attention.projection_layer",), source="attention.v_proj", kind="value"),
        Group(("mlp.fc1",), source="layernorm_after", kind="norm"),
        Group(("mlp.fc2",)),  # gelu stands between fc1 and fc2; the layer scale behind fc2 is of its outputs
    ),
    blocks=lambda config: vision(config, "num_hidden_layers", 24),
    used=lambda config: vision_blocks_used(config, 24, -1),
    heads=lambda config: (vision(config, "num_attention_heads", 16),) * 2,
    width=lambda config: vision(config, "hidden_size", 1024),
    mlp=lambda config: vision(config, "intermediate_size", 4096),
    tokens=_vision_tokens,
    inputs=("pixel_values",),
    holds=_vision_block,
)
