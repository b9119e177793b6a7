"""Lists of linears on the command line: names, globs, and @FILE, which holds one of them a line."""

from collections.abc import Iterable
from pathlib import Path

from ..base.errors import UsageError

FLAGS = ("disable_names", "disable_names_only", "dynamic_names")


def patterns(flag: str, given: Iterable[str]) -> tuple[str, ...]:
    """The patterns that `given` holds and those that its files hold. A # begins a comment; empty lines are left out.

    Raises UsageError for a file that cannot be read.
    """
    found: list[str] = []
    for each in given:
        if not each.startswith("@"):
            found.append(each)
            continue
        try:
            lines = Path(each[1:]).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            reason = err.strerror if isinstance(err, OSError) else "is not text in UTF-8"
            raise UsageError(f"--{flag} {each}: {reason}; it names a file of one pattern a line") from None
        found += filter(None, (line.partition("#")[0].strip() for line in lines))
    return tuple(found)
