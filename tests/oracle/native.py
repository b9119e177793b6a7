"""Our own engine, run by the main environment's Python:

python native.py "({'source': ..., 'images': ..., 'config': {...}, 'save': {directory: layout}}, ...)"
"""

import ast
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from quant import Calibrator, QuantConfig  # noqa: E402

for job in ast.literal_eval(sys.argv[1]):
    calibrator = Calibrator(job["source"], QuantConfig(**job["config"]), job["images"]).run()
    for directory, layout in job["save"].items():
        calibrator.save(directory, [layout])
    calibrator.close()
