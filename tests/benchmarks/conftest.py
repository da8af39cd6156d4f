"""Makes ``benchmarks`` importable: it belongs to the repository, not to the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
