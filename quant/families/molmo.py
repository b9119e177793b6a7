"""Molmo-7B-D-0924: a CLIP ViT over overlapping crops, features of two of its blocks, a pooling of 2 x 2 patches by
attention, a gated projector, and a Qwen2 decoder whose q, k, v and whose up and gate are one linear each.

The model's class is the checkpoint's own code, which names the tower's sizes itself: config.json says nothing of it.
The decoder's MLP computes silu(gate) up with up in the first half of ff_proj's rows. vLLM builds pooling and projector
of linears that it could have in int8, too; here they are outside the blocks, and float. MindIE has no such model.
"""

from ..base.choices import Choice
from ..base.errors import UsageError
from .family import Family, Group, Tower
from .numbers import text, vision
from .processing import Processing
from .shapes import Shapes, linear, norm

BACKBONE, TRANSFORMER = "model.vision_backbone.", "model.transformer."
VIT = f"{BACKBONE}image_vit."
EXTRA = 128  # words beside the vocabulary


def layers(config: dict) -> tuple[int, ...]:
    """The vision blocks whose answers are the features, in the order in which they stand side by side. Raises
    UsageError for blocks that there are not.
    """
    said, blocks = config.get("vit_layers", [-2, -9]), VISION.blocks(config)
    if not isinstance(said, list) or not said or not all(type(one) is int and -blocks <= one < blocks for one in said):
        raise UsageError(f"config.json: vit_layers is {said!r:.40}, the vision tower has {blocks} blocks")
    return tuple(one % blocks for one in said)


def _words(config: dict) -> int:
    """Rows of the embedding: the vocabulary, filled up."""
    return text(config, "embedding_size" if config.get("embedding_size") else "vocab_size", 152064)


def _patches(config: dict) -> int:
    """Of a crop."""
    return (vision(config, "image_size", 336) // vision(config, "patch_size", 14)) ** 2


def _vision_tokens(config: dict, inputs: dict) -> int:
    places = inputs.get("image_input_idx")
    return 0 if places is None else places.shape[1] * (_patches(config) + 1)  # class token


PROCESSING = Processing(
    processor="MolmoProcessor",
    image_processors=("MolmoImageProcessor",),
    image_token="<im_patch>",
    image_token_id=lambda config: config.get("image_token_id", _words(config) + 2),
    reserved=("<im_patch>", "<im_start>", "<im_end>", "<im_col>", "<|image|>"),
    chat="<|endoftext|>{images} User: {prompt} Assistant:",
    chat_image="<im_patch>",
    patch=lambda config: vision(config, "patch_size", 14),
    merge=lambda config: 2,
    limits=None,
    tiles=lambda config, settings: settings.get("max_crops", 12) + 1,  # and all of it once more, small
    tile=lambda config: vision(config, "image_size", 336),
    own=Choice("overlapping crops", "inputs.crops:Crops"),
    alone=True,
)


def _vision_block(config: dict, index: int) -> Shapes:
    width, mlp = VISION.width(config), VISION.mlp(config)
    return {
        **{name: shape for part in "qkvo" for name, shape in linear(f"attention.w{part}", width, width).items()},
        **norm("attention_norm", width),
        **norm("ffn_norm", width),
        **linear("feed_forward.w1", mlp, width),
        **linear("feed_forward.w2", width, mlp),
    }


def _language_block(config: dict, index: int) -> Shapes:
    width, mlp, (heads, shared) = LANGUAGE.width(config), LANGUAGE.mlp(config), LANGUAGE.heads(config)
    fused = width + 2 * (width // heads) * shared
    return {
        **norm("attn_norm", width, bias=False),
        **linear("att_proj", fused, width, bias=config.get("qkv_bias", False)),
        **linear("attn_out", width, width, bias=False),
        **norm("ff_norm", width, bias=False),
        **linear("ff_proj", 2 * mlp, width, bias=False),
        **linear("ff_out", width, mlp, bias=False),
    }


def _outside(config: dict) -> Shapes:
    width, hidden, inner = VISION.width(config), LANGUAGE.width(config), LANGUAGE.mlp(config)
    side_by_side, patch, pooling = (
        len(layers(config)) * width,
        PROCESSING.patch(config),
        f"{BACKBONE}image_pooling_2d.w",
    )
    return {
        f"{TRANSFORMER}wte.embedding": (_words(config), hidden),
        f"{TRANSFORMER}wte.new_embedding": (EXTRA, hidden),
        f"{TRANSFORMER}ln_f.weight": (hidden,),
        f"{TRANSFORMER}ff_out.weight": (_words(config), hidden),
        f"{VIT}class_embedding": (width,),
        f"{VIT}positional_embedding": (_patches(config) + 1, width),
        f"{VIT}patch_embedding.weight": (width, 3 * patch**2),
        **norm(f"{VIT}pre_ln", width),
        **{name: shape for part in "qkv" for name, shape in linear(pooling + part, width, side_by_side).items()},
        **linear(f"{pooling}o", width, width),
        f"{BACKBONE}image_projector.w1.weight": (inner, width),
        f"{BACKBONE}image_projector.w2.weight": (hidden, inner),
        f"{BACKBONE}image_projector.w3.weight": (inner, width),
        f"{BACKBONE}pad_embed": (2, side_by_side),
    }


VISION = Tower(
    name="vision",
    prefix=f"{VIT}transformer.resblocks.",
    groups=(
        Group(("attention.wq", "attention.wk", "attention.wv"), source="attention_norm", kind="norm"),
        Group(("attention.wo",), source="attention.wv", kind="value"),
        Group(("feed_forward.w1",), source="ffn_norm", kind="norm"),
        Group(("feed_forward.w2",)),  # quick_gelu stands between the two
    ),
    blocks=lambda config: vision(config, "num_hidden_layers", 23),
    used=lambda config: max(layers(config)) + 1,
    heads=lambda config: (vision(config, "num_attention_heads", 16),) * 2,
    width=lambda config: vision(config, "hidden_size", 1024),
    mlp=lambda config: vision(config, "intermediate_size", 4096),
    tokens=_vision_tokens,
    inputs=("images",),
    taps=lambda config: tuple(sorted(set(layers(config)) - {max(layers(config))})),
    holds=_vision_block,
)

LANGUAGE = Tower(
    name="language",
    prefix=f"{TRANSFORMER}blocks.",
    groups=(
        Group(("att_proj",), source="attn_norm", kind="norm"),
        Group(("attn_out",), source="att_proj", kind="value"),
        Group(("ff_proj",), source="ff_norm", kind="norm"),
        Group(("ff_out",), source="ff_proj", kind="up", first=True),
    ),
    blocks=lambda config: text(config, "num_hidden_layers"),
    used=lambda config: text(config, "num_hidden_layers"),
    heads=lambda config: (
        heads := text(config, "num_attention_heads"),
        text(config, "num_key_value_heads", heads),
    ),
    width=lambda config: text(config, "hidden_size"),
    mlp=lambda config: text(config, "intermediate_size") // 2,
    tokens=lambda config, inputs: inputs["input_ids"].numel(),
    holds=_language_block,
)

MOLMO = Family(
    name="Molmo-7B-D",
    architecture="MolmoForCausalLM",
    model_type="molmo",
    script="molmo",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding=f"{TRANSFORMER}wte",
    embedding_leaf="embedding",
    final_norm=f"{TRANSFORMER}ln_f",
    head=f"{TRANSFORMER}ff_out",
    holds=_outside,
    renames=(("model.", "model."),),
    must_float={
        f"{TRANSFORMER}ff_out": "servers load the head in float",
        f"{VIT}patch_embedding": "vLLM builds it of a plain linear",
        f"{BACKBONE}image_pooling_2d.*": "outside the blocks: the pooling is float",
        f"{BACKBONE}image_projector.*": "outside the blocks: the projector is float",
    },
    recipe_float={f"{TRANSFORMER}blocks.*.ff_out": "kept float by the published recipes for Qwen2 decoders"},
    vision="float",
    vision_int8_refused=None,
    vision_int8_whole=(),
    dtype=None,
    flat_config=True,
    vocab_size=_words,
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=False,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Describe this image in detail.",
    old_rope=False,
    mindie_refuses="NotImplementedError: unsupported model type: molmo",
    own_code=True,
)
