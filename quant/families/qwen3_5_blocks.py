"""What the blocks of Qwen3.5 hold: a linear attention (gated delta net) in three of four, a full one in the fourth; and
its drafter's.
"""

from .numbers import nested_text
from .shapes import Shapes, attention, linear, norm, query_key_norms


def is_full(config: dict, index: int) -> bool:
    """Whether a block's attention is a full one."""
    text = config.get("text_config") or {}
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and index < len(kinds):
        return kinds[index] == "full_attention"
    return (index + 1) % (text.get("full_attention_interval") or 4) == 0


def is_linear(config: dict, index: int) -> bool:
    """Whether it is a linear one."""
    return not is_full(config, index)


def mixer(config: dict, index: int) -> Shapes:
    """A block without its MLP."""
    width, heads = nested_text(config, "hidden_size", 4096), nested_text(config, "num_attention_heads", 16)
    shared = nested_text(config, "num_key_value_heads", 4)
    channels = nested_text(config, "head_dim", 256)
    norms = norm("input_layernorm", width, False) | norm("post_attention_layernorm", width, False)
    if is_full(config, index):
        full = attention(width, heads * channels, shared * channels, qkv_bias=False, gate=2)
        return {**norms, **full, **query_key_norms(channels)}
    count, each = nested_text(config, "linear_num_value_heads", 32), nested_text(config, "linear_value_head_dim", 128)
    keys = nested_text(config, "linear_num_key_heads", 16) * nested_text(config, "linear_key_head_dim", 128)
    name, mixed = "linear_attn.", 2 * keys + count * each
    return {
        **norms,
        f"{name}A_log": (count,),
        f"{name}dt_bias": (count,),
        f"{name}conv1d.weight": (mixed, 1, nested_text(config, "linear_conv_kernel_dim", 4)),
        f"{name}norm.weight": (each,),
        **linear(f"{name}in_proj_qkv", mixed, width, bias=False),
        **linear(f"{name}in_proj_z", count * each, width, bias=False),
        **linear(f"{name}in_proj_b", count, width, bias=False),
        **linear(f"{name}in_proj_a", count, width, bias=False),
        **linear(f"{name}out_proj", width, count * each, bias=False),
    }


def drafter(config: dict, block) -> Shapes:
    """The tensors of multi-token prediction: full blocks, each with its MLP of `block`, and what joins their inputs."""
    width, said = (
        nested_text(config, "hidden_size", 4096),
        (config.get("text_config") or {}).get("mtp_num_hidden_layers"),
    )
    if not said:
        return {}
    full = {**config, "text_config": {**config["text_config"], "layer_types": ["full_attention"] * said}}
    names = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    joined = {f"mtp.{name}.weight": (width,) for name in names} | {"mtp.fc.weight": (width, 2 * width)}
    blocks = (
        (f"mtp.layers.{index}.{name}", shape) for index in range(said) for name, shape in block(full, index).items()
    )
    return joined | dict(blocks)
