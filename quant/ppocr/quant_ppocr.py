#!/usr/bin/env python3
"""PP-OCR's ONNX models to int8 for Ascend.  python quant_ppocr.py --model_path X.onnx --calib_images DIR
--save_directory OUT
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # run by its path, from anywhere, without installing

from quant.commands.onnx import script  # noqa: E402

if __name__ == "__main__":
    sys.exit(script())
