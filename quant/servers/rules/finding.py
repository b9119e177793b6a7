"""Finding and Rule, the nouns that all rules speak in. (That a tensor is not what the source makes it is verify's
Damage.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from .directory import Directory, Target

SERVERS = {"mindie": "MindIE", "vllm-ascend": "vLLM-Ascend"}
VERSIONS = {
    "mindie": "MindIE-LLM 3.0.0 (atb_models), April 2026",
    "vllm-ascend": "vllm-ascend of August 2026 with vLLM 0.27.1",
}
"""Whose loaders the rules state; other releases may ask for less, or for more."""

NOT_MATCHED = "ValueError: linear type not matched, please check `config.json` `quantize` parameter"
"""MindIE's, where it is given int8 weights for a linear that it takes for a float one."""

Level = Literal["error", "warning", "taste"]
LEVELS: tuple[Level, ...] = ("error", "warning", "taste")


@dataclass(frozen=True)
class Finding:
    """One demand of a server that a directory does not meet.

    where: file and tensor or key. what: what is there and what is demanded. effects: server -> what it does about
    it, its own error text where there is one. fix: the way out. An error keeps a server from loading the directory, or
    makes it compute wrong values; a warning is what a user can go round, or what one should know; a taste is a file
    that no server asks for, and that good exports have.
    """

    where: str
    what: str
    effects: dict[str, str]
    fix: str
    level: Level = "error"
    rule: str = ""
    """The name of the rule; check() fills it in."""


@dataclass(frozen=True)
class Rule:
    """A demand, and whose it is.

    judge: (Directory, Target) -> Finding... mindie, vllm_ascend: the worst that breaking it can be for that server's
    loader, of the version in VERSIONS; None where it does not mind.
    """

    judge: Callable[[Directory, Target], Iterator[Finding]]
    mindie: Level | None = "error"
    vllm_ascend: Level | None = "error"

    @property
    def name(self) -> str:
        """As reports call it: `deq_scale_dtype` is "deq-scale-dtype"."""
        return self.judge.__name__.replace("_", "-")

    def level(self, server: str) -> Level | None:
        """The worst for that server; None where it does not mind."""
        return {"mindie": self.mindie, "vllm-ascend": self.vllm_ascend}[server]


def missing(directory: Directory, tensor: str) -> dict[str, str]:
    """What servers do when a tensor that they load is not there: a linear that the description does not have either is
    missed before its weight is.
    """
    linear, _, part = tensor.rpartition(".")
    if part == "weight" and linear in directory.packable and tensor not in (directory.description or {tensor: ""}):
        return dict.fromkeys(SERVERS, f"KeyError: '{tensor}'")
    return {
        "mindie": f"AssertionError: weight {tensor} does not exist",
        "vllm-ascend": "loads without a word and computes with uninitialised memory",
    }
