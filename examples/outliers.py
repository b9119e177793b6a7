"""Gives a small model the outlier channels that large ones grow, without changing what it computes.

A few channels c of a norm that feeds linears are made k times larger, and the columns that read them k times smaller:

    norm.weight_c *= k,  norm.bias_c *= k,  W_oc /= k  for every consumer W

k is a power of two, so in bfloat16 no bit is lost. In float16 a W_oc below 2^-14 k loses the bits that its quotient has
no room for, an error of at most 2^-25 k: the float model is the rescaled one, and dividing the outliers out again gives
it exactly. What changes is rounding to int8: one scale for the whole tensor now has to hold the large channels, and the
columns that read them vanish beside their rows' maxima. Outlier suppression must undo this. Only norms whose consumers
are rounded are touched: in the exports made here that is every block of the language model, and for Qwen2-VL every
block of the vision tower.

`tensors` maps hub names to tensors in the checkpoint's dtype, changed in place.
"""

import torch

GROUPS = {  # family -> (prefix of a block, norm, linears that read it)
    "qwen2vl": (
        ("visual.blocks.{}.", "norm1", ("attn.qkv",)),
        ("visual.blocks.{}.", "norm2", ("mlp.fc1",)),
        ("model.layers.{}.", "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("model.layers.{}.", "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ),
    "llava": (
        (
            "language_model.model.layers.{}.",
            "input_layernorm",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ),
        ("language_model.model.layers.{}.", "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ),
}


def groups(tensors: dict, family: str) -> list[tuple[str, list[str]]]:
    """(norm, linears) of every block that `tensors` holds, without the `.weight`."""
    found = []
    for prefix, norm, linears in GROUPS[family]:
        block = 0
        while (start := prefix.format(block)) + norm + ".weight" in tensors:
            found.append((start + norm, [start + linear for linear in linears]))
            block += 1
    return found


def rescale(tensors: dict, norm: str, linears: list[str], channels: torch.Tensor, factor: float) -> None:
    """Multiply `channels` of the norm by `factor` and divide the linears' columns by it. Exact for powers of two (see
    above).
    """
    for name in (f"{norm}.weight", f"{norm}.bias"):
        if name in tensors:
            tensors[name][channels] *= factor
    for linear in linears:
        tensors[f"{linear}.weight"][:, channels] /= factor


def add_outliers(tensors: dict, family: str, factor: float, count: int, seed: int = 0) -> None:
    """`count` channels of every group, the same in all norms of a tower as large models have them, become `factor`
    times larger.

    Raises ValueError if `factor` is no power of two.
    """
    if factor != 2.0 ** round(torch.tensor(factor).log2().item()):
        raise ValueError(f"factor {factor}: only powers of two leave the model as it is")
    for norm, linears in groups(tensors, family):
        width = len(tensors[f"{norm}.weight"])
        channels = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:count]
        rescale(tensors, norm, linears, channels, factor)
