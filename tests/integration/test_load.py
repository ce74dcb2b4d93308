"""scripts/load.py against the real binary, and its client against servers that misbehave on purpose."""
import asyncio
import json
import re
import subprocess
import sys

import pytest
from conftest import BINARY, DEMO_MODEL, ROOT, running

sys.path.insert(0, str(ROOT / "scripts"))
from load_test import client as http  # noqa: E402
from load_test import prompts, report, servers, traffic  # noqa: E402

LOAD = ROOT / "scripts" / "load.py"
SMALL = "--kv-memory 8MiB --max-batch-tokens 64 --prefill-chunk 32 --threads 2"


def load(*args, check=True):
    """The JSON that the script prints."""
    done = subprocess.run([sys.executable, str(LOAD), "--binary", str(BINARY), "--json", "-", *map(str, args)],
                          capture_output=True, text=True, timeout=300, check=False)
    if check:
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return done


# ---- The command ----

def test_a_closed_loop_gives_the_figures_that_scripts_read(server):
    figures = load("--url", server.url, "--streams", 4, "--requests", 24, "--prompt-tokens", "8-64", "--max-tokens", "12-20")
    assert figures["completed"] == figures["requests"] == 24 and figures["errors"] == {}
    for name in ("ttft_ms", "inter_token_ms", "latency_ms"):
        assert 0 < figures[name]["p50"] <= figures[name]["p95"] <= figures[name]["p99"] <= figures[name]["max"]
    assert figures["ttft_ms"]["p50"] < figures["latency_ms"]["p50"]
    assert figures["longest_gap_ms"] == figures["inter_token_ms"]["max"]
    assert 24 * 12 <= figures["completion_tokens"] <= 24 * 20
    assert figures["tokens_per_second"] > 0
    # Six layers of 32 experts, four for every token.
    assert 24 <= figures["unique_experts_per_step"] <= 6 * 32
    assert figures["bytes_read_per_token"] == 0


def test_poisson_arrivals_with_keys_are_reported_by_key(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-many-requests\nsk-few-requests\n")
    with running("--api-keys-file", str(keys)) as server:
        figures = load("--url", server.url, "--rate", 200, "--requests", 40, "--max-tokens", 4, "--chat",
                       "--key", "sk-many-requests=9", "--key", "sk-few-requests=1")
        assert figures["completed"] == 40
        by_key = figures["by_key"]
        assert by_key["sk-many-requests"]["requests"] > by_key["sk-few-requests"]["requests"] > 0
        assert figures["unique_experts_per_step"] > 0
        denied = load("--url", server.url, "--streams", 2, "--requests", 4, "--key", "sk-nobody-has", check=False)
        assert denied.returncode == 1
        assert json.loads(denied.stdout)["errors"] == {"http 401": 4}


def test_two_settings_are_compared_in_turns_with_ratios(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts/goldens/random_checkpoint.py", tmp_path / "model", "--layers", "4",
                    "--hidden", "256", "--experts", "32", "--experts-per-token", "4", "--expert-width", "256", "--vocab", "1024",
                    "--positions", "512"], check=True, timeout=120)
    pack = tmp_path / "random.sluice"
    subprocess.run([BINARY, "pack", tmp_path / "model", pack], check=True, capture_output=True)
    refused = subprocess.run([BINARY, "serve", "--model", pack, *SMALL.split(), "--memory-budget", "8MiB"],
                             capture_output=True, text=True, check=False).stderr
    least = int(re.search(r"give it at least (\d+) MiB", refused).group(1))
    result = load("--model", pack, "--flags", SMALL, "--setting", "all=", "--setting", f"few=--memory-budget {least + 8}MiB",
                  "--repeats", 2, "--requests", 24, "--streams", 4, "--prompts", "tokens", "--vocabulary", 1000,
                  "--words", 200, "--max-tokens", 32)
    assert len(result["settings"]["all"]["repeats"]) == len(result["settings"]["few"]["repeats"]) == 2
    for repeat in result["settings"]["few"]["repeats"]:
        assert repeat["completed"] == 24 and repeat["bytes_read_per_token"] > 0 and repeat["expert_hit_rate"] < 1
    # With room for all, each expert is read at most once, the last ones perhaps after the warm-up.
    few, everything = (result["settings"][name]["median"]["bytes_read_per_token"] for name in ("few", "all"))
    assert everything < 0.5 * few
    assert result["ratios"]["few"]["tokens_per_second"] > 0
    assert result["same_answers"]["few"] == {"same": 24, "compared": 24}


def test_a_long_prompt_among_streams_is_reported_by_itself(server):
    figures = load("--url", server.url, "--streams", 3, "--requests", 30, "--max-tokens", 60, "--intruder", 300,
                   "--intruder-at", 0.05)
    assert figures["completed"] == 30
    assert 200 <= figures["intruder"]["prompt_tokens"] <= 450 and figures["intruder"]["error"] == ""
    assert figures["intruder"]["ttft_ms"] > 0


def test_overload_is_counted_by_status():
    with running("--max-queue", "1", "--max-running", "1") as server:
        done = load("--url", server.url, "--rate", 2000, "--requests", 60, "--warm-up", 1, "--max-tokens", 100, check=False)
        figures = json.loads(done.stdout)
        assert figures["errors"]["http 429"] > 0
        assert figures["completed"] + sum(figures["errors"].values()) == 60


@pytest.mark.parametrize("args,words", [
    (["--url", "http://127.0.0.1:1", "--model", "x"], "one of --url"),
    (["--url", "http://127.0.0.1:1", "--prompt-tokens", "9-3"], "9-3"),
    (["--server", "ours="], "NAME="),
])
def test_a_wrong_use_is_refused_with_its_name(args, words):
    done = load(*args, check=False)
    assert done.returncode != 0 and words in done.stderr


# ---- Plans ----

def test_a_plan_follows_from_its_seed_and_keeps_its_lengths():
    text = prompts.TextPrompts(ROOT / "tests/data/heldout")
    mix = prompts.Mix(text, prompts.Lengths(16, 256), prompts.Lengths(4, 8), keys=[("a", 1), ("b", 3)])
    first, again, other = mix.plan(50, 1), mix.plan(50, 1), mix.plan(50, 2)
    assert first == again != other
    assert {p.domain for p in first} == set(text.domains)
    assert all(16 * 3 * 0.9 <= len(p.body["prompt"]) <= 256 * 3 for p in first)
    assert all(4 <= p.body["max_tokens"] <= 8 for p in first)


def test_token_prompts_stay_in_their_domain_and_share_prefixes():
    source = prompts.TokenPrompts(1000, count=3, words=50, confine=True)
    plan = prompts.Mix(source, prompts.Lengths(20, 20), prompts.Lengths(4, 4), shared_prefix=32).plan(30, 1)
    for planned in plan:
        assert len(planned.body["prompt"]) == 52
        assert set(planned.body["prompt"]) <= set(source.words[planned.domain])
        assert len(planned.body["logit_bias"]) == 50
    by_domain = {}
    for planned in plan:
        by_domain.setdefault(planned.domain, set()).add(tuple(planned.body["prompt"][:32]))
    assert all(len(prefixes) == 1 for prefixes in by_domain.values()) and len(by_domain) == 3


def test_percentiles_interpolate_between_ranks():
    assert [report.percentile([1, 2, 3, 4, 5], p) for p in (0, 50, 95, 100)] == [1, 3, 4.8, 5]
    assert report.percentile([7], 99) == 7 and report.percentile([], 50) is None


def test_metrics_are_summed_over_labels():
    values = servers.parse_metrics('# HELP x y\nx_total{a="1"} 2\nx_total{a="2"} 3\nplain 1.5\n')
    assert values["x_total"] == 5 and values['x_total{a="2"}'] == 3 and values["plain"] == 1.5


# ---- The client ----

def event(payload):
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


TEXT = event({"choices": [{"index": 0, "text": "ab", "finish_reason": None}]})
LAST = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
DONE = event(b"[DONE]")


def chunked(*pieces, end=True):
    body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + (b"0\r\n\r\n" if end else b"")


def answer_with(raw, step=None, count=1, **send):
    """The exchange with a server that sends `raw` and closes; in pieces of `step` bytes."""
    async def main():
        async def serve(reader, writer):
            try:
                for _ in range(count):
                    await reader.readuntil(b"\r\n\r\n")
                    for at in range(0, len(raw), step or len(raw) or 1):
                        writer.write(raw[at:at + (step or len(raw))])
                        await writer.drain()
                        if step:
                            await asyncio.sleep(0)
                writer.close()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = http.Client(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        results = []
        for _ in range(count):
            exchange = http.Exchange()
            await client.send(exchange, "GET", "/", timeout=10, **send)
            if exchange.status == 200:
                http.parse_stream(exchange, strict=True)
            results.append(exchange)
        client.close()
        listener.close()
        return results
    return asyncio.run(main())


@pytest.mark.parametrize("step", [None, 1, 7])
def test_a_stream_is_read_however_it_is_cut(step):
    exchange, = answer_with(chunked(TEXT, b": ping\n\n", TEXT[:9], TEXT[9:] + LAST, USAGE + DONE), step)
    assert (exchange.error, exchange.text, exchange.finish_reason, exchange.completion_tokens) == ("", "abab", "length", 2)
    assert len(exchange.event_times) == 2


def test_connections_are_used_again():
    first, second = answer_with(chunked(TEXT, LAST, DONE), count=2)
    assert first.error == second.error == "" and second.text == "ab"


@pytest.mark.parametrize("raw,error", [
    (chunked(TEXT, LAST, DONE, end=False), "disconnected"),
    (chunked(TEXT, DONE), "malformed: no finish reason"),
    (chunked(TEXT, LAST), "malformed: no [DONE]"),
    (chunked(TEXT, LAST, DONE, TEXT), "malformed: an event after [DONE]"),
    (chunked(LAST, TEXT, DONE), "malformed: text after the finish reason"),
    (chunked(TEXT, LAST, DONE + b"data: {"), "malformed: the stream ends inside an event"),
    (chunked(event(b"{")), "malformed"),
    (chunked(TEXT, event({"error": {"message": "no memory"}}), DONE), "stream error: no memory"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "malformed: chunk size"),
    (b"nonsense\r\n\r\n", "malformed: status line"),
    (b"", "disconnected"),
])
def test_what_is_wrong_with_a_stream_is_told(raw, error):
    exchange, = answer_with(raw)
    assert exchange.error.startswith(error), exchange.error


def test_a_body_until_the_connection_closes_is_whole():
    exchange, = answer_with(b"HTTP/1.1 200 OK\r\n\r\n" + TEXT + LAST + DONE)
    assert (exchange.error, exchange.text) == ("", "ab")


def test_cancels_and_timeouts_are_told_apart(server):
    async def main():
        client = http.Client(server.url)
        body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        gone, late = http.Exchange(), http.Exchange()
        await client.send(gone, "POST", "/v1/completions", body, timeout=30, cancel_after=0.02)
        await client.send(late, "POST", "/v1/completions", body, timeout=0.02)
        values = await servers.settle(client)
        client.close()
        return gone.error, late.error, values["sluice_sequences_running"]
    assert asyncio.run(main()) == ("cancelled", "timeout", 0)


def test_throughput_counts_only_what_came_in_the_window():
    inside = http.Exchange(start=0, end=3, status=200, event_times=[0.5, 1.5, 2.5], completion_tokens=6)
    failed = http.Exchange(start=0, end=3, status=200, error="timeout", event_times=[1.5])
    run = traffic.Run([inside, failed], window_start=1.0, window_end=2.0)
    assert report.tokens_in_window(run) == 2
