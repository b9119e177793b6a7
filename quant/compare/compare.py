"""Two dumps (features.py) of the same inputs: where do the implementations part, and what does the difference look
like?

Features are taken in the order in which A executed them, each with the one of the same name in B, or of the name that a
map gives. The first whose relative error |b - a| / |a| exceeds the tolerance is the place to look at: what was computed
before it agrees. How b differs there says what kind of fault it is: a factor, a bias, a permutation of channels, a
transposed or reshaped tensor, single tokens, single channels, rounding.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..base.errors import UsageError
from .features import Dump

TOLERANCE = 1e-2  # relative error; two right implementations in bfloat16 stay below, block after block
EXPLAINED = 0.9  # share of the error's energy that a pattern must account for to be named
CONCENTRATED = 0.02  # share of tokens or channels that counts as a few
PROBED = 32  # channels whose counterparts are looked for
ROUNDING = 2.0**-7  # relative error that bfloat16's 8 bits can leave


@dataclass
class Row:
    """One feature of both dumps, over all samples. relative: |b - a| / |a|; shapes: of sample 0 where they differ, else
    None.
    """

    feature: str
    other: str
    relative: float
    largest: float
    cosine: float
    shapes: tuple | None = None

    def agrees(self, tolerance: float) -> bool:
        return self.shapes is None and self.relative <= tolerance


@dataclass
class Comparison:
    rows: list[Row]
    first: Row | None
    before: Row | None
    hints: list[str]
    warnings: list[str]
    only: tuple[list[str], list[str]]

    def as_json(self) -> dict:
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
    """names: feature of A -> feature of B, "*" in both standing for the same text; features without an entry keep their
    name.

    Raises UsageError when the dumps are of different inputs, or share no feature.
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
        raise UsageError(
            f"{a.dir} and {b.dir} share no feature name: A has {a.features[0]}, B has {b.features[0]}; --map gives the"
            " names of B"
        )
    rows = [measure(a, b, *pair) for pair in pairs]
    number = next((number for number, row in enumerate(rows) if not row.agrees(tolerance)), None)
    first, before = (None, rows[-1]) if number is None else (rows[number], rows[number - 1] if number else None)
    hints = (
        []
        if first is None
        else describe([(a.load(first.feature, n), b.load(first.other, n)) for n in range(len(a.digests))])
        + look_at(first.feature)
    )
    only = (
        [name for name, other in renamed.items() if other not in b.features],
        [name for name in b.features if name not in renamed.values()],
    )
    return Comparison(rows, first, before, hints, warnings(a, b, rows), only)


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


# -- what a difference looks like ------------------------------------------------------------------------------------------------------------


def describe(samples: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """The kind of the difference of b from a, most telling first. samples: (a, b) per sample."""
    (one, two), *_ = samples
    if not np.isfinite(two).all() or not np.isfinite(one).all():
        which, bad = ("B", ~np.isfinite(two)) if not np.isfinite(two).all() else ("A", ~np.isfinite(one))
        return [
            f"{which} holds NaN or Inf in {bad.sum()} of {bad.size} values: an overflow, a division by zero, a mask of"
            " -inf over a whole row"
        ]
    if one.shape != two.shape:
        return _shapes(one, two)
    a, b = (
        np.concatenate(
            [pair[side].reshape(-1, pair[side].shape[-1] if pair[side].ndim else 1) for pair in samples]
        ).astype(np.float64)
        for side in (0, 1)
    )
    return _patterns(a, b)


def _shapes(one: np.ndarray, two: np.ndarray) -> list[str]:
    if one.size != two.size:
        return [
            f"shapes {list(one.shape)} and {list(two.shape)}: another number of tokens or channels, or the map pairs"
            " different modules"
        ]
    if np.allclose(one.reshape(-1), two.reshape(-1), rtol=ROUNDING, atol=1e-6):
        return [
            f"shapes {list(one.shape)} and {list(two.shape)} hold the same values: only the shape differs, reshape one"
            " of them"
        ]
    squeezed = [x.squeeze() for x in (one, two)]
    if (
        all(x.ndim == 2 for x in squeezed)
        and squeezed[0].T.shape == squeezed[1].shape
        and np.allclose(squeezed[0].T, squeezed[1], rtol=ROUNDING, atol=1e-6)
    ):
        return ["B is A transposed: another layout, or a missing transpose"]
    return [f"shapes {list(one.shape)} and {list(two.shape)}: the values are in another order, or differ"]


def _patterns(a: np.ndarray, b: np.ndarray) -> list[str]:
    """a, b [tokens, channels], float64."""
    difference = b - a
    total = (difference**2).sum()
    factor = (a * b).sum() / max((a**2).sum(), 1e-300)
    if total == 0:
        return []
    if ((b - factor * a) ** 2).sum() < (1 - EXPLAINED) * total:
        return [
            (
                "B is A with the opposite sign"
                if abs(factor + 1) < 0.01
                else f"B is A times {factor:.4g}: a scale (1/sqrt(head dimension)? a weight or input scale?)"
            )
        ]
    offset = difference.mean(0)
    if len(a) > 1 and ((difference - offset) ** 2).sum() < (1 - EXPLAINED) * total:
        return [
            f"a constant per channel is added, in channel {int(np.abs(offset).argmax())}"
            f" {offset[np.abs(offset).argmax()]:.4g}: a bias that is missing or twice there, an input offset"
        ]
    factors = (a * b).sum(0) / np.maximum((a**2).sum(0), 1e-300)
    if len(a) > 1 and ((b - factors * a) ** 2).sum() < (1 - EXPLAINED) * total:
        worst = int(np.abs(factors - 1).argmax())
        return [
            f"every channel is A's times a factor of its own ({factors[worst]:.4g} in channel {worst}): a norm's"
            " weight, per-channel scales, a fold not undone"
        ]
    if moved := _moved(a, b):
        return [moved]
    hints = [
        hint
        for hint in (
            _few(difference, 1, "token", "a mask, positions, the splice of image features, padding"),
            _few(difference, 0, "channel", "clipped outlier channels, a damaged row"),
        )
        if hint
    ]
    if np.sqrt(total / (a**2).sum()) < ROUNDING:
        hints.append(
            "it is as small as bfloat16's rounding: another dtype, or another order of sums, and perhaps no fault"
        )
    return hints or ["the difference has no simple pattern: other weights, another activation function, a formula"]


def _moved(a: np.ndarray, b: np.ndarray) -> str | None:
    """Whether channels, or tokens, of B are those of A in another order."""
    for axis, noun, hint in (
        (0, "channel", "the order of heads, rotary halves against pairs, q/k/v in another order"),
        (1, "token", "the order of patches, windows not sorted back"),
    ):
        x, y = (a.T, b.T) if axis == 0 else (a, b)
        x, y = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300) for z in (x, y))
        probed = np.unique(np.linspace(0, len(x) - 1, PROBED).round().astype(int))
        cosines = y[probed] @ x.T
        found = cosines.argmax(1)
        good = cosines.max(1) > 0.999
        if good.mean() > EXPLAINED and (found != probed)[good].any():
            where = int(np.flatnonzero(good & (found != probed))[0])
            return f"{noun}s are in another order: {noun} {probed[where]} of B is {noun} {found[where]} of A ({hint})"
    return None


def _few(difference: np.ndarray, axis: int, noun: str, hint: str) -> str | None:
    """Whether a few tokens, or channels, hold nearly all of the error."""
    energy = (difference**2).sum(axis)
    few = max(1, int(CONCENTRATED * len(energy)))
    largest = np.argsort(energy)[::-1][:few]
    if few >= len(energy) or energy[largest].sum() < EXPLAINED * energy.sum():
        return None
    named = ", ".join(str(index) for index in sorted(largest[:4]))
    return (
        f"{energy[largest].sum() / energy.sum():.0%} of the error is in {few} of {len(energy)} {noun}s"
        f" ({named}{', ...' if few > 4 else ''}): {hint}"
    )


LOOK_AT = {  # ending of a module's name -> what usually differs there
    (
        "norm",
        "norm1",
        "norm2",
        "layernorm",
        "layer_norm1",
        "layer_norm2",
        "ln_q",
        "pre_layrnorm",
    ): "the norm's epsilon, whether it computes in float32, weight against 1 + weight",
    ("qkv", "q_proj", "k_proj", "v_proj"): "its weight's layout, its bias, its scales; its input agrees",
    (
        "o_proj",
        "out_proj",
        "proj",
    ): "what lies between q/k/v and it: rotary embedding, mask, 1/sqrt(head dimension), which heads share a key",
    ("gate_proj", "up_proj", "fc1"): "its weight's layout, its bias, its scales; its input agrees",
    ("down_proj", "fc2"): "the activation function before it (quick_gelu against gelu), gate and up exchanged",
    ("embed_tokens",): "the vocabulary, token ids, whether image features were put in place",
    ("logits", "lm_head"): "the final norm, a tied or untied head",
}


def look_at(feature: str) -> list[str]:
    last = feature.rpartition(".")[2]
    what = next(
        (
            what
            for endings, what in LOOK_AT.items()
            if last in endings or any(last.endswith(f"_{ending}") for ending in endings)
        ),
        None,
    )
    if what:
        return [f"look at {what}"]
    return [f"look inside: dump both again with --modules '{feature}.*'"] if last.isdigit() else []
