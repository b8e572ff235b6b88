"""The benchmarks are scripts that import each other by name, from their own folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = os.fspath(Path(__file__).parents[3] / "benchmarks")

if FOLDER not in sys.path:
    sys.path.append(FOLDER)
