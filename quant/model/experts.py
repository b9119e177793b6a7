"""The experts of a block as linears, in the place of transformers' module that holds them in two tensors.

In float that module's own forward computes, whatever way it chooses, so its answers are those of the whole model bit
for bit; its two tensors are filled through the linears, whose weights are views into them. Where linears were replaced
(StreamedModel.replaced, runtime.load), each expert that tokens reach is run by itself:

    y_t = sum_e w_te down_e(act(gate_e(x_t)) * up_e(x_t))
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..base import transformers_api


class ExpertLinear(nn.Linear):
    """A linear of an expert, [O, I] without bias. view: makes the place of its weight in the tensor of all experts, on
    a device and in a dtype; release: frees that tensor.
    """

    def __init__(self, outputs: int, inputs: int, view: Callable, release: Callable):
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device="meta"), requires_grad=False)
        self.register_parameter("bias", None)
        vars(self).update(view=view, release=release)

    def place(self, value: Tensor) -> Tensor:
        """The value [O, I], copied to where transformers' module reads it."""
        return vars(self)["view"](value.device, value.dtype).copy_(value)


class Experts(nn.Module):
    """fused: transformers' module, on the meta device. Children "0", "1", ...: gate_proj, up_proj, down_proj each."""

    def __init__(self, fused: nn.Module):
        super().__init__()
        fused.eval()
        vars(self)["fused"] = fused  # no child: its tensors are not parameters of the model any more
        self.layout = transformers_api.expert_layout(fused)
        for number in range(self.layout.experts):
            expert = nn.Module()
            for part, (outputs, inputs) in self.layout.parts.items():
                expert.add_module(part, ExpertLinear(outputs, inputs, self._view(number, part), self._release))
            self.add_module(str(number), expert)

    def _view(self, number: int, part: str) -> Callable:
        def view(device: torch.device, dtype: torch.dtype) -> Tensor:
            name, parameters = self.layout.tensor_of[part], vars(self)["fused"]._parameters
            if (whole := parameters[name]).is_meta or whole.device != device or whole.dtype != dtype:
                empty = torch.empty(whole.shape, device=device, dtype=dtype)
                parameters[name] = whole = nn.Parameter(empty, requires_grad=False)
            return self.layout.view(whole.data, number, part)

        return view

    def _release(self) -> None:
        parameters = vars(self)["fused"]._parameters
        for name in set(self.layout.tensor_of.values()):
            if not parameters[name].is_meta:
                parameters[name] = nn.Parameter(parameters[name].to("meta"), requires_grad=False)

    def _whole(self) -> bool:
        """Whether every linear is as it was made."""
        linears = (module for expert in self.children() for module in expert.children())
        return all(type(linear) is ExpertLinear and "forward" not in vars(linear) for linear in linears)

    def forward(self, *args, **kwargs) -> Tensor:
        """What transformers' module answers to the same call: hidden states [..., tokens, width] of the same shape and
        dtype as those it is given.
        """
        fused = vars(self)["fused"]
        if self._whole():
            return fused(*args, **kwargs)
        hidden, index, weights = transformers_api.routing(fused, args, kwargs)
        answer = torch.zeros_like(hidden)
        for number in index.unique().tolist():
            tokens, rank = torch.where(index == number)
            gate, up, down = (self.get_submodule(f"{number}.{part}") for part in self.layout.parts)
            x = hidden[tokens]
            y = down(fused.act_fn(gate(x)) * up(x)) * weights[tokens, rank, None]
            answer.index_add_(0, tokens, y.to(answer.dtype))
        return answer.reshape(args[0].shape if args else kwargs["hidden_states"].shape)


def unfuse(model: nn.Module) -> None:
    """Put Experts in the place of every module of `model` that holds experts in two tensors."""
    for name, module in list(model.named_modules()):
        if transformers_api.holds_experts(module):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Experts(module))
