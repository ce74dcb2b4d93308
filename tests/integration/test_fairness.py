"""Many users over HTTP: keys share by weight, limits and full queues answer 429 before any work."""
import concurrent.futures
import threading

import httpx
import pytest

from conftest import metric, running

LONG = "The sea was calm and the harbour was full of small boats. " * 8


def complete(url, key=None, prompt="2 + 2 =", **fields):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(url + "/v1/completions", timeout=120, headers=headers, json={
        "prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": True, **fields})


@pytest.fixture()
def keys(tmp_path):
    def write(text):
        (tmp_path / "keys").write_text(text)
        return "--api-keys-file", str(tmp_path / "keys")
    return write


def test_one_keys_queue_does_not_hold_up_another_key(keys):
    with running(*keys("many-requests-key\nsingle-request-key\n"), "--max-running", "4", "--prefix-cache", "off",
                 "--threads", "1") as server:
        finished, lock, done = [], threading.Lock(), threading.Event()

        def busy(i):
            reply = complete(server.url, "many-requests-key", f"{i} {LONG}", max_tokens=60)
            with lock:
                finished.append(reply.status_code)
                if len(finished) == 3:
                    done.set()

        with concurrent.futures.ThreadPoolExecutor(60) as pool:
            futures = [pool.submit(busy, i) for i in range(60)]
            assert done.wait(60)
            before = len(finished)
            reply = complete(server.url, "single-request-key", "Sort: 7 3 9 1 ->", max_tokens=4)
            after = len(finished)
            for future in futures:
                future.result()
        assert reply.status_code == 200, reply.text
        assert finished == [200] * 60
        # First come would have put it behind all of them.
        assert before + 12 > after, f"{after - before} requests of the other key ended while it waited"


def test_tokens_do_not_depend_on_fairness_and_preemption(keys):
    prompts = [f"{i}. {LONG}" for i in range(12)]
    with running() as server:
        expected = [complete(server.url, prompt=prompt, max_tokens=40).json()["choices"][0]["text"] for prompt in prompts]
    # Room for about three of the twelve, of two keys.
    with running(*keys("first-key-of-two\nsecond-key-of-two weight=3\n"), "--kv-memory", "1100KiB",
                 "--max-decode-stall-ms", "1") as server:
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda i: complete(
                server.url, ("first-key-of-two", "second-key-of-two")[i % 2], prompts[i], max_tokens=40), range(12)))
        assert [reply.json()["choices"][0]["text"] for reply in replies] == expected
        assert httpx.get(server.url + "/metrics", timeout=30).status_code == 200


def test_a_key_over_its_limits_is_refused_with_the_time_to_wait(keys):
    with running(*keys("limited-key-1 requests_per_minute=2\nlimited-key-2 tokens_per_minute=10\n")) as server:
        statuses = [complete(server.url, "limited-key-1") for _ in range(3)]
        assert [reply.status_code for reply in statuses] == [200, 200, 429]
        assert statuses[2].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(statuses[2].headers["retry-after"]) <= 30
        # The first request overdraws the tokens; the next one waits for them.
        assert complete(server.url, "limited-key-2").status_code == 200
        refused = complete(server.url, "limited-key-2")
        assert refused.status_code == 429 and "tokens" in refused.json()["error"]["message"]
        assert complete(server.url, "no-such-key").status_code == 401


def test_a_full_queue_is_refused_before_the_body_is_read_and_recovers():
    with running("--max-queue", "2", "--max-running", "1") as server:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda i: complete(server.url, prompt=f"{i} {LONG}", max_tokens=100), range(16)))
        refused = [reply for reply in replies if reply.status_code == 429]
        assert refused and len(refused) < 16
        assert all(reply.status_code in (200, 429) for reply in replies)
        for reply in refused:
            assert reply.json()["error"]["code"] == "queue_full"
            assert int(reply.headers["retry-after"]) >= 1
        assert metric(server.url, "sluice_requests_refused_total") == len(refused)
        assert metric(server.url, "sluice_queue_requests") == 0
        assert complete(server.url).status_code == 200


def test_a_queue_full_of_tokens_is_refused():
    with running("--max-queue-tokens", "200", "--max-running", "1") as server:
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            replies = list(pool.map(lambda i: complete(server.url, prompt=f"{i} {LONG}", max_tokens=100), range(10)))
        statuses = [reply.status_code for reply in replies]
        assert 429 in statuses and 200 in statuses and set(statuses) == {200, 429}
        assert complete(server.url, prompt=LONG * 2).status_code == 200
