"""The model without its weights: built on the meta device, filled and emptied tensor by tensor.

In memory at a time: what stands outside the blocks (while it can be reached), one block, and the samples' hidden
states. paused.py runs it block after block.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ..base import transformers_api
from ..base.errors import QuantError
from ..families.family import Family, Tower
from ..files.checkpoint import Source
from ..files.safetensors_io import read_rows
from .empty import empty_model
from .experts import ExpertLinear


class StreamedModel:
    """The model of `checkpoint`, its weights absent until they are loaded.

    dtype: what everything is computed in. Raises QuantError for a tensor that is missing or of another shape than
    config.json says.
    """

    def __init__(
        self,
        checkpoint: Source,
        family: Family,
        dtype: torch.dtype,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ):
        self.checkpoint, self.family, self.dtype, self.device = checkpoint, family, dtype, torch.device(device)
        self.model = empty_model(checkpoint, family, dtype, trust_remote_code)
        self.head = transformers_api.head_name(self.model)
        for module in self.model.modules():  # the parameters are on meta and stay there; the buffers are real
            module._buffers.update(
                {name: buffer.to(self.device) for name, buffer in module._buffers.items() if buffer is not None}
            )
        family.check_depths(checkpoint.config, checkpoint.tensors, checkpoint.dir)
        self.names = self._map_names()
        self._blocks: dict[str, nn.Module] = {}
        self._outside: list[str] = []
        self._users = 0  # of what stands outside the blocks
        self.answers_tuple: dict[str, int] = {}
        """Tower name -> how long a tuple its blocks return, 0 for a tensor; known once one of them has run."""

    def _map_names(self) -> dict[str, str]:
        """Hub tensor name -> module name, one to one, of every tensor that the installed transformers' model has a
        place for.
        """
        places = {**dict(self.model.named_parameters(remove_duplicate=False)), **dict(self.model.named_buffers())}
        names = {}
        for tensor, info in self.checkpoint.tensors.items():
            candidates = (new + tensor[len(old) :] for old, new in self.family.renames if tensor.startswith(old))
            place = next((name for name in candidates if name in places), None)
            if place is None:
                continue  # of an older revision, such as rotary inv_freq: carried over, not used
            if tuple(places[place].shape) != info.shape:
                raise QuantError(
                    f"{info.file}: {tensor} has shape {list(info.shape)}, config.json makes it"
                    f" {list(places[place].shape)}; they are of different models"
                )
            names[tensor] = place
        tied = {
            name
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if name.startswith(f"{self.head}.")
        } - set(names.values())
        placed = set(names.values()) | tied
        missing = [name for name, _ in self.model.named_parameters() if name not in placed]
        if missing:
            raise QuantError(
                f"{self.checkpoint.dir}: {len(missing)} tensors are missing, {self._hub_name(missing[0])} among them;"
                " fetch the model again"
            )
        return names

    def _hub_name(self, module_name: str) -> str:
        matches = ((old, new) for old, new in self.family.renames if module_name.startswith(new))
        return next((old + module_name[len(new) :] for old, new in matches), module_name)

    # -- weights in and out

    def set(self, tensor: str, value: Tensor) -> None:
        """Put a value in the place of the hub tensor `tensor`, whose shape [...] it has, in the compute dtype and on
        the device; a buffer keeps its own dtype.
        """
        owner, _, leaf = self.names[tensor].rpartition(".")
        module = self.model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = value.to(self.device)
            return
        value = value.to(self.device, self.dtype)
        if isinstance(module, ExpertLinear):
            value = module.place(value)
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def set_all(self, tensors: dict[str, Tensor]) -> None:
        """The same for several: hub name -> value [...]. Of experts, which have a place of their own, no second copy is
        kept: what is in `tensors` becomes that place.
        """
        for name, tensor in tensors.items():
            self.set(name, tensor)
            if isinstance(module := self._owner(name), ExpertLinear):
                placed = module.weight.data
                if (placed.device, placed.dtype) == (tensor.device, tensor.dtype):
                    tensors[name] = placed

    def clear(self, tensors: Iterable[str]) -> None:
        """Free the memory of these hub tensors; their places remain."""
        for tensor in tensors:
            owner, _, leaf = self.names[tensor].rpartition(".")
            module = self.model.get_submodule(owner)
            if (parameter := module._parameters.get(leaf)) is not None:
                module._parameters[leaf] = nn.Parameter(parameter.to("meta"), requires_grad=False)
            if isinstance(module, ExpertLinear):
                vars(module)["release"]()

    def block_tensors(self, tower: Tower, index: int) -> list[str]:
        """The hub tensors of a block that the model has a place for."""
        prefix = tower.block(index)
        return [tensor for tensor in self.names if tensor.startswith(prefix)]

    def block(self, tower: Tower, index: int) -> nn.Module:
        """The block's module."""
        prefix = tower.block(index)
        if prefix not in self._blocks:
            tensor = self.block_tensors(tower, index)[0]
            inner = tensor.removeprefix(prefix)
            self._blocks[prefix] = self.model.get_submodule(self.names[tensor].removesuffix(f".{inner}"))
        return self._blocks[prefix]

    def linear(self, name: str) -> nn.Linear:
        """The module of the linear with hub name `name`."""
        return cast(nn.Linear, self._owner(f"{name}.weight"))

    def weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The weight, [O, I] or [C], and the bias, [O] or [C], if it has one, of the linear or norm with hub name
        `name`, which must be loaded; in the compute dtype, on the device.
        """
        parameters = self._owner(f"{name}.weight")._parameters
        weight, bias = parameters["weight"], parameters.get("bias")
        assert weight is not None
        return weight.data, None if bias is None else bias.data

    def _owner(self, tensor: str) -> nn.Module:
        """The module whose parameter or buffer the hub tensor is."""
        return self.model.get_submodule(self.names[tensor].rpartition(".")[0])

    def load_outside(self, *, head: bool = False, ids: Tensor | None = None) -> None:
        """Read what stands outside the blocks; the head only when asked for. ids: int64 [N], the tokens whose
        embeddings are needed, None for all; of a large vocabulary they are few, and the rest takes neither time nor
        memory. Each call wants one of clear_outside; the second and later ones at a time must be for the same tokens.
        """
        self._users += 1
        if self._users > 1:
            return
        tensors = [name for name in self.names if self.family.block_of(name) is None]
        embedding, skipped = self.model.get_input_embeddings(), None if head else self.model.get_output_embeddings()
        for tensor in tensors:
            owner = self._owner(tensor)
            if owner is skipped:
                continue
            self._outside.append(tensor)
            if ids is not None and owner is embedding and tensor == self.family.embedding_tensor:
                self.set(tensor, read_rows(self.checkpoint.tensors[tensor], ids))
            else:
                self.set(tensor, self.checkpoint.load(tensor))
        if head:
            self.tie_head()

    def clear_outside(self) -> None:
        """Free what load_outside read, when nobody else uses it."""
        self._users -= 1
        if self._users:
            return
        outside, self._outside = self._outside, []
        self.clear(outside)
        if outside:
            self.tie_head()  # else a tied head would keep the embedding in memory

    @contextmanager
    def outside(self) -> Iterator[None]:
        """All that stands outside the blocks, the head included, in memory for the time of the with block."""
        try:
            self.load_outside(head=True)
            yield
        finally:
            self.clear_outside()

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] behind the last language block -> [..., vocabulary]; what comes after the blocks takes every
        position alone. Call inside outside().
        """
        return self.model.get_output_embeddings()(self._owner(f"{self.family.final_norm}.weight")(hidden))

    def on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A sample's inputs, [1, ...], where the model computes."""
        return {key: value.to(self.device) for key, value in inputs.items()}

    def tie_head(self) -> None:
        """A checkpoint without a head shares the embedding's weight."""
        if f"{self.head}.weight" not in self.names.values():
            transformers_api.tie_head(self.model)

    @contextmanager
    def replaced(self, linears: list) -> Iterator[None]:
        """Each of `linears`, callables with the hub name of a linear as .name, computes in that linear's place for the
        time of the with block.
        """
        modules = [self.linear(linear.name) for linear in linears]
        for module, linear in zip(modules, linears):
            vars(module)["forward"] = linear  # setattr would take one that is a module for a child
        try:
            yield
        finally:
            for module in modules:
                del module.forward
