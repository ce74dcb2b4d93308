"""The memory budget of a running server: changed over HTTP while requests stream."""
import json
import subprocess
import sys
import threading
import time

import httpx
import pytest

from conftest import ROOT, running
from test_commands import sluice

MIB = 1 << 20
KEY = "budget-key-0123456789"


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A random model of 200 MB, nearly all of it routed experts."""
    directory = tmp_path_factory.mktemp("random")
    subprocess.run([sys.executable, ROOT / "scripts" / "goldens" / "random_checkpoint.py", directory / "checkpoint",
                    "--layers", "4", "--hidden", "512", "--experts", "64", "--experts-per-token", "4",
                    "--expert-width", "512", "--vocab", "512", "--positions", "1024"], check=True)
    path = directory / "random.sluice"
    sluice("pack", str(directory / "checkpoint"), str(path), "--bits", "8", "--dense-bits", "8", "--calibration", "none")
    return path


ARGUMENTS = ("--threads", "2", "--context", "512", "--kv-memory", "32MiB", "--max-batch-tokens", "64", "--max-running", "8")


def generate(url, seed, tokens=200):
    """The events' text of one stream."""
    body = {"prompt": [[40 + seed, 5, 17 * seed % 250, 99]], "max_tokens": tokens, "temperature": 1, "seed": seed,
            "ignore_eos": True, "stream": True}
    pieces = []
    with httpx.stream("POST", url + "/v1/completions", json=body, timeout=120) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line[6:])
                assert "error" not in event, event
                pieces.append(event["choices"][0]["text"])
    return "".join(pieces)


def generate_four(url, meanwhile=None):
    texts = [None] * 4

    def run(i):
        texts[i] = generate(url, i + 1)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    if meanwhile:
        meanwhile(lambda: any(thread.is_alive() for thread in threads))
    for thread in threads:
        thread.join()
    return texts


def budget(url, size=None, **options):
    if size is None:
        return httpx.get(url + "/admin/memory", timeout=60, **options)
    return httpx.post(url + "/admin/memory", json={"memory_budget": size}, timeout=60, **options)


def settle(url, used):
    """Waits until free memory is filled with experts again."""
    for _ in range(300):
        tier = budget(url).json()["tiers"][0]
        if tier["used_bytes"] >= used:
            return
        time.sleep(0.1)
    raise AssertionError(f"the tier holds {tier} and not {used} bytes after 30 s")


def test_streams_are_the_same_while_the_budget_falls_and_rises(pack):
    with running(*ARGUMENTS, model=pack) as server:
        undisturbed = generate_four(server.url)
        facts = budget(server.url).json()
        low, high = facts["least_memory_budget"], facts["full_memory_budget"]
        assert high - low > 100 * MIB
        changes = []

        def disturb(running_still):
            sizes = [low, high, (low + high) // 2, low + 8 * MIB, high]
            while running_still():
                reply = budget(server.url, sizes[len(changes) % len(sizes)])
                assert reply.status_code == 200, reply.text
                changes.append(reply.json()["memory_budget"])
                time.sleep(0.05)

        assert generate_four(server.url, disturb) == undisturbed
        assert len(changes) >= 3
        assert all(len(text) > 50 for text in undisturbed) and len(set(undisturbed)) == 4
        server.stop()
        assert "what the expert tiers did" in server.log() and "the memory budget was changed" in server.log()


def test_resident_memory_follows_the_budget(pack):
    with running(*ARGUMENTS, model=pack) as server:
        facts = budget(server.url).json()
        low, high = facts["least_memory_budget"], facts["full_memory_budget"]
        seen = {}
        for size in (high, (low + high) // 2, low, high, low):
            reply = budget(server.url, size).json()
            assert reply["memory_budget"] == size
            generate_four(server.url)
            if size == high:
                settle(server.url, int(0.99 * reply["tiers"][0]["capacity_bytes"]))
            resident = server.rss_bytes()
            assert resident <= 1.03 * size, f"{resident} bytes are resident with a budget of {size}"
            seen[size] = (resident, reply["tiers"][0]["capacity_bytes"])
        taken, lent = seen[high][0] - seen[low][0], seen[high][1] - seen[low][1]
        assert 0.9 * lent < taken < 1.1 * lent, f"{taken} bytes came back of {lent}"
        assert httpx.get(server.url + "/props").json()["memory"]["memory_budget"] == low


def test_budgets_that_cannot_be_are_refused_with_the_least(pack):
    with running(*ARGUMENTS, model=pack) as server:
        facts = budget(server.url).json()
        for size in ("10MiB", facts["least_memory_budget"] - 1):
            reply = budget(server.url, size)
            assert reply.status_code == 400
            error = reply.json()["error"]
            least = -(-facts["least_memory_budget"] // MIB)
            assert error["param"] == "memory_budget" and f"at least {least} MiB" in error["message"]
        assert budget(server.url, facts["least_memory_budget"]).status_code == 200
        for wrong in (0, -1, "lots", None, 1.5):
            assert httpx.post(server.url + "/admin/memory", json={"memory_budget": wrong}).status_code == 400


def test_the_budget_needs_a_key_where_there_are_keys(pack, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    with running(*ARGUMENTS, "--api-keys-file", str(keys), model=pack) as server:
        assert budget(server.url).status_code == 401
        assert budget(server.url, "1GiB").status_code == 401
        assert budget(server.url, "1GiB", headers={"Authorization": "Bearer " + KEY[::-1]}).status_code == 401
        reply = budget(server.url, "1GiB", headers={"Authorization": "Bearer " + KEY})
        assert reply.status_code == 200 and reply.json()["memory_budget"] == 1 << 30


def test_without_keys_proxied_requests_are_refused(pack):
    with running(*ARGUMENTS, model=pack) as server:
        for headers in ({"X-Forwarded-For": "192.0.2.1"}, {"Origin": "https://elsewhere.example"}):
            assert budget(server.url, "1GiB", headers=headers).status_code == 403
        assert "experts live in tiers" in server.log() and "direct" in server.log()


def test_a_replaced_pack_is_told_and_the_old_one_served_on(pack, tmp_path):
    copy = tmp_path / "copy.sluice"
    copy.write_bytes(pack.read_bytes())
    with running(*ARGUMENTS, model=copy) as server:
        before = generate(server.url, 1)
        least = budget(server.url).json()["least_memory_budget"]
        copy.unlink()
        assert budget(server.url, least).status_code == 200
        for _ in range(20):
            assert generate(server.url, 1) == before
            if "the old one is served on" in server.log():
                return
            time.sleep(0.5)
        raise AssertionError(server.log())
