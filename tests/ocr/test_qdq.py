"""The int8 graph against formulas in numpy; ranges, corrections, costs, and the choice of layers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graphs import classifier, looped, model, normal, transposed, value
from onnx import helper, numpy_helper

from quant.base.errors import QuantError
from quant.onnx import calibrate, choose, equalize, graph, job, measure, qdq, verify
from quant.onnx.sessions import Session


def prepared(make=classifier, shape=(1, 3, 32, 32), count=4):
    """(model, layers, statistics, ranges, feeds)."""
    made = graph.prepare(make(), None, "m.onnx")
    feeds = [{"x": normal(20 + number, *shape, scale=1.0)} for number in range(count)]
    layers = graph.layers(made)
    stats = calibrate.observe(made, layers, feeds)
    return made, layers, stats, calibrate.ranges(made, layers, stats), feeds


def weights(made):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


def rounded_input(x, lo, hi):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = np.float32((hi - lo) / 255)
    zero = np.clip(np.round(-128 - lo / scale), -128, 127)
    return ((np.clip(np.round(x / scale) + zero, -128, 127) - zero) * scale).astype(np.float32)


def rounded_weight(w, rest):
    scale = np.abs(w).max(rest, keepdims=True) / np.float32(127)
    return (np.clip(np.round(w / scale), -127, 127) * scale).astype(np.float32)


def test_ranges_are_what_was_seen():
    made, layers, stats, ranges, feeds = prepared()
    session = Session(made, "m", [layers[1].input])
    seen = np.concatenate([session.run(each)[0] for each in feeds])
    assert ranges.inputs[layers[1].input] == (seen.min(), seen.max())
    np.testing.assert_array_equal(stats[layers[1].input].hi, seen.max((0, 2, 3)))
    np.testing.assert_allclose(stats[layers[1].input].mean, seen.mean((0, 2, 3)), atol=1e-5)


def test_the_int8_graph_is_the_formula():
    made, layers, _, ranges, feeds = prepared()
    w = weights(made)
    convolve = lambda x, name, groups=1, **kind: torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(name), groups=groups, **kind
    ).numpy()
    by_name = {layer.name: layer for layer in layers}
    take = lambda name: (rounded_weight(w[by_name[name].weight], (1, 2, 3)), by_name[name].input)
    x = feeds[0]["x"]
    first, tensor = take("first")
    r0 = np.maximum(
        convolve(rounded_input(x, *ranges.inputs[tensor]), first, stride=2, padding=1)
        + w[by_name["first"].bias][:, None, None],
        0,
    )
    second, tensor = take("by_channel")
    c1 = convolve(rounded_input(r0, *ranges.inputs[tensor]), second, 8, padding=1)
    total = c1 + w[by_name["by_channel"].bias][:, None, None] + r0  # the residual reads what was not rounded
    third, tensor = take("wide")
    flat = convolve(rounded_input(total, *ranges.inputs[tensor]), third).mean((2, 3))
    last = by_name["last"]
    logits = rounded_input(flat, *ranges.inputs[last.input]) @ rounded_weight(w[last.weight], (0, 1)).T + w[last.bias]
    given = Session(qdq.quantized(made, layers, ranges), "m", measure.ends(made)).run(feeds[0])[0]
    np.testing.assert_allclose(given, logits, atol=2e-5)


def test_a_loop_is_the_formula():
    made, layers, _, ranges, feeds = prepared(looped, (1, 3, 16, 16))
    recurrent = next(layer for layer in layers if layer.loop)
    w = weights(made)
    features = Session(made, "m", ["product"]).run(feeds[0])[0]
    h, v = np.zeros((1, 6), np.float32), rounded_weight(w[recurrent.weight], (0, 1))
    for _ in range(5):
        h = np.tanh(rounded_input(h, *ranges.inputs[recurrent.input]) @ v + features.mean(1))
    given = Session(qdq.quantized(made, [recurrent], ranges), "m").run(feeds[0])[0]
    np.testing.assert_allclose(given, h @ w["u"], atol=2e-6)


@pytest.mark.parametrize(
    "make, shape", [(classifier, (1, 3, 32, 32)), (looped, (1, 3, 16, 16)), (transposed, (1, 3, 5, 7))]
)
def test_the_file_for_amct_answers_the_same(make, shape):
    made, layers, _, ranges, feeds = prepared(make, shape)
    one, other = (Session(qdq.quantized(made, layers, ranges, pairs), "m") for pairs in (False, True))
    for each in feeds:
        assert all(np.array_equal(left, right) for left, right in zip(one.run(each), other.run(each)))


@pytest.mark.parametrize("make, shape", [(classifier, (1, 3, 32, 32)), (looped, (1, 3, 16, 16))])
def test_only_some_layers_is_what_quantizing_them_alone_makes(make, shape):
    made, layers, _, ranges, feeds = prepared(make, shape)
    full = qdq.quantized(made, layers, ranges)
    for chosen in ([layers[1]], layers[2:], []):
        one, other = qdq.only(full, made, chosen), qdq.quantized(made, chosen, ranges)
        answers = [Session(each, "m").run(feeds[0])[0] for each in (one, other)]
        assert np.array_equal(*answers)
        assert sorted(graph.operators(one)) == sorted(graph.operators(other))


def test_biases_make_up_for_the_mean_error_of_the_weights():
    """On an input that is far from 0, a rounded weight shifts the mean of the output."""
    made = graph.prepare(classifier(), None, "m.onnx")
    feeds = [{"x": normal(20 + number, 1, 3, 32, 32) + 5} for number in range(4)]
    layers = graph.layers(made)
    stats = calibrate.observe(made, layers, feeds)
    ranges, first = calibrate.ranges(made, layers, stats), layers[:1]
    output = [next(node.output[0] for node in made.graph.node if node.name == first[0].name)]
    middle = np.s_[:, :, 2:-2, 2:-2]  # the borders are padded with 0
    mean = lambda it: np.mean([Session(it, "m", output).run(each)[0][middle].mean((0, 2, 3)) for each in feeds], 0)
    plain = mean(qdq.quantized(made, first, ranges)) - mean(made)
    mended = mean(qdq.quantized(calibrate.corrected(made, first, ranges, stats), first, ranges)) - mean(made)
    assert np.abs(mended).mean() < 0.3 * np.abs(plain).mean()


def test_an_input_that_is_not_finite():
    made = graph.prepare(classifier(), None, "m")
    with pytest.raises(QuantError, match="holds NaN or Inf"):
        calibrate.observe(made, graph.layers(made), [{"x": np.full((1, 3, 32, 32), np.nan, np.float32)}])


def test_multiply_adds_are_counted():
    made, *_, feeds = prepared()
    assert measure.multiply_adds(made, feeds[0]) == {
        "first": 16 * 16 * 8 * 27,
        "by_channel": 16 * 16 * 8 * 9,
        "wide": 16 * 16 * 16 * 8,
        "last": 32,
    }
    made, *_, feeds = prepared(looped, (1, 3, 16, 16))
    costs = measure.multiply_adds(made, feeds[0])
    assert costs["recurrent"] == 5 * 36 and costs["features"] == 16 * 36 and costs["before"] == 16 * 6 * 48
    made, *_, feeds = prepared(transposed, (1, 3, 5, 7))
    assert measure.multiply_adds(made, feeds[0]) == {"up": 5 * 7 * 3 * 16, "up_again": 10 * 14 * 4 * 4}


def test_damage_is_the_error_of_one_layer():
    made, layers, _, ranges, feeds = prepared()
    trials = measure.Trials(made, feeds[:2])
    assert trials.late == ["logits"] or trials.late == measure.ends(made)
    full = qdq.quantized(made, layers, ranges)
    found = [trials.damage(full, layer) for layer in layers]
    assert all(0 < each < 0.05 for each in found)
    whole = measure.relative(trials._run(made, trials.late), trials._run(full, trials.late))
    assert 0.2 * sum(found) < whole < 5 * sum(found)


LAYERS = [graph.Layer(name, "Conv", name, name, "", (1, 1, 1, 1)) for name in "abcd"]


def test_the_most_damage_for_the_least_work_stays_float_within_the_budget():
    damage, costs = {"a": 0.1, "b": 0.2, "c": 1e-9, "d": 0.05}, {"a": 10, "b": 900, "c": 1, "d": 30, "other": 4}
    order = choose.ranking(LAYERS, damage, costs)
    assert [layer.name for layer in order] == ["a", "d", "b", "c"]
    # b is too much work, c does no damage, and with d 44 of 945 would be float, above 4.5 %
    assert [layer.name for layer in choose.first_choice(order, damage, costs)] == ["a"]
    assert choose.first_choice(order, dict.fromkeys("abcd", 1e-06), costs) == []


def test_layers_become_float_until_the_bound_holds():
    tried = []

    def drop(floats):
        tried.append(len(floats))
        return 3.0 - len(floats)

    floats, turns = choose.until_it_holds(LAYERS, [LAYERS[2]], drop, 1.0)
    assert tried == [1, 2] and LAYERS[2] in floats and len(floats) == 2
    assert turns == [{"float": 1, "drop": 2.0}, {"float": 2, "drop": 1.0}]
    with pytest.raises(QuantError, match="whichever layers stay float"):
        choose.until_it_holds(LAYERS, [], lambda floats: 9.0, 1.0)


def test_weights_that_are_not_constant_are_no_layers():
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], "square")]
    assert graph.layers(model(nodes, [value("x", [1, 1, 4, 4])], [value("y", [1, 1, 4, 4])], {})) == []


def hard_swish(channels=6):
    """conv, hard swish written out, learned scale and shift, by channel, relu, dense: two inputs can be divided."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "first"),
        helper.make_node("Add", ["c0", "three"], ["a"], "plus"),
        helper.make_node("Clip", ["a", "zero", "six"], ["c"], "clip"),
        helper.make_node("Mul", ["c0", "c"], ["m"], "gate"),
        helper.make_node("Div", ["m", "six"], ["h"], "sixth"),
        helper.make_node("Mul", ["h", "factor"], ["f"], "learned"),
        helper.make_node("Add", ["f", "shift"], ["g"], "shifted"),
        helper.make_node("Conv", ["g", "w1", "b1"], ["c1"], "by_channel", group=channels),
        helper.make_node("Relu", ["c1"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], "dense"),
    ]
    spread = np.float32([1, 30, 0.1, 4, 1, 0.5])[:, None, None, None]
    constants = {
        "w0": normal(1, channels, 3, 1, 1) * spread,
        "b0": normal(2, channels),
        "three": np.array([3], np.float32),
        "zero": np.float32(0),
        "six": np.float32(6),
        "factor": np.array([1.3], np.float32),
        "shift": np.array([0.2], np.float32),
        "w1": normal(3, channels, 1, 1, 1),
        "b1": normal(4, channels),
        "w2": normal(5, 4, channels, 1, 1),
    }
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 4, 8, 8])], constants)


def test_equalizing_changes_no_bit_and_brings_the_error_down():
    made, layers, stats, ranges, feeds = prepared(hard_swish, (1, 3, 8, 8))
    done = equalize.exponents(made, layers, stats)
    assert len(done) == 2 and "x" not in done
    other = equalize.equalized(made, layers, done)
    assert all(np.array_equal(*(Session(it, "m").run(each)[0] for it in (made, other))) for each in feeds)
    after = equalize.divided(stats, done)
    seen = calibrate.observe(other, graph.layers(other), feeds)
    for name in stats:
        np.testing.assert_array_equal(after[name].lo, seen[name].lo)
        np.testing.assert_array_equal(after[name].hi, seen[name].hi)
    expected = [Session(made, "m").run(each) for each in feeds]
    plain, better = (
        measure.relative(expected, [Session(it, "m").run(each) for each in feeds])
        for it in (
            qdq.quantized(made, layers, ranges),
            qdq.quantized(other, layers, calibrate.ranges(other, layers, after)),
        )
    )
    assert better < plain / 1.5


def uneven(make):
    """A graph whose Gemms and MatMuls have rows of very different sizes, one of them zeros."""
    made = make()
    for tensor in made.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim == 2 and weight.dtype == np.float32:
            axis = 0 if make is classifier else 1
            spread = np.exp2(np.linspace(0, -4, weight.shape[axis]) - 0.1).astype(np.float32)
            spread[-1] *= weight.shape[axis] == 2
            weight = weight * (spread[:, None] if axis == 0 else spread)
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return made


@pytest.mark.parametrize("make, shape", [(classifier, (1, 3, 32, 32)), (looped, (1, 3, 16, 16))])
def test_even_output_channels_change_no_bit_and_bring_the_error_down(make, shape):
    made, layers, stats, ranges, feeds = prepared(lambda: uneven(make), shape)
    done = equalize.output_exponents(made, layers)
    assert set(done) == {layer.name for layer in layers if not layer.per_channel}
    other = equalize.evened(made, layers, done)
    assert all(np.array_equal(*(Session(it, "m").run(each)[0] for it in (made, other))) for each in feeds)
    assert graph.layers(other) == [
        layer if layer.per_channel or not layer.bias else replace(layer, bias=f"{layer.name}/2") for layer in layers
    ]
    matmuls = [layer for layer in layers if not layer.per_channel]
    weight = weights(other)
    for layer in matmuls:
        largest = np.abs(weight[layer.weight]).max(1 - layer.axis)
        assert ((largest == 0) | (largest > largest.max() / 2)).all()
    name = "logits" if make is classifier else "y"
    answers = lambda it: np.concatenate([Session(it, "m", [name]).run(each)[0] for each in feeds])
    plain, better = (
        channel_errors(answers(made), answers(it))
        for it in (
            qdq.quantized(made, matmuls, ranges),
            qdq.quantized(other, matmuls, calibrate.ranges(other, layers, stats)),
        )
    )
    assert better < plain / 1.3


def channel_errors(expected, given):
    """[T, C] -> the mean over channels of |a - b|^2 / |a|^2; a channel of zeros must be one."""
    size = np.square(expected).sum(0)
    error = np.square(expected - given).sum(0)
    assert not error[size == 0].any()
    return (error[size > 0] / size[size > 0]).mean()


def test_what_others_read_is_not_divided():
    """The residual of `classifier` reads what the convolution by channel reads."""
    made, layers, stats, *_ = prepared()
    assert next(layer.input for layer in layers if layer.name == "by_channel") not in equalize.exponents(
        made, layers, stats
    )


def test_what_was_equalized_gets_biases_of_its_own():
    """A correction is at most half a step of every weight times what its input is on average; "by_channel" was divided
    and has constants of new names.
    """
    made, layers, stats, *_ = prepared(hard_swish, (1, 3, 8, 8))
    done = equalize.exponents(made, layers, stats)
    other, after = equalize.equalized(made, layers, done), equalize.divided(stats, done)
    fixed = calibrate.corrected(other, layers, calibrate.ranges(other, layers, after), after)
    constant = lambda it, name, place: weights(it)[next(n for n in it.graph.node if n.name == name).input[place]]
    for layer in layers[:2]:
        step = np.abs(constant(other, layer.name, 1)).max((1, 2, 3)) / 127
        mean = np.abs(after[layer.input].mean)
        most = step / 2 * (mean if layer.groups > 1 else mean.sum())
        gap = np.abs(constant(fixed, layer.name, 2) - constant(other, layer.name, 2))
        assert (gap <= most + 1e-6).all()


def test_equalized_are_layers_whose_damage_matters(monkeypatch):
    made, layers, stats, ranges, feeds = prepared(hard_swish, (1, 3, 8, 8))
    full = qdq.quantized(calibrate.corrected(made, layers, ranges, stats), layers, ranges)
    trials = measure.Trials(made, feeds)
    damages = {layer.name: trials.damage(full, layer) for layer in layers}
    monkeypatch.setattr(job, "PAYS", 1e9)  # every layer that is tried is taken

    def inputs(enough):
        monkeypatch.setattr(choose, "ENOUGH", enough)
        work = job.Work.__new__(job.Work)
        work.float, work.layers, work.stats, work.tried = made, layers, stats, feeds
        work._equalize()
        return {layer.name for layer in layers if layer.input in work.exponents}

    assert inputs(0) == {"by_channel", "dense"}
    less, more = sorted(["by_channel", "dense"], key=damages.get)
    assert inputs(len(layers) * (damages[less] + damages[more]) / 2) == {more}
    assert inputs(len(layers) * damages[more] * 1.01) == set()


def test_what_was_equalized_is_not_damaged():
    made, layers, stats, *_ = prepared(hard_swish, (1, 3, 8, 8))
    done = equalize.exponents(made, layers, stats)
    other, after = equalize.equalized(made, layers, done), equalize.divided(stats, done)
    ranges = calibrate.ranges(other, layers, after)
    record = [{"name": layer.name, "range": ranges.inputs[layer.input]} for layer in layers]
    export = SimpleNamespace(
        int8=[layer.name for layer in layers], record={"layers": record}, refuse_changed=lambda: None
    )
    int8 = qdq.quantized(calibrate.corrected(other, layers, ranges, after), layers, ranges)
    assert verify.damaged(export, other, int8) == []
    assert [line.split(":")[0] for line in verify.damaged(export, made, int8)] == ["by_channel", "dense"]
