"""Whether a checkpoint is still the one that a job began with: size and time of change of every file, and a hash of
samples of it.

A whole hash of 140 GB would take longer than some blocks; PIECES pieces of PIECE bytes, evenly spaced from the first
byte to the last, take milliseconds. Together with size and time they notice every honest change, such as a download
that goes on or starts again; not an adversary's, who could write the file before the job as well.
"""

import hashlib
import os
from pathlib import Path

from ..base.errors import QuantError

PIECES, PIECE = 16, 1 << 16


def stamp(file: Path) -> str:
    """Size and time of the last change, as text. Raises QuantError when the file is gone."""
    try:
        found = os.stat(file)
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}; it was there when the job began") from None
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns} ns"


def describe(file: Path) -> str:
    """The stamp and the sampled sha256 of a file. Raises QuantError when it cannot be read."""
    text, digest = stamp(file), hashlib.sha256()
    size = int(text.split(" ", 1)[0])
    try:
        with open(file, "rb", buffering=0) as stream:
            for number in range(PIECES):
                stream.seek(max(0, size - PIECE) * number // (PIECES - 1))
                digest.update(stream.read(PIECE))
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None
    return f"{text}, sampled sha256 {digest.hexdigest()[:16]}"


def describe_all(files: list[Path]) -> dict[str, str]:
    """File name -> describe(file)."""
    return {file.name: describe(file) for file in files}


def check_unchanged(files: list[Path], before: dict[str, str], whole: bool = False) -> None:
    """Raises QuantError, with both values, for a file that is not as `before`, describe_all's, has it. whole: compare
    the hash, too.
    """
    for file in files:
        now = describe(file) if whole else stamp(file)
        if not before[file.name].startswith(now):
            raise QuantError(
                f"{file}: changed while the job ran: {before[file.name]} at the start, {now} now; put the first one"
                " back"
            )
