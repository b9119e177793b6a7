"""The acceptance test of every family: block after block gives what the whole model's forward gives, bit for bit; also
where a model adds features between blocks, edits in place, or runs a tower twice in one forward.
"""

import gc

import greenlet
import pytest
import qwen3vl
import tiny
import torch
import transformers

from quant.base.config import QuantConfig
from quant.base.errors import QuantError
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.inputs.samples import prepare
from quant.model.paused import Kept, Passed, Walk, first, logits_at
from quant.model.streamed import StreamedModel

CASES = [
    (family, dtype, None)
    for family in ("qwen2_vl", "qwen2_5_vl", "llava")
    for dtype in ("bfloat16", "float32", "float16")
]
CASES += [("qwen2_vl", "bfloat16", (1, 1)), ("llava", "bfloat16", (2, 1))]  # one block used in each tower


def stream(model: StreamedModel, samples: list[dict], cut: dict[str, int] | None = None):
    """Hub block name -> outputs by (sample, pass), and the logits by sample. cut: tower name -> the block at which its
    walk is ended, and taken up again by another one from what a job would have kept.
    """
    blocks, passed, checkpoint = {}, {}, model.checkpoint
    for tower in model.family.towers:
        walk, kept = Walk(model, tower, dict(enumerate(samples)), passed), {}
        for index in range(tower.used(checkpoint.config)):
            tensors = model.block_tensors(tower, index)
            model.set_all({name: checkpoint.load(name) for name in tensors})
            if index == 0:
                walk.enter()
            elif cut and cut.get(tower.name) == index:
                walk.close()
                walk = Walk(model, tower, dict(enumerate(samples)), passed, index, kept)
                walk.enter()
            outputs = {key: call(model.block(tower, index)) for key, call in walk.calls.items()}
            blocks[tower.block(index)] = {key: first(output).clone() for key, output in outputs.items()}
            walk.advance(outputs)
            hidden, taps = walk.state()
            kept = {key: Kept(hidden[key].clone(), dict(kept[key].taps) if kept else {}) for key in hidden}
            for key, tap in taps.items():
                kept[key].taps[index] = tap.clone()
            model.clear(tensors)
        passed[tower.name] = walk.passed
    with model.outside():
        return blocks, [
            logits_at(model, number, inputs, passed, torch.arange(inputs["input_ids"].shape[1]))
            for number, inputs in enumerate(samples)
        ]


def whole_model(model: StreamedModel, source, dtype: torch.dtype, samples: list[dict], blocks):
    """The same by transformers alone: block name -> outputs in the order of the calls, and the logits."""
    if model.family.own_code:
        whole = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=True).eval()
        samples = [
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
            for inputs in samples
        ]
    else:
        whole = getattr(transformers, model.family.architecture).from_pretrained(source, dtype=dtype).eval()
    for (
        parameter
    ) in whole.parameters():  # out of the mapped file, where it lies at any address: of few tokens a product
        parameter.data = parameter.data.clone()  # in float32 depends on it in the last bit
    seen: dict[str, list] = {name: [] for name in blocks}
    paths = {id(module): name for name, module in model.model.named_modules()}
    for tower in model.family.towers:
        for index in range(tower.used(model.checkpoint.config)):
            name = tower.block(index)
            whole.get_submodule(paths[id(model.block(tower, index))]).register_forward_hook(
                lambda module, args, output, name=name: seen[name].append(first(output).clone())
            )
    expected = [whole(**inputs, use_cache=False).logits for inputs in samples]
    assert all(torch.isfinite(value).all() for value in expected)
    return seen, expected


def assert_equal_to_the_whole(model: StreamedModel, source, dtype: torch.dtype, samples: list[dict], **how) -> None:
    blocks, ours = stream(model, samples, **how)
    seen, expected = whole_model(model, source, dtype, samples, blocks)
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.equal(mine, theirs)
    for name, outputs in blocks.items():
        for mine, theirs in zip([outputs[key] for key in sorted(outputs)], seen[name], strict=True):
            assert torch.equal(mine, theirs), name
    assert not running(), "a forward was left behind"


def running() -> list:
    gc.collect()
    return [
        each for each in gc.get_objects() if type(each) is greenlet.greenlet and each and not each.dead and each.parent
    ]


@pytest.mark.parametrize("family,dtype,cut", CASES)
@torch.inference_mode()
def test_streamed_equals_whole(tmp_path, family, dtype, cut):
    source = tiny.make(tmp_path / "src", family, dtype=dtype, shards=2, tied=family == "qwen2_vl", blocks=cut)
    checkpoint = Checkpoint(source)
    described = family_of(checkpoint.config, source)
    samples = prepare(tiny.make_images(tmp_path / "images", 3), checkpoint, described, QuantConfig()).inputs
    model = StreamedModel(checkpoint, described, getattr(torch, dtype))
    assert_equal_to_the_whole(model, source, model.dtype, samples)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_taken_up_again_in_each_tower(tmp_path, family):
    source = tiny.make(tmp_path / "src", family)
    checkpoint = Checkpoint(source)
    described = family_of(checkpoint.config, source)
    samples = prepare(tiny.make_images(tmp_path / "images", 2), checkpoint, described, QuantConfig()).inputs
    model = StreamedModel(checkpoint, described, torch.bfloat16)
    assert_equal_to_the_whole(model, source, torch.bfloat16, samples, cut={"vision": 1, "language": 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cut", [None, {"vision": 1, "language": 1}, {"vision": 3, "language": 2}], ids=str)
@torch.inference_mode()
def test_deepstack_of_qwen3_vl(tmp_path, dtype, cut):
    """Vision features of several blocks are added to the hidden state behind decoder blocks 0, 1, 2 (in place in
    transformers 4.57), each through a merger of its own.
    """
    source = qwen3vl.make(tmp_path / "src", dtype)
    model = StreamedModel(Checkpoint(source), qwen3vl.QWEN3_VL, dtype)
    samples = [qwen3vl.sample([(1, 4, 6)], seed=0), qwen3vl.sample([(1, 8, 4), (1, 4, 4)], seed=1)]
    assert_equal_to_the_whole(model, source, dtype, samples, cut=cut)


@pytest.mark.parametrize("cut", [None, {"vision": 2, "language": 1}], ids=str)
@torch.inference_mode()
def test_a_tower_that_is_run_twice(tmp_path, cut):
    """Image and video: the vision tower runs once for each, both times within one forward."""
    source = qwen3vl.make(tmp_path / "src", torch.bfloat16)
    model = StreamedModel(Checkpoint(source), qwen3vl.QWEN3_VL, torch.bfloat16)
    samples = [
        qwen3vl.sample([(1, 4, 4)], video=(2, 4, 6), seed=2),
        qwen3vl.sample([], video=(3, 4, 4), seed=3),
        qwen3vl.sample([(1, 6, 4)], seed=4),
        qwen3vl.sample([], seed=5),  # text alone: the vision tower is not entered
    ]
    assert [qwen3vl.QWEN3_VL.tower("vision").passes(inputs) for inputs in samples] == [2, 1, 1, 0]
    assert_equal_to_the_whole(model, source, torch.bfloat16, samples, cut=cut)


@torch.inference_mode()
def test_edits_in_place(tmp_path, monkeypatch):
    """Blocks that write into what they are given, and a model that writes into what its blocks answer."""
    source = tiny.make(tmp_path / "src", "qwen2_vl", dtype="float32")
    checkpoint = Checkpoint(source)
    described = family_of(checkpoint.config, source)
    samples = prepare(tiny.make_images(tmp_path / "images", 2), checkpoint, described, QuantConfig()).inputs
    model = StreamedModel(checkpoint, described, torch.float32)
    before, _ = stream(model, samples)
    layer, text_model = type(model.block(described.tower("language"), 0)), type(model.model.model.language_model)
    original = layer.forward

    def destructive(self, hidden_states, *args, **kwargs):
        output = original(self, hidden_states.clone(), *args, **kwargs)
        hidden_states.mul_(0)
        return output

    monkeypatch.setattr(layer, "forward", destructive)
    assert_equal_to_the_whole(model, source, torch.float32, samples)
    monkeypatch.setattr(text_model, "forward", adding_in_place(text_model.forward, layer))
    model = StreamedModel(checkpoint, described, torch.float32)
    assert_equal_to_the_whole(model, source, torch.float32, samples)
    assert_equal_to_the_whole(model, source, torch.float32, samples, cut={"language": 1})
    after, _ = stream(model, samples)
    assert not torch.equal(after["model.layers.1."][0, 0], before["model.layers.1."][0, 0]), "the edit does something"


def adding_in_place(forward, layer):
    """A text model's forward that adds to every block's output, in place, before the next block gets it."""

    def add(module, args, output):
        first(output).add_(0.25)

    def changed(self, *args, **kwargs):
        handles = [module.register_forward_hook(add) for module in self.modules() if isinstance(module, layer)]
        try:
            return forward(self, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    return changed


@torch.inference_mode()
def test_nothing_is_left_of_a_walk_that_ends_early(tmp_path):
    source = qwen3vl.make(tmp_path / "src", torch.float32)
    model = StreamedModel(Checkpoint(source), qwen3vl.QWEN3_VL, torch.float32)
    vision = qwen3vl.QWEN3_VL.tower("vision")
    model.set_all({name: model.checkpoint.load(name) for name in model.block_tensors(vision, 0)})
    for error in (KeyboardInterrupt, QuantError):
        with pytest.raises(error):
            with Walk(model, vision, {0: qwen3vl.sample([(1, 4, 4)], seed=0)}, {}) as walk:
                walk.enter()
                assert len(running()) == 1 and not model.model.model.visual.merger.linear_fc1.weight.is_meta
                raise error("stop")
        assert not running() and model.model.model.visual.merger.linear_fc1.weight.is_meta


@torch.inference_mode()
def test_a_model_that_enters_a_tower_more_or_less_often_than_told_is_refused(tmp_path):
    source = qwen3vl.make(tmp_path / "src", torch.float32)
    model = StreamedModel(Checkpoint(source), qwen3vl.QWEN3_VL, torch.float32)
    vision, language = qwen3vl.QWEN3_VL.towers
    inputs = qwen3vl.sample([(1, 4, 4)], video=(2, 4, 4), seed=0)
    model.answers_tuple["vision"] = False
    with Walk(model, language, {7: inputs}, {"vision": {(7, 0): Passed(torch.zeros(16, 64))}}) as walk:
        with pytest.raises(QuantError, match=r"sample 7 enters the vision tower in pass 2, 1 were announced"):
            walk.enter()
    text = qwen3vl.sample([], seed=0) | {"pixel_values": torch.zeros(0, 1536)}
    del text["pixel_values"]
    with Walk(model, vision, {3: Announcing(text)}, {}) as walk:
        with pytest.raises(QuantError, match=r"sample 3 does not reach block 0 of the vision tower in pass 1 of 1"):
            walk.enter()


class Announcing(dict):
    """Inputs that say they enter the vision tower, and do not."""

    def __contains__(self, name):
        return name == "pixel_values" or super().__contains__(name)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_names_map_one_to_one(tmp_path, family):
    source = tiny.make(tmp_path / "src", family)
    checkpoint = Checkpoint(source)
    model = StreamedModel(checkpoint, family_of(checkpoint.config, source), torch.bfloat16)
    assert set(model.names) == set(checkpoint.tensors)
    assert len(set(model.names.values())) == len(model.names)
    assert set(model.names.values()) == {name for name, _ in model.model.named_parameters()}


def test_tensor_of_wrong_shape_is_named(tmp_path):
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace('"intermediate_size": 320', '"intermediate_size": 384'))
    checkpoint = Checkpoint(source)
    with pytest.raises(
        QuantError, match=r"model\.layers\.0\.mlp\.\w+_proj\.weight has shape \[.*320.*\], config.json makes it \[.*384"
    ):
        StreamedModel(checkpoint, family_of(checkpoint.config, source), torch.bfloat16)


def test_no_block_is_run_to_enter_a_tower(tmp_path, monkeypatch):
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint.config, source)
    model = StreamedModel(checkpoint, family, torch.bfloat16)
    for tower in family.towers:
        block = type(model.block(tower, 0))
        monkeypatch.setattr(block, "forward", lambda *args, **kwargs: pytest.fail("a block was run"))
    samples = prepare(tiny.make_images(tmp_path / "images", 2), checkpoint, family, QuantConfig()).inputs
    with torch.inference_mode(), Walk(model, family.tower("vision"), dict(enumerate(samples)), {}) as walk:
        walk.enter()
        assert list(walk.calls) == [(0, 0), (1, 0)]


@torch.inference_mode()
def test_outputs_that_nobody_reads_again_are_let_go(tmp_path):
    """LLaVA's vision tower hands out all its hidden states, of which one is read: they must not pile up."""
    source = tiny.make(tmp_path / "src", "llava", dtype="float32", blocks=(5, 1))  # 4 are used
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint.config, source)
    model = StreamedModel(checkpoint, family, torch.float32)
    samples = prepare(tiny.make_images(tmp_path / "images", 1), checkpoint, family, QuantConfig()).inputs
    vision, kept = family.tower("vision"), []
    with Walk(model, vision, {0: samples[0]}, {}) as walk:
        for index in range(4):
            model.set_all({name: checkpoint.load(name) for name in model.block_tensors(vision, index)})
            if index == 0:
                walk.enter()
            kept.append(walk.calls[0, 0](model.block(vision, index)))
            walk.advance({(0, 0): kept[-1]})
    sizes = [first(output).numel() for output in kept]
    assert sizes[:2] == [0, 0] and sizes[2] > 0, "the last but one may still be on its way to the disk"
    assert walk.passed[0, 0].output.numel() == sizes[3] > 0
