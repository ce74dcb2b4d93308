"""Packs through the binary: made, inspected, evaluated, served, interrupted."""
import json
import os
import shutil
import signal
import subprocess
import time

import httpx
import pytest

from conftest import BINARY, DEMO_MODEL, ROOT, running
from test_commands import sluice

TEXT = ROOT / "tests" / "data" / "heldout" / "qa.txt"


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory):
    """The demo model with experts at 8 bits (so at 6, 4, 3 and 2 too) and everything else at 8."""
    path = tmp_path_factory.mktemp("packs") / "demo.sluice"
    report = json.loads(sluice("pack", str(DEMO_MODEL), str(path), "--bits", "8", "--dense-bits", "8", "--json").stdout)
    assert report["pack_bytes"] == path.stat().st_size
    assert 8 < report["expert_bits"] < 9.1
    return path


def divergence(pack, *arguments):
    return json.loads(sluice("eval", "--model", str(pack), "--reference", str(DEMO_MODEL), "--text", str(TEXT),
                             "--context", "192", "--json", *arguments).stdout)


def test_a_pack_that_keeps_its_source_predicts_exactly_the_same(tmp_path):
    pack = tmp_path / "kept.sluice"
    sluice("pack", str(DEMO_MODEL), str(pack))
    report = divergence(pack)
    assert report["kl_per_token"] == 0 and report["top1_agreement"] == 1 and report["logit_error"] == 0


def test_one_file_serves_every_precision_of_the_ladder(four_bits):
    kl = [divergence(four_bits, "--precision", str(bits))["kl_per_token"] for bits in (2, 3, 4, 6, 8)]
    assert kl == sorted(kl, reverse=True), kl
    assert kl[0] > 10 * kl[2] and kl[-1] < 0.005, kl


def test_inspect_describes_a_pack_and_verifies_it(four_bits, tmp_path):
    report = json.loads(sluice("inspect", str(four_bits), "--verify", "--json").stdout)
    assert json.dumps(report).count("qwen3_moe") >= 1
    damaged = tmp_path / "damaged.sluice"
    content = bytearray(four_bits.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    done = sluice("inspect", str(damaged), "--verify", check=False)
    assert done.returncode != 0 and str(damaged) in done.stderr


def test_a_pack_is_served_like_the_directory_it_came_from(tmp_path):
    pack = tmp_path / "kept.sluice"
    sluice("pack", str(DEMO_MODEL), str(pack))
    body = {"messages": [{"role": "user", "content": "Sort: 7 3 9 1"}], "temperature": 0, "max_tokens": 24}
    answers = []
    for model in (DEMO_MODEL, pack):
        with running(model=model) as server:
            name = httpx.get(server.url + "/v1/models").json()["data"][0]["id"]
            reply = httpx.post(server.url + "/v1/chat/completions", json={"model": name, **body}, timeout=60).json()
            answers.append(reply["choices"][0]["message"]["content"])
    assert answers[0] == answers[1] and answers[0]


def test_a_directory_is_packed_on_first_use_and_its_pack_is_used_afterwards(tmp_path):
    cache = tmp_path / "cache"
    with running("--cache-dir", str(cache)) as server:
        assert "packing" in server.log()
    packs = list(cache.iterdir())
    assert [p.suffix for p in packs] == [".sluice"]
    with running("--cache-dir", str(cache)) as server:
        assert "using the pack" in server.log() and "(once)" not in server.log()


def test_packs_used_longest_ago_make_room_but_never_one_that_is_served(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    old = cache / ("old-" + "0" * 16 + ".sluice")
    mine = cache / "mine.sluice"
    for path in (old, mine):
        path.write_bytes(b"some pack")
    copy = tmp_path / "copy"
    shutil.copytree(DEMO_MODEL, copy)
    limit = ("--cache-dir", str(cache), "--cache-limit", "1MiB")  # less than any pack
    with running(*limit) as server:
        assert f"removed the pack {old}" in server.log()
        served = {path for path in cache.iterdir()} - {mine}
        assert len(served) == 1 and not old.exists()
        with running(*limit, model=copy) as other:
            assert "removed the pack" not in other.log()
            assert served < set(cache.iterdir())
    # Nobody uses the two now.
    (copy / "note.txt").write_text("another version of the source")
    with running(*limit, model=copy) as server:
        assert server.log().count("removed the pack") == 2
        assert len(list(cache.iterdir())) == 2 and mine.exists()


def test_a_cache_that_cannot_be_written_does_not_stop_a_directory_from_being_served(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    with running("--cache-dir", str(file / "cache")) as server:
        assert "as it is" in server.log()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_an_interrupted_pack_leaves_nothing_under_its_name(tmp_path, delay):
    pack = tmp_path / "cut.sluice"
    process = subprocess.Popen([str(BINARY), "pack", str(DEMO_MODEL), str(pack), "--bits", "6", "--threads", "1"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if process.returncode == 0:
        sluice("inspect", str(pack), "--verify")
        return
    assert not pack.exists()
    for left in tmp_path.iterdir():
        assert sluice("inspect", str(left), check=False).returncode != 0


def test_a_truncated_pack_is_refused_with_its_name(four_bits, tmp_path):
    cut = tmp_path / "cut.sluice"
    cut.write_bytes(four_bits.read_bytes()[:-4096])
    done = sluice("serve", "--model", str(cut), "--port", "0", check=False)
    assert done.returncode != 0 and str(cut) in done.stderr
    assert os.path.exists(cut)
