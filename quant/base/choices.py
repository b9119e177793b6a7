"""What can be chosen by name, each in one table: the command line's choices, QuantConfig's check and docs/methods.md
are derived from these. Imports no torch; the code behind a name is loaded when it is used.

    METHODS["m2"].line      one line for people
    METHODS["m2"].load()    quant.arithmetic.m2.solve
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Choice:
    """line: what it is, in one line; place: "module:name" inside this package, "" where nothing is behind the name."""

    line: str
    place: str = ""

    def load(self) -> Any:
        """The class or function behind the name; None where there is none."""
        if not self.place:
            return None
        module, _, name = self.place.partition(":")
        return getattr(import_module(f"{__package__.partition('.')[0]}.{module}"), name)


METHODS = {
    "m2": Choice("Outlier Suppression+: the threshold with the least output error", "arithmetic.m2:solve"),
    "m4": Choice("iterative smooth, the migration of SmoothQuant, group after group", "arithmetic.m4:solve"),
    "auto": Choice("per group the best of m2, m4 at several strengths, and nothing", "arithmetic.auto:solve"),
    "none": Choice("plain rounding"),
}
"""anti_method -> how outliers of the activations are moved into the weights: Problem, alpha -> Smoothing."""

SCHEMES = {
    "W8A8": Choice("activations rounded per tensor, with ranges from calibration", "arithmetic.schemes:StaticLinear"),
    "W8A8_DYNAMIC": Choice(
        "activations rounded per token, by the server; vLLM-Ascend takes it", "arithmetic.schemes:DynamicLinear"
    ),
}
"""scheme -> what becomes of an int8 linear: a QuantizedLinear."""

PROFILES = {
    "both": Choice("one directory that MindIE and vLLM-Ascend load: static, what the recipes keep float is float"),
    "mindie": Choice("the same, checked for MindIE alone, which takes one type for all int8 linears"),
    "vllm-ascend": Choice("what the recipes keep float is W8A8_DYNAMIC; vLLM-Ascend reads a type for every linear"),
}
"""profile -> for which server a directory is made, where they differ in what they take."""

ROUNDINGS = {
    "nearest": Choice("each weight to the nearest code", "arithmetic.rounding:Nearest"),
    "gptq": Choice("GPTQ: the error of a column is made up for by those after it; slower", "arithmetic.rounding:Gptq"),
}
"""w_method -> how weights become codes: a class that is made for an input and called with (weight, scale)."""

CALIB_TEXT = {
    "shipped": Choice("prose in several scripts, code, mathematics, tables, dialogue; written for this project"),
    "self": Choice("answers to the images, and passages, that the float model writes before calibration begins"),
    "none": Choice("nothing beside --calib_images; of a folder the images alone"),
}
"""calib_text -> where text beside the images comes from; any other word is a file."""


def lines(table: dict[str, Choice]) -> str:
    """The table in one line, for a flag's help."""
    return "; ".join(f"{name}: {choice.line}" for name, choice in table.items())


def known(field: str, name: str, table: dict[str, Choice]) -> str:
    """`name`, if the table has it. Raises ValueError, naming the field and what there is."""
    if name not in table:
        *others, last = table
        raise ValueError(f"{field}={name!r}: there are {', '.join(others)} and {last}")
    return name
