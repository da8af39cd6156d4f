"""``python -m benchmarks.gpu_suite``, or ``python benchmarks/gpu_suite`` from anywhere."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
# Started as a folder, Python puts the folder itself first, and every module in it would shadow one of that name.
sys.path[:] = [str(here.parents[1]), *(entry for entry in sys.path if Path(entry or ".").resolve() != here)]

if __name__ == "__main__":
    from benchmarks.gpu_suite.cli import main

    sys.exit(main())
