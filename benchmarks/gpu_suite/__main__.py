"""``python -m benchmarks.gpu_suite``, or ``python benchmarks/gpu_suite`` from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu_suite.cli import main

if __name__ == "__main__":
    sys.exit(main())
