"""Routing of real traffic: recorded by a server, replayed, and compared with the optimum while it runs."""
import json
import time

import httpx
import pytest

from conftest import DEMO_MODEL, metric, running
from test_commands import sluice

ARGUMENTS = ("--threads", "2", "--context", "256", "--kv-memory", "16MiB", "--max-batch-tokens", "64", "--max-running", "4")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "demo.sluice"
    sluice("pack", str(DEMO_MODEL), str(path), "--bits", "4", "--dense-bits", "8")
    return path


def complete(url, prompt, tokens=24):
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    reply = httpx.post(url + "/v1/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def replay(trace, *arguments):
    return json.loads(sluice("trace", "replay", str(trace), "--policy", "next-use,look-ahead", "--json", *arguments).stdout)


def test_traffic_is_recorded_and_replays_with_every_policy(pack, tmp_path):
    trace = tmp_path / "day.trace"
    trace.write_bytes(b"an older trace")
    with running(*ARGUMENTS, "--trace", str(trace), model=pack) as server:
        plain = [complete(server.url, prompt) for prompt in ("Sort: 7 3 9 1", "Add: 12 + 30 =", "Once upon a time")]
        # What was served is in the file within a second or so, while the server runs.
        for _ in range(200):
            steps = replay(trace)["trace"]["steps"]
            if steps >= 3 * 24:
                break
            time.sleep(0.05)
        assert steps >= 3 * 24
        server.stop()
        assert "lost_steps=0" in server.log() and f"trace={trace}" in server.log()
    assert (tmp_path / "day.trace.1").read_bytes() == b"an older trace"

    report = replay(trace, "--horizon", "1")
    assert report["trace"]["layers"] == 6 and report["trace"]["experts_per_token"] == 4
    rates = {(row["policy"], row["budget"]): row["hit_rate"] for row in report["replays"]}
    for share in (0.75, 0.5, 0.25):
        assert 0 < rates["next-use", share] <= rates["optimal", share] <= 1
        assert 0 < rates["look-ahead", share] <= rates["optimal", share]
    # Recording changes no token.
    with running(*ARGUMENTS, model=pack) as server:
        assert [complete(server.url, prompt) for prompt in ("Sort: 7 3 9 1", "Add: 12 + 30 =", "Once upon a time")] == plain
    plan = json.loads(sluice("plan", "--model", str(pack), *ARGUMENTS, "--trace", str(trace), "--json").stdout)
    assert plan["decode_tokens_per_second"] > 0


def test_a_trace_ends_at_its_limit_and_the_log_says_so(pack, tmp_path):
    trace = tmp_path / "short.trace"
    with running(*ARGUMENTS, "--trace", str(trace), "--trace-limit", "8KiB", model=pack) as server:
        complete(server.url, "Sort: 7 3 9 1", tokens=150)
        server.stop()
        assert "has reached trace_limit" in server.log()
    assert 4096 < trace.stat().st_size <= 8192
    # A step with predictions takes up to 3 KiB, one without some 100 bytes.
    assert replay(trace)["trace"]["steps"] >= 2


def test_a_trace_that_cannot_be_written_is_refused_at_the_start(pack):
    with pytest.raises(RuntimeError, match="/nowhere/day.trace"):
        with running(*ARGUMENTS, "--trace", "/nowhere/day.trace", model=pack):
            pass


def test_the_optimum_of_the_last_demands_is_a_metric(pack):
    least = json.loads(sluice("plan", "--model", str(pack), *ARGUMENTS, "--json").stdout)
    budget = least["least_budget"] + least["expert_bytes"] // 3
    with running(*ARGUMENTS, "--memory-budget", str(budget), model=pack) as server:
        assert "belady" not in httpx.get(server.url + "/metrics").text
        complete(server.url, "Once upon a time", tokens=150)
        for _ in range(200):
            if "belady" in httpx.get(server.url + "/metrics").text:
                break
            time.sleep(0.05)
        optimal = metric(server.url, "sluice_expert_belady_hit_rate")
        real = metric(server.url, "sluice_expert_window_hit_rate")
        # Reading ahead hits what no cache can, so that neither bounds the other.
        assert 0 < optimal < 1 and 0 < real <= 1
