"""Quality settings with the real binary: exact tokens do not depend on fast company, responses say what was degraded,
and a default is set for the server or named by a request."""
import concurrent.futures
import json
import shutil
import subprocess
import sys

import httpx
import pytest

from conftest import ROOT, running
from test_commands import sluice
from test_memory_budget import MIB, PROMPTS, refusal, serving


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack of some 60 MB, nearly all of it routed experts of 4 bits (random weights), 4 of 32 per token."""
    directory = tmp_path_factory.mktemp("random")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "goldens" / "random_checkpoint.py"), str(directory / "model"),
                    "--layers", "8", "--hidden", "512", "--experts", "32", "--experts-per-token", "4",
                    "--expert-width", "256", "--vocab", "1024", "--positions", "512"], check=True, timeout=120)
    sluice("pack", str(directory / "model"), str(directory / "random.sluice"), "--bits", "4", "--calibration", "none")
    shutil.rmtree(directory / "model")
    yield directory / "random.sluice"
    shutil.rmtree(directory)


def ask(server, prompt, quality=None, tokens=12, **settings):
    body = {"prompt": prompt, "temperature": 0, "max_tokens": tokens, "logprobs": 1, "ignore_eos": True}
    if quality:
        settings["quality"] = quality
    if settings:
        body["sluice"] = settings
    reply = httpx.post(server.url + "/v1/completions", timeout=60, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_of(answer):
    return answer["choices"][0]["text"], answer["choices"][0]["logprobs"]


def counts(answer):
    return answer["usage"]["sluice"]


@pytest.fixture(scope="module")
def least(pack):
    return refusal(pack, 24 * MIB)


def test_exact_requests_keep_their_tokens_beside_fast_ones(pack, least):
    with serving(pack) as server:
        expected = [text_of(ask(server, prompt)) for prompt in PROMPTS]
    for budget in (least + 2 * MIB, (least + pack.stat().st_size) // 2):
        with serving(pack, budget) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
            fast = [pool.submit(ask, server, f"{i} {prompt}", "fast", 32) for i, prompt in enumerate(PROMPTS * 2)]
            answers = list(pool.map(lambda prompt: ask(server, prompt, "exact"), PROMPTS))
            assert [text_of(answer) for answer in answers] == expected
            for answer in answers:
                assert counts(answer)["quality"] == "exact"
                assert counts(answer)["degraded_assignments"] == counts(answer)["skipped_assignments"] == 0
            for answer in (future.result() for future in fast):
                assert counts(answer)["quality"] == "fast"
            # What fast requests left in the cache of beginnings is theirs.
            assert [text_of(ask(server, prompt)) for prompt in PROMPTS] == expected


def test_fast_degrades_where_memory_is_short_and_nowhere_else(pack, least):
    with serving(pack, least + 2 * MIB, arguments=("--quality", "fast")) as server:
        answers = [ask(server, prompt) for prompt in PROMPTS]
        assert all(counts(answer)["quality"] == "fast" for answer in answers)
        assert sum(counts(answer)["degraded_assignments"] for answer in answers) > 0
        metrics = httpx.get(server.url + "/metrics", timeout=30).text
        value = next(line.split()[-1] for line in metrics.splitlines()
                     if line.startswith("sluice_expert_lower_precision_assignments_total "))
        assert float(value) == sum(counts(answer)["degraded_assignments"] for answer in answers)
    with serving(pack, 2 * pack.stat().st_size, arguments=("--cache", "on")) as server:
        expected = [text_of(ask(server, prompt)) for prompt in PROMPTS]
        for prompt, wanted in zip(PROMPTS, expected):
            # Asked for by now, so in memory.
            answer = ask(server, prompt, "fast")
            assert text_of(answer) == wanted
            assert counts(answer)["degraded_assignments"] == counts(answer)["skipped_assignments"] == 0


def test_streams_and_chat_tell_what_was_degraded(server, http):
    body = {"messages": [{"role": "user", "content": "Add: 1 + 1 ="}], "max_tokens": 4, "stream": True,
            "stream_options": {"include_usage": True}, "sluice": {"quality": "balanced", "experts_per_token": 2}}
    reply = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60)
    events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    usage = json.loads(events[-1])["usage"]["sluice"]
    assert usage["quality"] == "balanced"
    # Two of the demo model's four experts were left out, wherever they were.
    assert usage["skipped_assignments"] * 2 == usage["expert_assignments"] > 0


@pytest.mark.parametrize("settings, field", [
    ({"quality": "best"}, "sluice.quality"),
    ({"quality": 1}, "sluice.quality"),
    ({"experts_per_token": 0}, "sluice.experts_per_token"),
    ({"expert_mass": 2}, "sluice.expert_mass"),
    ({"speed": "high"}, "sluice.speed"),
])
def test_a_wrong_quality_is_a_400_that_names_the_field(server, settings, field):
    reply = httpx.post(server.url + "/v1/completions", timeout=30,
                       json={"prompt": "a", "sluice": settings})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field


def test_bench_and_eval_take_a_quality_and_say_what_it_degraded(pack, least):
    rows = json.loads(sluice("bench", "--model", str(pack), "--quality", "fast", "--cache", "off", "--prompt", "8",
                             "--generate", "8", "--repeats", "1", "--threads", "2", "--json").stdout)
    assert all(row["degraded_fraction"] > 0 for row in rows)
    demo = ROOT / "deploy" / "demo-model"
    report = json.loads(sluice("eval", "--model", str(demo), "--text", str(ROOT / "tests/data/heldout/qa.txt"),
                               "--expert-mass", "0.5", "--context", "64", "--json").stdout)
    assert report["text_experts"]["skipped_fraction"] > 0.2
    assert report["text_experts"]["degraded_fraction"] == 0


def test_a_wrong_setting_is_refused_with_the_choices():
    with pytest.raises(RuntimeError, match="exact, balanced, fast"):
        with running("--quality", "best"):
            pass
