"""Models whose weights no package brings: their architectures from transformers, with random weights, exported to ONNX
and quantized, for structure, coverage and speed. Their scores would mean nothing and are not looked at.

    python examples/ocr/architectures.py [names]

Left out: PP-FormulaNet's decoder, which is a language model; its vision encoder is here. And PP-DocLayoutV2's reading
order, which is computed from the boxes; the boxes are here.
"""

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from demo import OUT, ROOT, milliseconds
from torch import nn

WORDS = 18383  # and blank and space: what the server recognition model's last layer has classes for


class Outputs(nn.Module):
    """A model's named outputs, as a tuple. pick: attribute names."""

    def __init__(self, model: nn.Module, pick: tuple[str, ...]):
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, pixels: torch.Tensor):
        """[1, 3, H, W] -> the outputs."""
        answer = self.model(pixels)
        return tuple(getattr(answer, name) for name in self.pick)


class Last(Outputs):
    """Of outputs [1, decoder layers, queries, ...] the last layer's."""

    def forward(self, pixels: torch.Tensor):
        """[1, 3, H, W] -> the outputs."""
        return tuple(each[:, -1] for each in super().forward(pixels))


def strip_convolutions() -> dict[str, list]:
    """Kernel, stride and padding in the detection neck's blocks as PaddleOCR's LKPAN has them; the hub's class brings
    no defaults.
    """
    found: dict[str, list] = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    for ratio, size in (("long", 7), ("mid", 5), ("short", 3)):
        half = size // 2
        found[f"vertical_long_to_small_conv_{ratio}ratio"] = [[size, 1], [1, 1], [half, 0]]
        found[f"horizontal_small_to_long_conv_{ratio}ratio"] = [[1, size], [1, 1], [0, half]]
        found[f"symmetric_conv_long_{ratio}ratio"] = [[size, size], [1, 1], [half, half]]
    return found


def build(name: str) -> tuple[nn.Module, tuple[int, int], str]:
    """(the model, height and width, task)."""
    import transformers as hub

    torch.manual_seed(0)
    if name == "server_det":
        strips = {"intraclass_block_config": strip_convolutions(), "scale_factor_list": [1, 2, 4, 8]}
        config = hub.PPOCRV5ServerDetConfig(**strips, kernel_list=[3, 2, 2])
        model = hub.PPOCRV5ServerDetForObjectDetection(config)
        return Outputs(model, ("last_hidden_state",)), (320, 320), "det"
    if name == "server_rec":
        model = hub.PPOCRV5ServerRecForTextRecognition(hub.PPOCRV5ServerRecConfig())
        return Outputs(model, ("last_hidden_state",)), (48, 320), "rec"
    if name == "doclayout":
        model = hub.PPDocLayoutV2ForObjectDetection(hub.PPDocLayoutV2Config()).model
        return Last(model, ("intermediate_logits", "intermediate_reference_points")), (320, 320), "layout"
    if name == "formulanet":
        config = hub.PPFormulaNetConfig()
        config.vision_config.image_size = 384
        model = hub.PPFormulaNetForConditionalGeneration(config).model.encoder
        return Outputs(model, ("pooler_output",)), (384, 384), "formula"
    raise SystemExit(f"{name}: there are {', '.join(NAMES)}")


NAMES = ("server_det", "server_rec", "doclayout", "formulanet")


def export(name: str, folder: Path) -> tuple[Path, str]:
    """(the ONNX file, its task)."""
    model, (height, width), task = build(name)
    file = folder / f"{name}.onnx"
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one, and that sizes become constants
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 3, height, width),),
            str(file),
            opset_version=16,
            input_names=["x"],
            dynamo=False,
        )
    return file, task


def images(folder: Path, count: int = 8) -> None:
    """Noise: random weights see nothing else in pictures either."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (48, 320, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), noise)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[])
    names = parser.parse_args().names or NAMES
    folder = OUT / "architectures"
    images(folder / "images")
    (folder / "words.txt").write_text("\n".join(map(str, range(WORDS))))
    heading = f"{'':<12}{'layers':>7}{'G MACs':>8}{'int8':>8}{'MB float':>10}{'int8':>8}"
    print(f"{heading}{'ms float':>10}{'written':>9}{'fused':>8}")
    for name in names:
        out = folder / f"{name}-int8"
        shutil.rmtree(out, ignore_errors=True)
        file, task = export(name, folder)
        words = [
            sys.executable,
            "quant/ppocr/quant_ppocr.py",
            "--model_path",
            file,
            "--task",
            task,
            "--plain",
            "--quiet",
        ]
        words += ["--calib_images", folder / "images", "--save_directory", out]
        words += ["--characters", folder / "words.txt"] if task in ("rec", "formula") else []
        subprocess.run([*map(str, words)], cwd=ROOT, check=True)
        record = json.loads((out / "quant_onnx.json").read_text())
        times = milliseconds(file, out, folder / "images" / "0.png")
        sizes = [record[part]["bytes"] / 1e6 for part in ("source", "model")]
        work = record["multiply_adds"]
        print(
            f"{name:<12}{len(record['layers']):>7}{work['all'] / 1e9:>8.2f}{work['int8']:>8.1%}{sizes[0]:>10.1f}"
            f"{sizes[1]:>8.1f}{times[0]:>10.0f}{times[1]:>9.0f}{times[2]:>8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
