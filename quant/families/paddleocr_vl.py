"""PaddleOCR-VL (0.9B): a SigLIP tower on images of any size, a two-layer projector that makes one token of
2 x 2 patches, an ERNIE-4.5 decoder.

The checkpoint has more than transformers runs: SigLIP's pooling head, and positions for packed images. vLLM builds the
projector of plain linears, and a SigLIP MLP whose widths are no multiples of 64 without a quantization; it asks for q,
k, v of the vision tower by the name of the one that it packs of them. MindIE does not have the model.
"""

from .family import Family
from .numbers import text, vision
from .paddleocr_vl_towers import LANGUAGE, TOWER, VISION, not_run, outside
from .processing import AGREES, Processing


def _at_least(height: int, width: int, multiple: int) -> tuple[int, int]:
    if height < multiple:
        height, width = multiple, round(width * multiple / height)
    return (round(height * multiple / width), multiple) if width < multiple else (height, width)


PROCESSING = Processing(
    processor="PaddleOCRVLProcessor",
    image_processors=("PaddleOCRVLImageProcessor",),
    image_token="<|IMAGE_PLACEHOLDER|>",
    image_token_id=lambda config: config.get("image_token_id", 100295),
    reserved=("<|IMAGE_PLACEHOLDER|>", "<|video_pad|>"),
    chat="<|begin_of_sentence|>User: {images}{prompt}\nAssistant:\n",
    chat_image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
    patch=lambda config: vision(config, "patch_size", 14),
    merge=lambda config: vision(config, "spatial_merge_size", 2),
    limits=(384 * 384, 1536 * 1536),
    agrees={key: name for key, name in AGREES.items() if key != "temporal_patch_size"},  # its two files differ
    at_least=_at_least,
)

PADDLEOCR_VL = Family(
    name="PaddleOCR-VL",
    architecture="PaddleOCRVLForConditionalGeneration",
    model_type="paddleocr_vl",
    script="paddleocr_vl",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    holds=outside,
    renames=(
        ("visual.", "model.visual."),
        ("mlp_AR.", "model.projector."),
        ("model.", "model.language_model."),
        ("lm_head.", "lm_head."),
    ),
    must_float={
        "lm_head": "servers load the head in float",
        "mlp_AR.*": "vLLM builds the projector of plain linears",
        f"{TOWER}encoder.layers.*.mlp.*": "vLLM builds this MLP, of 4304 channels, without quantization",
    },
    recipe_float={
        "model.layers.*.mlp.down_proj": "float as in the published recipes of other models (largest outliers)"
    },
    vision="float",
    vision_int8_refused=None,
    vision_int8_whole=(),
    dtype=None,
    flat_config=True,
    vocab_size=lambda config: text(config, "vocab_size", 103424),
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=False,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="OCR:",
    old_rope=False,
    mindie_refuses="NotImplementedError: unsupported model type: paddleocr_vl",
    may_hold=not_run,
    also_called={f"{TOWER}encoder.layers.*.self_attn.q_proj": ("qkv_proj",)},
)
