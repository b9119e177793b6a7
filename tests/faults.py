"""A disk that fails, and a process that dies, at a chosen operation: for the tests of what a job survives.

Everything that changes a disk goes through a handful of functions of `os`. They are counted here, and the one with the
chosen number meets its fate instead: half its bytes are written, if it is a write, and then it raises OSError, or the
process gets SIGKILL. Between two operations the disk does not change, so that dying at each of them is dying at any
moment.

Reads go through the raw files that open() makes; those of libraries in C and Rust (a tokenizer's) do not.
"""

import builtins
import io
import os
import re
import signal
import traceback
from contextlib import contextmanager

from torch.nn.modules.module import register_module_forward_pre_hook

OPERATIONS = (
    "open",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "replace",
    "rename",
    "link",
    "mkdir",
    "unlink",
    "rmdir",
    "sendfile",
)
WRITES = ("write", "pwrite")


@contextmanager
def counted(at: int = -1, fate=None):
    """Yields the list of operations so far. fate(name): called in the place of operation number `at`."""
    originals, seen = {name: getattr(os, name) for name in OPERATIONS}, []

    def stand_in(name):
        def operation(*args, **kwargs):
            if name == "open" and not args[1] & os.O_CREAT:
                return originals[name](*args, **kwargs)
            seen.append(name)
            if len(seen) - 1 != at:
                return originals[name](*args, **kwargs)
            if name in WRITES:
                handle, data, *offset = args
                originals[name](handle, memoryview(data)[: len(data) // 2], *offset)
            return fate(name)

        return operation

    try:
        for name in OPERATIONS:
            setattr(os, name, stand_in(name))
        yield seen
    finally:
        for name in OPERATIONS:
            setattr(os, name, originals[name])


@contextmanager
def counted_reads(directories, at: int = -1, fate=None):
    """The same for reads of the files below `directories`; the list is of the files' names. fate(name): its name."""
    original, seen, below = io.open, [], tuple(f"{directory}{os.sep}" for directory in directories)

    def count(name):
        seen.append(name)
        if len(seen) - 1 == at:
            fate(name)

    class Raw(io.FileIO):
        def readinto(self, buffer):
            count(self.name)
            return super().readinto(buffer)

        def readall(self):
            count(self.name)
            return super().readall()

        def read(self, size=-1):
            count(self.name)
            return super().read(size)

    def stand_in(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not str(file).startswith(below) or "r" not in mode or "+" in mode:
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(str(file))
        if buffering == 0:
            return raw
        stream = io.BufferedReader(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding or "utf-8", errors, newline)

    try:
        io.open = builtins.open = stand_in
        yield seen
    finally:
        io.open = builtins.open = original


def killed(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raising(number: int):
    """A fate: OSError with errno `number`, such as errno.ENOSPC."""

    def fate(_name: str):
        raise OSError(number, os.strerror(number))

    return fate


@contextmanager
def exiting():
    """For a forked child: ends the process behind the block, with status 0, or that of SystemExit, or 1 and a
    traceback.
    """
    try:
        yield
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def in_a_fork(job) -> int:
    """Run job() in a child, which has all imports done; its exit status as os.waitpid has it: 0 done, 9 killed."""
    child = os.fork()
    if child == 0:
        with exiting():
            job()
    return os.waitpid(child, 0)[1]


@contextmanager
def when_block_runs(number: int, then):
    """then() when the model's forward runs the block with number `number` for the first time: 0 is the first block of
    the first tower, and the blocks of all towers are counted in the order in which they run.
    """
    seen, kinds = [], re.compile(r"(VisionBlock|VisionLayer|DecoderLayer|EncoderLayer)$")

    def count(module, args):
        # What stands in a paused forward in the place of a block has a forward of its own, and computes nothing.
        if kinds.search(type(module).__name__) and "forward" not in vars(module) and module not in seen:
            seen.append(module)
            if len(seen) == number + 1:
                then()

    hook = register_module_forward_pre_hook(count)
    try:
        yield seen
    finally:
        hook.remove()
