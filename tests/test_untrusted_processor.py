"""Processor and tokenizer files from strangers: absurd numbers, templates that never end, structures without end. Each
costs one line.

What could take the machine's memory runs under a limit on it, as in test_untrusted.py.
"""

import copy
import faulthandler
import json
import os
import time
from pathlib import Path

import pytest
import tiny
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_untrusted import ABSURD, fuzz, json_values, limited, paths

from quant.base.errors import QuantError
from quant.files.checkpoint import Checkpoint
from quant.inputs import limited_process, processor_files
from quant.inputs.encoder import Encoder
from quant.inputs.limited_process import JobFailed, run_with_limits

PROMPT = "What is this?"
PICTURE = Image.new("RGB", (60, 90), (200, 30, 90))
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("processors")
    made = {family: tiny.make(root / family, family) for family in ("qwen2_vl", "llava")}
    for source in made.values():
        Encoder(source)(PICTURE, PROMPT)  # imports what is needed, before any fork
    return made


@pytest.fixture
def source_of(sources, tmp_path):
    """source_of(family) -> a directory of that checkpoint's small files, free to be changed; its weights do not matter
    here.
    """

    def link(family):
        for file in sources[family].iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return link


def change(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(changes)
    file.write_text(json.dumps(content))


def refusal(source, image=PICTURE, prompt=PROMPT):
    """The one line."""
    with pytest.raises(QuantError) as caught:
        Encoder(source)(image, prompt)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    return str(caught.value)


QWEN = [
    ({"min_pixels": 10**12, "max_pixels": 10**13}, "min_pixels 1000000000000.*--min_pixels"),
    (
        {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 10**12, "longest_edge": 10**13}},
        "min_pixels 1000000000000.*--min_pixels",
    ),
    ({"min_pixels": [3136]}, r"must be integers, are \[\[3136\], "),
    ({"min_pixels": True}, r"must be integers, are \[True, "),
    ({"patch_size": 0}, "patch_size is 0, a whole number from 1 to 256"),
    ({"patch_size": -14}, "patch_size is -14, a whole"),
    ({"patch_size": 10**6}, "patch_size is 1000000, a whole"),
    ({"patch_size": 28}, "patch_size is 28, config.json's patch_size is 14"),
    ({"merge_size": 0}, "merge_size is 0, a whole"),
    ({"temporal_patch_size": 10**9}, "temporal_patch_size is 1000000000, a whole"),
    ({"image_mean": [0.5]}, r"image_mean is \[0.5\], 3 numbers from -1000 to 1000"),
    ({"image_mean": [[0.5, 0.5, 0.5]] * 3}, "image_mean is .*, 3 numbers from -1000 to 1000"),
    ({"image_mean": [0.5, NAN, 0.5]}, r"image_mean is \[0.5, nan, 0.5\], 3 numbers"),
    ({"image_std": "small"}, "image_std is 'small', 3 numbers from 1e-06 to 1000"),
    ({"image_std": [0, 1, 1]}, r"image_std is \[0, 1, 1\], 3 numbers from 1e-06 to 1000"),
    ({"rescale_factor": INF}, "rescale_factor is inf, a number from 1e-06 to 1000"),
    ({"image_std": [1e-300] * 3}, "image_std is .*, 3 numbers from 1e-06"),
    ({"do_normalize": "often"}, "do_normalize is 'often', true or false"),
    ({"do_resize": False}, "60x90: "),  # no multiple of the patches
    ({"resample": "best"}, "resample is 'best', a whole number from 0 to 5"),
]
LLAVA = [
    ({"crop_size": {"height": 10**6, "width": 10**6}}, "crop_size height is 1000000, a whole number from 1 to 8192"),
    ({"crop_size": 10**12}, "crop_size is 1000000000000, a whole"),
    ({"size": {"shortest_edge": 10**9}}, "size shortest_edge is 1000000000, a whole"),
    ({"size": {"shortest_edge": 0}}, "size shortest_edge is 0, a whole"),
    ({"size": [[56]]}, r"size is \[\[56\]\], a whole"),
    ({"do_pad": True, "pad_size": {"height": 10**6, "width": 10**6}}, "pad_size height is 1000000, a whole"),
]


@pytest.mark.parametrize(
    "family, changes, message",
    [*(("qwen2_vl", *case) for case in QWEN), *(("llava", *case) for case in LLAVA)],
    ids=str,
)
def test_absurd_numbers_of_an_image_processor(source_of, family, changes, message):
    source = source_of(family)
    change(source / "preprocessor_config.json", **changes)
    with pytest.raises(QuantError, match=message):
        raise QuantError(refusal(source))


@pytest.mark.parametrize("changes, message", [
    (
        {"num_additional_image_tokens": 10**12},
        "num_additional_image_tokens is 1000000000000, a whole number from 0 to 256",
    ),
    ({"patch_size": 0}, "patch_size is 0, a whole number from 1"),
    ({"vision_feature_select_strategy": [1]}, "."),
    ({"image_processor": "none"}, "image_processor is a JSON str, an object was expected"),
])  # fmt: skip
def test_absurd_numbers_of_a_processor(source_of, changes, message):
    source = source_of("llava")
    change(source / "processor_config.json", **changes)
    if message == ".":
        Encoder(source)(PICTURE, PROMPT)  # anything but "default" counts as "full"
        return
    with pytest.raises(QuantError, match=message):
        raise QuantError(refusal(source))


def test_images_that_would_become_too_large(source_of, monkeypatch):
    """Both before a pixel is made: a hair of 60,000 pixels at LLaVA's shortest edge, and a picture that is not to be
    resized.
    """
    source = source_of("llava")
    assert "60000x1: the processor makes it 188160000 pixels, at most 67108864 are taken" in refusal(
        source, Image.new("RGB", (60000, 1))
    )
    source = source_of("qwen2_vl")
    change(source / "preprocessor_config.json", do_resize=False)
    monkeypatch.setattr(processor_files, "MAX_AREA", 5000)
    assert "60x90: the processor makes it 5400 pixels, at most 5000 are taken" in refusal(source)


DOUBLED = (
    "{% set ns = namespace(a=[0], b=[0]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b,"
    " ns.b] %}{% endfor %}"
)
ENDLESS = {
    "loops": ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "took more than 1 s"),
    "comparison": (DOUBLED + "{{ ns.a == ns.b }}", "took more than 1 s"),
    "power": ("{{ (9 ** (9 ** 9)) % 7 }}", "took more than 1 s"),
    "folded": ("{{ 'x' * 10 ** 10 }}", "took more than 1024 MiB, or crashed"),
    "centred": ("{{ 'x'.center(10 ** 10) }}", "took more than 1024 MiB, or crashed"),
    "repr": (DOUBLED + "{{ ns.a }}", "took more than (1 s|1024 MiB)"),
    "long": ("{{ 'x' * 5000000 }}", "gave more than 1048576 bytes of text"),
}


@pytest.mark.parametrize("template, message", ENDLESS.values(), ids=ENDLESS)
def test_templates_without_end(source_of, monkeypatch, template, message):
    source = source_of("qwen2_vl")
    (source / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(limited_process, "SECONDS", 1)
    start = time.monotonic()

    def refused():
        with pytest.raises(
            QuantError,
            match=rf"chat_template\.jinja: its chat template {message}.*; without it the family's own format is used",
        ):
            raise QuantError(refusal(source))

    limited(refused)
    assert time.monotonic() - start < 10


def test_templates_that_fail_are_passed_over(source_of):
    """range() without end, recursion without end, what the sandbox forbids."""
    source = source_of("qwen2_vl")
    (source / "chat_template.json").unlink()
    for template in (
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}",
        "{{ ''.__class__.__mro__ }}",
        "{" * 10**5,
        "{{" * 10**4,
    ):
        (source / "chat_template.jinja").write_text(template)
        encoder = Encoder(source)
        assert encoder.describe()["chat_template"].startswith("built in (no place for an image in chat_template.jinja")
        assert encoder(PICTURE, PROMPT)["input_ids"].numel() > 10


def test_a_template_that_waits_for_its_prompt(source_of, monkeypatch):
    source = source_of("qwen2_vl")
    trap = (
        "{% if messages[0].content[1].text != 'x' %}{% for i in range(100000) %}{% for j in range(100000) %}{% endfor"
        " %}{% endfor %}{% endif %}"
    )
    (source / "chat_template.jinja").write_text("<|image_pad|>" + trap)
    monkeypatch.setattr(limited_process, "SECONDS", 1)
    Encoder(source)(PICTURE, "x")
    assert refusal(source).startswith(f"{source}: chat template or tokenizer: took more than 1 s")


def replacements(times):
    """A normalizer that makes of one e ten to the power of `times`."""
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10}] * times,
    }


def nested(depth):
    return json.loads('{"type": "Sequence", "normalizers": [' * depth + '{"type": "NFC"}' + "]}" * depth)


def test_tokenizer_files_that_take_memory(source_of):
    source = source_of("qwen2_vl")
    file = source / "tokenizer.json"
    if transformers.__version__ > "5":  # Qwen2Tokenizer takes from the file what it needs; this class takes all
        change(source / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    whole = json.loads(file.read_text())

    def too_much():
        faulthandler.disable()  # pytest's would tell of the abort
        file.write_text(json.dumps({**whole, "normalizer": replacements(12)}))
        assert "its chat template took more than 1024 MiB, or crashed" in refusal(source)

    limited(too_much)
    for depth in (60, 400):
        file.write_text(json.dumps({**whole, "normalizer": nested(depth)}))
        try:
            Encoder(source)(PICTURE, PROMPT)
        except QuantError as error:
            assert "\n" not in str(error)
    for text in (json.dumps(whole)[:-1000], "[" * 10**6, "[]", '"x"', ""):
        file.write_text(text)
        assert "the processor cannot be built" in refusal(source)
    os.truncate(file, 200 << 30)
    assert f"tokenizer.json: has {200 << 30} bytes, at most {64 << 20} are read" in refusal(source)


def test_json_files_without_end(source_of):
    source = source_of("qwen2_vl")
    for name in ("preprocessor_config.json", "chat_template.json", "config.json"):
        file = source / name
        whole = file.read_text()
        file.write_text("[" * 10**5)
        assert f"{name}: not valid JSON" in refusal(source)
        os.truncate(file, 200 << 30)
        assert f"{name}: has {200 << 30} bytes, at most" in refusal(source)
        if name == "config.json":
            with pytest.raises(QuantError, match=r"config\.json: has \d+ bytes, at most"):
                Checkpoint(source)
        file.write_text(whole)


@pytest.mark.parametrize("architectures", [{"a": 1}, 3, "x", [[]], [None], [{}]])
def test_architectures_of_any_kind(source_of, architectures):
    source = source_of("llava")
    change(source / "config.json", architectures=architectures)
    assert "is not supported; supported are" in refusal(source)


@pytest.mark.parametrize("architectures", [{}, [], None])
@pytest.mark.parametrize("model_type", [[], {"a": 1}, 3, "x", None])
def test_without_architectures_the_model_type_is_asked(source_of, architectures, model_type):
    source = source_of("llava")
    change(source / "config.json", architectures=architectures)
    Encoder(source)  # as servers take it
    change(source / "config.json", model_type=model_type)
    assert "is not supported; supported are" in refusal(source)


FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "tokenizer.json",
)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_processor_files_of_any_content(source_of, family, monkeypatch):
    """Inputs, or one line."""
    source = source_of(family)
    wholes = {name: json.loads((source / name).read_text()) for name in FILES if (source / name).exists()}
    places = {name: sorted(path for path in paths(whole) if "vocab" not in path[:-1]) for name, whole in wholes.items()}
    monkeypatch.setattr(limited_process, "SECONDS", 5)

    @fuzz(60)
    @given(st.data(), st.sampled_from(sorted(wholes)), st.sampled_from(ABSURD) | st.integers(2, 2**40) | json_values)
    def one(data, name, value):
        changed = copy.deepcopy(wholes[name])
        *way, last = data.draw(st.sampled_from(places[name]))
        place = changed
        for key in way:
            place = place[key]
        place[last] = value
        (source / name).write_text(json.dumps(changed))
        try:
            inputs = Encoder(source)(PICTURE, PROMPT)
            assert inputs["pixel_values"].numel() < 3 * 2 * 10**6
        except QuantError as error:
            assert "\n" not in str(error), str(error)
        finally:
            (source / name).write_text(json.dumps(wholes[name]))

    limited(one)


# ---- the child process itself


def test_what_a_job_with_limits_gives():
    tasks = list(Path("/proc/self/task").iterdir())
    children = lambda: {child for task in tasks for child in (task / "children").read_text().split()}
    before = children()  # of other tests of this process, such as a server's
    assert run_with_limits(lambda: "täxt\ud800") == "täxt\ud800"
    for error in (ValueError("no"), SystemExit("no"), KeyboardInterrupt("no")):
        with pytest.raises(JobFailed, match=rf"{type(error).__name__}: no"):
            run_with_limits(lambda error=error: (_ for _ in ()).throw(error))
    with pytest.raises(QuantError, match="or crashed"):
        run_with_limits(lambda: os._exit(3))
    with pytest.raises(QuantError, match=r"took more than 0\.2 s"):
        run_with_limits(lambda: time.sleep(60), seconds=0.2)
    assert children() == before  # none is left
