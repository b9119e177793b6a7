"""What every family must show, one row of ROWS each: bit-equality with the whole model, names, methods and schemes,
folding, servers, jobs that survive. A new family is a row.

Left to the tests of their own: Qwen2-VL, Qwen2.5-VL and LLaVA.
"""

import json
import os
import signal
import time
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import faults
import pytest
import tiny
import torch
import transformers
import vllm_names
from exports import copy, edit_json
from jobs import run_job
from PIL import Image
from test_calibrator import digest
from test_paused import assert_equal_to_the_whole
from test_qwen2_5vl import headers_only
from test_ranks import in_ranks
from torch import nn

from bench import hub_config, hub_files, hub_tensors
from quant import Calibrator, QuantConfig
from quant.base.errors import UsageError
from quant.calibrate.launch import joined
from quant.calibrate.work import work_directory
from quant.commands.cli import main
from quant.export import reader
from quant.export.formats import export
from quant.export.plan import make_plan
from quant.families import FAMILIES, family_of
from quant.families.internvl import INTERNVL
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import Encoder
from quant.inputs.samples import prepare
from quant.inputs.sizes import Measure
from quant.model.streamed import StreamedModel
from quant.servers.rules import SERVERS, check
from quant.verify import runtime
from quant.verify.generation import greedy
from quant.verify.verify import verify


@dataclass(frozen=True)
class Row:
    """A family in the tests. tiny: of tiny.FAMILIES; published: sizes of hub_config.SIZES; images: whether several go
    into one prompt; dynamic: linears that are dynamic beside static ones; other_vision: than the family's own choice.
    """

    tiny: str
    published: tuple[str, ...]
    dynamic: str = "*self_attn.o_proj"
    several: bool = True
    other_vision: str = "float"
    jobs: tuple[str, ...] = ("static", "dynamic", "mixed", "none", "other vision", "vllm-ascend")
    """Of JOBS, those that are shown; fewer where another row's family has the same towers."""
    served: bool = True
    """Whether a server has it, and transformers a class that reads its names; else shown in tests of its own."""
    own_code: bool = False
    """Whether its class is code that the checkpoint brings."""
    words: frozenset[str] | set[str] = frozenset({"W8A8"})
    """Types of int8 linears where static ones are asked for."""
    errors: dict[str, set[str]] = field(default_factory=dict)
    """Of which job `check` finds what: rules that break by what was asked for."""

    @property
    def architecture(self) -> str:
        """The class of its model."""
        return hub_config.SIZES[tiny.FAMILIES[self.tiny]].config["architectures"][0]


ROWS = (
    Row(
        "qwen3_vl",
        ("qwen3vl-2b", "qwen3vl-4b", "qwen3vl-8b", "qwen3vl-32b"),
        errors={"dynamic": {"vision-switch"}, "mixed": {"one-type"}, "other vision": {"vision-whole"}},
    ),
    Row(
        "internvl",
        ("internvl3_5-1b", "internvl3_5-8b", "internvl3_5-38b", "internvl3-8b"),
        other_vision="int8",
        errors={"all": {"served"}},
    ),
    Row(
        "qwen3_vl_moe",
        ("qwen3vl-30b-a3b", "qwen3vl-235b-a22b"),
        words={"W8A8", "W8A8_DYNAMIC"},
        errors={"dynamic": {"vision-switch"}, "mixed": {"one-type"}, "other vision": {"vision-whole"}},
    ),
    Row("qwen3_5", ("qwen3_5-2b", "qwen3_5-27b"), "*linear_attn*", errors={"all": {"served"}}),
    Row(
        "qwen3_5_moe", ("qwen3_5-35b-a3b",), "*linear_attn*", words={"W8A8", "W8A8_DYNAMIC"}, errors={"all": {"served"}}
    ),
    Row(
        "llava_onevision",
        ("llava_onevision-0.5b", "llava_onevision-7b"),
        other_vision="int8",
        errors={"all": {"served"}},
    ),
    Row(
        "llava_next",
        ("llava_next-7b", "llava_next-34b"),
        jobs=("static", "dynamic", "mixed", "vllm-ascend"),
        errors={"mixed": {"one-type"}},
    ),
    Row("llava_next_video", ("llava_next_video-7b",), jobs=("static", "mixed"), errors={"mixed": {"one-type"}}),
    Row("llava_video", ("llava_video-7b",), jobs=("static",), served=False, errors={"all": {"served"}}),
    Row("glm_ocr", ("glm_ocr",), errors={"all": {"served"}}),
    Row("paddleocr_vl", ("paddleocr_vl",), other_vision="int8", errors={"all": {"served"}}),
    Row(
        "molmo",
        ("molmo-7b",),
        "*attn_out",
        several=False,
        other_vision="int8",
        errors={"all": {"served"}},
        own_code=True,
    ),
)
ROWS = tuple(
    row for row in ROWS if row.own_code or hasattr(transformers, FAMILIES[row.architecture].built_as)
)  # 4.57 has not all of them
JOBS: dict[str, dict] = {
    "static": dict(anti_method="m2"),
    "dynamic": dict(anti_method="m4", scheme="W8A8_DYNAMIC", calib_text="none"),
    "mixed": dict(anti_method="m4", calib_text="none"),
    "none": dict(anti_method="none", calib_text="none"),
    "other vision": dict(anti_method="m4", calib_text="none"),
    "vllm-ascend": dict(anti_method="m4", calib_text="none", profile="vllm-ascend"),
}
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.tiny)
served = pytest.mark.parametrize("row", [row for row in ROWS if row.served], ids=lambda row: row.tiny)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(row) -> (checkpoint, images); made.job(row, name) -> the export of a job; each once."""
    root = tmp_path_factory.mktemp("families")

    class Made:
        images = tiny.make_images(root / "images", 3)

        def source(self, row: Row) -> Path:
            place = root / row.tiny
            return place if place.exists() else tiny.make(place, row.tiny)

        def choices(self, row: Row, name: str) -> QuantConfig:
            own: dict[str, dict] = {
                "mixed": {"dynamic_names": (row.dynamic,)},
                "other vision": {"vision": row.other_vision},
            }
            choices = {**JOBS[name], **own.get(name, {})}
            return QuantConfig(dev_type="cpu", trust_remote_code=row.own_code, **choices)

        def job(self, row: Row, name: str) -> Path:
            out = root / f"{row.tiny}-{name}"
            if not out.exists():
                run_job(Calibrator(self.source(row), self.choices(row, name), str(self.images), quiet=True), out)
            return out

    return Made()


# -- the model


def two_images(encoder: Encoder) -> dict:
    """A prompt about two images of different sizes, as the checkpoint's own processor makes it."""
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 64), (64, 128))]
    return encoder(pictures, "Which is larger?")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@served
@torch.inference_mode()
def test_streamed_equals_whole(tmp_path, made, row, dtype):
    """Images of several sizes, several in one prompt, and text alone."""
    source = tiny.make(tmp_path / "src", row.tiny, dtype=dtype, shards=2)
    checkpoint = Checkpoint(source)
    family = family_of(checkpoint.config, source)
    samples = prepare(made.images, checkpoint, family, QuantConfig(num_samples=2)).inputs
    encoder = Encoder(source)
    if row.tiny.startswith("llava") and family.processing.video:
        clip = replace(shown := encoder.blank_clip(3, 64, 96), frames=torch.randint_like(shown.frames, 256))
        samples.append(encoder(Image.effect_noise((64, 96), 90).convert("RGB"), "What happens?", clips=[clip]))
    samples += [two_images(encoder)] if row.several else []
    samples += [encoder(None, "How are you?")]
    pixels = family.tower("vision").inputs[0]
    sizes = {tuple(sample[pixels].shape) for sample in samples if pixels in sample}
    assert len(sizes) > 1 or not family.processing.limits and not family.processing.tile
    model = StreamedModel(checkpoint, family, getattr(torch, dtype), trust_remote_code=row.own_code)
    again = {"vision": 1, "language": 1} if dtype == "bfloat16" else None  # taken up inside each tower
    assert_equal_to_the_whole(model, source, model.dtype, samples, cut=again)


def copied(checkpoint: Checkpoint) -> set[str]:
    """The tensors that transformers does not run."""
    known = family_of(checkpoint.config, checkpoint.dir).may_hold(checkpoint.config)
    return {name for name in checkpoint.tensors if name.startswith("mtp.") or name in known}


@rows
def test_names_of_the_tiny_size(made, row):
    checkpoint = Checkpoint(made.source(row))
    family = family_of(checkpoint.config, checkpoint.dir)
    model = StreamedModel(checkpoint, family, torch.bfloat16, trust_remote_code=row.own_code)
    assert set(model.names) == checkpoint.tensors.keys() - copied(checkpoint)
    assert sorted(model.names.values()) == sorted(name for name, _ in model.model.named_parameters())


PARAMETERS = {
    "qwen3vl-2b": 2_127_532_032,
    "qwen3vl-4b": 4_437_815_808,
    "qwen3vl-8b": 8_767_123_696,
    "qwen3vl-32b": 33_357_390_064,
    "qwen3_5-27b": 27_781_427_952,
    "qwen3_5-35b-a3b": 35_951_822_704,
    "glm_ocr": 1_325_258_240,
    "molmo-7b": 8_021_025_280,
}
"""Of the published checkpoints, drafter and all: half the total_size of their index, of float32 a quarter. Of the
others it was not found.
"""
PUBLISHED = [(row, size) for row in ROWS for size in row.published]


@pytest.mark.parametrize("row,size", PUBLISHED, ids=[size for _, size in PUBLISHED])
def test_every_linear_of_the_published_size_is_decided(tmp_path, row, size):
    """On the meta device: names are a bijection, shapes agree, and no linear is without a decision and a reason."""
    config = hub_config.SIZES[size].config
    tensors = hub_tensors.tensors(config)
    assert sum(tensor.size for tensor in tensors) == PARAMETERS.get(size, sum(tensor.size for tensor in tensors))
    checkpoint = headers_only(tmp_path, config, tensors)
    family = family_of(config, tmp_path)
    if row.own_code:
        hub_files.write(tmp_path, hub_config.SIZES[size])
    model = StreamedModel(checkpoint, family, torch.bfloat16, trust_remote_code=row.own_code)
    ignored = copied(checkpoint)
    assert model.names.keys() == checkpoint.tensors.keys() - ignored
    tied = {f"{model.head}.weight"} if config["tie_word_embeddings"] else set()
    parameters = {name for name, _ in model.model.named_parameters(remove_duplicate=False)} - tied
    assert sorted(model.names.values()) == sorted(parameters)

    plan = make_plan(checkpoint, family, QuantConfig(anti_method="m2"))
    decided = {
        model.names[f"{name}.weight"].removesuffix(".weight"): decision
        for name, decision in plan.decisions.items()
        if f"{name}.weight" not in ignored
    }
    linears = {name: module for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    assert linears.keys() - decided.keys() == {name.removesuffix(".weight") for name in tied}
    assert all(
        decision.shape == tuple(linears[name].weight.shape) for name, decision in decided.items() if name in linears
    )
    routers = {name for name in decided if name.endswith("mlp.gate")}  # a module of its own since transformers 5
    assert decided.keys() - linears.keys() <= routers
    assert all(decision.why for decision in plan.decisions.values())
    expected = family.holds(config) | family.may_hold(config)
    for tower in family.towers:
        for index in range(tower.blocks(config)):
            expected |= {tower.block(index) + name: shape for name, shape in tower.holds(config, index).items()}
    if tied:
        del expected[f"{family.head}.weight"]
    assert expected == {name: info.shape for name, info in checkpoint.tensors.items()}


@pytest.mark.skipif(not hasattr(transformers, "Qwen3VLMoeForConditionalGeneration"), reason="not in this transformers")
def test_the_largest_is_planned_without_its_weights(tmp_path, made, capsys):
    """235B by --dry_run, its 471 GB of weights a hole in a file."""
    size = hub_config.SIZES["qwen3vl-235b-a22b"]
    headers_only(tmp_path, size.config, hub_tensors.tensors(size.config))
    hub_files.write(tmp_path, size)
    words = ["--calib_text", "none", "--num_samples", "1", "--dry_run"]
    assert main(["quantize", "--model_path", str(tmp_path), "--calib_images", str(made.images), *words]) == 0
    told = capsys.readouterr().out
    int8 = 94 * (4 + 3 * 128) + 27 * 3  # attention and experts of each block; qkv, proj and fc1 of the vision tower's
    assert "Qwen3-VL-MoE" in told and f"{int8} int8" in told.replace(",", "")
    decisions = told[told.index("linears ") :]
    assert max(map(len, decisions.splitlines())) <= 80
    assert "deepstack_merger_list.*.linear_fc1 3 x" in told and "-> mlp.experts.*.gate_proj,\n" in told


@rows
def test_sizes_are_what_the_processor_makes(made, row):
    """`python -m quant sizes` against the inputs themselves: proportions kept, or tiles, or one size."""
    encoder, measure = Encoder(made.source(row)), Measure(made.source(row), "What is this?")
    for height, width in ((90, 64), (64, 200), (300, 300)):
        inputs, sizes = encoder(Image.new("RGB", (width, height)), "What is this?"), measure(height, width)
        assert sizes.pixel_values == tuple(inputs[encoder.family.tower("vision").inputs[0]].shape)
        assert sizes.visual == (inputs["input_ids"] == encoder.image_token_id).sum() <= measure.largest()[1]
        assert sizes.input == inputs["input_ids"].numel() and sizes.patches <= measure.largest()[0]


def test_a_decoder_that_is_not_supported_is_named(tmp_path):
    config = deepcopy(hub_config.SIZES["internvl3_5-8b"].config)
    config["text_config"]["model_type"] = "qwen3_moe"
    with pytest.raises(UsageError, match="its language model is a qwen3_moe; supported are qwen3 and qwen2"):
        make_plan(headers_only(tmp_path, config, hub_tensors.tensors(config)), INTERNVL, QuantConfig())


# -- quantizing


EXPORTS = [(row, name) for row in ROWS for name in row.jobs]
exports = pytest.mark.parametrize("row,name", EXPORTS, ids=[f"{row.tiny}-{name}" for row, name in EXPORTS])


@exports
def test_a_job_is_right_and_the_servers_take_it(made, row, name):
    """verify finds no damage and no loss; `check` finds what that choice breaks, and nothing else."""
    source, out = made.source(row), made.job(row, name)
    servers = [name] if name in SERVERS else list(SERVERS)  # a profile is for its server
    errors = [finding for finding in check(out, servers, source=source) if finding.level == "error"]
    wanted = row.errors.get(name, set()) | row.errors.get("all", set())
    assert {finding.rule for finding in errors} == (set() if name in SERVERS else wanted)
    assert not row.served or not any("vllm-ascend" in finding.effects for finding in errors)
    # One image and four tokens: what is asked is whether the tensors are right, tower by tower.
    # Of three images and a prompt so little is known that ranges are made wide (arithmetic/prior.py), which costs KL.
    limits = {"kl": 0.05}
    config = QuantConfig(dev_type="cpu", num_samples=1, trust_remote_code=row.own_code)
    report = verify(out, source, config, str(made.images), tokens=0, thresholds=limits)
    assert report["findings"] == []
    # Of outlier channels that nothing was done about W8A8 alone may cost more than the thresholds allow.
    assert report["passed"] or name == "none" and report["verdict"]["cause"] == "quantization", report["verdict"]
    words = set(reader.read(out).words.values())
    assert words == {"static": row.words, "dynamic": {"W8A8_DYNAMIC"}}.get(name, words)
    assert name != "mixed" or words == {"W8A8", "W8A8_DYNAMIC"}


@rows
@torch.inference_mode()
def test_read_back_by_the_runtime(made, row):
    """The export as a model of its own answers nearly as the float model does, and writes an answer."""
    model, encoder = runtime.load(made.job(row, "static"), trust_remote_code=row.own_code)
    whole, _ = runtime.load_float(made.source(row), trust_remote_code=row.own_code)
    inputs = encoder(Image.open(sorted(made.images.iterdir())[0]).convert("RGB"), "What is this?")
    wanted, got = (each(**inputs).logits.float() for each in (whole, model))
    assert (got - wanted).norm() < 0.2 * wanted.norm()
    assert len(greedy(model, inputs, 3)) == 3


COPIED = pytest.mark.parametrize(
    "row",
    [row for row in ROWS if "3_5" in row.tiny or row.tiny in ("glm_ocr", "paddleocr_vl")],
    ids=lambda row: row.tiny,
)


@pytest.mark.parametrize("name", ["static", "dynamic", "mixed"])
@COPIED
def test_what_transformers_does_not_run_is_copied_bit_for_bit_and_described(made, row, name):
    source, out = Checkpoint(made.source(row)), made.job(row, name)
    made_of, said = reader.read(out), json.loads((out / "quant_model_description.json").read_text())
    names = copied(source)
    assert names and names <= made_of.tensors.keys()
    for name in names:
        before, after = source.load(name), made_of.load(name)
        assert before.dtype == after.dtype and torch.equal(before.view(torch.int16), after.view(torch.int16)), name
        assert said[name] == "FLOAT"


HYBRID = pytest.mark.parametrize("row", [row for row in ROWS if "3_5" in row.tiny], ids=lambda row: row.tiny)


@HYBRID
def test_linear_attention_is_float_by_recipe_and_dynamic_by_option(made, row):
    for job, wanted in (("static", "FLOAT"), ("dynamic", "FLOAT"), ("mixed", "W8A8_DYNAMIC")):
        said = json.loads((made.job(row, job) / "quant_model_description.json").read_text())
        found = {name.split("linear_attn.")[1]: word for name, word in said.items() if ".linear_attn." in name}
        parts = ("in_proj_qkv", "in_proj_z", "out_proj")
        assert {found[f"{part}.weight"] for part in parts} == {wanted}, job
        assert {found["in_proj_a.weight"], found["in_proj_b.weight"], found["conv1d.weight"]} == {"FLOAT"}


# -- servers


@pytest.mark.parametrize(
    "row,name", [each for each in EXPORTS if each[0].served], ids=[f"{r.tiny}-{n}" for r, n in EXPORTS if r.served]
)
def test_vllm_finds_every_key(made, row, name):
    """Every module that vLLM-Ascend builds finds its key, and is built for the type that the tensors are of."""
    found = vllm_names.assert_found(made.job(row, name))
    assert {word for word in found.values() if word != "FLOAT"} == set(reader.read(made.job(row, name)).words.values())


@pytest.mark.parametrize("row", [row for row in ROWS if row.served and row.words == {"W8A8"}], ids=lambda row: row.tiny)
def test_vllm_finds_every_key_of_a_mix(tmp_path, made, row):
    """W8A8_MIX is made of a finished export, of one without experts."""
    found = vllm_names.assert_found(export(made.job(row, "static"), tmp_path / "mix", "ascendV1", "mix"))
    assert set(found.values()) == {"FLOAT", "W8A8_MIX"}


@served
def test_a_key_that_is_lost_is_found_before_the_server_finds_it(tmp_path, made, row):
    """Of every module that is asked for one key is dropped: the rule says so, and the table raises KeyError."""
    out = made.job(row, "static")
    config, said = (json.loads((out / file).read_text()) for file in ("config.json", "quant_model_description.json"))
    kind = config["model_type"]
    lost = [
        f"{FAMILIES[row.architecture].head}.weight",
        next(key for key in said if "merger" in key or "o_proj" in key or "attn_out" in key),
    ]
    for key in (key for key in lost if key.endswith(".weight")):
        broken = copy(out, tmp_path / key)
        edit_json(broken / "quant_model_description.json", lambda described, key=key: described.pop(key))
        description = vllm_names.renamed({k: v for k, v in said.items() if k != key}, vllm_names.MAPPERS[kind])
        with pytest.raises(KeyError):
            for module, packed in vllm_names.built(config):
                vllm_names.kind_of(module, description, packed)
        findings = [finding for finding in check(broken, ["vllm-ascend"]) if finding.rule == "description-entry"]
        assert [finding.where for finding in findings] == [f"quant_model_description.json: {key}"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.tiny == "llava_onevision"], ids=lambda r: r.tiny)
def test_a_packed_name_that_vllm_looks_up_as_it_is(tmp_path, made, row):
    """It is described as its parts are, in every format; its absence, or another type, is found, and mended."""
    for job, act, word in (("static", "static", "FLOAT"), ("other vision", "dynamic", "W8A8_DYNAMIC")):
        out = export(made.job(row, job), tmp_path / job, "ascendV1", act)
        aliases = FAMILIES[row.architecture].aliases(reader.read(out).words | {"x": ""})
        said = json.loads((out / "quant_model_description.json").read_text())
        alias = next(key for key in said if ".qkv_proj." in key)
        assert said[alias] == word and (word == "FLOAT" or f"{next(iter(aliases))}.weight" in said)
        vllm_names.assert_found(out)
        for edit, effect in (
            (lambda described, alias=alias: described.pop(alias), f"KeyError: '{alias}'"),
            (lambda described, alias=alias: described.update({alias: "W8A8"}), "builds it for another type"),
        ):
            broken = copy(out, tmp_path / f"{job} broken {len(effect)}")
            edit_json(broken / "quant_model_description.json", edit)
            findings = [finding for finding in check(broken, ["vllm-ascend"]) if finding.rule == "description-alias"]
            assert [finding.effects["vllm-ascend"] for finding in findings] == [effect]
            fixed = tmp_path / f"{broken.name} fixed"
            assert main(["check", str(broken), "--fix", str(fixed), "--target", "vllm-ascend"]) == 0
            assert json.loads((fixed / "quant_model_description.json").read_text())[alias] == word


# -- jobs


@rows
def test_killed_in_each_tower_and_resumed(tmp_path, made, row):
    reference, config = digest(made.job(row, "static")), made.choices(row, "static")
    checkpoint = Checkpoint(made.source(row))
    family = family_of(checkpoint.config, checkpoint.dir)
    vision = family.tower("vision").used(checkpoint.config)
    for at in (1, vision + 1):
        out = tmp_path / f"out{at}"

        def dies(out=out):
            deadline = time.monotonic() + 60
            while not (work_directory(out) / "state").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        def job(out=out, at=at, dies=dies):
            with faults.when_block_runs(at, dies):
                run_job(Calibrator(made.source(row), config, str(made.images), quiet=True), out)

        assert faults.in_a_fork(job) == signal.SIGKILL
        run_job(Calibrator(made.source(row), config, str(made.images), quiet=True), out, resume=True)
        assert digest(out) == reference


@rows
def test_two_ranks_give_the_bytes_of_one(tmp_path, made, row):
    def job():
        with joined("cpu") as ranks:
            calibrator = Calibrator(made.source(row), made.choices(row, "static"), str(made.images), quiet=True)
            run_job(calibrator, tmp_path / "out", ranks=ranks)

    assert in_ranks(2, job) == [0, 0]
    assert digest(tmp_path / "out") == digest(made.job(row, "static"))


@rows
def test_the_commands_take_it(tmp_path, made, row, capsys):
    """--dry_run, evaluate, report and handoff, on what the job made."""
    source, out = made.source(row), made.job(row, "static")
    assert main(["quantize", "--model_path", str(source), "--calib_images", str(made.images), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert FAMILIES[row.architecture].name in told and "groups by m2" in told and "memory" in told
    data, image = tmp_path / "questions.jsonl", sorted(made.images.iterdir())[0]
    (tmp_path / image.name).write_bytes(image.read_bytes())
    question = {"image": image.name, "prompt": "What is this?", "answers": "no"}
    data.write_text(json.dumps(question) + "\n")
    words = ["--data", str(data), "--results", str(tmp_path / "answers.jsonl"), "--json", str(tmp_path / "e.json")]
    words += ["--max_new_tokens", "2", "--trust_remote_code", str(row.own_code)]
    assert main(["evaluate", "--model_path", str(source), "--quantized", str(out), *words]) in (0, 1)
    assert (tmp_path / "e.json").stat().st_size
    assert (
        main(["report", str(out), "--evaluation", str(tmp_path / "e.json"), "--output", str(tmp_path / "r.html")]) == 0
    )
    assert FAMILIES[row.architecture].name in (tmp_path / "r.html").read_text()
    assert main(["handoff", str(out), "--server", "vllm-ascend", "--out", str(tmp_path / "handoff")]) == (
        not row.served
    )
    assert not row.served or any((tmp_path / "handoff").iterdir())
    refused = "served" in row.errors.get("all", ())
    assert main(["handoff", str(out), "--server", "mindie", "--out", str(tmp_path / "mindie")]) == refused
    assert (tmp_path / "mindie" / "config.json").exists() != refused
