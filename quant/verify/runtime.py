"""The exported directory as a model that runs: every int8 linear computes in integers what the server's kernel
computes.

    q_x = clamp(round(x / input_scale + input_offset), -128, 127)        x in the model's dtype, the division in float32
    y   = (q_x q_w^T + quant_bias) * deq_scale                           int8 x int8 -> int32, exact; then float32, rounded to the model's dtype

Only what the server reads is used: weight, input_scale, input_offset, quant_bias, deq_scale, of the directory and
nothing else. weight_scale and the float bias are in none of these formulas; whether they agree with the rest is
linear.py's question. The model around the linears is transformers' own, so `generate` works, in either layout, on the
CPU and on CUDA.

dtype: a bfloat16 export computes in bfloat16. A float16 export computes in float16 on CUDA; on the CPU everything
between the int8 linears is float32 (device.compute_dtype), yet x and y are rounded to float16 at each of them, so that
the codes are those of a float16 server.

Left out: kernels that keep fewer bits of deq_scale than float32 has, quantized key/value caches, tensor parallelism.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..arithmetic.int8 import quantize_input
from ..arithmetic.product import int8_matmul
from ..base import transformers_api
from ..base.errors import QuantError
from ..export import ascend
from ..export.ascend import Export, deq_dtype
from ..families import family_of
from ..families.family import Family
from ..files.checkpoint import Checkpoint
from ..inputs.encoder import Encoder
from ..model.device import compute_dtype, pick_device
from ..model.streamed import StreamedModel

READ = (
    "weight",
    "input_scale",
    "input_offset",
    "quant_bias",
    "deq_scale",
)  # what the server's arithmetic uses of a linear


class Int8Linear(nn.Module):
    """One int8 linear as it was exported. name: its hub name; dtype: what the server computes in.

    Buffers: weight int8 [O, I]; input_scale, input_offset float32 [1]; quant_bias int32 [O]; deq_scale float32 [O].
    """

    def __init__(self, name: str, parts: dict[str, Tensor], dtype: torch.dtype):
        """parts: the tensors of READ as they are stored."""
        super().__init__()
        self.name, self.dtype = name, dtype
        self.register_buffer("weight", parts["weight"])
        self.register_buffer("input_scale", parts["input_scale"].float())
        self.register_buffer("input_offset", parts["input_offset"].float())
        self.register_buffer("quant_bias", parts["quant_bias"])
        self.register_buffer("deq_scale", unpack_deq_scale(parts["deq_scale"]))

    @classmethod
    def load(cls, export: Export, name: str) -> "Int8Linear":
        """Raises QuantError when a tensor is missing, or not of the shape and dtype that a server expects."""
        check_parts(export, name)
        return cls(name, {part: export.load(f"{name}.{part}") for part in READ}, export.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> y [..., O] in x's dtype."""
        codes = quantize_input(x.to(self.dtype), self.input_scale, self.input_offset)
        acc = int8_matmul(codes.reshape(-1, codes.shape[-1]), self.weight)
        y = acc.add_(self.quant_bias).float().mul_(self.deq_scale).to(self.dtype)
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.weight.shape[1]} -> {self.weight.shape[0]}, W8A8 in {self.dtype}"


def unpack_deq_scale(stored: Tensor) -> Tensor:
    """What ascend.pack_deq_scale wrote -> float32 [O]."""
    return stored if stored.dtype == torch.float32 else stored.to(torch.int32).view(torch.float32)


def expected_parts(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, tuple[tuple, tuple]]:
    """Part of an int8 linear -> (dtypes a server takes, shape), for a model of `dtype`."""
    floats = (torch.float32, dtype)  # msmodelslim writes some in the model's dtype
    return {
        "weight": ((torch.int8,), (outputs, inputs)),
        "weight_scale": (floats, (outputs, 1)),
        "weight_offset": (floats, (outputs, 1)),
        "input_scale": (floats, (1,)),
        "input_offset": (floats, (1,)),
        "quant_bias": ((torch.int32,), (outputs,)),
        "deq_scale": ((deq_dtype(dtype),), (outputs,)),
    }


def check_parts(export: Export, name: str, shape: tuple[int, ...] | None = None) -> None:
    """Raises QuantError for the first tensor of an int8 linear that is missing or not as a server expects it.

    shape: (O, I) that the weight must have; None takes the weight's own.
    """
    info = export.tensors.get(f"{name}.weight")
    outputs, inputs = shape or (info.shape if info and len(info.shape) == 2 else (0, 0))
    for part, (dtypes, wanted) in expected_parts(outputs, inputs, export.dtype).items():
        info = export.tensors.get(f"{name}.{part}")
        if info is None:
            raise QuantError(f"{export.dir}: tensor {name}.{part} is missing")
        if info.dtype not in dtypes:
            raise QuantError(
                f"{info.file}: {name}.{part} is {_short(info.dtype)}, a server of {_short(export.dtype)} models reads"
                f" {_short(dtypes[0])} there"
            )
        if info.shape != wanted:
            raise QuantError(f"{info.file}: {name}.{part} has shape {list(info.shape)}, {list(wanted)} is expected")


def refuse_outside(export: Export, family: Family) -> None:
    """Raises QuantError for an int8 linear outside the blocks: streaming loads only blocks in int8 (load() takes it)."""
    for name in export.linear_names:
        if family.block_of(f"{name}.") is None:
            raise QuantError(
                f"{export.dir}: {name} is int8 and outside the blocks, where no server takes int8; keep it float"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load(
    directory: str | Path, device: str = "cpu", *, max_pixels: int | None = None, trust_remote_code: bool = False
) -> tuple[nn.Module, Encoder]:
    """An export of either layout -> (transformers' model with Int8Linear in the place of the int8 linears, its
    Encoder).

    model.generate(**encoder(image, prompt)) works, and is greedy. device: "cpu", "cuda" or "npu". The whole model is in memory, the
    int8 linears at one byte a weight. Raises UsageError when it is no export, QuantError when it is a damaged one.
    """
    export = ascend.read(directory)
    skeleton = _whole(export, set(export.linear_names), device, trust_remote_code)
    for name in export.linear_names:
        parent, _, leaf = skeleton.names[f"{name}.weight"].removesuffix(".weight").rpartition(".")
        setattr(skeleton.model.get_submodule(parent), leaf, Int8Linear.load(export, name).to(skeleton.device))
    return skeleton.model, Encoder(export.dir, max_pixels=max_pixels, trust_remote_code=trust_remote_code)


def load_float(
    directory: str | Path, device: str = "cpu", *, max_pixels: int | None = None, trust_remote_code: bool = False
) -> tuple[nn.Module, Encoder]:
    """The float checkpoint -> (model, Encoder), by the same way and in the same arithmetic as load()."""
    checkpoint = Checkpoint(directory)
    skeleton = _whole(checkpoint, set(), device, trust_remote_code)
    return skeleton.model, Encoder(checkpoint.dir, max_pixels=max_pixels, trust_remote_code=trust_remote_code)


def _whole(source: Checkpoint | Export, int8_names: set[str], device: str, trust_remote_code: bool) -> StreamedModel:
    """A skeleton with every float tensor in its place; the int8 linears' places stay empty."""
    device = pick_device(device)
    family = family_of(source.config, source.dir)
    skeleton = StreamedModel(source, family, compute_dtype(source.dtype, device), device, trust_remote_code)
    for tensor in skeleton.names:
        if tensor.rpartition(".")[0] not in int8_names:
            skeleton.set(tensor, source.load(tensor))
    skeleton.tie_head()
    # generate() hands the head a slice of one position, with strides for which torch would copy the whole head to
    # multiply with it.
    skeleton.model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (args[0].clone(memory_format=torch.contiguous_format),)
    )
    if settings := transformers_api.greedy_generation(source.dir):
        skeleton.model.generation_config = settings
    return skeleton


def greedy(model: nn.Module, inputs: dict[str, Tensor], tokens: int) -> Tensor:
    """The next `tokens` greedy tokens after one sample's inputs, int64 [<= tokens]; fewer where the model ends its
    answer. model: of load() or load_float(), whose settings are greedy.
    """
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.inference_mode():
        answer = model.generate(**inputs, max_new_tokens=tokens)
    return answer[0, inputs["input_ids"].shape[1] :].cpu()
