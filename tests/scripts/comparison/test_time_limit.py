"""The end of a process in which something lasts too long; that of a run: test_optimizers_run.py."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[3] / "scripts"
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from comparison.time_limit import TimeLimit

def last_words():
    print("said", flush=True)
    raise OSError("no space left")

with TimeLimit(0.05, last_words):
    time.sleep(60)
"""


def test_what_fails_at_the_end_is_told():
    ended = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM], capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (1, "said\n")
    assert ended.stderr.rstrip().endswith("OSError: no space left")
