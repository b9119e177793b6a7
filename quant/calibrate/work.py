"""What an unfinished job keeps beside its output, so that hours are not lost: the directory .OUT.quant-work

    lock      held (flock) by the one job that works here; a kill releases it
    state     JSON: what the job depends on (identity) and how far it came
    text      JSON: what the model wrote for its own calibration, and what that depends on
    export/   the weight files, laid out in full and filled block after block
    hidden/   TOWER-BLOCK.RANK.safetensors: by SAMPLE.PASS, what the block after it got, or the tower's output; where it
              does not lie in memory axis after axis, SAMPLE.PASS.AXES, by the axes as they lie there
              TOWER-BLOCK.RANK.tap.safetensors: the block's own output, where later code reads it (Tower.taps)

A block is committed in this order: its tensors, synced; its hidden states, synced and renamed; the state, synced and
renamed; and only then is removed what the new state does not need. So at any moment the state names what is on the disk
and complete, and a job that is killed loses the block in flight. What a resumed job computes from is bit for bit what
the killed one had: so is its result.

Left out: resuming on another kind of device or with another torch, whose arithmetic may differ in the last bit. It is
refused.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.config import QuantConfig
from ..base.errors import QuantError, UsageError
from ..base.output import replace_file
from ..files.config_json import read_json
from ..files.safetensors_io import SafetensorsWriter, read_header, read_tensor
from ..model.paused import Kept, Key


@dataclass(frozen=True)
class State:
    """identity: name -> value of all that the bytes depend on; done: tower -> blocks committed; outside: whether what
    stands outside the blocks is written, too; blocks: their entries of the run's log; seconds: computed so far;
    answers_tuple: tower -> how long a tuple its blocks return (StreamedModel.answers_tuple).
    """

    identity: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    outside: bool = False
    blocks: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    answers_tuple: dict[str, int] = field(default_factory=dict)


class Work:
    """A job's directory. keeps: whether blocks are committed to it; a job without an output of its own has nothing to
    come back to.
    """

    def __init__(self, directory: Path, keeps: bool = False):
        self.dir, self.keeps, self.export, self._hidden = directory, keeps, directory / "export", directory / "hidden"
        self._text = directory / "text"
        self.state, self.stop = State(), False
        if keeps and (directory / "state").exists():
            self.state = _read_state(directory / "state")

    @property
    def committed(self) -> bool:
        """Whether at least one block is on the disk and can be gone on from."""
        return bool(self.state.done)

    @property
    def worth_keeping(self) -> bool:
        """Whether a job that fails leaves something for the next."""
        return self.committed or self.has_text

    def begin(self, identity: dict[str, str]) -> None:
        """Raises UsageError when what was committed belongs to another recipe, source or calibration set."""
        if not self.committed:
            self.state = State(identity)
            return
        if change := first_change(self.state.identity, identity):
            raise UsageError(f"--resume: {change}; go back to the first, or remove {self.dir} to start anew")

    def keep_text(self, made_of: dict[str, str], text: dict) -> None:
        """What the model wrote, and what that depends on, before the first block."""
        if self.keeps:
            replace_file(self._text, json.dumps({"made_of": made_of, "text": text}).encode())

    def kept_text(self, made_of: dict[str, str]) -> dict | None:
        """What keep_text got when it depends on the same; None where there is none. Raises UsageError when blocks were
        committed with another.
        """
        if not self.has_text:
            return None
        kept = read_json(self._text)
        change = first_change(kept.get("made_of", {}), made_of)
        if change and self.committed:
            raise UsageError(f"--resume: {change}; go back to the first, or remove {self.dir} to start anew")
        return None if change else kept["text"]

    @property
    def has_text(self) -> bool:
        """Whether what the model wrote is on the disk."""
        return self.keeps and self._text.is_file()

    def keep_hidden(
        self, tower: str, index: int, rank: int, hidden: dict[Key, Tensor], taps: dict[Key, Tensor]
    ) -> None:
        """Write the hidden states, [..., tokens, width], of this rank's passes. hidden: what the block after `index`
        got, or the tower's output; taps: the output of block `index` itself, where it is one of the tower's taps, else
        nothing.
        """
        if self.keeps:
            _save(self._hidden / f"{tower}-{index}.{rank}.safetensors", hidden)
            if taps:
                _save(self._hidden / f"{tower}-{index}.{rank}.tap.safetensors", taps)

    def commit_block(
        self, tower: str, index: int, entry: dict, seconds: float, answers_tuple: dict[str, int], writes: bool = True
    ) -> None:
        """Call when the block's tensors and every rank's hidden states are on the disk. writes: the other ranks only
        remember it.
        """
        done, blocks = {**self.state.done, tower: index + 1}, [*self.state.blocks, entry]
        state = replace(self.state, done=done, blocks=blocks, seconds=seconds, answers_tuple=dict(answers_tuple))
        if not writes:
            self.state = state
            return
        self._commit(state)
        for file in self._files(tower, index - 1):
            with suppress(OSError):  # what is left behind costs space, nothing else; it goes with the directory
                file.unlink()

    def commit_outside(self, seconds: float) -> None:
        """Call when all tensors are on the disk."""
        self._commit(replace(self.state, outside=True, seconds=seconds))
        for file in self._hidden.glob("*"):
            with suppress(OSError):
                file.unlink()

    def kept(self, tower: str, keys: Iterable[Key], taps: Iterable[int]) -> dict[Key, Kept]:
        """What is kept of these passes behind the tower's last committed block, whichever rank had them. taps: the
        tower's. Raises QuantError when a file is missing, or lacks one of them.
        """
        done = self.state.done[tower]
        hidden = self._read(self._files(tower, done - 1), keys, f"behind block {done - 1} of the {tower} tower")
        kept = {key: Kept(tensor) for key, tensor in hidden.items()}
        for tap in (tap for tap in taps if tap < done):
            what = f"of the output of block {tap} of the {tower} tower"
            for key, tensor in self._read(self._files(tower, tap, ".tap"), keys, what).items():
                kept[key].taps[tap] = tensor
        return kept

    def _files(self, tower: str, index: int, what: str = "") -> list[Path]:
        found = sorted(self._hidden.glob(f"{tower}-{index}.*{what}.safetensors"))
        return [file for file in found if file.name.endswith(".tap.safetensors") == bool(what)]

    def _read(self, files: list[Path], keys: Iterable[Key], what: str) -> dict[Key, Tensor]:
        infos = {name: info for file in files for name, info in read_header(file).items()}
        names = {tuple(map(int, name.split(".")[:2])): name for name in infos}
        tensors = {}
        for key in keys:
            if key not in names:
                raise QuantError(
                    f"{self._hidden}: what is kept {what} lacks sample {key[0]}, pass {key[1] + 1} ({len(infos)} are"
                    f" there); without it the job cannot go on: remove {self.dir} to start anew"
                )
            tensor, axes = read_tensor(infos[names[key]]), names[key].split(".")[2:]
            places = [axes[0].index(str(axis)) for axis in range(tensor.dim())] if axes else range(tensor.dim())
            tensors[key] = tensor.permute(*places)
        return tensors

    def _commit(self, state: State) -> None:
        if self.keeps:
            replace_file(self.dir / "state", json.dumps(asdict(state)).encode())
        self.state = state

    def progress(self, blocks: Mapping[Any, int]) -> str:
        """ "2 of 32 vision and 0 of 28 language"; blocks: of each tower, by name."""
        return " and ".join(f"{self.state.done.get(name, 0)} of {count} {name}" for name, count in blocks.items())

    def remove(self) -> None:
        """The state goes first: without it nothing else counts."""
        if self.dir.exists():
            with suppress(OSError):
                (self.dir / "state").unlink(missing_ok=True)
            shutil.rmtree(self.dir, ignore_errors=True)
        self.state = State()

    def __str__(self) -> str:
        blocks = sum(self.state.done.values())
        what = f"{blocks} blocks are" if blocks else "the model's own text is"
        return f"{what} kept in {self.dir}: the same command with --resume goes on from there"


def first_change(before: dict[str, str], identity: dict[str, str]) -> str | None:
    """The first thing that is not as it was, in words with both values, choices by their flags before what follows
    from them; None where all is.
    """
    for name in sorted({*identity, *before}, key=lambda name: (name not in QuantConfig.model_fields, name)):
        then, now = before.get(name, "not there"), identity.get(name, "not there")
        if then == now:
            continue
        if name in QuantConfig.model_fields:
            return f"--{name} was {_said(then)} and is {_said(now)}"
        for key, one, two in _inside(then, now):
            return f"{name}'s {key} was {one} and is {two}"
        return f"{name} was {then} and is {now}"
    return None


def _said(value: str) -> str:
    return "left out" if value == "null" else value


def _inside(then: str, now: str) -> Iterator[tuple[str, object, object]]:
    """Where both are JSON objects: the keys that differ, with their values."""
    try:
        one, two = json.loads(then), json.loads(now)
    except ValueError:
        return
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            if one.get(key) != two.get(key):
                yield key, one.get(key), two.get(key)


def work_directory(output: Path) -> Path:
    """Where the job that writes `output` keeps its work: beside it, on the same file system."""
    return output.parent / f".{output.name}.quant-work"


def _save(file: Path, tensors: dict[Key, Tensor]) -> None:
    """By the axes as they lie in memory: of the same numbers, strided otherwise, a product may differ in a last bit."""
    partial, named = file.with_suffix(".tmp"), {}
    for (number, turn), tensor in tensors.items():
        axes = [axis for _, axis in sorted((-stride, axis) for axis, stride in enumerate(tensor.stride()))]
        turned = tensor.permute(axes)
        if tensor.is_contiguous() or not turned.is_contiguous():
            named[f"{number}.{turn}"] = tensor
        else:
            named[f"{number}.{turn}.{''.join(map(str, axes))}"] = turned
    writer = SafetensorsWriter(partial, {name: (each.dtype, tuple(each.shape)) for name, each in named.items()})
    try:
        for name, tensor in named.items():
            writer.write(name, tensor)
        writer.close()
        os.replace(partial, file)
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None
    finally:
        writer.abandon()


def _read_state(file: Path) -> State:
    try:
        return State(**read_json(file))
    except TypeError:
        raise QuantError(
            f"{file}: is not a state that this version wrote; remove {file.parent} to start anew"
        ) from None
