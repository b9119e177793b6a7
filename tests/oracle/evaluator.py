"""One evaluator for both exports: the float model with the export's floats in it, its int8 linears in integers.

    q_x = clamp(round(x / input_scale + input_offset), -128, 127)        y = (q_x q_w^T + quant_bias) * deq_scale

Of the product it uses only the reading of files; test_m2.py holds it against the library's own fake quantization.
"""

import torch
import transformers
from torch import Tensor, nn

from quant.export.reader import Export
from quant.files.checkpoint import Checkpoint


def float_model(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint as transformers loads it, float32."""
    model_class = getattr(transformers, checkpoint.config["architectures"][0])
    model = model_class.from_pretrained(str(checkpoint.dir), torch_dtype=torch.float32, local_files_only=True)
    model.config.image_seq_length = 0  # LLaVA: the prompts' image tokens are expanded already
    return model.eval()


@torch.no_grad()
def int8_model(checkpoint: Checkpoint, export: Export) -> nn.Module:
    """The same model with every tensor of the export in its place."""
    model = float_model(checkpoint)
    names = dict(model.named_parameters())
    for name in export.tensors:
        if export.description[name] == "FLOAT":
            names[name].copy_(export.load(name))
    for name in export.linear_names:
        model.get_submodule(name).forward = integer_forward(export, name)
    return model


def integer_forward(export: Export, name: str):
    """x [..., I] -> y [..., O]; the sums are exact in float64."""
    weight, scale, offset, bias, deq_scale = (
        export.load(f"{name}.{part}") for part in ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
    )
    if deq_scale.dtype == torch.int64:  # a float32's bits
        deq_scale = deq_scale.to(torch.int32).view(torch.float32)

    def forward(x: Tensor) -> Tensor:
        codes = torch.round(x / scale + offset).clamp(-128, 127)
        return ((codes.double() @ weight.double().T + bias) * deq_scale).to(x.dtype)

    return forward


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """[T, vocabulary]"""
    return model(**inputs).logits[0]


def relative_error(output: Tensor, reference: Tensor) -> float:
    """|output - reference| / |reference|, Euclidean."""
    return ((output - reference).norm() / reference.norm()).item()
