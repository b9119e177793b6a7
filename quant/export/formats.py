"""From a finished static export to any other format, without calibration: the smoothing is folded in, and codes and
scales are all there.

    save_type           act       of an int8 linear are written
    ascendV1            static    weight, weight_scale, weight_offset, input_scale, input_offset, quant_bias, deq_scale     W8A8
    ascendV1            dynamic   weight, weight_scale, weight_offset                                                       W8A8_DYNAMIC
    ascendV1            mix       the union: per token in prefill, per tensor in decode                                     W8A8_MIX
    mindie              static    as ascendV1, under the names of older MindIE releases                                     W8A8
    compressed-tensors  dynamic, static                                                                                     compressed_tensors.py

Dynamic activations are rounded by the server, per token and symmetric: x_t ~ s_t q_t, s_t = max |x_t| / 127. The float
bias is added after the product, so the shift that smoothing folded into it stays right.

Files are gone through tensor by tensor; those that do not change are shared. Left out: from a dynamic export back to a
static one, whose scales it no longer has.
"""

from pathlib import Path

from ..base.config import QuantConfig
from ..base.errors import UsageError
from ..base.output import FILE_MODE, appearing, check_output, check_space, link_or_copy
from ..files.config_json import read_json
from ..files.safetensors_io import SafetensorsWriter, TensorInfo, read_tensor
from . import ascend, compressed_tensors
from .ascend import DESCRIPTION, INT8_PARTS, WEIGHTS, Export, write_json
from .recipe import RECIPE, settings

KINDS = {"static": "W8A8", "dynamic": "W8A8_DYNAMIC", "mix": "W8A8_MIX"}
MINDIE_NAMES = {"static": "w8a8", "dynamic": "w8a8_dynamic", "mix": "w8a8_pdmix"}  # config.json's `quantize`
DYNAMIC_PARTS = INT8_PARTS[:3]
SAVE_TYPES = {
    "ascendV1": ("static", "dynamic", "mix"),
    "mindie": ("static",),
    "compressed-tensors": ("dynamic", "static"),
}
"""Format -> how it can round activations, the default first."""


def resolve(save_type: str, act: str | None) -> str:
    """`act`, or the format's default for None. Raises UsageError for a format, or an act, that there is not."""
    if save_type not in SAVE_TYPES:
        raise UsageError(f"save_type {save_type}: there are {', '.join(SAVE_TYPES)}")
    if act is not None and act not in SAVE_TYPES[save_type]:
        raise UsageError(f"--act {act}: {save_type} has {' and '.join(SAVE_TYPES[save_type])}")
    return act or SAVE_TYPES[save_type][0]


def export(source: str | Path, directory: str | Path, save_type: str = "ascendV1", act: str | None = None) -> Path:
    """Write the static export in `source`, of either Ascend layout, to `directory` in another format; returns the
    directory.

    `directory` must be absent or empty. Raises UsageError for choices that cannot be carried out or a source that is no
    static export, QuantError when it is damaged or the disk is full.
    """
    act = resolve(save_type, act)
    opened = ascend.read(source)
    target = check_output(directory, opened.dir)
    with appearing(target) as partial:
        write(opened, partial, save_type, act)
    return target


def write(export: Export, directory: Path, save_type: str, act: str) -> None:
    """As export(), into a directory that exists and is empty."""
    if save_type == "compressed-tensors":
        compressed_tensors.write(export, directory, act)
    else:
        _write_ascend(export, directory, save_type, act)
    for file in side_files(export):
        link_or_copy(file, directory / file.name)
    for file in directory.iterdir():
        file.chmod(FILE_MODE)


def side_files(export: Export) -> list[Path]:
    """What stands beside weights, description and config.json, and is the same in every format."""
    skip = {"config.json", *DESCRIPTION.values()}
    return [
        file
        for file in sorted(export.dir.iterdir())
        if file.is_file()
        and file.name not in skip
        and file.suffix != ".safetensors"
        and not file.name.endswith(".index.json")
    ]


def _write_ascend(export: Export, directory: Path, save_type: str, act: str) -> None:
    int8 = {f"{linear}.{part}": part for linear in export.linear_names for part in INT8_PARTS}
    kept = {
        name: info
        for name, info in export.tensors.items()
        if act != "dynamic" or int8.get(name, "weight") in DYNAMIC_PARTS
    }
    names = _write_weights(export, kept, directory, act)
    if len(set(names.values())) > 1:
        total = sum(info.nbytes for info in kept.values())
        write_json(
            directory / f"{_stem(act)}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": names}
        )
    described = {
        name: KINDS[act] if name in int8 else kind
        for name, kind in export.description.items()
        if name in kept or name not in int8
    }
    write_json(directory / DESCRIPTION[save_type], {**described, **ascend.METADATA, "model_quant_type": KINDS[act]})
    write_json(directory / "config.json", _config(export, save_type, act))


def _stem(act: str) -> str:
    return WEIGHTS.removesuffix("w8a8") + KINDS[act].lower()


def _write_weights(export: Export, kept: dict[str, TensorInfo], directory: Path, act: str) -> dict[str, str]:
    """Tensor name -> file name. The tensors stay in the files that they are in; a file that loses none is shared."""
    files = sorted({info.file for info in export.tensors.values()})
    if act == "dynamic":
        check_space(directory, sum(info.nbytes for info in kept.values()))
    names = {}
    for number, file in enumerate(files):
        target = directory / (
            f"{_stem(act)}.safetensors"
            if len(files) == 1
            else f"{_stem(act)}-{number + 1:05d}-of-{len(files):05d}.safetensors"
        )
        inside = {name: info for name, info in kept.items() if info.file == file}
        if all(name in kept for name, info in export.tensors.items() if info.file == file):
            link_or_copy(file, target)
        else:
            writer = SafetensorsWriter(target, {name: (info.dtype, info.shape) for name, info in inside.items()})
            try:
                for name, info in inside.items():
                    writer.write(name, read_tensor(info))
                writer.close()
            finally:
                writer.abandon()
        names.update(dict.fromkeys(inside, target.name))
    return names


def _config(export: Export, save_type: str, act: str) -> dict:
    config = {key: value for key, value in export.config.items() if key != "quantization_config"}
    config["quantize"] = MINDIE_NAMES[act]
    if act == "dynamic":  # MindIE's vision tower knows static int8 or float
        config["vision_config"] = {key: value for key, value in config["vision_config"].items() if key != "quantize"}
    if save_type == "mindie":
        config["quantization_config"] = _settings(export)
    return config


def _settings(export: Export) -> dict:
    """The block as the run had it; an export without a recipe is not ours, and brings its own, or gets one that claims no
    smoothing.
    """
    if (export.dir / RECIPE).is_file():
        return settings(QuantConfig(**read_json(export.dir / RECIPE).get("config", {})))
    return export.config.get("quantization_config") or settings(QuantConfig(anti_method="none"))
