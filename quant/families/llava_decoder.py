"""The decoder of the LLaVA line after 1.5: a LLaMA, a Mistral or a Qwen2, as text_config's model_type says; and the
names that the line has on the hub.
"""

from ..base.errors import UsageError
from .family import Tower
from .llava import LANGUAGE as LLAMA
from .numbers import nested_text
from .shapes import Shapes, decoder_block, linear

MODEL = "language_model.model."
# What transformers makes of a text_config that does not say it: width, MLP, key/value heads (0: as many as others),
# words.
DEFAULTS = {"llama": (4096, 11008, 0, 32000), "mistral": (4096, 14336, 8, 32000), "qwen2": (4096, 22016, 32, 151936)}
RENAMES = (
    ("image_newline", "model.image_newline"),
    ("vision_tower.vision_model.", "model.vision_tower.vision_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),  # transformers 5
    ("multi_modal_projector.", "model.multi_modal_projector."),
    (MODEL, "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)


class Decoder:
    """The decoder of a family whose text_config is a `usual` one where it does not say its model_type."""

    def __init__(self, usual: str):
        self._usual = usual
        self.tower = Tower(
            name="language",
            prefix=f"{MODEL}layers.",
            groups=LLAMA.groups,
            blocks=lambda config: nested_text(config, "num_hidden_layers", 32),
            used=lambda config: nested_text(config, "num_hidden_layers", 32),
            heads=self._heads,
            width=lambda config: nested_text(config, "hidden_size", self._default(config)[0]),
            mlp=lambda config: nested_text(config, "intermediate_size", self._default(config)[1]),
            tokens=LLAMA.tokens,
            holds=self._block,
        )

    def kind(self, config: dict) -> str:
        """Raises UsageError for a decoder that is not supported."""
        kind = (config.get("text_config") or {}).get("model_type", self._usual)
        if kind not in DEFAULTS:
            raise UsageError(f"config.json: its language model is a {kind}; supported are {', '.join(DEFAULTS)}")
        return kind

    def _default(self, config: dict) -> tuple[int, int, int, int]:
        return DEFAULTS[self.kind(config)]

    def words(self, config: dict) -> int:
        """Rows of the embedding."""
        return nested_text(config, "vocab_size", self._default(config)[3])

    def _heads(self, config: dict) -> tuple[int, int]:
        heads = nested_text(config, "num_attention_heads", 32)
        return heads, nested_text(config, "num_key_value_heads", self._default(config)[2] or heads)

    def _block(self, config: dict, index: int) -> Shapes:
        said, kind = config.get("text_config") or {}, self.kind(config)
        llama = kind == "llama" and bool(said.get("attention_bias"))
        mlp_bias = kind == "llama" and bool(said.get("mlp_bias"))
        width, mlp, heads = self.tower.width(config), self.tower.mlp(config), self.tower.heads(config)
        return decoder_block(width, mlp, heads, llama or kind == "qwen2", llama, mlp_bias)

    def outside(self, config: dict, vision_width: int) -> Shapes:
        """What is outside the blocks of both towers: newline, projector, embedding, final norm and head."""
        hidden, words = self.tower.width(config), self.words(config)
        return {
            "image_newline": (hidden,),
            **linear("multi_modal_projector.linear_1", hidden, vision_width),
            **linear("multi_modal_projector.linear_2", hidden, hidden),
            f"{MODEL}embed_tokens.weight": (words, hidden),
            f"{MODEL}norm.weight": (hidden,),
            "language_model.lm_head.weight": (words, hidden),
        }
