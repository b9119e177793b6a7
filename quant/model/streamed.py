"""The model without its weights: built on the meta device, run block after block, driven by its own forward.

No mask, position or splice of image features is written here again. For each sample the model's own forward runs once
per tower with stubs in the place of that tower's blocks; a stub keeps what the block was called with and passes its
input on. From then on the block runs alone, on its predecessor's output and the arguments that were kept for it. That
is exact wherever the model hands one block's output unchanged to the next, and the stubs check that it does. Outputs
are bit-equal to the whole model's forward.

In memory at a time: what stands outside the blocks (while a tower is entered), one block, and the samples' hidden
states.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base import transformers_api
from ..base.errors import QuantError, UsageError
from ..families.family import Family, Tower
from ..files.checkpoint import Checkpoint
from ..files.safetensors_io import read_rows
from .empty import empty_model


class _Stop(Exception):
    """Ends the model's forward where nothing further is wanted."""


class _Changed(Exception):
    """Block number args[0] does not get what its predecessor's stub answered."""


@dataclass
class Call:
    """How the model called a block, but for the hidden state, which is the first argument."""

    args: tuple
    kwargs: dict

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run the block. hidden [..., tokens, width]; returns the same shape."""
        return first(self.output(block, hidden))

    def output(self, block: nn.Module, hidden: Tensor):
        """What the block answers, a tensor or a tuple."""
        return block(hidden, *self.args, **self.kwargs)


@dataclass
class Feed:
    """One sample on its way through a tower: its hidden state and the Call of every block."""

    hidden: Tensor
    calls: list[Call]


def first(output) -> Tensor:
    """A block's hidden state; transformers 4.57 returns some of them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Skeleton:
    """The model of `checkpoint`, its weights absent until they are loaded.

    dtype: what everything is computed in. Raises QuantError for a tensor that is missing or of another shape than
    config.json says.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
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
        self.names = self._map_names()
        self._blocks: dict[str, nn.Module] = {}
        self._returns_tuple: dict[str, bool] = {}

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
        missing = [name for name, _ in self.model.named_parameters() if name not in set(names.values()) | tied]
        if missing:
            raise QuantError(
                f"{self.checkpoint.dir}: {len(missing)} tensors are missing, {self._hub_name(missing[0])} among them;"
                " fetch the model again"
            )
        return names

    def _hub_name(self, module_name: str) -> str:
        matches = ((old, new) for old, new in self.family.renames if module_name.startswith(new))
        return next((old + module_name[len(new) :] for old, new in matches), module_name)

    # -- weights in and out ------------------------------------------------------------------------------------------------------------

    def set(self, tensor: str, value: Tensor) -> None:
        """Put a value in the place of the hub tensor `tensor`, in the compute dtype and on the device."""
        owner, _, leaf = self.names[tensor].rpartition(".")
        module = self.model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = value.to(self.device)
            return
        module._parameters[leaf] = nn.Parameter(value.to(self.device, self.dtype), requires_grad=False)

    def clear(self, tensors) -> None:
        """Free the memory of these hub tensors; their places remain."""
        for tensor in tensors:
            owner, _, leaf = self.names[tensor].rpartition(".")
            module = self.model.get_submodule(owner)
            if leaf in module._parameters:
                module._parameters[leaf] = nn.Parameter(module._parameters[leaf].to("meta"), requires_grad=False)

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
        return self.model.get_submodule(self.names[f"{name}.weight"].rpartition(".")[0])

    @contextmanager
    def outside(self, *, head: bool = False, ids: Tensor | None = None) -> Iterator[None]:
        """What stands outside the blocks, in memory for the time of the with block; the head only when asked for. ids:
        the tokens whose embeddings are needed, None for all; of a large vocabulary they are few, and the rest takes
        neither time nor memory.
        """
        tensors = [
            name
            for name in self.names
            if self.family.block_of(name) is None and (head or not self.names[name].startswith(f"{self.head}."))
        ]
        embedding = self.model.get_input_embeddings()
        for tensor in tensors:
            if ids is not None and self.model.get_submodule(self.names[tensor].rpartition(".")[0]) is embedding:
                self.set(tensor, read_rows(self.checkpoint.tensors[tensor], ids))
            else:
                self.set(tensor, self.checkpoint.load(tensor))
        if head:
            self.tie_head()
        try:
            yield
        finally:
            self.clear(tensors)
            if head:
                self.tie_head()  # else a tied head would keep the embedding in memory

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

    # -- entering a tower --------------------------------------------------------------------------------------------------------------

    def enter(self, tower: Tower, samples: list[dict[str, Tensor]], earlier: dict[str, list[Tensor]]) -> list[Feed]:
        """The samples at the entrance of `tower`. Block 0 must be loaded.

        earlier: tower name -> the samples' outputs, for the towers that the data passed before.
        """
        feeds = []
        if not samples:
            return feeds
        with self.outside(ids=torch.cat([inputs["input_ids"].reshape(-1).cpu() for inputs in samples]).unique()):
            for number, inputs in enumerate(samples):
                outputs = {name: hidden[number] for name, hidden in earlier.items()}
                feeds.append(self._record(tower, inputs, outputs))
        return feeds

    def outputs(self, inputs: dict[str, Tensor], towers: dict[str, Tensor]) -> Tensor:
        """Logits [1, tokens, vocabulary] from the output of every tower. Call inside outside(head=True)."""
        with self._stubs({tower.name: self._play(tower, towers[tower.name]) for tower in self.family.towers}):
            return self.model(**self._on_device(inputs), use_cache=False).logits

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in inputs.items()}

    def _run(self, inputs: dict[str, Tensor], stubs: dict[str, Callable]) -> None:
        with self._stubs(stubs):
            try:
                self.model(**self._on_device(inputs), use_cache=False)
            except _Stop:
                return
        raise UsageError("the model's forward never reached the blocks: does the sample hold an image?")

    def _record(self, tower: Tower, inputs: dict[str, Tensor], earlier: dict[str, Tensor]) -> Feed:
        """Stubs must answer as the blocks do, with a tensor or a tuple: the wrong one the model does not hand on
        unchanged.
        """
        known = tower.name in self._returns_tuple
        for guess in [self._returns_tuple[tower.name]] if known else [False, True]:
            self._returns_tuple[tower.name] = guess
            try:
                feed = self._record_calls(tower, inputs, earlier)
                break
            except _Changed as err:
                index = err.args[0]
        else:
            raise QuantError(
                f"{self.family.name}: block {index} of the {tower.name} tower does not get its predecessor's output"
                " unchanged; not supported"
            )
        if not known and len(feed.calls) == 1:  # nobody took the answer: the only block is run
            self._returns_tuple[tower.name] = isinstance(feed.calls[0].output(self.block(tower, 0), feed.hidden), tuple)
        return feed

    def _record_calls(self, tower: Tower, inputs: dict[str, Tensor], earlier: dict[str, Tensor]) -> Feed:
        used = tower.used(self.checkpoint.config)
        entrance, calls = [], []

        def stub(index: int, hidden: Tensor, args: tuple, kwargs: dict):
            if not entrance:
                entrance.append(hidden)
            elif hidden is not entrance[0]:
                raise _Changed(index)
            calls.append(Call(args, kwargs))
            if index == used - 1:
                raise _Stop
            return self._answer(tower, hidden)

        players = {
            tower.name: self._play(tower, earlier[tower.name]) for tower in self.family.towers if tower.name in earlier
        }
        self._run(inputs, {tower.name: stub, **players})
        return Feed(entrance[0], calls)

    def _play(self, tower: Tower, output: Tensor) -> Callable:
        """Stubs that stand for a tower already run: its last used block answers with the output, the others pass on."""
        last = tower.used(self.checkpoint.config) - 1

        def stub(index: int, hidden: Tensor, args: tuple, kwargs: dict):
            # Cloned: a model may write into what it is given.
            return self._answer(tower, output.clone() if index == last else hidden)

        return stub

    def _answer(self, tower: Tower, hidden: Tensor):
        return (hidden,) if self._returns_tuple[tower.name] else hidden

    @contextmanager
    def _stubs(self, stubs: dict[str, Callable]) -> Iterator[None]:
        """Put stub(index, hidden, args, kwargs) in the place of every block's forward, by tower name."""
        blocks = []
        try:
            for tower in self.family.towers:
                if tower.name not in stubs:
                    continue
                for index in range(tower.blocks(self.checkpoint.config)):
                    block = self.block(tower, index)
                    block.forward = _as_forward(stubs[tower.name], index)
                    blocks.append(block)
            yield
        finally:
            for block in blocks:
                del block.forward


def _as_forward(stub: Callable, index: int) -> Callable:
    def forward(*args, **kwargs):
        if args:
            return stub(index, args[0], args[1:], kwargs)
        return stub(index, kwargs.pop("hidden_states"), (), kwargs)

    return forward
