"""The command line as a user meets it: exit codes, one line per error, nothing half-written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import faults
import pytest
import safetensors.torch
import tiny
import torch

from quant import Calibrator
from quant.commands import quantize
from quant.commands.cli import main

ROOT = Path(__file__).parent.parent
PARSER_ERROR = 2


@pytest.fixture
def world(tmp_path):
    class World:
        source = tiny.make(tmp_path / "src", "qwen2_vl", shards=3)
        images = tiny.make_images(tmp_path / "images", 2)
        out = tmp_path / "results" / "out"

        def run(self, *flags, **overrides):
            paths = {
                "--model_path": self.source,
                "--save_directory": self.out,
                "--calib_images": self.images,
                **overrides,
            }
            return main(
                [
                    "quantize",
                    "--anti_method",
                    "m4",
                    "--device_type",
                    "cpu",
                    *(str(word) for pair in paths.items() for word in pair),
                    *flags,
                ]
            )

    return World()


def refused(world, capsys, pattern, code, *flags, **overrides):
    assert world.run(*flags, **overrides) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and re.search(pattern, lines[0]), lines
    # Nothing half-written, neither there nor beside it.
    assert not world.out.exists()
    assert not world.out.parent.exists() or not list(world.out.parent.iterdir())


def test_a_run_tells_what_it_did(world, capsys):
    assert world.run() == 0
    text = capsys.readouterr().out
    for expected in (
        r"device +cpu",
        r"m4 on 12 groups",
        r"visual\.blocks\.0 +3 int8 +\d+\.\d -> +\d+\.\d dB",
        r"model\.layers\.1 +6 int8",
        r"18 int8, 7 float; \d\d\.\d% of the multiply-adds",
        r"size +5\.\d+ MB -> 4\.\d+ MB",
        r"peak memory",
    ):
        assert re.search(expected, text), expected
    assert max(len(line) for line in text.splitlines() if "result" not in line and "model " not in line) <= 80
    assert (world.out / "quant_model_description.json").exists() and list(world.out.parent.iterdir()) == [world.out]


def test_quiet_and_log_file(world, capsys, tmp_path):
    assert world.run("--quiet", "--log_file", str(tmp_path / "log")) == 0
    assert capsys.readouterr().out == ""
    assert "multiply-adds in int8" in (tmp_path / "log").read_text()


def test_mindie_format(world):
    assert world.run("--mindie_format") == 0
    assert (world.out / "quant_model_description_w8a8.json").exists() and "quantization_config" in json.loads(
        (world.out / "config.json").read_text()
    )


def test_dry_run_decides_and_writes_nothing(world, capsys):
    assert world.run("--dry_run") == 0
    text = capsys.readouterr().out
    for expected in (
        r"visual\.blocks\.\*\n .*attn\.qkv +2 x +480 x 160 +int8\n",
        r"mlp\.fc2 +2 x .* float \[1\]",
        r"\[1\] MindIE's vision kernel takes fc2 in float",
        r"lm_head +1 x .* float \[(\d)\](.|\n)*\[\1\] servers load the head",
        r"12 groups by m4",
        r"2 x input_layernorm -> self_attn\.q_proj, self_attn\.k",
        r"memory +about",
        r"disk +4\.\d+ MB",
        r"time +about",
    ):
        assert re.search(expected, text), expected
    assert max(map(len, text.splitlines())) <= 80
    assert not world.out.parent.exists()


def test_dry_run_names_the_blocks_that_differ(world, capsys):
    assert world.run("--dry_run", "--disable_names", "model.layers.1.mlp.*") == 0
    text = capsys.readouterr().out
    assert re.search(r"mlp\.gate_proj +1 x +320 x 256 +int8  blocks 0\n", text) and re.search(
        r"mlp\.gate_proj +1 x +320 x 256 +float \[\d\]  blocks 1\n", text
    )


@pytest.mark.parametrize(
    "flags,pattern",
    [
        (["--w_bit", "4"], r"w_bit=4: only 8 is supported"),
        (["--a_bit", "16"], r"a_bit=16: only 8 is supported"),
        (["--alpha", "1.5"], r"alpha=1\.5: input should be less than 1"),
        (["--num_samples", "0"], r"num_samples=0"),
        (["--anti_method", "m2", "--alpha", "0.5"], r"alpha=0\.5 is m4's migration strength; anti_method is m2"),
        (
            ["--disable_names", "model.layers.9.*"],
            r"model\.layers\.9\.\*: matches none of the 25 linears; names look like visual\.blocks\.0\.attn\.qkv",
        ),
        (
            ["--disable_names", "model.layers.*.self_attn.q_proj"],
            (
                r"keeps model\.layers\.0\.self_attn\.q_proj float .* add model\.layers\.0\.self_attn\.k_proj"
                r" model\.layers\.0\.self_attn\.v_proj"
            ),
        ),
        (["--disable_names", "visual.blocks.0.attn.qkv"], r"visual\.blocks\.0\.attn\.qkv float .* use --vision float"),
        (["--disable_names", "*"], r"nothing to quantize"),
        (["--engine", "msmodelslim"], r"--engine msmodelslim: .*requirements-oracle\.txt"),
        (["--device_type", "npu"], r"--device_type npu: no NPU is usable: install CANN"),
        (["--device_type", "cuda"], r"--device_type cuda: no CUDA device is usable"),
    ],
)
def test_requests_that_cannot_be_carried_out(world, capsys, flags, pattern):
    if flags[1] == "cuda" and torch.cuda.is_available():
        pattern = None  # it is there: the request is fine
        assert world.run(*flags) == 0
        return
    refused(world, capsys, pattern, 2, *flags)


@pytest.mark.parametrize(
    "overrides,pattern",
    [
        ({"--model_path": "/nowhere"}, r"/nowhere: no such directory"),
        ({"--calib_images": "/nowhere"}, r"/nowhere: no such folder"),
    ],
)
def test_missing_places(world, capsys, overrides, pattern):
    refused(world, capsys, pattern, 2, **overrides)


def test_llava_vision_int8_is_refused(world, capsys, tmp_path):
    llava = tiny.make(tmp_path / "llava", "llava")
    refused(
        world,
        capsys,
        r"--vision int8: MindIE loads LLaVA's vision tower in float",
        2,
        "--vision",
        "int8",
        **{"--model_path": llava},
    )


def edit_index(source, edit):
    file = source / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index["weight_map"])
    file.write_text(json.dumps(index))


def rewrite(source, name, change):
    """Change one tensor, in its shard."""
    shard = source / json.loads((source / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = safetensors.torch.load_file(shard)
    tensors[name] = change(tensors[name])
    safetensors.torch.save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, shard)


def poison(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[7] = value
        return tensor

    return change


FC1, NORM = "visual.blocks.1.mlp.fc1.weight", "model.layers.0.input_layernorm.weight"
DAMAGES = {
    "shard missing": (
        lambda s: (s / "model-00002-of-00003.safetensors").unlink(),
        r"model-00002-of-00003\.safetensors: No such file",
    ),
    "shard truncated": (
        lambda s: os.truncate(s / "model-00002-of-00003.safetensors", 200_000),
        r"model-00002-of-00003\.safetensors: truncated, .* ends at byte \d+ and the file at 200000",
    ),
    "shard of nothing": (
        lambda s: os.truncate(s / "model-00001-of-00003.safetensors", 3),
        r"model-00001-of-00003\.safetensors: header of",
    ),
    "shard is text": (
        lambda s: (s / "model-00001-of-00003.safetensors").write_text("{" * 99),
        r"model-00001-of-00003\.safetensors: header of \d+ bytes in a file of 99",
    ),
    "tensor missing": (lambda s: rewrite(s, FC1, lambda t: None), r"visual\.blocks\.1\.mlp\.fc1\.weight is missing"),
    "wrong shape": (
        lambda s: rewrite(s, FC1, lambda t: t[:, :-1].contiguous()),
        r"fc1\.weight has shape \[640, 159\], config\.json makes it \[640, 160\]",
    ),
    "NaN in a linear": (
        lambda s: rewrite(s, FC1, poison(float("nan"))),
        r"visual\.blocks\.1\.mlp\.fc1\.weight holds NaN or Inf",
    ),
    "Inf in a norm": (
        lambda s: rewrite(s, NORM, poison(float("inf"))),
        r"model\.layers\.0\.input_layernorm\.weight holds NaN or Inf",
    ),
    "NaN in the head": (
        lambda s: rewrite(s, "lm_head.weight", poison(float("nan"))),
        r"lm_head\.weight holds NaN or Inf",
    ),
    "overflow in activations": (
        lambda s: rewrite(s, NORM, lambda t: t * 0 + 3e38),
        r"(the input of model\.layers\.0|the output of model\.layers\.0).* holds NaN or Inf",
    ),
    "index outside": (
        lambda s: edit_index(s, lambda m: m.update({FC1: "../src/model-00001-of-00003.safetensors"})),
        r"points to '\.\./src/.*', outside the directory",
    ),
    "index absolute": (
        lambda s: edit_index(s, lambda m: m.update({FC1: "/etc/passwd"})),
        r"points to '/etc/passwd', outside the directory",
    ),
    "index of another download": (
        lambda s: edit_index(s, lambda m: m.update({FC1: "model-00003-of-00003.safetensors"})),
        r"places visual\.blocks\.1\.mlp\.fc1\.weight in model-00003|index and shards",
    ),
    "index not JSON": (lambda s: (s / "model.safetensors.index.json").write_text("{"), r"index\.json: not valid JSON"),
    "config not JSON": (lambda s: (s / "config.json").write_text("[1"), r"config\.json: not valid JSON"),
    "config without depth": (
        lambda s: (s / "config.json").write_text(
            (s / "config.json").read_text().replace("num_hidden_layers", "layers")
        ),
        r"config\.json: has no num_hidden_layers",
    ),
    "config of another depth": (
        lambda s: (s / "config.json").write_text(
            json.dumps({**json.loads((s / "config.json").read_text()), "vision_config": {}})
        ),
        r"tensor visual\.blocks\.2\.attn\.qkv\.weight is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(world, capsys, damage):
    break_it, pattern = DAMAGES[damage]
    break_it(world.source)
    refused(world, capsys, pattern, 1)


def test_pickles_and_unknown_architectures(world, capsys, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(world.source, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["MllamaForConditionalGeneration"]}))
    refused(
        world,
        capsys,
        r"MllamaForConditionalGeneration is not supported; supported are Qwen2-VL, .*LLaVA-1\.5",
        2,
        **{"--model_path": other},
    )
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(config))
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    refused(world, capsys, r"pytorch_model\.bin is a pickle, which can run code", 2, **{"--model_path": pickled})


def test_outputs_that_cannot_be(world, capsys, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    refused(world, capsys, r"is not empty, notes\.txt is in it", 2, **{"--save_directory": taken})
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
    refused(world, capsys, r"overlaps the source", 2, **{"--save_directory": world.source / "int8"})
    refused(world, capsys, r"overlaps the source", 2, **{"--save_directory": world.source})
    refused(world, capsys, r"overlaps the source", 2, **{"--save_directory": world.source.parent})
    (tmp_path / "file").write_text("")
    refused(world, capsys, r"is a file", 2, **{"--save_directory": tmp_path / "file"})
    refused(
        world,
        capsys,
        r"must be in a place that can be written to",
        2,
        **{"--save_directory": tmp_path / "file" / "out"},
    )
    refused(
        world, capsys, r"/proc.*must be in a place that can be written to", 2, **{"--save_directory": "/proc/quant/out"}
    )


@pytest.mark.parametrize("there", [True, False], ids=["empty", "absent"])
def test_an_output_that_is_a_symbolic_link(world, capsys, tmp_path, monkeypatch, there):
    """The last step could not put a directory in its place: said before any work, with the place to name instead."""
    place, link = tmp_path / "disk" / "place", tmp_path / "results" / "link"
    (place if there else place.parent).mkdir(parents=True)
    link.parent.mkdir()
    link.symlink_to(place)
    worked = []
    with monkeypatch.context() as patched:
        patched.setattr(Calibrator, "prepare", lambda self: worked.append(self))
        assert world.run(**{"--save_directory": link}) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f"error: {link}: is a symbolic link to {place}; name that directory itself"
    assert not worked and os.listdir(link.parent) == ["link"] and (os.listdir(place) == [] if there else True)
    # The way out: the same job there, which is then found through the link as well.
    assert world.run(**{"--save_directory": place}) == 0
    assert (link / "quant_model_description.json").is_file()
    # The other commands that write a directory.
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    assert main(["export", str(place), str(link)]) == 2 and main(["check", str(place), "--fix", str(link)]) == 2
    assert not (tmp_path / "elsewhere").exists()


def test_no_usable_image(world, capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text("no image")
    refused(world, capsys, r"no usable image", 2, **{"--calib_images": empty})


@pytest.mark.parametrize("where", ["own folder", "anywhere"])
@pytest.mark.parametrize(
    "family,script",
    [
        ("qwen2_vl", "quant/qwen2vl/quant_qwen2vl.py"),
        ("qwen2_5_vl", "quant/qwen2_5vl/quant_qwen2_5vl.py"),
        ("llava", "quant/llava/quant_llava.py"),
    ],
)
def test_scripts_run_by_path(tmp_path, family, script, where):
    dtype = "float16" if family == "llava" else "bfloat16"  # as the hub has them
    source, images = tiny.make(tmp_path / "src", family, dtype=dtype), tiny.make_images(tmp_path / "images", 1)
    file = ROOT / script
    folder, name = (file.parent, file.name) if where == "own folder" else (tmp_path, str(file))
    # Without the vendor's habit of PYTHONPATH, and with the vendor's flags.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    flags = [
        "--model_path",
        source,
        "--calib_images",
        images,
        "--save_directory",
        tmp_path / "out",
        "--w_bit",
        "8",
        "--a_bit",
        "8",
        "--device_type",
        "cpu",
        "--trust_remote_code",
        "False",
        "--anti_method",
        "m4",
        "--part_file_size",
        "1",
        "--mindie_format",
    ]
    done = subprocess.run(
        [sys.executable, name, *map(str, flags)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "out" / "quant_model_weight_w8a8.safetensors").exists()


def test_a_script_takes_its_own_family(tmp_path):
    source = tiny.make(tmp_path / "src", "llava")
    command = [
        sys.executable,
        ROOT / "quant/qwen2vl/quant_qwen2vl.py",
        "--model_path",
        source,
        "--save_directory",
        tmp_path / "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "is a LLaVA-1.5 model, this script is for Qwen2-VL; use quant/llava/quant_llava.py" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_usage_errors_of_the_parser():
    for words in (["--anti_method", "m9"], ["--trust_remote_code", "perhaps"], ["--no_such_flag"]):
        with pytest.raises(SystemExit) as stopped:
            main(["quantize", "--model_path", "x", "--save_directory", "y", *words])
        assert stopped.value.code == PARSER_ERROR
    assert main([]) == 2 and main(["--help"]) == 0


@pytest.mark.parametrize("blocks,kept", [(0, 0), (2, 2)])
def test_interrupt_leaves_nothing_or_what_can_be_resumed(world, capsys, blocks, kept):
    def interrupt():
        raise KeyboardInterrupt

    with faults.when_block_runs(blocks, interrupt):
        assert world.run() == 130
    assert re.match(
        f"interrupted; {kept} blocks are kept in .*--resume" if kept else "interrupted; nothing was left",
        capsys.readouterr().err,
    )
    assert not world.out.exists() and [path.name for path in world.out.parent.iterdir()] == [".out.quant-work"] * bool(
        kept
    )
    assert world.run("--resume") == 0
    assert re.search("resumed  1 of|resumed  2 of 2 vision" if kept else "model", capsys.readouterr().out)
    assert [path.name for path in world.out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("format_", [[], ["--mindie_format"], ["--save_type", "compressed-tensors"]])
def test_resume_of_a_finished_job_says_so(world, capsys, format_):
    assert world.run(*format_) == 0
    before = {path.name: path.read_bytes() for path in world.out.iterdir()}
    capsys.readouterr()
    assert world.run("--resume", *format_) == 0
    assert f"finished {world.out} is complete" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in world.out.iterdir()} == before
    assert [path.name for path in world.out.parent.iterdir()] == ["out"]


def test_resume_of_another_job_that_is_finished_says_what_differs(world, capsys, tmp_path):
    assert world.run() == 0
    before = {path.name: path.read_bytes() for path in world.out.iterdir()}
    other = tiny.make(tmp_path / "other", "qwen2_vl", shards=3, seed=1)
    for flags, paths, said in [
        (["--act_method", "3"], {}, "--act_method was 1 and is 3"),
        (["--mindie_format"], {}, "format was ascendV1, W8A8 and is mindie, W8A8"),
        (["--act", "dynamic"], {}, "format was ascendV1, W8A8 and is ascendV1, W8A8_DYNAMIC"),
        (["--num_samples", "1"], {}, "--num_samples was left out and is 1"),
        ([], {"--model_path": other}, r"\S+ was .* sampled sha256 .* and is"),
    ]:
        capsys.readouterr()
        assert world.run("--resume", *flags, **paths) == 2
        error = capsys.readouterr().err
        assert re.match(f"error: --resume: {world.out} is finished, and {said}", error) and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in world.out.iterdir()} == before


def test_resume_into_a_directory_that_no_job_wrote_is_refused(world, capsys):
    world.out.mkdir(parents=True)
    (world.out / "notes.txt").write_text("mine")
    assert world.run("--resume") == 2
    assert "is not empty, notes.txt is in it" in capsys.readouterr().err


def test_unset_device_says_which(world, capsys):
    args = ["quantize", "--model_path", world.source, "--save_directory", world.out, "--calib_images", world.images]
    assert main([str(word) for word in args]) == 0
    assert re.search(r"device +(npu|cuda|cpu) \(the first usable of NPU, CUDA, CPU;", capsys.readouterr().out)


def test_defaults_are_those_that_the_readme_states():
    import argparse

    parser = argparse.ArgumentParser()
    quantize.add_arguments(parser)
    args = parser.parse_args(["--model_path", "x"])
    config = quantize.quant_config(args)
    chosen = (config.anti_method, config.act_method, config.w_bit, config.a_bit, config.trust_remote_code)
    assert (*chosen, args.mindie_format) == (
        "m2",
        1,
        8,
        8,
        False,
        False,
    )
