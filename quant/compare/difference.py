"""What the difference of two arrays looks like, and so what kind of fault it is: a factor, a bias, channels or tokens
in another order, a transposed or reshaped tensor, single tokens, single channels, rounding.

Each pattern is fitted by least squares, and named where it accounts for most of the error's energy.
"""

import numpy as np

EXPLAINED = 0.9  # share of the error's energy that a pattern must account for to be named
CONCENTRATED = 0.02  # share of tokens or channels that counts as a few
PROBED = 32  # channels whose counterparts are looked for
ROUNDING = 2.0**-7  # relative error that bfloat16's 8 bits can leave
TINY = 1e-300  # in the place of a zero that is divided by


def describe(samples: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """The kinds of the difference of b from a, a line each, the one that says most first.

    samples: (a, b) per sample, floats of any shape; the last dimension is channels, all others are tokens.
    """
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
    factor = (a * b).sum() / max((a**2).sum(), TINY)
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
    factors = (a * b).sum(0) / np.maximum((a**2).sum(0), TINY)
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
        x, y = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), TINY) for z in (x, y))
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
