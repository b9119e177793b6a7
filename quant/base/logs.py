"""Log files, by name: lines with the time, appended. In a module of its own: --help must not load the terminal."""

import time
from contextlib import suppress


def append(file: str | None, text: str) -> None:
    """Write a line, or several, to a log file; None: nothing. What cannot be written is left out."""
    with suppress(OSError):
        if file:
            with open(file, "a", encoding="utf-8") as log:
                log.write(f"{stamped(text)}\n")


def stamped(text: str) -> str:
    """With the time in front."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
