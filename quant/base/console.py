"""What a run tells: one aligned line per unit of work, a progress bar per tower with the time left, and the same lines
in a log file.
"""

import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .errors import UsageError


class Reporter:
    """Prints to the terminal unless quiet, and to log_file if one is given. A progress bar only lives on a terminal.

    Raises UsageError when the log file cannot be written.
    """

    def __init__(self, quiet: bool = False, log_file: str | None = None):
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.log = None
        if log_file:
            try:
                self.log = open(Path(log_file), "a", encoding="utf-8", buffering=1)
            except OSError as err:
                raise UsageError(f"--log_file {log_file}: {err.strerror}") from None

    def line(self, text: str = "") -> None:
        """Print a line as it is, and append it to the log file with the time."""
        self.console.print(escape(text))
        if self.log:
            self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextmanager
    def progress(self, title: str, total: int):
        """Yields a function that advances the bar by one of `total`; on a terminal it is shown until the with block
        ends.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)


SILENT = Reporter(quiet=True)


def size(nbytes: float) -> str:
    """1234567890 -> "1.23 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
