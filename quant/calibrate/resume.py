"""What an unfinished job keeps beside its output, so that hours are not lost: the directory .OUT.quant-work

    lock      held (flock) by the one job that works here; a kill releases it
    state     JSON: what the job depends on (identity) and how far it came
    export/   the weight files, laid out in full and filled block after block
    hidden/   TOWER-BLOCK.RANK.safetensors: the samples' hidden states behind that block, by sample number

A block is committed in this order: its tensors, synced; its hidden states, synced and renamed; the state, synced and
renamed; and only then is removed what the new state does not need. So at any moment the state names what is on the disk
and complete, and a job that is killed loses the block in flight. What a resumed job computes from is bit for bit what
the killed one had: so is its result.

Left out: resuming on another kind of device or with another torch, whose arithmetic may differ in the last bit. It is
refused.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ..base.errors import QuantError, SourceError, UsageError
from ..base.output import replace_file
from ..files.config_json import read_json
from ..files.safetensors_io import SafetensorsWriter, read_header, read_tensor


@dataclass(frozen=True)
class State:
    """identity: name -> value of all that the bytes depend on; done: tower -> blocks committed; outside: whether what
    stands outside the blocks is written, too; blocks: their entries of the run's log; seconds: computed so far.
    """

    identity: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    outside: bool = False
    blocks: list[dict] = field(default_factory=list)
    seconds: float = 0.0


class Work:
    """A job's directory. keeps: whether blocks are committed to it; a job without an output of its own has nothing to
    come back to.
    """

    def __init__(self, directory: Path, keeps: bool = False):
        self.dir, self.keeps, self.export, self._hidden = directory, keeps, directory / "export", directory / "hidden"
        self.state, self.stop = State(), False
        if keeps and (directory / "state").exists():
            self.state = _read_state(directory / "state")

    @property
    def committed(self) -> bool:
        return bool(self.state.done)

    def begin(self, identity: dict[str, str]) -> None:
        """Raises UsageError when what was committed belongs to another recipe, source or calibration set."""
        if not self.committed:
            self.state = State(identity)
            return
        for name in sorted({*identity, *self.state.identity}):
            then, now = self.state.identity.get(name, "not there"), identity.get(name, "not there")
            if then != now:
                raise UsageError(
                    f"--resume: {name} was {then} and is {now}; go back to the first, or remove {self.dir} to start"
                    " anew"
                )

    def keep_hidden(self, tower: str, index: int, rank: int, hidden: dict[int, Tensor]) -> None:
        """hidden: sample number -> its hidden state behind the block, of this rank's samples."""
        if self.keeps:
            _save_hidden(self._hidden / f"{tower}-{index}.{rank}.safetensors", hidden)

    def commit_block(self, tower: str, index: int, entry: dict, seconds: float, writes: bool = True) -> None:
        """Call when the block's tensors and every rank's hidden states are on the disk. writes: the other ranks only
        remember it.
        """
        done = {**self.state.done, tower: index + 1}
        state = replace(self.state, done=done, blocks=[*self.state.blocks, entry], seconds=seconds)
        if not writes:
            self.state = state
            return
        self._commit(state)
        self._remove_hidden(f"{tower}-{index - 1}.*")

    def commit_outside(self, seconds: float) -> None:
        """Call when all tensors are on the disk."""
        self._commit(replace(self.state, outside=True, seconds=seconds))
        self._remove_hidden("*")

    def hidden(self, tower: str, numbers: Collection[int]) -> dict[int, Tensor]:
        """Sample number -> its hidden state behind the tower's last committed block, whichever rank had it."""
        files = sorted(self._hidden.glob(f"{tower}-{self.state.done[tower] - 1}.*.safetensors"))
        return {
            int(name): read_tensor(info)
            for file in files
            for name, info in read_header(file).items()
            if int(name) in numbers
        }

    def _commit(self, state: State) -> None:
        if self.keeps:
            replace_file(self.dir / "state", json.dumps(asdict(state)).encode())
        self.state = state

    def _remove_hidden(self, pattern: str) -> None:
        """What is left behind by an error here costs space, nothing else; it goes with the directory."""
        for file in self._hidden.glob(pattern):
            with suppress(OSError):
                file.unlink()

    def remove(self) -> None:
        """The state goes first: without it nothing else counts."""
        if self.dir.exists():
            with suppress(OSError):
                (self.dir / "state").unlink(missing_ok=True)
            shutil.rmtree(self.dir, ignore_errors=True)
        self.state = State()

    def __str__(self) -> str:
        return (
            f"{sum(self.state.done.values())} blocks are kept in {self.dir}: the same command with --resume goes on"
            " from there"
        )


def work_directory(output: Path) -> Path:
    """Where the job that writes `output` keeps its work: beside it, on the same file system."""
    return output.parent / f".{output.name}.quant-work"


@contextmanager
def working(output: Path, resume: bool) -> Iterator[Work]:
    """The Work of the job that writes `output`, locked. At the end it is removed, but for a job that failed with blocks
    committed.

    Raises UsageError when another job has it, or when it holds an unfinished one and `resume` is not set.
    """
    directory = work_directory(output)
    with _locked(directory, output):
        work = Work(directory, keeps=True)
        if work.committed and not resume:
            raise UsageError(f"{work}; to start anew, remove that directory")
        try:
            if not work.committed:
                _clear(directory)
            with _gentle_interrupt(work):
                yield work
            work.remove()
        except SourceError:  # another source is needed, which this work does not fit
            work.remove()
            raise
        except UsageError:
            raise
        except QuantError as err:
            raise type(err)(f"{err}; {work}" if work.committed else str(err)) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {work}" if work.committed else "") from None
        finally:
            if not work.committed:
                work.remove()


def remove_uncommitted(output: Path) -> None:
    """What is left of a job whose first rank was ended before it had committed anything, and so could not tidy up."""
    directory = work_directory(output)
    if directory.exists() and not (directory / "state").exists():
        with _locked(directory, output):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path, output: Path) -> Iterator[None]:
    """`directory`, made if it is not there, with its file `lock` open and locked."""
    file, handle = directory / "lock", -1
    try:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.is_symlink():
                raise UsageError(f"{directory}: is a symbolic link, which is not written through; remove it")
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            _take(handle, file, output)
        except OSError as err:
            with suppress(OSError):
                directory.rmdir()  # if it is new
            raise UsageError(f"{file}: {err.strerror}; the job cannot keep its state there") from None
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _take(handle: int, file: Path, output: Path) -> None:
    """Lock the open file and write into it who has it. Raises UsageError when somebody has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(file)):
            raise FileNotFoundError  # its owner has just finished and removed it
    except (BlockingIOError, FileNotFoundError):
        owner = os.pread(handle, 100, 0).decode(errors="replace")
        raise UsageError(
            f"{output}: another job ({owner or 'just started'}) is writing it; wait for it, or choose another place"
        ) from None
    with suppress(OSError):  # only a note
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def _clear(directory: Path) -> None:
    """What a job left that was killed before its first commit. Raises QuantError when the disk refuses."""
    try:
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        (directory / "hidden").mkdir(mode=0o700)
    except OSError as err:
        raise QuantError(f"{directory}: {err.strerror}") from None


@contextmanager
def _gentle_interrupt(work: Work) -> Iterator[None]:
    """Ctrl-C once: work.stop, the block is finished first; twice: at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        signal.signal(signal.SIGINT, before)
        work.stop = True
        print("finishing this block; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _save_hidden(file: Path, hidden: dict[int, Tensor]) -> None:
    partial = file.with_suffix(".tmp")
    writer = SafetensorsWriter(
        partial, {str(number): (tensor.dtype, tuple(tensor.shape)) for number, tensor in hidden.items()}
    )
    try:
        for number, tensor in hidden.items():
            writer.write(str(number), tensor)
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
