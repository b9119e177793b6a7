"""config.json of a checkpoint that brings its model as code: the numbers of Molmo-7B-D-0924 where it does not say."""

from transformers import PretrainedConfig


class MolmoConfig(PretrainedConfig):
    """The decoder's numbers at the top. vision_config, vit_layers: of a model whose tower is of another size than the
    published one; intermediate_size counts gate and up together.
    """

    model_type = "molmo"

    def __init__(
        self,
        vocab_size: int = 152064,
        embedding_size: int | None = None,
        hidden_size: int = 3584,
        intermediate_size: int = 37888,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        max_position_embeddings: int = 4096,
        layer_norm_eps: float = 1e-6,
        rope_theta: float = 1000000.0,
        qkv_bias: bool = True,
        vision_config: dict | None = None,
        vit_layers: tuple[int, ...] = (-2, -9),
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **others,
    ):
        self.vocab_size, self.embedding_size = vocab_size, embedding_size or vocab_size
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.max_position_embeddings, self.layer_norm_eps = max_position_embeddings, layer_norm_eps
        self.rope_theta, self.qkv_bias, self.use_cache = rope_theta, qkv_bias, use_cache
        self.vision_config, self.vit_layers = dict(vision_config or {}), tuple(vit_layers)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)
