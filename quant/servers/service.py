"""What a served model takes of an NPU's memory, from the headers of an export and the requests it is to answer.

    weights      language tower, embedding and head / world_size + vision tower, which MindIE keeps whole on every NPU
                 when it is int8
    KV cache     2 (K and V) x 2 bytes x layers x KV heads per NPU x head size, a token; x concurrency x (longest input
                 + longest answer)
    activations  of one prefill: the larger of the vision tower on the largest image and the language tower on the
                 longest input, 2 bytes a number: residual, q, k, v and both sides of the MLP; in attention MindIE pads
                 vision heads of 80 channels to 128

KV heads per NPU = max(1, KV heads / world_size): a head is not split. Servers hand out a fraction of the memory, 0.8 by
MindIE's default, 0.9 by vLLM's. These are estimates for choosing a configuration; what a server prints at its start is
the measure.

Left out: prefix caches, several images in one request, graphs that are captured beforehand.
"""

from dataclasses import dataclass

from ..base.errors import QuantError
from ..families.family import Tower
from ..families.numbers import text
from .rules import Directory

NPU_MEMORY = {
    None: 64,
    "a2": 64,
    "a3": 64,
    "310p": 48,
}  # GiB of one NPU (a3: of one of the two dies; 310p: of one chip)
FRACTION = {"mindie": 0.8, "vllm-ascend": 0.9}
GIB = 2**30
PADDED_HEAD = 128


@dataclass(frozen=True)
class Load:
    """What is asked of a server. image_tokens: of the largest image; patches: that its vision tower sees of it."""

    world_size: int
    image_tokens: int
    patches: int
    max_input: int
    max_new: int
    concurrency: int

    @property
    def max_sequence(self) -> int:
        """Tokens of the longest input and its answer."""
        return self.max_input + self.max_new


@dataclass(frozen=True)
class Demand:
    """Bytes on each NPU."""

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv_cache + self.activations

    @property
    def kv_gib(self) -> int:
        """The KV cache in whole GiB, rounded up: MindIE's npuMemSize."""
        return max(1, -(-self.kv_cache // GIB))


def demand(export: Directory, load: Load) -> Demand:
    """Raises QuantError when config.json lacks a size."""
    config, eyes, language = export.config, export.family.tower("vision"), export.family.tower("language")
    sizes = {name: entry.nbytes for name, entry in export.tensors.items()}
    family = export.family
    split = (language.prefix, f"{family.embedding}.", f"{family.final_norm}.", f"{export.head}.")
    shared = sum(size for name, size in sizes.items() if name.startswith(split))
    weights = shared // load.world_size + sum(sizes.values()) - shared

    width, (heads, kv_heads) = language.width(config), language.heads(config)
    head_size = text(config, "head_dim", width // heads)
    kept = max(1, kv_heads // load.world_size)
    per_token = 2 * 2 * language.blocks(config) * kept * head_size
    kv_cache = per_token * load.concurrency * load.max_sequence

    mlp = language.mlp(config)
    prefill = load.max_input * (2 * width + (heads * head_size + 2 * kv_heads * head_size + 2 * mlp) // load.world_size)
    seen = load.patches * _numbers_of_a_patch(config, eyes)
    return Demand(weights, kv_cache, 2 * max(prefill, seen))


def _numbers_of_a_patch(config: dict, tower: Tower) -> int:
    """Numbers that the vision tower holds of a patch at a time."""
    width, heads = tower.width(config), tower.heads(config)[0]
    return 2 * width + 3 * heads * max(PADDED_HEAD, width // heads) + 2 * tower.mlp(config)


def fits(server: str, demand_: Demand, load: Load, npu_memory: float) -> None:
    """Raises QuantError, with the figures and the ways out, when an NPU of `npu_memory` GiB does not hold it."""
    usable = FRACTION[server] * npu_memory * GIB
    if demand_.total > usable:
        parts = (
            f"{demand_.weights / GIB:.1f} GiB of weights, {demand_.kv_cache / GIB:.1f} of KV cache ({load.concurrency}"
            f" sequences of {load.max_sequence} tokens), {demand_.activations / GIB:.1f} of activations"
        )
        raise QuantError(
            f"each NPU would need {demand_.total / GIB:.1f} GiB ({parts}), {usable / GIB:.1f} of its {npu_memory:g} GiB"
            " are to be had; use a larger --world_size, a smaller --concurrency, or a smaller --max_pixels"
        )
