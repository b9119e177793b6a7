"""What a model directory is known by: a hash of what a model is read from (model_digest), which copies share; and
whether a checkpoint is still the one that a job began with, by size and time of change of every file and a hash of
samples of it.

A whole hash of 140 GB would take longer than some blocks; PIECES pieces of PIECE bytes, evenly spaced from the first
byte to the last, take milliseconds. Together with size and time they notice every honest change, such as a download
that goes on or starts again; not an adversary's, who could write the file before the job as well.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..base.errors import QuantError

PIECES, PIECE = 16, 1 << 16
RECORDS = ("quant_recipe.json", "quant_run.json")
"""Files of an export that tell of its making, and that no model reads."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
READ = (*WEIGHTS, ".json", ".jinja", ".model", ".txt", ".py")
"""Suffixes of what a model is read from: weights, description, configuration, tokenizer, template, its own code."""


def stamp(file: Path) -> str:
    """Size and time of the last change, as text. Raises QuantError when the file is gone."""
    try:
        found = os.stat(file)
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}; it was there when the job began") from None
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns} ns"


def describe(file: Path) -> str:
    """The stamp and the sampled sha256 of a file. Raises QuantError when it cannot be read."""
    return f"{stamp(file)}, sampled sha256 {_digest(file, whole=False)[:16]}"


def model_digest(directory: Path, whole: bool = True) -> str:
    """sha256, in hex, over the names, sizes and contents of the files that a model is read from; not over their times,
    records, or what is written about the model, so that copies of a model share it. whole: every byte of the weights,
    as of an export; else PIECES samples of each file, as of a float model. Raises QuantError for a file that cannot be
    read.
    """
    files = [
        file
        for file in sorted(directory.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix in READ and file.name not in RECORDS
    ]
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda file: _digest(file, whole or file.suffix not in WEIGHTS), files)
        lines = [f"{file.name} {file.stat().st_size} {digest}\n" for file, digest in zip(files, digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(file: Path, whole: bool) -> str:
    """sha256 of a file, or of PIECES pieces of it."""
    digest = hashlib.sha256()
    try:
        with open(file, "rb", buffering=0) as stream:
            if whole:
                while piece := stream.read(PIECE * PIECES):
                    digest.update(piece)
            else:
                size = os.fstat(stream.fileno()).st_size
                for number in range(PIECES):
                    stream.seek(max(0, size - PIECE) * number // (PIECES - 1))
                    digest.update(stream.read(PIECE))
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None
    return digest.hexdigest()


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
