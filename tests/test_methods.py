"""m2, m4 and the activation ranges against brute-force oracles in numpy, written from the formulas and nothing else."""

import numpy as np
import pytest
import torch

from quant.arithmetic import m2, m4
from quant.arithmetic.prior import Prior, doubt
from quant.arithmetic.ranges import activation_range
from quant.arithmetic.smoothing import Problem, Smoothing, some_outputs
from quant.arithmetic.stats import Observer, Stats

F = np.float32


def problem(
    seed=0, channels=24, outputs=(20, 12), tokens=40, may_shift=False, act_method=1, outliers=3, share=lambda x: x
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, channels)).astype(F)
    x[:, :outliers] *= 25
    x[:, outliers] += 4
    weights = [torch.tensor(rng.normal(size=(o, channels)).astype(F)) for o in outputs]
    rows = torch.tensor(x)
    stats = Stats(rows.amin(0), rows.amax(0), rows, tokens)
    return Problem(stats, torch.cat(weights), torch.cat(weights).abs().amax(0), share, may_shift, act_method)


def oracle_error(x, weights, scale, shift):
    """Straight from the formula, one scalar at a time where that is bearable."""
    z = (x - shift) / scale
    lo, hi = min(z.min(), 0), max(z.max(), 0)
    step = F(max((F(hi) - F(lo)) / F(255), F(2**-23)))
    offset = np.clip(-128 - np.round(F(lo) / step), -128, 127)
    back = (np.clip(np.round(z / step + offset), -128, 127) - offset) * step
    total = 0.0
    for weight in weights:
        folded = weight * scale
        per_row = np.maximum(np.abs(folded).max(1, keepdims=True) / F(127), F(2**-23))
        rounded = np.clip(np.round(folded / per_row), -127, 127) * per_row
        exact = x @ weight.T
        total += ((exact - (back @ rounded.T + weight @ shift)) ** 2).sum()
    return total


def as_numpy(p):
    return p.stats.rows.numpy(), [p.weight.numpy()]


@pytest.mark.parametrize("seed", range(4))
def test_error_is_the_formula(seed):
    p = problem(seed)
    x, weights = as_numpy(p)
    rng = np.random.default_rng(seed + 100)
    scale, shift = np.exp(rng.normal(size=x.shape[1])).astype(F), rng.normal(size=x.shape[1]).astype(F)
    ours = p.error(lambda stats: Smoothing(torch.tensor(scale), torch.tensor(shift))).item()
    assert ours == pytest.approx(oracle_error(x, weights, scale, shift), rel=2e-3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("may_shift", [False, True])
def test_m2_finds_the_best_threshold(seed, may_shift):
    p = problem(seed, may_shift=may_shift)
    x, weights = as_numpy(p)
    errors = []
    for shift in [np.zeros(x.shape[1], F)] + ([(x.max(0) + x.min(0)) / 2] if may_shift else []):
        moved = x - shift
        largest = np.maximum(moved.max(0), -moved.min(0))
        top, bottom = largest.max(), np.sort(largest)[(len(largest) - 1) // 2]
        for threshold in np.geomspace(top, bottom, m2.THRESHOLDS):
            scale = np.ones(x.shape[1], F)
            for c in range(x.shape[1]):
                scale[c] = max(1, moved[:, c].max() / threshold, moved[:, c].min() / -threshold)
            errors.append(oracle_error(x, weights, scale, shift))
    solved = m2.search(p)(p.stats)
    shift = np.zeros(x.shape[1], F) if solved.shift is None else solved.shift.numpy()
    assert (
        oracle_error(x, weights, solved.scale.numpy(), shift) <= min(errors) * 1.03
    )  # m2 tries about half of them: on a bumpy curve it can miss the very best
    assert min(errors) < 0.7 * errors[0], "the data must have outliers worth suppressing, or this shows nothing"
    assert (solved.scale >= 1).all()


def test_m2_changes_nothing_where_there_is_nothing_to_suppress():
    rows = torch.ones(10, 8)
    rows[::2] = -1
    p = Problem(Stats(rows.amin(0), rows.amax(0), rows, 10), torch.eye(8), torch.ones(8), lambda x: x, False, 1)
    assert m2.solve(p).scale is None and torch.equal(m2.search(p)(p.stats).scale, torch.ones(8))
    zero = Problem(
        Stats(torch.zeros(8), torch.zeros(8), torch.zeros(10, 8), 10), torch.eye(8), torch.ones(8), lambda x: x, True, 1
    )
    assert m2.solve(zero) == Smoothing() and m2.search(zero)(zero.stats).shift is None


@pytest.mark.parametrize("alpha", [None, 0.5, 0.9, 0.25])
def test_m4_is_the_formula(alpha):
    p = problem(1)
    x, weights = as_numpy(p)
    a = 0.9 if alpha is None else alpha
    solved = m4.migrated(p, p.stats, a)
    assert torch.equal(m4.solve(p, alpha).scale, solved.scale), "it gains, on data with outliers"
    for c in range(x.shape[1]):
        largest = max(abs(value) for value in x[:, c])
        weight = max(abs(w[o, c]) for w in weights for o in range(len(w)))
        assert solved.scale[c].item() == pytest.approx(float(largest) ** a / float(weight) ** (1 - a), rel=1e-5)
    assert solved.shift is None


def test_m4_leaves_dead_channels_alone():
    p = problem(2)
    p.stats.lo[5] = p.stats.hi[5] = 0
    p.column_max[7] = 0
    scale = m4.migrated(p, p.stats, 0.9).scale
    assert scale[5] == 1 and scale[7] == 1 and torch.isfinite(scale).all() and (scale > 0).all()


@pytest.mark.parametrize("method", [m2, m4])
def test_heads_that_share_a_value_share_its_scale(method):
    share = lambda x: x.view(2, 3, 4).amax(1, keepdim=True).expand(2, 3, 4).reshape(-1)  # noqa: E731  2 value heads, 3 queries each
    scale = method.solve(problem(3, share=share)).scale.view(2, 3, 4)
    assert torch.equal(scale[:, 0], scale[:, 1]) and torch.equal(scale[:, 0], scale[:, 2])
    assert not torch.equal(scale[0], scale[1])


@pytest.mark.parametrize("method", [1, 2, 3])
def test_ranges_against_brute_force(method):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8000, 16)).astype(F)
    x[0, 3] = 12  # one value far out: clipping it pays
    weight = rng.normal(size=(10, 16)).astype(F)
    rows = torch.tensor(x)
    stats = Stats(rows.amin(0), rows.amax(0), rows, 8000)
    lo, hi = (value.item() for value in activation_range(stats, [torch.tensor(weight)], method))
    if method == 1:
        assert (lo, hi) == (x.min(), x.max())
        return
    energy = (weight**2).sum(0)
    both = np.concatenate([x, x.min(0, keepdims=True), x.max(0, keepdims=True)])

    def back(low, high):
        step = (high - low) / 255
        offset = np.clip(-128 - np.round(low / step), -128, 127)
        return (np.clip(np.round(both / step + offset), -128, 127) - offset) * step

    from quant.arithmetic.ranges import CLIPS

    expected = {clip: (((both - back(x.min() * clip, x.max() * clip)) ** 2) * energy).sum() for clip in CLIPS}
    best = min(expected, key=expected.get)
    assert best < 1, "clipping must pay on this data, or the test shows nothing"
    chosen = hi / x.max()
    assert (
        expected[min(CLIPS, key=lambda clip: abs(clip - chosen))] <= expected[best] * 1.02
    )  # the histogram's bins blur a little
    if method == 3:
        measured = {
            clip: (((both - back(x.min() * clip, x.max() * clip)) @ weight.T) ** 2).sum() for clip in (1.0, best)
        }
        assert (chosen < 1) == (measured[best] < measured[1.0])


def test_statistics_do_not_depend_on_the_split_into_samples():
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = Observer("l", 8, 60), Observer("l", 8, 60)
    whole.update(x, 0, 1)
    for number, part in enumerate((x[40:], x[:40])):
        parts.update(part[None], number, 1)
    a, b = whole.stats(), parts.stats()
    assert not a.halves and [half.count for half in b.halves] == [20, 40]
    for half, part in zip(b.halves, (x[40:], x[:40])):
        assert torch.equal(half.lo, part.amin(0)) and torch.equal(half.hi, part.amax(0))
    assert torch.equal(a.lo, b.lo) and torch.equal(a.hi, b.hi) and a.count == b.count == 60
    scale, shift = torch.rand(8) + 0.5, torch.randn(8)
    derived = a.smoothed(scale, shift)
    assert torch.equal(derived.lo, ((x - shift) / scale).amin(0)) and torch.equal(
        derived.hi, ((x - shift) / scale).amax(0)
    )


def test_nan_in_an_activation_is_named():
    from quant.base.errors import QuantError

    x = torch.zeros(3, 5)
    x[1, 4] = float("nan")
    with pytest.raises(QuantError, match=r"the input of model\.layers\.0\.q holds NaN or Inf in channel 4"):
        Observer("model.layers.0.q", 5, 4).update(x, 0, 0)


def test_large_linears_are_tried_on_some_outputs():
    assert torch.equal(some_outputs(10, "cpu"), torch.arange(10))
    picked = some_outputs(100_000, "cpu")
    assert len(picked) == len(set(picked.tolist())) == 512 and picked[0] == 0 and picked[-1] == 99_999


# -- judged on what was not fitted to ----------------------------------------------------------------------------------


def halved(seed=0, channels=48, outliers=3, apart=1.0):
    """A problem whose samples make two halves; in the second, the outlier channels are `apart` times as large."""
    rng = np.random.default_rng(seed)
    parts = []
    for factor in (1.0, apart):
        x = rng.normal(size=(40, channels)).astype(F)
        x[:, :outliers] *= 60 * factor
        rows = torch.tensor(x)
        parts.append(Stats(rows.amin(0), rows.amax(0), rows, 40))
    weight = torch.tensor(rng.normal(size=(30, channels)).astype(F))
    lo, hi = (torch.stack([getattr(part, side) for part in parts]) for side in ("lo", "hi"))
    stats = Stats(lo.amin(0), hi.amax(0), torch.cat([part.rows for part in parts]), 80, None, tuple(parts))
    return Problem(stats, weight, weight.abs().amax(0), lambda x: x, False, 1)


def test_the_error_is_that_of_the_half_that_was_not_fitted_to():
    p = halved()
    even, odd = p.stats.halves
    fit = lambda stats: m4.migrated(p, stats, 0.7)  # noqa: E731
    expected = 0.0
    for seen, judged in ((odd, even), (even, odd)):
        scale = fit(seen).scale.numpy()
        lo, hi = min((seen.lo.numpy() / scale).min(), 0), max((seen.hi.numpy() / scale).max(), 0)
        step = F((hi - lo) / 255)
        offset = np.clip(-128 - np.round(lo / step), -128, 127)
        x, weight = judged.rows.numpy(), p.weight.numpy()
        back = (np.clip(np.round(x / scale / step + offset), -128, 127) - offset) * step
        per_row = np.abs(weight * scale).max(1, keepdims=True) / F(127)
        rounded = np.round(weight * scale / per_row) * per_row
        expected += ((x @ weight.T - back @ rounded.T) ** 2).sum()
    assert p.error(fit).item() == pytest.approx(expected, rel=1e-3)


def test_smoothing_that_does_not_carry_over_is_left_out():
    """In one half the quiet channels become eight times as large: what m4 fits to the other clips them."""
    p = halved()
    assert m4.solve(p).scale is not None, "it does carry over, and gains"
    even, odd = p.stats.halves
    rows = odd.rows.clone()
    rows[:, 3:] *= 8
    odd = Stats(rows.amin(0), rows.amax(0), rows, 40)
    lo, hi = torch.minimum(even.lo, odd.lo), torch.maximum(even.hi, odd.hi)
    stats = Stats(lo, hi, torch.cat([even.rows, rows]), 80, None, (even, odd))
    rare = Problem(stats, p.weight, p.column_max, p.share, False, 1)
    assert m4.solve(rare).scale is None
    alone = Problem(Stats(lo, hi, stats.rows, 80), p.weight, p.column_max, p.share, False, 1)
    assert m4.solve(alone).scale is not None, "judged on what it was fitted to, it would have been taken"
    chosen = rare.error(m2.search(rare))
    assert chosen <= rare.error(lambda stats: Smoothing()) * 1.0001, "m2's search ends at no scale at all if need be"


def test_prior_is_the_formula():
    rng = np.random.default_rng(3)
    lo, hi = -np.abs(rng.normal(size=50)).astype(F), np.abs(rng.normal(size=50)).astype(F) * 2
    lo[7] = hi[7] = 0
    size = np.abs(rng.normal(size=50)).astype(F) + F(0.1)
    d = doubt(500)
    assert d == 2000 / 2500 and doubt(0) == 1
    largest = np.maximum(hi, -lo)
    trusted = np.quantile(largest / size, d)
    stats = Prior(torch.tensor(size), d).widened(Stats(torch.tensor(lo), torch.tensor(hi), torch.zeros(1, 50), 1))
    for c in range(50):
        factor = max(largest[c], size[c] * trusted) / largest[c] if largest[c] else 1
        assert stats.lo[c].item() == pytest.approx(lo[c] * factor, rel=1e-5)
        assert stats.hi[c].item() == pytest.approx(hi[c] * factor, rel=1e-5)
    assert stats.hi[7] == stats.lo[7] == 0, "a dead channel stays one"
    scale = torch.tensor([0.25, 1.0, 8.0])
    assert torch.allclose(Prior(scale, 0.0).damped(scale), scale)
    assert torch.allclose(Prior(scale, 1.0).damped(scale), scale ** (2 / 3))


def test_with_all_seen_the_prior_changes_nothing():
    p = halved()
    stats = Prior(torch.ones(48), 0.0).widened(p.stats)
    assert torch.equal(stats.lo, p.stats.lo) and torch.equal(stats.hi, p.stats.hi)
