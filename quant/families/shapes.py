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
    shared = width // heads[0] * heads[1]
    return {
        **norm("input_layernorm", width, bias=False),
        **linear("self_attn.q_proj", width, width, qkv_bias),
        **linear("self_attn.k_proj", shared, width, qkv_bias),
        **linear("self_attn.v_proj", shared, width, qkv_bias),
        **linear("self_attn.o_proj", width, width, out_bias),
        **norm("post_attention_layernorm", width, bias=False),
        **linear("mlp.gate_proj", mlp, width, mlp_bias),
        **linear("mlp.up_proj", mlp, width, mlp_bias),
        **linear("mlp.down_proj", width, mlp, mlp_bias),
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
