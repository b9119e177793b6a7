"""The ways a run can end badly. The message is the one line the user reads; the command line turns it into an exit
code.
"""

import textwrap


class QuantError(Exception):
    """A job or a check failed: exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        """One line that is safe on a terminal: a name from an untrusted file may hold line ends or escape sequences."""
        text = super().__str__()
        return (
            text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
        )


class SourceError(QuantError):
    """The checkpoint itself is at fault: only another one helps, so nothing that was made of it is kept."""


class UsageError(QuantError):
    """The request cannot be carried out as it was put: exit code 2, and nothing was done."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """A library's error within a one-line message; with its class where its text says little (KeyError: 'x')."""
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    return text if " " in text else f"{type(error).__name__}: {text}".removesuffix(": ")
