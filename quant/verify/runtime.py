"""The exported directory as a model that runs: every int8 linear computes in integers what the server's kernel
computes, by its scheme (schemes.py), from the tensors of the directory and nothing else.

Only what the server reads is used: of a static linear weight, input_scale, input_offset, quant_bias and deq_scale, of a
dynamic one weight, weight_scale and the float bias. Whether the others agree with these is folding.py's and linear.py's
question. The model around the linears is transformers' own, so `generate` works, in either layout, on the CPU and on
CUDA.

dtype: a bfloat16 export computes in bfloat16. A float16 export computes in float16 on CUDA; on the CPU everything
between the int8 linears is float32 (device.compute_dtype), yet x and y are rounded to float16 at each of them, so that
the codes are those of a float16 server.

Left out: kernels that keep fewer bits of deq_scale than float32 has, quantized key/value caches, tensor parallelism.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QuantError
from ..export import reader
from ..export.reader import Export
from ..families.family import Family
from ..files.checkpoint import Checkpoint
from ..inputs.encoder import Encoder
from ..model.device import pick_device
from ..model.whole import whole_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_outside(export: Export, family: Family) -> None:
    """Raises QuantError for an int8 linear outside the blocks: streaming takes blocks alone in int8; load() does."""
    for name in export.linear_names:
        if family.block_of(f"{name}.") is None:
            raise QuantError(
                f"{export.dir}: {name} is int8 and outside the blocks, where no server takes int8; keep it float"
            )


def load(
    directory: str | Path, device: str = "cpu", *, trust_remote_code: bool = False, **sizes: Any
) -> "tuple[PreTrainedModel, Encoder]":
    """An export of either layout -> (transformers' model with QuantizedLinears in the place of the int8 linears, its
    Encoder).

    model.generate(**encoder(image, prompt)) works, and is greedy. device: "cpu", "cuda" or "npu". The whole model is in
    memory, the int8 linears at one byte a weight. sizes: max_pixels and others of the Encoder's. Raises UsageError when
    it is no export, QuantError when it is a damaged one.
    """
    export = reader.read(directory)
    streamed = whole_model(export, pick_device(device), trust_remote_code, absent=set(export.linear_names))
    for name in export.linear_names:
        parent, _, leaf = streamed.names[f"{name}.weight"].removesuffix(".weight").rpartition(".")
        setattr(streamed.model.get_submodule(parent), leaf, export.linear(name).to(streamed.device))
    return streamed.model, Encoder(export.dir, trust_remote_code=trust_remote_code, **sizes)


def load_float(
    directory: str | Path, device: str = "cpu", *, trust_remote_code: bool = False, **sizes: Any
) -> "tuple[PreTrainedModel, Encoder]":
    """The float checkpoint -> (model, Encoder), by the same way and in the same arithmetic as load()."""
    checkpoint = Checkpoint(directory)
    streamed = whole_model(checkpoint, pick_device(device), trust_remote_code)
    return streamed.model, Encoder(checkpoint.dir, trust_remote_code=trust_remote_code, **sizes)
