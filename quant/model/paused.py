"""The model's own forward, paused at every block of a tower.

No mask, position or splice of image features is written here again. For every sample the model's own forward runs in a
coroutine (greenlet); each block's `forward` is replaced by one that hands its arguments over and waits for the block's
output. All samples stand at block j; the caller runs block j on them, however it likes and as often as it likes; given
the outputs they walk on, through whatever the model does between blocks, and stand at block j + 1:

    with Walk(model, tower, samples, earlier) as walk:
        for index in range(tower.used(config)):
            outputs = {key: call(model.block(tower, index)) for key, call in walk.calls.items()}
            walk.advance(outputs)
        walk.passed        what the next tower needs of this one

Nothing is recorded, replayed or guessed, so features that the model adds between blocks, edits in place and several
images come out as in the whole model, bit for bit. A sample may enter a tower several times in one forward (image and
video): each time is a pass with a forward of its own, so that all passes stand at one block at one time; the forward
for one pass lets the others through unchanged. Towers that the data passed before are played: their blocks answer with
what is kept of them, their last output and their taps (family.Tower.taps).

Every forward works on a twin of the model: its own module objects, the same parameters. What a forward leaves on a
module, such as a patched `forward` or a position offset, does not reach the others.

Why coroutines and not threads: one sample's code runs at a time in the caller's thread, so there is nothing to lock,
no second set of OpenMP threads, no device to choose for a thread, and nothing that stays behind on an error.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..base import transformers_api
from ..base.errors import QuantError
from ..families.family import Tower
from .streamed import StreamedModel
from .twin import twin

Key = tuple[int, int]
"""(sample number, pass): which forward, and which of its entries into the tower."""


@dataclass
class Call:
    """How the model calls a block. The hidden state, [..., tokens, width], is its first argument."""

    args: tuple
    kwargs: dict

    @property
    def hidden(self) -> Tensor:
        """What the block gets."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def on(self, hidden: Tensor) -> "Call":
        """The same call on another hidden state."""
        if self.args:
            return Call((hidden, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, "hidden_states": hidden})

    def __call__(self, block: nn.Module):
        """Run the block: its output as the model gets it, a tensor or a tuple that begins with one."""
        return block(*self.args, **self.kwargs)


def first(output) -> Tensor:
    """The hidden state, [..., tokens, width], in a block's output; transformers 4.57 returns some in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _things(output) -> int:
    """How long a tuple a block's output is, which the model may take apart; 0 for a tensor."""
    return len(output) if isinstance(output, tuple) else 0


@dataclass
class Passed:
    """What one pass through a tower leaves: the last used block's output, and the outputs of its taps by block."""

    output: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Kept:
    """Where a pass is taken up again: what block `start` got, and the outputs of the taps before it."""

    hidden: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)


class Walk:
    """Samples on their way through one tower. calls: how the model calls the block that they stand at, by Key. Hidden
    states, the outputs of blocks among them, are [..., tokens, width] in the model's dtype.

    samples: sample number -> the model's keyword arguments. earlier: tower name -> what its passes left, of the towers
    that come before. start, kept: the block to begin at and what is kept of every pass, to go on with an earlier walk.

    Use as a context manager: what is left of the forwards ends with the with block, whatever ends that. Raises
    QuantError when the model enters a tower more or less often than the family says.
    """

    def __init__(
        self,
        model: StreamedModel,
        tower: Tower,
        samples: dict[int, dict[str, Tensor]],
        earlier: dict[str, dict[Key, Passed]],
        start: int = 0,
        kept: dict[Key, Kept] | None = None,
    ):
        self.model, self.tower, self.earlier, self.start = model, tower, earlier, start
        self.used = tower.used(model.checkpoint.config)
        self.tapped = set(tower.taps(model.checkpoint.config))
        self.index = start
        self.calls: dict[Key, Call] = {}
        self.passed: dict[Key, Passed] = {}
        self._taps: dict[Key, dict[int, Tensor]] = {key: dict(place.taps) for key, place in (kept or {}).items()}
        self._outputs: dict[Key, Tensor] = {}
        self._samples, self._kept = samples, kept
        self._forwards: dict[Key, greenlet] = {}
        self._uses_outside = False

    def __enter__(self) -> "Walk":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def enter(self) -> None:
        """Bring every pass to block `start`, which must be loaded."""
        keys = [(number, turn) for number, inputs in self._samples.items() for turn in range(self.tower.passes(inputs))]
        if not keys:
            return
        keys.sort(key=lambda key: key[1])  # first passes first
        ids = [self._samples[number]["input_ids"].reshape(-1).cpu() for number, _ in keys]
        self.model.load_outside(ids=torch.cat(ids).unique())
        self._uses_outside = True
        for key in keys:
            self._enter(key)
        if not self.tapped:  # nothing outside the blocks is needed before the tower's end
            self._clear_outside()

    def _clear_outside(self) -> None:
        if self._uses_outside:
            self._uses_outside = False
            self.model.clear_outside()

    def _enter(self, key: Key) -> None:
        if key[1] and self.tower.name not in self.model.answers_tuple:
            # Another pass is let through before any block has run: find out in what form blocks answer.
            call = next(iter(self.calls.values()))
            output = call.on(call.hidden.clone())(self.model.block(self.tower, self.start))
            self.model.answers_tuple[self.tower.name] = _things(output)
        forward = Forward(self.model, self.earlier, self, key)
        self._forwards[key] = greenlet(forward.run)
        call = self._stands(key, self._forwards[key].switch(self._samples[key[0]]))
        if self._kept is not None:
            self.calls[key] = call.on(self._kept[key].hidden)

    def _stands(self, key: Key, handed: object) -> Call:
        """handed: what a forward gave when it stopped, a Call, or the model's output where it came to its end."""
        if not isinstance(handed, Call):
            raise QuantError(self.missed(key))
        self.calls[key] = handed
        return handed

    def missed(self, key: Key) -> str:
        """What to say of a forward that does not reach the block it should stand at."""
        inputs = self._samples[key[0]]
        return (
            f"{self.model.family.name}: the forward of sample {key[0]} does not reach block {self.index} of the"
            f" {self.tower.name} tower in pass {key[1] + 1} of {self.tower.passes(inputs)}; it has the inputs"
            f" {', '.join(inputs)}"
        )

    def advance(self, outputs: dict[Key, Tensor | tuple]) -> None:
        """Hand every pass the output of the block it stands at, and bring it to the next block, or behind the last.

        The output of the block before is let go, taps but: a model that collects all hidden states, of which one is
        read, would keep every one of them in memory.
        """
        for key, output in outputs.items():
            self.model.answers_tuple[self.tower.name] = _things(output)
            if self.index in self.tapped:
                # Cloned: what follows in the model may write into what it is given.
                self._taps.setdefault(key, {})[self.index] = first(output).clone()
        if self.index + 1 == self.used:
            for key, output in outputs.items():
                self.passed[key] = Passed(first(output), self._taps.get(key, {}))
            self.close()
            return
        self.index += 1
        for key, output in outputs.items():
            before = self._outputs.pop(key, None)
            self._stands(key, self._forwards[key].switch(output))
            if before is not None and not _share_memory(before, first(output), self.calls[key].hidden):
                before.data = before.new_empty(0)
            self._outputs[key] = first(output)

    def state(self) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
        """What a later walk needs to begin here, beside what earlier calls gave: what the blocks that are called get,
        or behind the last one the outputs; and the output of the block before, if it is a tap.
        """
        hidden = {key: call.hidden for key, call in self.calls.items()}
        hidden |= {key: passed.output for key, passed in self.passed.items()}
        before = self.used - 1 if self.passed else self.index - 1
        return hidden, {key: taps[before] for key, taps in self._taps.items() if before in taps}

    def taps(self, key: Key) -> dict[int, Tensor]:
        """Block -> output, of the taps that this pass has gone through so far."""
        return self._taps.get(key, {})

    def close(self) -> None:
        """End all forwards where they stand."""
        forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            if not forward.dead:
                forward.throw()
        self.calls, self._outputs = {}, {}
        self._clear_outside()


class Forward:
    """One forward of the model: a pass through the tower of `walk` that pauses at its blocks, or, without a walk, a
    forward in which every tower is played.
    """

    def __init__(
        self, model: StreamedModel, earlier: dict[str, dict[Key, Passed]], walk: Walk | None = None, key: Key = (0, 0)
    ):
        self.model, self.earlier, self.walk, self.key = model, earlier, walk, key
        self.entered: Counter[str] = Counter()
        self.parent: greenlet = None

    def run(self, inputs: dict[str, Tensor]):
        """The model's output for `inputs`, its keyword arguments, batch [1, ...]."""
        self.parent = getcurrent().parent if self.walk else None
        return twin(self.model, self._block_forward)(**self.model.on_device(inputs), use_cache=False)

    def _block_forward(self, tower: Tower, index: int):
        return lambda *args, **kwargs: self._answer(tower, index, Call(args, kwargs))

    def _answer(self, tower: Tower, index: int, call: Call):
        """What stands in the place of a block's output."""
        if index == 0:
            self.entered[tower.name] += 1
        turn = self.entered[tower.name] - 1
        if self.walk and tower is self.walk.tower and turn == self.key[1]:
            if self.walk.start <= index < self.walk.used:
                return self.parent.switch(call)
            kept = self.walk.taps(self.key)
            return self._in_form(tower, kept[index].clone() if index in kept else call.hidden)
        if self.walk and tower is self.walk.tower:
            return self._in_form(tower, call.hidden)  # another pass
        if self.walk and tower.name not in self.earlier:  # a later tower: this forward's own pass was never made
            raise QuantError(self.walk.missed(self.key))
        passes = self.earlier.get(tower.name, {})
        passed = passes.get((self.key[0], turn))
        if passed is None:
            raise QuantError(
                f"{self.model.family.name}: sample {self.key[0]} enters the {tower.name} tower in pass {turn + 1},"
                f" {sum(number == self.key[0] for number, _ in passes)} were announced by its inputs"
            )
        if index == tower.used(self.model.checkpoint.config) - 1:
            return self._in_form(tower, passed.output.clone())  # a model may write into what it is given
        return self._in_form(tower, passed.taps[index].clone() if index in passed.taps else call.hidden)

    def _in_form(self, tower: Tower, hidden: Tensor):
        things = self.model.answers_tuple[tower.name]
        return (hidden, *[None] * (things - 1)) if things else hidden


def logits_at(
    model: StreamedModel,
    number: int,
    inputs: dict[str, Tensor],
    passed: dict[str, dict[Key, Passed]],
    positions: Tensor,
) -> Tensor:
    """[1, P, vocabulary] of sample `number` at the positions, int64 [P] ascending, from what its passes through every
    tower left, by tower name. Call inside model.outside().
    """

    def forward(given: dict[str, Tensor]) -> Tensor:
        return Forward(model, passed, None, (number, 0)).run(given).logits

    return transformers_api.logits_at(forward, inputs, positions)


def _share_memory(tensor: Tensor, *others: Tensor) -> bool:
    return any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)
