"""LLaVA-Video (7B, 72B on Qwen2) under its original names: LLaVA-OneVision in transformers, but for the rows of a
video's frames, each of which ends in image_newline.

Its config.json is a Qwen2's with what LLaVA adds; `nested` makes transformers' of it. The vision tower is named there,
not described. Of the tower the last block is not in the checkpoint: the layer asked for, -2, is the last that is. Not
supported, since no published checkpoint has them: add_faster_video, other poolings, other projectors.
"""

from dataclasses import replace

from ..base.errors import UsageError
from . import anyres
from .family import Tower
from .llava_decoder import MODEL as NESTED_MODEL
from .llava_decoder import RENAMES
from .llava_onevision import LLAVA_ONEVISION, SIDES
from .shapes import Shapes

TOWERS = {
    "google/siglip-so400m-patch14-384": dict(
        hidden_size=1152,
        image_size=384,
        intermediate_size=4304,
        num_attention_heads=16,
        num_hidden_layers=26,
        patch_size=14,
    )
}
"""mm_vision_tower -> its numbers, its last block left out. Of another SigLIP, mm_vision_config has them."""
SUPPORTED = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_newline_position": ("grid", "one_token"),
    "mm_spatial_pool_mode": ("bilinear",),
    "mm_vision_select_layer": (-2,),
    "add_faster_video": (False,),
}
DEFAULTS = {"mm_spatial_pool_mode": "bilinear", "add_faster_video": False, "mm_newline_position": "one_token"}
NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("model.", NESTED_MODEL),
    ("lm_head.", "language_model.lm_head."),
)
"""Prefix here -> prefix on the hub in LLaVA-OneVision's form."""
PREFIX = "model.vision_tower.vision_tower.vision_model."


def _text(config: dict) -> dict:
    kept = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_")) and value is not None}
    return kept | {"model_type": "qwen2"}


def nested(config: dict) -> dict:
    """config.json -> that of LLaVA-OneVision's form. Raises UsageError for what is not supported."""
    for key, known in SUPPORTED.items():
        if (said := config.get(key, DEFAULTS.get(key, known[0]))) not in known:
            raise UsageError(f"config.json: {key} is {said!r:.40}; supported is {' or '.join(map(repr, known))}")
    tower = config.get("mm_vision_tower")
    described = config.get("mm_vision_config") or TOWERS.get(str(tower))
    if described is None:
        raise UsageError(
            f"config.json: mm_vision_tower is {tower!r:.60}; supported is {', '.join(TOWERS)}, or one that"
            " mm_vision_config describes"
        )
    image = config.get("image_token_index", 151646)
    return {
        "model_type": "llava_onevision",
        "text_config": _text(config),
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **described},
        "image_token_index": image,
        "video_token_index": image + 1,
        "image_grid_pinpoints": config.get("image_grid_pinpoints") or [list(sides) for sides in SIDES],
        "vision_aspect_ratio": config.get("image_aspect_ratio", "anyres_max_9"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
    }


def _called(shapes: Shapes) -> Shapes:
    """By the names of this form."""
    return {next(own + name[len(old) :] for own, old in NAMES if name.startswith(old)): shapes[name] for name in shapes}


def _of(function):
    """A function of LLaVA-OneVision's config.json -> of this one."""
    return lambda config, *rest: function(nested(config), *rest)


def _tower(name: str, prefix: str) -> Tower:
    tower = LLAVA_ONEVISION.tower(name)
    asked = {key: _of(getattr(tower, key)) for key in ("blocks", "used", "heads", "width", "mlp", "tokens", "holds")}
    return replace(tower, prefix=prefix, **asked)


def _row(config: dict) -> int:
    tower = nested(config)["vision_config"]
    return -(-(tower["image_size"] // tower["patch_size"]) // 2)


def _grid(config: dict) -> bool:
    return config.get("mm_newline_position", DEFAULTS["mm_newline_position"]) == "grid"


def _frame_features(config: dict) -> int:
    return _row(config) * (_row(config) + _grid(config))


def _vision_tokens(config: dict, inputs: dict) -> int:
    frames = anyres.frames(inputs, VIDEO.token_id(config), _frame_features(config))
    return anyres.vision_tokens(nested(config), inputs, SIDES, 0, frames)


def _image_settings(config: dict) -> dict:
    said = nested(config)
    side, grid = said["vision_config"]["image_size"], said["image_grid_pinpoints"]
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}
    return {"size": {"height": side, "width": side}, "image_grid_pinpoints": grid, **pixels}


OF, ONEVISION_VIDEO = LLAVA_ONEVISION.processing, LLAVA_ONEVISION.processing.video
assert ONEVISION_VIDEO is not None
VIDEO = replace(
    ONEVISION_VIDEO,
    token_id=_of(ONEVISION_VIDEO.token_id),
    most=64,
    newline_rows=_grid,
    frame_features=_frame_features,
)
LLAVA_VIDEO = replace(
    LLAVA_ONEVISION,
    name="LLaVA-Video",
    architecture="LlavaQwenForCausalLM",
    model_type="llava_qwen",
    script="llava_video",
    transformers_class=LLAVA_ONEVISION.architecture,
    transformers_config=nested,
    processing=replace(
        OF,
        image_token_id=_of(OF.image_token_id),
        patch=_of(OF.patch),
        from_config=_of(OF.from_config),
        tiles=_of(OF.tiles),
        most_features=_of(OF.most_features),
        chat=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n{images}{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ),
        chat_image="<image>\n",
        image_settings=_image_settings,
        added_tokens=("<image>", "<video>"),
        video=VIDEO,
    ),
    towers=(
        replace(_tower("vision", f"{PREFIX}encoder.layers."), tokens=_vision_tokens),
        _tower("language", "model.layers."),
    ),
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    holds=lambda config: _called(LLAVA_ONEVISION.holds(nested(config))),
    renames=tuple(
        (own, new + old.removeprefix(hub)) for own, old in NAMES for hub, new in RENAMES if old.startswith(hub)
    ),
    must_float={
        "lm_head": "servers load the head in float",
        "model.mm_projector.*": "kept float as in LLaVA-OneVision, whose projector servers build of plain linears",
    },
    recipe_float={"model.layers.*.mlp.down_proj": "kept float by the published recipes"},
    flat_config=True,
    vocab_size=_of(LLAVA_ONEVISION.vocab_size),
    mindie_refuses="NotImplementedError: unsupported model type: llava_qwen",
    vllm_refuses="Model architectures ['LlavaQwenForCausalLM'] are not supported for now.",
    also_called={},
)
