"""What a float checkpoint holds, as name -> shape: the pieces that families put their `holds` together from."""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    """A linear, weight [outputs, inputs], and its bias."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def norm(name: str, width: int, bias: bool = True) -> Shapes:
    """A LayerNorm; an RMSNorm has no bias."""
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def decoder_block(
    width: int, mlp: int, heads: tuple[int, int], qkv_bias: bool, out_bias: bool = False, mlp_bias: bool = False
) -> Shapes:
    """A block of LLaMA and of Qwen2. heads: (query heads, key/value heads) of width // query heads channels."""
    channels = width // heads[0]
    return {
        **norm("input_layernorm", width, bias=False),
        **attention(width, heads[0] * channels, heads[1] * channels, qkv_bias, out_bias),
        **norm("post_attention_layernorm", width, bias=False),
        **gated_mlp("mlp", width, mlp, mlp_bias),
    }


def attention(width: int, queries: int, values: int, qkv_bias: bool, out_bias: bool = False, gate: int = 1) -> Shapes:
    """q_proj of gate * queries rows, k_proj and v_proj of `values` rows, o_proj."""
    return {
        **linear("self_attn.q_proj", gate * queries, width, qkv_bias),
        **linear("self_attn.k_proj", values, width, qkv_bias),
        **linear("self_attn.v_proj", values, width, qkv_bias),
        **linear("self_attn.o_proj", width, queries, out_bias),
    }


def gated_mlp(name: str, width: int, mlp: int, bias: bool = False) -> Shapes:
    """gate_proj, up_proj, down_proj."""
    return {
        **linear(f"{name}.gate_proj", mlp, width, bias),
        **linear(f"{name}.up_proj", mlp, width, bias),
        **linear(f"{name}.down_proj", width, mlp, bias),
    }


def normed_decoder_block(
    width: int, mlp: int, heads: tuple[int, int], channels: int, qkv_bias: bool = False, qk_norm: bool = True
) -> Shapes:
    """A block of Qwen3: heads of `channels` channels, whatever the width, and norms of the queries and the keys."""
    return {
        **norm("input_layernorm", width, bias=False),
        **attention(width, heads[0] * channels, heads[1] * channels, qkv_bias),
        **(query_key_norms(channels) if qk_norm else {}),
        **norm("post_attention_layernorm", width, bias=False),
        **gated_mlp("mlp", width, mlp),
    }


def experts(name: str, count: int, width: int, inner: int) -> Shapes:
    """gate_proj, up_proj and down_proj of every expert."""
    return {
        part: shape for number in range(count) for part, shape in gated_mlp(f"{name}.{number}", width, inner).items()
    }


def query_key_norms(channels: int) -> Shapes:
    """The norms of each head's queries and keys."""
    return {
        **norm("self_attn.q_norm", channels, bias=False),
        **norm("self_attn.k_norm", channels, bias=False),
    }


def gated_vision_block(width: int, mlp: int) -> Shapes:
    """A block of Qwen2.5-VL's vision tower: RMSNorms, and a gated MLP with biases."""
    return {
        **norm("norm1", width, bias=False),
        **norm("norm2", width, bias=False),
        **linear("attn.qkv", 3 * width, width),
        **linear("attn.proj", width, width),
        **linear("mlp.gate_proj", mlp, width),
        **linear("mlp.up_proj", mlp, width),
        **linear("mlp.down_proj", width, mlp),
    }
