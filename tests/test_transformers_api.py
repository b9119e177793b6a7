"""Each function of base/transformers_api.py against the installed transformers: a failure here says what an upgrade
changed. They run with 5.x and, by `make test-compat`, with 4.57.
"""

import contextlib
import inspect
import json
import logging
import re
import warnings

import pytest
import tiny
import torch
import transformers
from PIL import Image

from quant.base import transformers_api, transformers_processors
from quant.base.errors import QuantError, UsageError
from quant.commands.cli import main
from quant.families import FAMILIES

# architecture -> the tiny checkpoint's name, of those that the installed transformers has
DIRECTORIES = {tiny.SIZES[tiny.FAMILIES[name]].config["architectures"][0]: name for name in tiny.known()}
DIRECTORIES = {architecture: name for architecture, name in DIRECTORIES.items() if hasattr(transformers, architecture)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """architecture -> a tiny checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {architecture: tiny.make(root / name, name, dtype="float32") for architecture, name in DIRECTORIES.items()}


@pytest.fixture
def model(checkpoints, request):
    architecture = request.param
    config = transformers.AutoConfig.from_pretrained(checkpoints[architecture])
    return transformers_api.build_model(architecture, config, torch.float32).eval()


def each_model(test):
    return pytest.mark.parametrize("model", DIRECTORIES, indirect=True)(test)


# ---- models


@pytest.mark.parametrize(
    "torch_version, version, refused",
    [
        ("2.6.0", "5.99.1.dev0", None),
        ("2.13.0+cpu", "5.23.0", None),
        ("2.2.0", "4.57.0", None),
        ("2.13.0", "4.56.2", r"transformers 4\.56\.2 is installed; 4\.57 or .* below 6 is needed"),
        ("2.13.0", "6.0.0", r"transformers 6\.0\.0 is installed; 4\.57 or .* below 6 is needed"),
        ("2.5.1", "5.0.0", r"transformers 5\.0\.0 takes torch 2\.6 or later, and 2\.5\.1 .*transformers>=4\.57,<5"),
        ("2.1.0", "4.57.6", r"transformers 4\.57\.6 takes torch 2\.2 or later, and 2\.1\.0 is installed"),
        (None, "5.0.0", "torch not installed: pip install torch"),
        (None, None, "torch and transformers not installed: pip install torch transformers"),
    ],
)
def test_check_version(monkeypatch, capsys, torch_version, version, refused):
    transformers_api.check_version()  # the installed ones
    found = {"torch": torch_version, "transformers": version}
    monkeypatch.setattr(transformers_api, "_installed", found.get)
    if not refused:
        transformers_api.check_version()
        return
    with pytest.raises(UsageError, match=refused):
        transformers_api.check_version()
    for command in (["quantize", "--model_path", "x", "--save_directory", "y"], ["verify", "x", "--model_path", "y"]):
        assert main(command) == 2 and re.search(refused, capsys.readouterr().err), "said before anything else"


@pytest.mark.parametrize(
    "models,library,fine", [(False, "26.1.0", True), (False, None, False), (True, "26.1.0", False)]
)
def test_check_version_beside_the_vendors_library(monkeypatch, models, library, fine):
    """It needs transformers 4.46, in which this project runs no model, but makes the library's inputs."""
    found = {"torch": "2.13.0", "transformers": "4.46.0", "msmodelslim": library}
    monkeypatch.setattr(transformers_api, "_installed", found.get)
    with contextlib.nullcontext() if fine else pytest.raises(UsageError, match="4.46.0 is installed; 4.57 or a later"):
        transformers_api.check_version(models)


@pytest.mark.parametrize("architecture", DIRECTORIES)
def test_build_model(checkpoints, architecture):
    """Of the class and the dtype asked for, whatever config.json says (float32 here), on the device that is current;
    buffers, which no checkpoint holds, are not rounded to it.
    """
    config = transformers.AutoConfig.from_pretrained(checkpoints[architecture])
    with torch.device("meta"):
        model = transformers_api.build_model(architecture, config, torch.bfloat16)
    assert type(model) is getattr(transformers, architecture)
    assert {value.device.type for value in model.parameters()} == {"meta"}
    inherited = set() if transformers.__version__ >= "5" else {torch.float32}  # of a part with its own configuration
    assert {torch.bfloat16} <= {value.dtype for value in model.parameters()} <= {torch.bfloat16} | inherited
    assert {value.dtype for value in model.buffers() if value.is_floating_point()} <= {torch.float32}


def test_a_class_that_is_not_there_yet(checkpoints):
    config = transformers.AutoConfig.from_pretrained(next(iter(checkpoints.values())))
    with pytest.raises(
        UsageError, match=rf"transformers {transformers.__version__} has no TomorrowForAll: pip install"
    ):
        transformers_api.build_model("TomorrowForAll", config, torch.float32)


@each_model
def test_head_name(model):
    head = model.get_submodule(transformers_api.head_name(model))
    assert isinstance(head, torch.nn.Linear) and head.out_features == model.get_input_embeddings().num_embeddings


@each_model
def test_tie_head(model):
    embedding, head = model.get_input_embeddings(), model.get_submodule(transformers_api.head_name(model))
    # transformers' class of PaddleOCR-VL takes its head for a tied one, whatever config.json says; weights undo that.
    paddle = type(model).__name__ == "PaddleOCRVLForConditionalGeneration"
    assert (head.weight is embedding.weight) == paddle
    transformers_api.tie_head(model)
    assert head.weight is embedding.weight


@each_model
@torch.no_grad()
def test_logits_at(model):
    """Of the positions that were asked for; and computed at no others, but by the one class that cannot."""
    ids, computed = torch.arange(5, 15)[None], []

    def forward(inputs):
        logits = model(**inputs).logits
        computed.append(logits.shape[1])
        return logits

    some, every = torch.tensor([2, 7, 9]), torch.arange(10)
    kept, whole = (transformers_api.logits_at(forward, {"input_ids": ids}, positions) for positions in (some, every))
    assert kept.shape == (1, 3, whole.shape[2]) and whole.shape[1] == 10
    assert torch.allclose(kept, whole[:, some], atol=1e-5)
    cannot = transformers.__version__ < "5" and type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert computed == [10 if cannot else 3, 10]


SAMPLING = {
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.001,
    "min_p": 0.1,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.001,
    "eta_cutoff": 0.001,
}


def write_settings(directory, **settings):
    (directory / "generation_config.json").write_text(json.dumps(settings))


def test_greedy_generation_keeps_what_is_not_sampling(tmp_path):
    assert transformers_api.greedy_generation(tmp_path) is None
    write_settings(tmp_path, do_sample=True, eos_token_id=[7, 9], repetition_penalty=1.05, **SAMPLING)
    settings = transformers_api.greedy_generation(tmp_path)
    assert settings.do_sample is False and settings.eos_token_id == [7, 9] and settings.repetition_penalty == 1.05
    assert all(getattr(settings, name) is None for name in SAMPLING)


@each_model
def test_greedy_generation_is_greedy_and_says_nothing(model, tmp_path, caplog):
    write_settings(tmp_path, do_sample=True, **{**SAMPLING, "temperature": 50.0, "top_k": 0, "top_p": 1.0})
    model.generation_config = transformers_api.greedy_generation(tmp_path)
    ids, expected = torch.arange(5, 15)[None], []
    for _ in range(4):
        with torch.no_grad():
            logits = model(input_ids=torch.cat([ids, torch.tensor([expected], dtype=torch.long)], 1)).logits
        expected.append(int(logits[0, -1].argmax()))
    logging.getLogger("transformers").propagate = True  # to caplog; transformers' own handler aside
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert answer[0, 10:].tolist() == expected
    assert not [record for record in caplog.records if "flag" in record.message or "do_sample" in record.message]


def test_every_setting_of_sampling_is_unset():
    """By transformers' own word: what its check of the settings calls "only used in sample-based generation"."""
    checks = inspect.getsource(transformers.GenerationConfig.validate)
    named = {name for name in vars(transformers.GenerationConfig()) if f'minor_issues["{name}"] = greedy' in checks}
    assert named and named <= set(transformers_api.SAMPLING)


@pytest.mark.parametrize("content", ["", "[]", '{"do_sample": ', '{"max_new_tokens": -3}'])
def test_settings_that_cannot_be_used(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(QuantError, match=r"generation_config\.json: transformers ") as caught:
        transformers_api.greedy_generation(tmp_path)
    assert "\n" not in str(caught.value)


# ---- tokenizer and processors


@pytest.mark.parametrize("architecture", DIRECTORIES)
def test_read_tokenizer(checkpoints, architecture):
    """Everything that the chat template's part asks of it."""
    tokenizer = transformers_processors.read_tokenizer(checkpoints[architecture], False)
    ids = tokenizer("describe this image", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "describe this image"
    assert (
        hasattr(tokenizer, "bos_token") and hasattr(tokenizer, "unk_token_id") and hasattr(tokenizer, "chat_template")
    )


@pytest.mark.parametrize("architecture", DIRECTORIES)
def test_read_image_processor(checkpoints, architecture):
    """The one on Pillow, though the checkpoint names the one on torchvision; what is given goes before its file."""
    directory = checkpoints[architecture]
    file = directory / "preprocessor_config.json"
    said = json.loads(file.read_text())
    file.write_text(
        json.dumps({**said, "image_processor_type": f"{said['image_processor_type'].removesuffix('Fast')}Fast"})
    )
    try:
        processor = transformers_processors.read_image_processor(directory, False, image_mean=[0.1, 0.2, 0.3])
    finally:
        file.write_text(json.dumps(said))
    assert "Fast" not in type(processor).__name__ and list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert "torchvision" not in inspect.getsource(inspect.getmodule(type(processor)))


def test_make_image_processor(checkpoints):
    """Of given settings, what reading a file of the same settings makes."""
    directory = checkpoints["LlavaOnevisionForConditionalGeneration"]
    said = json.loads((directory / "preprocessor_config.json").read_text())
    settings = {key: value for key, value in said.items() if not key.endswith(("_type", "_class"))}
    made = transformers_processors.make_image_processor("LlavaOnevisionImageProcessor", settings)
    read = transformers_processors.read_image_processor(directory, False)
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    one, other = (each(image, return_tensors="pt")["pixel_values"] for each in (made, read))
    assert type(made) is type(read) and torch.equal(one, other)


@pytest.mark.parametrize("turned", [False, True])
def test_expert_layout(turned):
    """And its view, on a module as transformers 5 has it and one as 4.57 has it."""
    module = torch.nn.Module()
    first, second = torch.randn(3, 10, 8), torch.randn(3, 8, 5)
    wanted = {"gate_proj": first[1, :5], "up_proj": first[1, 5:], "down_proj": second[1]}
    if turned:
        first, second = first.transpose(1, 2), second.transpose(1, 2)
    module.gate_up_proj, module.down_proj, module.hidden_dim = torch.nn.Parameter(first), torch.nn.Parameter(second), 8
    layout = transformers_api.expert_layout(module)
    assert (layout.experts, layout.turned) == (3, turned)
    assert layout.parts == {part: tuple(value.shape) for part, value in wanted.items()}
    for part, value in wanted.items():
        assert torch.equal(layout.view(getattr(module, layout.tensor_of[part]), 1, part), value)


@each_model
def test_holds_experts(model):
    """Those of a block, and nothing else in any model."""
    found = [module for module in model.modules() if transformers_api.holds_experts(module)]
    blocks = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    assert len(found) == (blocks if "Moe" in type(model).__name__ else 0)


def test_routing_of_either_version():
    """[T, k] weights of [T, k] experts, whichever way the layer is called."""

    class Newer:
        def forward(self, hidden_states, top_k_index, top_k_weights):
            return None

    class Older:
        def forward(self, hidden_states, routing_weights, router_indices):
            return None

    hidden, index, weights = torch.randn(1, 4, 8), torch.tensor([[2, 0], [1, 2], [0, 1], [2, 1]]), torch.rand(4, 2)
    every = torch.zeros(4, 3).scatter_(1, index, weights)
    for found in (
        transformers_api.routing(Newer(), (hidden[0], index), {"top_k_weights": weights}),
        transformers_api.routing(Older(), (hidden, every, index), {}),
    ):
        assert all(torch.equal(one, other) for one, other in zip(found, (hidden[0], index, weights)))


def parts(checkpoints, architecture):
    directory, processing = checkpoints[architecture], FAMILIES[architecture].processing
    tokenizer = transformers_processors.read_tokenizer(directory, False)
    arguments = processing.from_config(json.loads((directory / "config.json").read_text()))
    return transformers_processors.read_image_processor(directory, False), tokenizer, processing, arguments


@pytest.mark.parametrize("architecture", DIRECTORIES)
def test_make_processor(checkpoints, architecture):
    """The class asked for, without a video processor, and still particular about the parts that are there."""
    images, tokenizer, processing, arguments = parts(checkpoints, architecture)
    processor = transformers_processors.make_processor(processing.processor, images, tokenizer, **arguments)
    assert isinstance(processor, getattr(transformers, processing.processor))
    assert processor.image_processor is images and processor.tokenizer is tokenizer
    assert getattr(processor, "video_processor", None) is None
    with pytest.raises(TypeError):
        transformers_processors.make_processor(processing.processor, "no image processor", tokenizer, **arguments)
    with pytest.raises(UsageError, match="has no TomorrowProcessor"):
        transformers_processors.make_processor("TomorrowProcessor", images, tokenizer)


@pytest.mark.parametrize("architecture", DIRECTORIES)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_process(checkpoints, architecture, count):
    """Any number of images, one placeholder each; a picture 3 pixels high is not taken for three channels."""
    images, tokenizer, processing, arguments = parts(checkpoints, architecture)
    processor = transformers_processors.make_processor(processing.processor, images, tokenizer, **arguments)
    pictures = [Image.new("RGB", size, "red") for size in ((90, 3), (60, 60))[:count]]
    inputs = transformers_processors.process(processor, pictures, processing.chat_image * count + "hi", False)
    assert {"input_ids", "attention_mask"} <= inputs.keys() and ("pixel_values" in inputs) == bool(count)
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    token = tokenizer.convert_tokens_to_ids(processing.image_token)
    assert (inputs["input_ids"] == token).any() == bool(count)
    if "image_grid_thw" in inputs:
        rows, columns = inputs["image_grid_thw"][0, 1:].tolist()
        assert len(inputs["image_grid_thw"]) == count and rows < columns


def test_asks_for_remote_code(checkpoints, tmp_path):
    config = json.loads((next(iter(checkpoints.values())) / "preprocessor_config.json").read_text())
    config |= {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("class Own:\n    pass\n")
    with pytest.raises(Exception) as caught:
        transformers_processors.read_image_processor(tmp_path, False)
    assert transformers_api.asks_for_remote_code(caught.value)
    assert not transformers_api.asks_for_remote_code(OSError("no such file"))


def test_every_function_is_tested_here():
    functions = {
        name
        for module in (transformers_api, transformers_processors)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    elsewhere = {"end_rows_in_newline", "named_class", "version"}  # test_llava_video.py; below build_model and others
    tests = " ".join(name for name in globals() if name.startswith("test_"))
    assert elsewhere <= functions
    assert [name for name in sorted(functions - elsewhere) if f"test_{name}" not in tests] == []
