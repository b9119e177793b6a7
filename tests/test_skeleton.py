"""The acceptance test of every family: block after block gives what the whole model's forward gives, bit for bit."""

import pytest
import tiny
import torch
import transformers

from quant.base.config import QuantConfig
from quant.base.errors import QuantError
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.inputs.samples import prepare
from quant.model.streamed import Skeleton

CASES = [
    (family, dtype, None)
    for family in ("qwen2_vl", "qwen2_5_vl", "llava")
    for dtype in ("bfloat16", "float32", "float16")
]
CASES += [("qwen2_vl", "bfloat16", (1, 1)), ("llava", "bfloat16", (2, 1))]  # one block used in each tower


def stream(skeleton: Skeleton, samples: list[dict]) -> tuple[dict, list[torch.Tensor]]:
    """Block-streamed: hub block name -> outputs per sample, and the logits per sample."""
    blocks, outputs, checkpoint = {}, {}, skeleton.checkpoint
    for tower in skeleton.family.towers:
        feeds = None
        for index in range(tower.used(checkpoint.config)):
            tensors = skeleton.block_tensors(tower, index)
            for name in tensors:
                skeleton.set(name, checkpoint.load(name))
            feeds = feeds or skeleton.enter(tower, samples, outputs)
            for feed in feeds:
                feed.hidden = feed.calls[index](skeleton.block(tower, index), feed.hidden)
            blocks[tower.block(index)] = [feed.hidden for feed in feeds]
            skeleton.clear(tensors)
        outputs[tower.name] = [feed.hidden for feed in feeds]
    with skeleton.outside(head=True):
        logits = [
            skeleton.outputs(inputs, {name: hidden[i] for name, hidden in outputs.items()})
            for i, inputs in enumerate(samples)
        ]
    return blocks, logits


@pytest.mark.parametrize("family,dtype,cut", CASES)
@torch.inference_mode()
def test_streamed_equals_whole(tmp_path, family, dtype, cut):
    source = tiny.make(tmp_path / "src", family, dtype=dtype, shards=2, tied=family == "qwen2_vl", blocks=cut)
    checkpoint = Checkpoint(source)
    compute = getattr(torch, dtype)
    samples = prepare(
        tiny.make_images(tmp_path / "images", 3), checkpoint, family_of(checkpoint.config, source), QuantConfig()
    ).inputs
    skeleton = Skeleton(checkpoint, family_of(checkpoint.config, source), compute)
    blocks, logits = stream(skeleton, samples)

    whole = getattr(transformers, skeleton.family.architecture).from_pretrained(source, dtype=compute).eval()
    seen: dict[str, list] = {name: [] for name in blocks}
    for tower in skeleton.family.towers:
        for index in range(tower.used(checkpoint.config)):
            # The skeleton's own module has the same path in the whole model.
            path = next(
                name for name, module in skeleton.model.named_modules() if module is skeleton.block(tower, index)
            )
            whole.get_submodule(path).register_forward_hook(
                lambda module, args, output, name=tower.block(index): seen[name].append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
    for number, inputs in enumerate(samples):
        expected = whole(**inputs, use_cache=False).logits
        assert torch.isfinite(expected).all()
        assert torch.equal(logits[number], expected)
    for name, outputs in blocks.items():
        assert len(outputs) == len(seen[name]) == len(samples)
        for ours, theirs in zip(outputs, seen[name]):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_names_map_one_to_one(tmp_path, family):
    source = tiny.make(tmp_path / "src", family)
    checkpoint = Checkpoint(source)
    skeleton = Skeleton(checkpoint, family_of(checkpoint.config, source), torch.bfloat16)
    assert set(skeleton.names) == set(checkpoint.tensors)
    assert len(set(skeleton.names.values())) == len(skeleton.names)
    assert set(skeleton.names.values()) == {name for name, _ in skeleton.model.named_parameters()}


def test_tensor_of_wrong_shape_is_named(tmp_path):
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace('"intermediate_size": 320', '"intermediate_size": 384'))
    checkpoint = Checkpoint(source)
    with pytest.raises(
        QuantError, match=r"model\.layers\.0\.mlp\.\w+_proj\.weight has shape \[.*320.*\], config.json makes it \[.*384"
    ):
        Skeleton(checkpoint, family_of(checkpoint.config, source), torch.bfloat16)


def test_blocks_are_not_run_to_enter_a_tower_of_several(tmp_path, monkeypatch):
    """Whether a block answers with a tensor or a tuple is told by what the model makes of a stub's answer, not by
    computing one.
    """
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint.config, source)
    skeleton = Skeleton(checkpoint, family, torch.bfloat16)
    for tower in family.towers:
        block = type(skeleton.block(tower, 0))
        monkeypatch.setattr(block, "forward", lambda *args, **kwargs: pytest.fail("a block was run"))
    samples = prepare(tiny.make_images(tmp_path / "images", 2), checkpoint, family, QuantConfig()).inputs
    vision, language = family.towers
    with torch.inference_mode():
        feeds = skeleton.enter(vision, samples, {})
        assert len(skeleton.enter(language, samples, {vision.name: [feed.hidden for feed in feeds]})) == 2
