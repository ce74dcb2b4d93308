"""A short run of scripts/soak.py (its default is ten thousand requests), with every expert resident and with most on disk."""
import json
import os
import subprocess
import sys

import pytest
from conftest import BINARY, DEMO_MODEL, ROOT

REQUESTS = os.environ.get("SLUICE_SOAK_REQUESTS", "500")
FLAGS = "--threads 2 --context 512 --kv-memory 8MiB --max-batch-tokens 64 --prefill-chunk 32"


@pytest.mark.parametrize("tiers", [False, True])
def test_cancels_deadlines_and_overload_leave_nothing_behind_and_change_no_answer(tmp_path, tiers):
    model, flags = DEMO_MODEL, FLAGS
    if tiers:
        model = tmp_path / "demo.sluice"
        subprocess.run([BINARY, "pack", DEMO_MODEL, model, "--bits", "4", "--calibration", "none"], check=True,
                       capture_output=True)
        # Load on demand: every step reads, and every cancel meets reads in flight.
        flags += " --cache off"
    done = subprocess.run([sys.executable, ROOT / "scripts/soak.py", "--binary", BINARY, "--model", model, "--flags", flags,
                           "--requests", REQUESTS, "--bodies", "24", "--max-running", "4", "--max-queue", "6", "--clients", "24",
                           "--json", tmp_path / "soak.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    figures = json.loads((tmp_path / "soak.json").read_text())
    assert figures["problems"] == []
    outcomes = figures["outcomes"]
    assert sum(outcomes.values()) == int(REQUESTS)
    # Every kind of end was met.
    assert all(outcomes[name] > 0 for name in ("whole", "left", "refused", "invalid", "left before the head"))
