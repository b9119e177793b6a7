"""Where results go: a place that is checked before any work, and a directory that appears there all at once or not at
all.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import QuantError, UsageError

DIR_MODE, FILE_MODE = 0o750, 0o640  # MindIE refuses wider ones; narrower ones lock out the user it runs as


def check_output(directory: str | Path, source: Path) -> Path:
    """Raises UsageError unless `directory` is absent or empty, no symbolic link, outside the source, and can be made.

    A link is refused here because a directory cannot take its place at the end of the job, and because MindIE's service
    refuses to read through one.
    """
    directory, source = Path(directory).absolute(), source.resolve()
    resolved = directory.resolve()
    if resolved == source or source in resolved.parents or resolved in source.parents:
        raise UsageError(
            f"{directory}: overlaps the source {source}, which is never written to; choose a place outside it"
        )
    if directory.is_symlink():
        raise UsageError(f"{directory}: is a symbolic link to {resolved}; name that directory itself")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is a file; --save_directory names a directory that is empty or not there yet")
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(
            f"{directory}: is not empty, {sorted(path.name for path in directory.iterdir())[0]} is in it; servers load"
            " every weight file they find, so choose an empty place"
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(directory.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as err:
        raise UsageError(
            f"{directory.parent}: {err.strerror}; --save_directory must be in a place that can be written to"
        ) from None
    return directory


def make_work_directory(parent: str | Path | None) -> Path:
    """A new hidden directory inside `parent`; None: the system's place for temporary files. Raises UsageError."""
    try:
        return Path(tempfile.mkdtemp(prefix=".quant-work-", dir=parent))
    except OSError as err:
        raise UsageError(f"{parent}: {err.strerror}; the result cannot be written there") from None


@contextmanager
def appearing(directory: Path, inside: Path | None = None) -> Iterator[Path]:
    """A new directory to write into, beside `directory` or in the directory `inside` of the same file system; at the
    end of the with block it takes its place, or on an error is removed. `directory` must be absent or empty. Raises
    QuantError when the disk refuses.
    """
    try:
        partial = Path(tempfile.mkdtemp(prefix=f"{directory.name}.partial-", dir=inside or directory.parent))
    except OSError as err:
        raise QuantError(f"{inside or directory.parent}: {err.strerror}") from None
    try:
        yield partial
        partial.chmod(DIR_MODE)
        for path in (*partial.iterdir(), partial):
            sync(path)
        os.rename(partial, directory)
        sync(directory.parent)
    except OSError as err:
        shutil.rmtree(partial, ignore_errors=True)
        raise QuantError(f"{directory}: {err.strerror}") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_space(directory: Path, needed: int) -> None:
    """Raises QuantError when the file system of `directory` has less than `needed` bytes, those that are taken there
    counted in.
    """
    free = shutil.disk_usage(directory).free + sum(file.stat().st_blocks * 512 for file in directory.iterdir())
    if free < needed:
        raise QuantError(
            f"{directory.parent}: {free / 1e9:.2f} GB free, the result takes {needed / 1e9:.2f} GB; choose another"
            " --save_directory"
        )


def link_or_copy(source: Path, target: Path) -> None:
    """A weight file is shared where the file system can, and where its mode is ours already, since a shared file has
    one mode; a small one is copied, since another format edits it.

    Raises QuantError when it can be neither.
    """
    try:
        if source.suffix == ".safetensors" and not source.is_symlink() and source.stat().st_mode & 0o777 == FILE_MODE:
            try:
                target.hardlink_to(source)
                return
            except OSError:
                pass
        shutil.copy2(source, target)
    except OSError as err:
        raise QuantError(f"{source} -> {target}: {err.strerror}") from None


def replace_file(file: Path, data: bytes) -> None:
    """Put `data` in the place of `file`: all of it or nothing, and durable. Raises QuantError when the disk refuses."""
    partial = file.with_name(f"{file.name}.tmp")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, file)
        sync(file.parent)
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None


def sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
