"""The prefix cache over HTTP: told in the usage, changes no token, frees nothing that somebody reads."""
import concurrent.futures

import httpx
import pytest

from conftest import metric, running

SYSTEM = "You are a careful clerk. " * 12
QUESTIONS = ["Sort: 7 3 9 1 ->", "2 + 2 =", "The sea was calm", SYSTEM, SYSTEM[:100]]


def complete(url, prompt, **fields):
    reply = httpx.post(url + "/v1/completions", timeout=60, json={
        "prompt": prompt, "temperature": 0, "max_tokens": 12, "logprobs": 2, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def answers(url):
    """Text and log-probabilities of every prompt: alone, again, and all at the same time."""
    prompts = [SYSTEM + question for question in QUESTIONS] * 2
    out = [complete(url, prompt)["choices"] for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        out += [reply["choices"] for reply in pool.map(lambda p: complete(url, p, temperature=1, seed=5), prompts)]
    return out


@pytest.fixture(scope="module")
def cached():
    with running("--metrics-compat", "vllm") as server:
        yield server


def test_tokens_are_the_same_with_the_cache_on_and_off_and_when_blocks_are_short(cached):
    with running("--prefix-cache", "off") as server:
        expected = answers(server.url)
        assert metric(server.url, "sluice_prefix_cache_hit_tokens_total") == 0
    assert answers(cached.url) == expected
    assert metric(cached.url, "sluice_prefix_cache_hit_tokens_total") > 0
    assert metric(cached.url, "vllm:prefix_cache_hits_total") > 0
    # About two requests fit: blocks are evicted, sequences preempted.
    with running("--kv-memory", "480KiB") as server:
        assert answers(server.url) == expected
        assert metric(server.url, "sluice_prefix_cache_evicted_blocks_total") > 0


def test_usage_tells_what_was_cached(cached):
    prompt = "An unheard beginning: " + SYSTEM
    first, second = complete(cached.url, prompt)["usage"], complete(cached.url, prompt)["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == (second["prompt_tokens"] - 1) // 16 * 16 > 0
    assert second["prompt_tokens"] == first["prompt_tokens"]


def test_a_chat_finds_its_own_last_turn(cached):
    messages = [{"role": "user", "content": SYSTEM}]

    def ask():
        reply = httpx.post(cached.url + "/v1/chat/completions", timeout=60, json={
            "messages": messages, "temperature": 0, "max_tokens": 20})
        assert reply.status_code == 200, reply.text
        return reply.json()

    first = ask()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "Once more, please."}]
    messages[-2] = {"role": "assistant", "content": messages[-2]["content"]}
    usage = ask()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= (first["usage"]["prompt_tokens"] - 8) // 16 * 16


def test_candidates_of_one_prompt_compute_it_once(cached):
    before = metric(cached.url, "sluice_prefix_cache_hit_tokens_total")
    prompt = "Candidates begin alike. " + SYSTEM
    usage = complete(cached.url, prompt, n=4, temperature=1)["usage"]
    shared = (usage["prompt_tokens"] - 1) // 16 * 16
    assert metric(cached.url, "sluice_prefix_cache_hit_tokens_total") - before == 3 * shared


def test_a_scored_prompt_has_every_row(cached):
    fields = {"echo": True, "max_tokens": 1, "logprobs": 1}
    first, second = (complete(cached.url, SYSTEM, **fields) for _ in range(2))
    assert first["choices"] == second["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
