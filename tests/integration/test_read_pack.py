"""The page on the pack's layout says enough for another reader: scripts/read_pack.py was written from it, and must
give the engine's own values, bit for bit."""
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from conftest import BINARY, ROOT

SCRIPT = ROOT / "scripts" / "read_pack.py"


@pytest.fixture(scope="module")
def read_pack():
    spec = importlib.util.spec_from_file_location("read_pack", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pack")
    subprocess.run([str(BINARY.parent / "pack_example"), str(directory)], check=True, timeout=60)
    return directory


def test_every_weight_at_every_precision_is_what_the_engine_computes(read_pack, example):
    pack = read_pack.Pack(example / "example.sluice")
    expected = json.loads((example / "expected.json").read_text())
    assert len(expected) > 100
    for entry in expected:
        want = np.fromfile(example / entry["file"], "<f4").reshape(entry["rows"], entry["cols"])
        if "tensor" in entry:
            got = pack.tensor(entry["tensor"], entry["bits"])
        else:
            got = pack.expert(*entry["expert"], entry["bits"])
        assert got.dtype == np.float32
        assert np.isfinite(want).all() and np.abs(want).max() > 0
        assert np.array_equal(got, want), entry


def test_the_command_lists_a_pack_and_saves_a_weight(example, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, str(SCRIPT), str(example / "example.sluice"), *arguments],
                              capture_output=True, text=True, timeout=60)

    listing = run()
    assert listing.returncode == 0, listing.stderr
    assert "tensor BF16p: BF16 panels [33, 45]" in listing.stdout
    assert "expert 1/0: gate 8-bit u8_min/32 [40, 72], up 3-bit f16/32" in listing.stdout
    saved = run("--expert", "1", "0", "--projection", "down", "--bits", "4", "--out", str(tmp_path / "w.npy"))
    assert saved.returncode == 0, saved.stderr
    assert np.load(tmp_path / "w.npy").shape == (72, 40)
    missing = run("--tensor", "nothing")
    assert missing.returncode != 0 and "nothing" in missing.stderr


def test_inspect_describes_and_verifies_the_same_pack(example, tmp_path):
    def inspect(path, *arguments):
        return subprocess.run([str(BINARY), "inspect", str(path), *arguments], capture_output=True, text=True,
                              timeout=60)

    path = example / "example.sluice"
    report = json.loads(inspect(path, "--verify", "--json").stdout)
    assert report["verified"] and report["damaged"] == []
    assert report["file_bytes"] == path.stat().st_size
    assert report["totals"]["experts"]["bits"] == {"8/3/6": 1}
    assert [row["precision"] for row in report["ladder"]] == [2, 3, 4, 6, 8]
    table = inspect(path)
    assert table.returncode == 0 and "bit allocation" in table.stdout and "pack_example.cc" in table.stdout

    damaged = bytearray(path.read_bytes())
    damaged[4096] ^= 1
    (tmp_path / "damaged.sluice").write_bytes(damaged)
    assert inspect(tmp_path / "damaged.sluice").returncode == 0
    verified = inspect(tmp_path / "damaged.sluice", "--verify")
    assert verified.returncode == 1 and 'tensor "F32"' in verified.stderr
    (tmp_path / "short.sluice").write_bytes(path.read_bytes()[:-1])
    short = inspect(tmp_path / "short.sluice")
    assert short.returncode == 1 and "truncated" in short.stderr
