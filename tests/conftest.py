import os
import sys
from pathlib import Path

# The tests' own helpers (tiny.py) and the packages beside them, wherever pytest was started.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The tensors are tiny: a second thread only waits, and for a hundred times as long when the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
