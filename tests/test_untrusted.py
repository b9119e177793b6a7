"""Files from strangers: headers, indices, configs and images of any content cost one line, neither a traceback nor a
hang nor the memory.

Everything here runs under a limit on memory, so that what would take the machine's fails.
"""

import copy
import io
import json
import os
import resource
import signal
import sys
from pathlib import Path

import faults
import pytest
import tiny
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quant import Calibrator, QuantConfig, QuantError
from quant.files.checkpoint import Checkpoint
from quant.files.safetensors_header import read_entries
from quant.files.safetensors_io import read_header
from quant.inputs.images import decode_image
from quant.model.streamed import StreamedModel
from quant.verify.verify import verify

HANG = 120  # seconds
LIMIT = 3 << 30  # bytes of address space above what the tests have
LOUD = "a\n\x1b[2J"  # would break the line, and clear the terminal
ABSURD = [
    LOUD,
    None,
    True,
    -1,
    0,
    1,
    2**31,
    10**30,
    1e400,
    -0.5,
    "",
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    "\ud800",
    "../x",
    "\0",
]


def limited(job):
    """Run job() in a fork that may not take LIMIT bytes more; it must not fail."""

    def with_limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT,) * 2)
        signal.alarm(HANG)
        job()

    assert faults.in_a_fork(with_limit) == 0


def fuzz(count):
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


json_values = st.recursive(
    st.sampled_from(ABSURD) | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F4", 3, None]),
        "shape": st.lists(st.integers(-1, 2**40), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 2**63), min_size=2, max_size=2) | json_values,
    }
)


def test_headers_of_any_content(tmp_path):
    file = tmp_path / "a.safetensors"

    @fuzz(300)
    @given(
        st.dictionaries(st.text(max_size=4), entries | json_values, max_size=3),
        st.binary(max_size=40),
        st.integers(-3, 3),
    )
    def structured(header, data, shift):
        text = json.dumps(header).encode()
        file.write_bytes(max(0, len(text) + shift).to_bytes(8, "little") + text + data)
        check()

    @fuzz(200)
    @given(st.binary(max_size=60))
    def bytes_only(data):
        file.write_bytes(data)
        check()

    def check():
        try:
            found = read_header(file)
        except QuantError as err:
            assert str(file) in str(err) and "\n" not in str(err)
        else:
            assert all(info.offset + info.nbytes <= os.path.getsize(file) for info in found.values())

    limited(structured)
    limited(bytes_only)


def test_a_header_that_says_it_is_gigantic(tmp_path):
    """A sparse file of 200 GB: neither read nor allocated."""
    file = tmp_path / "a.safetensors"
    with open(file, "wb") as stream:
        stream.write((150 << 30).to_bytes(8, "little"))
        stream.truncate(200 << 30)

    def read():
        with pytest.raises(QuantError, match=rf"header of {150 << 30} bytes in a file of {200 << 30}"):
            read_entries(file)

    limited(read)


def test_nested_json(tmp_path):
    file = tmp_path / "a.safetensors"
    text = b"[" * 100_000
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(QuantError, match="header is not JSON"):
        read_entries(file)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("untrusted") / "src", "qwen2_vl", shards=2)


def test_indices_of_any_content(source):
    index = source / "model.safetensors.index.json"
    text = index.read_text()
    whole = json.loads(text)

    @fuzz(150)
    @given(st.sampled_from(sorted(whole["weight_map"])) | st.text(max_size=5), json_values, st.booleans())
    def one(name, value, replace_all):
        changed = copy.deepcopy(whole)
        if replace_all:
            changed["weight_map"] = value
        else:
            changed["weight_map"][name] = value
        index.write_text(json.dumps(changed))
        try:
            Checkpoint(source)
        except QuantError as err:
            assert "\n" not in str(err)

    try:
        limited(one)
    finally:
        index.write_text(text)


def paths(value, prefix=()):
    """Every place in a nested dict."""
    for key, inner in value.items():
        yield (*prefix, key)
        if isinstance(inner, dict):
            yield from paths(inner, (*prefix, key))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_configs_of_any_content(tmp_path, family):
    """Up to the built model, or one line. Values that ask for gigabytes are refused before they get them."""
    source = tiny.make(tmp_path / "src", family)
    file = source / "config.json"
    whole = json.loads(file.read_text())
    calibrator = Calibrator(source, QuantConfig(dev_type="cpu"))  # imports what is needed, before the fork
    StreamedModel(calibrator.checkpoint, calibrator.family, calibrator.compute_dtype)

    @fuzz(60)
    @given(st.sampled_from(sorted(paths(whole))), st.sampled_from(ABSURD) | st.integers(2, 2**40))
    def one(path, value):
        changed = copy.deepcopy(whole)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        file.write_text(json.dumps(changed))
        try:
            calibrator = Calibrator(source, QuantConfig(dev_type="cpu"))
            StreamedModel(calibrator.checkpoint, calibrator.family, calibrator.compute_dtype)
        except QuantError as err:
            assert "\n" not in str(err), str(err)

    limited(one)


def test_tables_that_a_config_asks_for(tmp_path):
    source = tiny.make(tmp_path / "src", "llava")
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["image_size"] = 14 * 10**5
    (source / "config.json").write_text(json.dumps(config))
    calibrator = Calibrator(source, QuantConfig(dev_type="cpu"))
    with pytest.raises(
        QuantError,
        match=r"config\.json: describes [\d.e+]+ numbers, the weights have [\d.e+]+; they are of different models",
    ):
        StreamedModel(calibrator.checkpoint, calibrator.family, calibrator.compute_dtype)


def test_images_of_any_content():
    whole = {}
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        stream = io.BytesIO()
        Image.new("RGB", (20, 30), (200, 30, 90)).save(stream, kind)
        whole[kind] = stream.getvalue()

    @fuzz(300)
    @given(st.sampled_from(sorted(whole)), st.integers(0, 400), st.binary(min_size=1, max_size=8), st.booleans())
    def one(kind, at, patch, cut):
        data = bytearray(whole[kind])
        at %= len(data)
        data[at : at + len(patch)] = patch
        try:
            image = decode_image(bytes(data[:at] if cut else data), "an image")
            assert image.mode == "RGB" and image.width * image.height < 2e8
        except QuantError as err:
            assert "\n" not in str(err)

    limited(one)


def test_code_in_the_checkpoint_is_not_run(tmp_path):
    """Neither its modules nor its pickles, whatever config.json says."""
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    mark = tmp_path / "ran"
    (source / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        file = source / name
        content = json.loads(file.read_text()) if file.exists() else {}
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
        content["auto_map"] = {
            kind: ["evil.Evil", "evil.Evil"] if kind == "AutoTokenizer" else "evil.Evil" for kind in classes
        }
        file.write_text(json.dumps(content))
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    try:
        Calibrator(
            source, QuantConfig(anti_method="none", dev_type="cpu"), tiny.make_images(tmp_path / "images", 1)
        ).run(tmp_path)
    except QuantError as err:
        assert "trust_remote_code" in str(err)
    assert not mark.exists()


OWN = """
from pathlib import Path
from transformers import {config}, {processor}
Path({mark!r}).touch()
class OwnConfig({config}):
    pass
class OwnProcessor({processor}):
    def preprocess(self, images, **choices):
        Path({mark!r} + " preprocess").touch()
        return super().preprocess(images, **choices)
"""


@pytest.mark.parametrize(
    "family, config, processor",
    [("qwen2_vl", "Qwen2VLConfig", "Qwen2VLImageProcessor"), ("llava", "LlavaConfig", "CLIPImageProcessor")],
)
def test_code_in_the_checkpoint_is_run_when_it_is_asked_for(tmp_path, monkeypatch, family, config, processor):
    """A config and an image processor of its own, which do what the family's do: so the result must be the same."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    mark, images = str(tmp_path / "ran"), tiny.make_images(tmp_path / "images", 1)
    plain, source = tiny.make(tmp_path / "plain", family), tiny.make(tmp_path / "src", family)
    if int(transformers.__version__.split(".")[0]) >= 5:
        processor += "Pil"  # the other needs torchvision
    (source / "own.py").write_text(OWN.format(config=config, processor=processor, mark=mark))
    for name, auto_map in (
        ("config.json", {"AutoConfig": "own.OwnConfig"}),
        ("preprocessor_config.json", {"AutoImageProcessor": "own.OwnProcessor"}),
    ):
        content = json.loads((source / name).read_text())
        (source / name).write_text(
            json.dumps(
                {
                    **content,
                    "auto_map": auto_map,
                    **({"image_processor_type": "OwnProcessor"} if name != "config.json" else {}),
                }
            )
        )

    def quantize(source, out, trusted):
        Calibrator(source, QuantConfig(anti_method="none", dev_type="cpu", trust_remote_code=trusted), images).run(
            tmp_path
        ).save(tmp_path / out)

    with pytest.raises(QuantError, match="needs code of its own: read it, then pass --trust_remote_code True"):
        quantize(source, "out", False)
    assert not Path(mark).exists()
    quantize(source, "out", True)
    assert Path(mark).exists() and Path(mark + " preprocess").exists()
    quantize(plain, "expected", False)
    weights = "quant_model_weight_w8a8.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "expected" / weights).read_bytes()
    assert (tmp_path / "out" / "own.py").exists(), "a server needs it, too"
    report = verify(tmp_path / "out", source, QuantConfig(dev_type="cpu", trust_remote_code=True), images, tokens=1)
    assert report["free_running"] and not report["findings"]
