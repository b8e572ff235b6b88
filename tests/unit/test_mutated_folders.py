"""A checkpoint folder with one file changed at random ends in a GptrioError or in a working model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_mutated_folders_end_in_our_errors_or_work() -> None:
    cases = os.environ.get("GPTRIO_FUZZ_FOLDERS", "30")
    program = Path(__file__).with_name("mutated_folders.py")
    done = subprocess.run([sys.executable, program, cases, "0"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
