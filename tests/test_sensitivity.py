"""What each group costs, against models in which only that group is rounded, and what is chosen by it."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from quant import QuantConfig
from quant.calibrate.calibrator import Calibrator
from quant.export import reader
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.inputs.samples import prepare
from quant.model.whole import whole_model
from quant.verify import runtime
from quant.verify.selection import rank_correlation, select
from quant.verify.sensitivity import Analysis, GroupCost, Sensitivity
from quant.verify.verify import compared_positions

FAMILIES = ("qwen2_vl", "qwen3_vl", "llava")  # features between blocks, taps, a tower that stays float


@pytest.fixture(scope="module", params=FAMILIES)
def analysed(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("analysed")
    source, images = tiny.make(root / "source", request.param), tiny.make_images(root / "images", 2)
    config = QuantConfig(dev_type="cpu", disable_names_only=(), calib_text="none")
    calibrator = Calibrator(source, config, images).run(root)
    calibrator.save(root / "export")
    calibrator.close()
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint.config, source)
    inputs = prepare(images, checkpoint, family, config).inputs
    analysis = Analysis(checkpoint, reader.read(root / "export"), family, "cpu", inputs)
    return SimpleNamespace(
        analysis=analysis, found=analysis.run(), family=family, inputs=inputs, source=source, export=root / "export"
    )


def log_probabilities(model, analysed) -> list[torch.Tensor]:
    with torch.inference_mode():
        config = analysed.analysis.checkpoint.config
        return [
            model(**inputs, use_cache=False)
            .logits[0, compared_positions(inputs, analysed.family, config)]
            .float()
            .log_softmax(-1)
            for inputs in analysed.inputs
        ]


def whole(analysed):
    """The source's whole model, computing in what the export's does."""
    streamed = whole_model(Checkpoint(analysed.source), "cpu", False)
    if analysed.analysis.model.dtype != streamed.dtype:  # not the buffers, which keep their own
        streamed.dtype = analysed.analysis.model.dtype
        streamed.model.to(streamed.dtype)
    return streamed


def divergence(wanted, got) -> float:
    kl = torch.cat([(one.exp() * (one - other)).sum(-1).clamp(min=0) for one, other in zip(wanted, got)])
    return kl.double().mean().item()


def test_each_group_is_measured_as_in_a_whole_model_in_which_it_alone_is_rounded(analysed):
    """The oracle: transformers' whole model, the group's linears replaced in it. What Qwen3-VL adds between blocks is
    carried over as a difference, so that codes at a half may fall to the other side.
    """
    near = 0.02 if analysed.analysis.family.towers[0].taps(analysed.analysis.checkpoint.config) else 1e-4
    streamed = whole(analysed)
    wanted = log_probabilities(streamed.model, analysed)
    rounded = {}
    for tower in analysed.family.towers:
        for index in range(tower.used(analysed.analysis.checkpoint.config)):
            tensors, static, dynamic = analysed.analysis.roundings.load(tower, index)
            rounded |= {name: (static[name], dynamic[name]) for name in static}
    assert len(rounded) == len(reader.read(analysed.export).linear_names)
    for group in analysed.found.groups:
        for kind, expected in enumerate((group.static, group.dynamic)):
            with streamed.replaced([rounded[name][kind] for name in group.linears]):
                assert divergence(wanted, log_probabilities(streamed.model, analysed)) == pytest.approx(
                    expected, rel=near
                )
        with streamed.replaced([static for name, (static, _) in rounded.items() if name not in group.linears]):
            without = divergence(wanted, log_probabilities(streamed.model, analysed))
        assert analysed.found.kl - without == pytest.approx(group.company, rel=10 * near, abs=1e-6)


def test_all_together_are_the_export(analysed):
    wanted = log_probabilities(whole(analysed).model, analysed)
    got = log_probabilities(runtime.load(analysed.export)[0], analysed)
    assert divergence(wanted, got) == pytest.approx(analysed.found.kl, rel=0.1)  # folded norms are rounded to bfloat16
    assert sum(group.share for group in analysed.found.groups) == pytest.approx(1)


def test_any_mixture_is_measured_as_its_groups_are(analysed):
    """One group dynamic, all the others float: what the analysis says of it. And nothing named: the export."""
    config, roundings = analysed.analysis.checkpoint.config, analysed.analysis.roundings
    positions = [compared_positions(inputs, analysed.family, config) for inputs in analysed.inputs]
    every = {name for group in analysed.found.groups for name in group.linears}
    wanted = roundings.log_probabilities(analysed.inputs, positions, every, set())
    for group in (analysed.found.groups[0], analysed.found.groups[-1]):
        names = set(group.linears)
        got = roundings.log_probabilities(analysed.inputs, positions, every - names, names)
        assert divergence(wanted, got) == pytest.approx(group.dynamic, rel=0.02)
    got = roundings.log_probabilities(analysed.inputs, positions, set(), set())
    assert divergence(wanted, got) == pytest.approx(analysed.found.kl, rel=0.02)


def costs(*rows) -> Sensitivity:
    """rows: (static, dynamic, share); each a group of one linear, named by its number."""
    groups = [
        GroupCost((str(number),), "language", number, share, static, dynamic)
        for number, (static, dynamic, share) in enumerate(rows)
    ]
    return Sensitivity(groups, kl=2 * sum(group.static for group in groups))


ROWS = (0.010, 0.001, 0.1), (0.008, 0.007, 0.5), (0.001, 0.002, 0.1), (0.006, 0.000, 0.3)


@pytest.mark.parametrize(
    "bound,dynamic,float_,moved",
    [
        (0.051, False, [], 0.0),
        (0.049, False, ["0"], 0.1),  # 0.1 of cost for each share: before 0.02, 0.016 and 0.01
        (0.019, False, ["0", "3"], 0.4),
        (0.003, False, ["0", "1", "3"], 0.9),
        (0.0, False, ["0", "1", "2", "3"], 1.0),
    ],
)
def test_the_most_cost_for_each_multiply_add_leaves_first(bound, dynamic, float_, moved):
    chosen = select(costs(*ROWS), SimpleNamespace(vision_int8_whole=()), bound, dynamic)
    assert (chosen.floats, chosen.dynamics, chosen.reached) == (float_, [], True)
    assert chosen.moved == chosen.floating == pytest.approx(moved) and chosen.expected <= bound


def test_dynamic_comes_before_float():
    family = SimpleNamespace(vision_int8_whole=())
    chosen = select(costs(*ROWS), family, 0.021, True)
    assert (chosen.floats, chosen.dynamics) == ([], ["0", "3"]) and chosen.expected == pytest.approx(0.02)
    chosen = select(costs(*ROWS), family, 0.005, True)
    assert (chosen.floats, chosen.dynamics) == (["1"], ["0", "3"]), "2 would be worse dynamic than it is"
    assert (chosen.moved, chosen.floating) == (pytest.approx(0.9), pytest.approx(0.5))


def test_the_factor_is_what_was_measured():
    """All together cost twice what they do alone: twice as much has to leave."""
    family = SimpleNamespace(vision_int8_whole=())
    assert select(costs(*ROWS), family, 0.02, False, factor=1.0).floats == ["0"]
    assert select(costs(*ROWS), family, 0.02, False).floats == ["0", "3"]


def test_a_vision_tower_that_is_taken_whole_moves_whole():
    found = costs(*ROWS)
    for group in found.groups[:2]:
        group.tower = "vision"
    chosen = select(found, SimpleNamespace(vision_int8_whole=("attn.qkv",)), 0.02, False)
    assert chosen.floats == ["0", "1"] and chosen.moved == pytest.approx(0.6)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)  # scipy.stats
    assert rank_correlation([1, 1], [2, 3]) == 0
