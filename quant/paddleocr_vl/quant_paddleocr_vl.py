#!/usr/bin/env python3
"""PaddleOCR-VL to W8A8 for Ascend.  python quant_paddleocr_vl.py --model_path SRC --save_directory OUT"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # run by its path, from anywhere, without installing

from quant.commands.quantize import script  # noqa: E402

if __name__ == "__main__":
    sys.exit(script(__file__))
