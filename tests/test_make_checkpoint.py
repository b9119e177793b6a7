"""bench/make_checkpoint.py: true names and shapes held against transformers' meta models, files written as a stream.

Nothing here writes a full size; the largest file is 64 MB.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny  # noqa: F401  (makes `bench` importable)
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from bench import hub_files, hub_weights
from bench.hub_config import SIZES, cut
from bench.hub_tensors import Tensor, tensors
from bench.make_checkpoint import bytes_of, shards_of

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "make_checkpoint.py"
FULL = ["qwen2vl-2b", "qwen2vl-7b", "qwen2vl-72b", "qwen2_5vl-7b", "llava-7b"]
# Parameters that the hub shows for each model, and the number of its weight files.
PUBLISHED = {
    "qwen2vl-2b": (2_208_985_600, 2),
    "qwen2vl-7b": (8_291_375_616, 5),
    "qwen2vl-72b": (73_405_560_320, 37),  # the hub has 38 files
    "qwen2_5vl-7b": (8_292_166_656, 5),
    "llava-7b": (7_063_427_072, 3),
}
# Module names of transformers 4.57 and 5.x -> names on the hub, by model_type.
QWEN = [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]
LLAVA = [
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    (r"^model\.vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
]
RENAMES = {"qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "llava": LLAVA}


def hub_shapes(config, directory):
    """name on the hub -> shape of every parameter of the model that transformers builds from this config.json."""
    (directory / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(directory))
    found = {}
    for name, parameter in model.named_parameters():  # a tied head appears once, as the embedding
        for pattern, hub in RENAMES[config["model_type"]]:
            name, changed = re.subn(pattern, hub, name)
            if changed:
                break
        found[name] = tuple(parameter.shape)
    return found


def run(*arguments, cwd):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("size", FULL)
def test_names_and_shapes_are_the_models(tmp_path, size):
    config = SIZES[size].config
    assert {tensor.name: tensor.shape for tensor in tensors(config)} == hub_shapes(config, tmp_path)


@pytest.mark.parametrize("size", FULL)
def test_cut_models_too(tmp_path, size):
    config = cut(SIZES[size].config, 2, 1)
    assert {tensor.name: tensor.shape for tensor in tensors(config)} == hub_shapes(config, tmp_path)
    assert SIZES[size].config != config  # a copy was cut


@pytest.mark.parametrize("size", FULL)
def test_parameters_and_files_as_published(size):
    parameters, files = PUBLISHED[size]
    assert bytes_of(SIZES[size]) == 2 * parameters
    assert shards_of(SIZES[size]) == files


@pytest.mark.parametrize("size", ["qwen2vl-2b", "llava-7b"])
def test_tokenizer_has_the_true_ids(tmp_path, size):
    hub_files.write(tmp_path, SIZES[size])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = {
        "qwen2vl-2b": {
            "<|endoftext|>": 151643,
            "<|im_start|>": 151644,
            "<|im_end|>": 151645,
            "<|vision_start|>": 151652,
            "<|vision_end|>": 151653,
            "<|image_pad|>": 151655,
            "<|video_pad|>": 151656,
        },
        "llava-7b": {"<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001},
    }[size]
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    assert len(tokenizer) == max(expected.values()) + 1 <= SIZES[size].config["vocab_size"]
    assert max(tokenizer("what is this?")["input_ids"]) < 1000


def test_image_limits_of_the_real_processor(tmp_path):
    hub_files.write(tmp_path, SIZES["qwen2vl-7b"])
    limits = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (limits["min_pixels"], limits["max_pixels"]) == (3136, 12845056)


def test_rounding_is_torchs():
    rng = np.random.default_rng(0)
    halves = (np.arange(0x3F800000, 0x3F900000, 0x4000, dtype="<u4")).view("<f4")  # ties and neighbours of 1.0
    values = np.concatenate([rng.standard_normal(4096, dtype=np.float32) * 10, halves, -halves, [0.0, -0.0, 1e-30]])
    values = values.astype(np.float32)
    for dtype in ("bfloat16", "float16", "float32"):
        expected = torch.from_numpy(values).to(getattr(torch, dtype))
        found = torch.frombuffer(bytearray(hub_weights.encode(values, dtype)), dtype=getattr(torch, dtype))
        assert torch.equal(found, expected)


def test_matrices_larger_than_the_block_of_noise(tmp_path):
    """The rule in the module's text, the spread asked for, no repeated row and full rank, over several blocks."""
    tensor = Tensor("w", (4500, 512), 0.25)
    assert tensor.size > 2 * hub_weights.BLOCK
    hub_weights.write(tmp_path, [tensor], "float32", seed=5)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        matrix = file.get_tensor("w")
    block = torch.from_numpy(hub_weights.Noise("float32", 5, True).block) * 0.25
    start = int((block == matrix[0, 0]).nonzero()[0])
    assert torch.equal(matrix.flatten(), block[(start + torch.arange(tensor.size)) % hub_weights.BLOCK])
    assert matrix.std().item() == pytest.approx(0.25, rel=0.01) and abs(matrix.mean()) < 0.001
    assert len(matrix.unique(dim=0)) == 4500
    assert torch.linalg.eigvalsh(matrix.T @ matrix).min() > 0.1 * 4500 * 0.25**2


def test_memory_stays_at_blocks_of_noise(tmp_path):
    """64 MB written by a process of its own, which grows by far less."""
    code = (
        f"import sys, resource; sys.path.insert(0, {str(SCRIPT.parent.parent)!r})\n"
        "from pathlib import Path; from bench import hub_weights; from bench.hub_tensors import Tensor\n"
        "def write(rows, name):\n"
        "    Path(name).mkdir(); hub_weights.write(Path(name), [Tensor('w', (rows, 1024), 0.1)], 'bfloat16')\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "first = write(1, 'small'); print(write(32768, 'large') - first)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 64e6
    assert int(grown.stdout) < 16


def test_script_runs_from_anywhere_without_torch(tmp_path):
    done = run("llava-tiny", "out", "--blocks", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        plan = {tensor.name: list(tensor.shape) for tensor in tensors(cut(SIZES["llava-tiny"].config, 1, 1))}
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == plan
    assert (
        "torch"
        not in subprocess.run(
            [sys.executable, "-X", "importtime", SCRIPT, "--help"], capture_output=True, text=True, check=True
        ).stderr
    )


def test_dry_run_lists_and_writes_nothing(tmp_path):
    done = run("qwen2vl-2b", "out", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0
    *rows, summary = done.stdout.splitlines()
    assert summary == "qwen2vl-2b: 729 tensors, 4.42 GB in 2 file(s)"
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == 2 * PUBLISHED["qwen2vl-2b"][0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen2vl-tiny", "full"], "full: exists and is not an empty directory"),
        (["qwen2vl-tiny", "out", "--blocks", "0"], "--blocks 0: at least 1"),
        (["qwen3", "out"], "invalid choice"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(tmp_path, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "note"]
