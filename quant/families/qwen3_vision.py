"""The vision tower that Qwen3-VL and Qwen3.5 share, and how their images are made: patches of 16 pixels, LayerNorms,
fused q/k/v, learned positions beside rotary ones, a merger behind the last block.

Deepstack (Qwen3-VL): what some vision blocks answered goes through mergers of its own and is added to the hidden state
behind the first decoder blocks.
"""

from .family import Group, Tower
from .numbers import nested_text, vision, vision_list
from .processing import Processing
from .qwen2vl import GRIDS
from .shapes import Shapes, linear, norm
from .video import Video, sample_ends, size_of_all

VISUAL, LANGUAGE_MODEL = "model.visual.", "model.language_model."
DEEPSTACK = (8, 16, 24)  # what transformers makes of a vision_config that does not say it

VIDEO = Video(
    token="<|video_pad|>",
    token_id=lambda config: config.get("video_token_id", 151656),
    chat="<|vision_start|><|video_pad|><|vision_end|>",
    layout="patches",
    sample=sample_ends,
    fps=2.0,
    most=768,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    size=size_of_all,
    limits=(128 * 32 * 32, 768 * 32 * 32),
    all_frames=True,
)
PROCESSING = Processing(
    processor="Qwen3VLProcessor",
    image_processors=("Qwen2VLImageProcessor",),
    image_token="<|image_pad|>",
    image_token_id=lambda config: config.get("image_token_id", 151655),
    reserved=("<|image_pad|>", "<|video_pad|>"),
    chat="<|im_start|>user\n{images}{prompt}<|im_end|>\n<|im_start|>assistant\n",
    chat_image="<|vision_start|><|image_pad|><|vision_end|>",
    patch=lambda config: vision(config, "patch_size", 16),
    merge=lambda config: vision(config, "spatial_merge_size", 2),
    limits=(256 * 256, 4096 * 4096),
    video=VIDEO,
)


def taps(config: dict) -> tuple[int, ...]:
    """The vision blocks whose answers go through mergers of their own."""
    return vision_list(config, "deepstack_visual_indexes", DEEPSTACK)


def _vision_block(config: dict, index: int) -> Shapes:
    width, mlp = VISION.width(config), VISION.mlp(config)
    return {
        **norm("norm1", width),
        **norm("norm2", width),
        **linear("attn.qkv", 3 * width, width),
        **linear("attn.proj", width, width),
        **linear("mlp.linear_fc1", mlp, width),
        **linear("mlp.linear_fc2", width, mlp),
    }


VISION = Tower(
    name="vision",
    prefix=f"{VISUAL}blocks.",
    groups=(
        Group(("attn.qkv",), source="norm1", kind="norm"),
        Group(("attn.proj",), source="attn.qkv", kind="value"),
        Group(("mlp.linear_fc1",), source="norm2", kind="norm"),
        Group(("mlp.linear_fc2",)),  # gelu stands between the two: no scale passes through it
    ),
    blocks=lambda config: vision(config, "depth", 27),
    used=lambda config: vision(config, "depth", 27),
    heads=lambda config: (vision(config, "num_heads", 16),) * 2,
    width=lambda config: vision(config, "hidden_size", 1152),
    mlp=lambda config: vision(config, "intermediate_size", 4304),
    tokens=lambda config, inputs: sum(int(inputs[name].prod(-1).sum()) for name in GRIDS if name in inputs),
    inputs=("pixel_values", "pixel_values_videos"),
    taps=taps,
    holds=_vision_block,
)


def outside(config: dict, mergers: int = 0, words: int = 151936) -> Shapes:
    """What is outside the blocks of Qwen3-VL and Qwen3.5. mergers: how many vision blocks have one of their own;
    words: of a config.json that does not say it.
    """
    width, hidden = VISION.width(config), nested_text(config, "hidden_size", 4096)
    patch, merged = vision(config, "patch_size", 16), width * vision(config, "spatial_merge_size", 2) ** 2
    channels, frames = vision(config, "in_channels", 3), vision(config, "temporal_patch_size", 2)
    normed = {"merger": width, **{f"deepstack_merger_list.{number}": merged for number in range(mergers)}}
    words, answers = nested_text(config, "vocab_size", words), vision(config, "out_hidden_size", 3584)
    return {
        **linear(f"{VISUAL}patch_embed.proj", width, channels)
        | {f"{VISUAL}patch_embed.proj.weight": (width, channels, frames, patch, patch)},
        f"{VISUAL}pos_embed.weight": (vision(config, "num_position_embeddings", 2304), width),
        **{name: shape for part, size in normed.items() for name, shape in _merger(part, size, merged, answers)},
        f"{LANGUAGE_MODEL}embed_tokens.weight": (words, hidden),
        f"{LANGUAGE_MODEL}norm.weight": (hidden,),
        "lm_head.weight": (words, hidden),
    }


def _merger(part: str, normed: int, merged: int, answers: int):
    name = VISUAL + part
    parts = norm(f"{name}.norm", normed) | linear(f"{name}.linear_fc1", merged, merged)
    return (parts | linear(f"{name}.linear_fc2", answers, merged)).items()
