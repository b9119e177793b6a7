"""Finding, the noun that all rules speak in. (That a tensor is not what the source makes it is verify's Damage.)"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from .directory import Directory, Target

SERVERS = {"mindie": "MindIE", "vllm-ascend": "vLLM-Ascend"}


@dataclass(frozen=True)
class Finding:
    """One demand of a server that a directory does not meet.

    where: file and tensor or key. what: what is there and what is demanded. effects: server -> what it does about
    it, its own error text where there is one. fix: the way out. An error keeps a server from loading the directory, or
    makes it compute wrong values; a warning is a fault of a server that the user can go round.
    """

    where: str
    what: str
    effects: dict[str, str]
    fix: str
    level: Literal["error", "warning"] = "error"
    rule: str = ""
    """The name of the rule; check() fills it in."""


Rule = Callable[[Directory, Target], Iterator[Finding]]


def missing(tensor: str) -> dict[str, str]:
    """What servers do when a tensor that they load is not there."""
    return {
        "mindie": f"AssertionError: weight {tensor} does not exist",
        "vllm-ascend": "loads without a word and computes with uninitialised memory",
    }
