"""How far it is from the command line to the formula: a reader follows a few calls through a few files."""

import sys
from pathlib import Path

import tiny

from quant.arithmetic.rounding import Nearest
from quant.commands.cli import main

ROOT = Path(__file__).parent.parent / "quant"
FRAMES, FILES = 9, 6


def test_from_the_command_line_to_a_rounding(tmp_path, monkeypatch):
    """The stack as a weight is rounded, from python -m quant quantize to Nearest; frames of other packages in between,
    such as torch's decorators, are not ours to read.
    """
    stacks, nearest = set(), Nearest.__call__

    def rounding(self, weight, scale):
        frame, stack = sys._getframe(1), [("arithmetic/rounding.py", "__call__")]
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(ROOT):
                stack.append((file.relative_to(ROOT).as_posix(), frame.f_code.co_name))
            frame = frame.f_back
        stacks.add(tuple(reversed(stack)))
        return nearest(self, weight, scale)

    monkeypatch.setattr(Nearest, "__call__", rounding)
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 1)
    paths = ["--model_path", source, "--save_directory", tmp_path / "out", "--calib_images", images]
    assert main(["quantize", *map(str, paths), "--device_type", "cpu", "--quiet"]) == 0
    deepest = max(stacks, key=len)
    assert deepest[0] == ("commands/cli.py", "main") and ("calibrate/block.py", "_round") in deepest
    for stack in stacks:
        assert len(stack) <= FRAMES and len({file for file, _ in stack}) <= FILES, stack
