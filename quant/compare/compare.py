"""Two dumps (features.py) of the same inputs: where do the implementations part, and what does the difference look
like?

Features are taken in the order in which A executed them, each with the one of the same name in B, or of the name that a
map gives. The first whose relative error |b - a| / |a| exceeds the tolerance is the place to look at: what was computed
before it agrees. How b differs there says what kind of fault it is (difference.py).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..base.errors import UsageError
from .difference import describe
from .features import Dump

TOLERANCE = 1e-2  # relative error; two right implementations in bfloat16 stay below, block after block


@dataclass
class Row:
    """One feature of both dumps, over all samples.

    feature, other: its names in A and B; relative: |b - a| / |a|; largest: max |b - a|; cosine: of the angle between a
    and b; shapes: of the first sample where they differ, else None.
    """

    feature: str
    other: str
    relative: float
    largest: float
    cosine: float
    shapes: tuple | None = None

    def agrees(self, tolerance: float) -> bool:
        """Whether the relative error is within the tolerance."""
        return self.shapes is None and self.relative <= tolerance


@dataclass
class Comparison:
    """All features that both dumps have, in A's order of execution.

    first: the first that differs, None where all agree; before: the one before it; hints: what the difference looks
    like; warnings: what makes it less telling; only: names that A alone and B alone have; identity: the models of A and
    B, and the float models that exports were made from.
    """

    rows: list[Row]
    first: Row | None
    before: Row | None
    hints: list[str]
    warnings: list[str]
    only: tuple[list[str], list[str]]
    identity: dict[str, str | None]

    def as_json(self) -> dict:
        """What --json writes; numbers that are no numbers are null."""
        number = lambda value: value if np.isfinite(value) else None
        rows = [
            {
                **asdict(row),
                "relative": number(row.relative),
                "largest": number(row.largest),
                "cosine": number(row.cosine),
            }
            for row in self.rows
        ]
        return {
            "schema": 1,
            "identity": self.identity,
            "same": self.first is None,
            "first": self.first and self.first.feature,
            "before": self.before and self.before.feature,
            "hints": self.hints,
            "warnings": self.warnings,
            "only_in_a": self.only[0],
            "only_in_b": self.only[1],
            "features": rows,
        }


def compare(a: Dump, b: Dump, names: dict[str, str] | None = None, tolerance: float = TOLERANCE) -> Comparison:
    """Every feature that both have.

    names: feature of A -> feature of B, "*" in both standing for the same text; features without an entry keep their
    name. tolerance: the largest relative error that counts as agreement. Raises UsageError when the dumps are of
    different inputs, or share no feature; QuantError when a file cannot be read.
    """
    if len(a.digests) != len(b.digests) or a.digests != b.digests:
        which = next(
            (number for number, pair in enumerate(zip(a.digests, b.digests)) if pair[0] != pair[1]),
            min(len(a.digests), len(b.digests)),
        )
        raise UsageError(
            f"{a.dir} and {b.dir} are of different inputs ({len(a.digests)} and {len(b.digests)} samples, sample"
            f" {which} differs): dump B with --inputs {a.dir}"
        )
    renamed = {feature: rename(feature, names or {}) for feature in a.features}
    pairs = [(feature, other) for feature, other in renamed.items() if other in b.features]
    if not pairs:
        one, two = (next(iter(dump.features), "none") for dump in (a, b))
        raise UsageError(
            f"{a.dir} and {b.dir} share no feature name: A has {one}, B has {two}; --map gives the names of B"
        )
    rows = [measure(a, b, *pair) for pair in pairs]
    number = next((number for number, row in enumerate(rows) if not row.agrees(tolerance)), None)
    first, before = (None, rows[-1]) if number is None else (rows[number], rows[number - 1] if number else None)
    hints = (
        []
        if first is None
        else describe([(a.load(first.feature, n), b.load(first.other, n)) for n in range(len(a.digests))])
        + look_inside(first.feature)
    )
    only = (
        [name for name, other in renamed.items() if other not in b.features],
        [name for name in b.features if name not in renamed.values()],
    )
    identity = {
        f"{side}{what}": dump.manifest.get(key)
        for side, dump in (("a", a), ("b", b))
        for what, key in (("", "model"), ("_made_from", "source"))
    }
    return Comparison(rows, first, before, hints, warnings(a, b, rows), only, identity)


def rename(feature: str, names: dict[str, str]) -> str:
    """The name in B: the exact entry, else that of the longest prefix before a "*"."""
    if feature in names:
        return names[feature]
    for pattern in sorted((name for name in names if "*" in name), key=len, reverse=True):
        head, _, tail = pattern.partition("*")
        if feature.startswith(head) and feature.endswith(tail) and len(feature) >= len(head) + len(tail):
            return names[pattern].replace("*", feature[len(head) : len(feature) - len(tail)])
    return feature


def read_map(file: str | Path) -> dict[str, str]:
    """A JSON object of names. Raises UsageError when it is not one."""
    try:
        names = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as err:
        raise UsageError(f"--map {file}: {err.strerror}") from None
    except ValueError as err:
        raise UsageError(f"--map {file}: not valid JSON ({err})") from None
    if not isinstance(names, dict) or not all(
        isinstance(value, str) and key.count("*") == value.count("*") < 2 for key, value in names.items()
    ):
        raise UsageError(
            f"--map {file}: an object {{name in A: name in B}} is expected, with one * in both or in neither"
        )
    return names


def measure(a: Dump, b: Dump, feature: str, other: str) -> Row:
    """The errors of B's feature `other` against A's `feature`; infinite where a value is NaN or Inf, or shapes differ.

    Raises QuantError when a file cannot be read.
    """
    error = energy = product = other_energy = largest = 0.0
    for sample in range(len(a.digests)):
        one, two = a.load(feature, sample), b.load(other, sample)
        if one.shape != two.shape:
            return Row(feature, other, np.inf, np.inf, 0.0, (one.shape, two.shape))
        one, two = one.astype(np.float64), two.astype(np.float64)
        error, energy, other_energy, product = (
            error + ((two - one) ** 2).sum(),
            energy + (one**2).sum(),
            other_energy + (two**2).sum(),
            product + (one * two).sum(),
        )
        largest = max(largest, np.abs(two - one).max(initial=0.0))
    if not np.isfinite(error):
        return Row(feature, other, np.inf, np.inf, 0.0)
    relative = np.sqrt(error / energy) if energy else (np.inf if error else 0.0)
    return Row(
        feature,
        other,
        float(relative),
        float(largest),
        float(product / np.sqrt(energy * other_energy)) if energy * other_energy else float(error == 0),
    )


def warnings(a: Dump, b: Dump, rows: list[Row]) -> list[str]:
    """What makes a difference less telling."""
    found = []
    for dump in (a, b):
        if repeat := dump.manifest.get("repeat"):
            worst = max(repeat, key=repeat.get)
            found.append(
                f"{dump.dir}: nondeterministic, {len(repeat)} features differ between two runs of the same model,"
                f" {worst} by {repeat[worst]:.3g}; nothing below that means anything"
            )
    kinds = [dump.manifest.get("int8") for dump in (a, b)]
    if None not in kinds and kinds[0] != kinds[1]:
        found.append(
            "one dump is of a float model, the other of an int8 export: a few per cent are its rounding, and inside"
            " blocks folding makes features differ; verify tells these apart"
        )
    made_from = [dump.manifest.get("source") or dump.manifest.get("model") for dump in (a, b)]
    if None not in kinds and any(kinds) and made_from[0] != made_from[1]:
        found.append(
            f"{a.dir} and {b.dir} are of different models, by their hashes: no export of one was made from the other"
        )
    same = (
        a.manifest.get("model")
        and a.manifest.get("model") == b.manifest.get("model")
        and all(a.manifest.get(key) == b.manifest.get(key) for key in ("device", "dtype", "torch"))
    )
    if same and any(row.relative > 0 for row in rows):
        found.append(
            "both dumps are of the same model on the same device, and yet differ: one of the runs is nondeterministic"
        )
    return found


def look_inside(feature: str) -> list[str]:
    """The next command, where the feature is a whole block's output."""
    last = feature.rpartition(".")[2]
    return [f"look inside: dump both again with --modules '{feature}.*'"] if last.isdigit() else []
