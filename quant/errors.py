"""The ways a run can end badly. The message is the one line the user reads; the command line turns it into an exit code."""


class QuantError(Exception):
    """A job or a check failed: exit code 1."""

    exit_code = 1


class SourceError(QuantError):
    """The checkpoint itself is at fault: only another one helps, so nothing that was made of it is kept."""


class UsageError(QuantError):
    """The request cannot be carried out as it was put: exit code 2, and nothing was done."""

    exit_code = 2
