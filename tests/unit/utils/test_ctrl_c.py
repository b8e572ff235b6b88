"""Ctrl-C: it ends a process also while compiled code does not return, and leaves one alone that handles it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there, Ctrl-C waits for compiled code")

BEGIN = """
import hashlib, os, signal, sys, threading, time
from gptrio.utils.ctrl_c import end_stuck_process
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
end_stuck_process(float(sys.argv[2]))
number = signal.Signals[sys.argv[4]]
def press():
    for _ in range(int(sys.argv[1])):
        os.kill(os.getpid(), number)
start = time.monotonic()
threading.Timer(0.5, press).start()
"""
NEVER = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
HANDLED = """
try:
    time.sleep(60)
except KeyboardInterrupt:
    for _ in range(20):
        time.sleep(0.05)
    print("cleaned up")
"""
TWICE = """
seen = 0
while seen < 2 and time.monotonic() < start + 2:
    try:  # nearly always in compiled code, so that one interrupt mostly answers both signals
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3 * 10**4)
    except KeyboardInterrupt:
        seen += 1
print("cleaned up" if seen else "not interrupted")
"""
OWN = """
signal.signal(signal.SIGINT, lambda *_: None)
hashlib.pbkdf2_hmac("sha256", b"", b"", 3 * 10**6)
print("done")
"""

IMPORT = """
from pathlib import Path
content = "import time\\ntry:\\n    time.sleep(1)\\nexcept KeyboardInterrupt:\\n    print('lost')"
Path(sys.argv[3], "lossy.py").write_text(content)
sys.path.insert(0, sys.argv[3])
try:
    import lossy
    time.sleep(60)
except KeyboardInterrupt:
    print("cleaned up")
"""
CALLBACK = """
class Lossy:
    def __del__(self):
        time.sleep(1)
try:
    Lossy()
    time.sleep(60)
except KeyboardInterrupt:
    print("cleaned up")
"""
BY_TERM = """
try:
    time.sleep(60)
finally:
    print("cleaned up")
"""
FORK = """
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.3)  # until the child has begun
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
time.sleep(2 * float(sys.argv[2]))
print("goes on")
"""


@pytest.mark.parametrize(
    ("program", "name", "times", "grace", "code", "output"),
    [
        pytest.param(NEVER, "SIGINT", 1, 0.3, 130, "", id="stuck"),
        pytest.param(HANDLED, "SIGINT", 1, 0.3, 0, "cleaned up\n", id="handled"),
        pytest.param(TWICE, "SIGINT", 2, 0.3, 0, "cleaned up\n", id="twice"),
        pytest.param(OWN, "SIGINT", 1, 0.3, 0, "done\n", id="own-handler"),
        pytest.param(IMPORT, "SIGINT", 1, 50, 0, "cleaned up\n", id="import"),
        pytest.param(CALLBACK, "SIGINT", 1, 50, 0, "cleaned up\n", id="callback"),
        pytest.param(NEVER, "SIGTERM", 1, 0.3, 143, "", id="stuck-by-sigterm"),
        pytest.param(BY_TERM, "SIGTERM", 1, 50, 143, "cleaned up\n", id="cleans-up"),
        pytest.param(FORK, "SIGTERM", 0, 0.3, 0, "-15\ngoes on\n", id="of-a-child"),
    ],
)
def test_a_signal_ends_a_process_that_keeps_python_from_raising_it(
    program: str, name: str, times: int, grace: float, code: int, output: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", BEGIN + program, str(times), str(grace), str(tmp_path), name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, output), ended.stderr
