#!/usr/bin/env python3
"""Molmo-7B-D to W8A8 for Ascend.  python quant_molmo.py --model_path SRC --save_directory OUT --anti_method m4"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # run by its path, from anywhere, without installing

from quant.commands.quantize import script  # noqa: E402

if __name__ == "__main__":
    sys.exit(script(__file__))
