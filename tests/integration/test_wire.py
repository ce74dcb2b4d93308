"""What openai's client hides: the bytes on the wire, errors, metrics, evaluation harness requests."""
import concurrent.futures
import json
import random
import shutil
import socket
import subprocess

import httpx
import numpy as np
import pytest

from conftest import metric, running


def assert_error_shape(response):
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"] and isinstance(error["type"], str)
    return error


def test_health_ready_props_and_models_answer(http):
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200
    assert http.get("/props").status_code == 200
    assert http.get("/v1/models").json()["object"] == "list"


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/nothing", 404),
    ("GET", "/v1/completions", 405),
    ("POST", "/v1/embeddings", 404),
    ("DELETE", "/metrics", 405),
])
def test_what_is_not_offered_is_an_error_in_the_error_shape(http, method, path, status):
    response = http.request(method, path)
    assert response.status_code in (status, 501)
    assert_error_shape(response)


def test_tokenize_and_detokenize_are_inverse(http):
    text = "Grüße, ¿qué tal? 你好 🙂\n\tdef f(x): return x"
    tokens = http.post("/tokenize", json={"content": text, "prompt": text}).json()["tokens"]
    back = http.post("/detokenize", json={"tokens": tokens}).json()
    assert (back.get("prompt") or back.get("content") or back.get("text")) == text


def test_events_end_with_done_and_never_split_a_character(http):
    lines = []
    with http.stream("POST", "/v1/completions", json={"prompt": "Grüße aus 北京", "max_tokens": 48, "temperature": 1.2,
                                                      "seed": 3, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = b"".join(response.iter_raw())
    for event in raw.split(b"\n\n"):
        if event and not event.startswith(b":"):
            assert event.startswith(b"data: ")
            event.decode("utf-8")
            lines.append(event[6:])
    assert lines[-1] == b"[DONE]"
    for line in lines[:-1]:
        json.loads(line)


def test_prompt_log_probabilities_for_evaluation_harnesses(http):
    """lm-evaluation-harness's local-completions: batches of token ids, echo, max_tokens 0 or 1."""
    ids = [http.post("/tokenize", json={"prompt": text, "content": text}).json()["tokens"]
           for text in ("Once upon a time there was a cat", "Sort: 7 3 9 1 -> 1 3 7 9")]
    for max_tokens in (0, 1):
        answer = http.post("/v1/completions", json={"prompt": ids, "max_tokens": max_tokens, "echo": True,
                                                    "logprobs": 1, "temperature": 0}).json()
        assert len(answer["choices"]) == 2
        for prompt, choice in zip(ids, answer["choices"]):
            logprobs = choice["logprobs"]
            count = len(prompt) + max_tokens
            assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == count
            assert len(logprobs["top_logprobs"]) == len(logprobs["text_offset"]) == count
            assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
            values = np.array(logprobs["token_logprobs"][1:], dtype=float)
            best = np.array([max(top.values()) for top in logprobs["top_logprobs"][1:]])
            assert np.isfinite(values).all() and (values <= best + 1e-6).all()


def test_a_prompt_scores_the_same_alone_and_in_a_batch(http):
    ids = [[10 + i, 20, 30, 40 + i, 50] * 6 for i in range(8)]

    def score(prompts):
        answer = http.post("/v1/completions", json={"prompt": prompts, "max_tokens": 0, "echo": True,
                                                    "logprobs": 0, "temperature": 0}).json()
        return [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]

    assert score(ids) == [score([one])[0] for one in ids]


def test_metrics_pass_promtool(http):
    http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
    text = http.get("/metrics").text
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: Debian package prometheus"
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sixty_four_clients_with_random_disconnects_leave_nothing_behind():
    with running("--threads", "2") as server:
        rng = random.Random(5)
        httpx.post(server.url + "/v1/completions", json={"prompt": "warm", "max_tokens": 4}, timeout=60)

        def one(task):
            seed, cut = task
            count = 0
            try:
                with httpx.stream("POST", server.url + "/v1/completions", timeout=120,
                                  json={"prompt": f"Story {seed}:", "max_tokens": 40, "stream": True,
                                        "ignore_eos": True, "seed": seed}) as response:
                    if response.status_code != 200:
                        return f"status {response.status_code}: {response.read()[:200]}"
                    for line in response.iter_lines():
                        if line.startswith("data: "):
                            count += 1
                            if cut is not None and count >= cut:
                                return "cut"
                    return "whole"
            except httpx.HTTPError as error:
                return repr(error)

        def wave():
            tasks = [(rng.randrange(10**6), rng.choice([None, None, 0, 1, 5, 20])) for _ in range(192)]
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                return list(pool.map(one, tasks))

        results = wave()
        assert set(results) <= {"cut", "whole"}, set(results)
        first = server.rss_bytes()
        results = wave() + wave()
        assert set(results) <= {"cut", "whole"}, set(results)
        # A disconnect is noticed asynchronously: ask until the last sequence is gone.
        for _ in range(2000):
            if metric(server.url, "sluice_sequences_running") == 0 and \
                    metric(server.url, "sluice_kv_blocks_used") == 0:
                break
        assert metric(server.url, "sluice_sequences_running") == 0
        assert metric(server.url, "sluice_sequences_waiting") == 0
        assert metric(server.url, "sluice_kv_blocks_used") == 0
        assert server.rss_bytes() < first * 1.1 + (8 << 20)


def mutate(rng, body):
    data = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        kind = rng.randrange(4)
        at = rng.randrange(len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif kind == 2 and data:
            del data[at % len(data): at % len(data) + rng.randint(1, 10)]
        else:
            data[at:at] = rng.choice([b"null", b"-1", b"1e999", b"{}", b"[]", b'"', b"99999999999999999999",
                                      b"true", b"\\ud800", b"[[[[", b'"\xff"'])
    return bytes(data)


def test_ten_thousand_mutated_requests_get_only_well_formed_answers(server):
    rng = random.Random(20)
    seeds = [("/v1/completions", {"prompt": "x", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "n": 1,
                                  "stop": ["a"], "logit_bias": {"5": 1}, "logprobs": 1, "echo": False}),
             ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1,
                                       "logprobs": True, "top_logprobs": 1, "seed": 1}),
             ("/tokenize", {"prompt": "hello", "content": "hello"}),
             ("/detokenize", {"tokens": [1, 2, 3]}),
             ("/apply-template", {"messages": [{"role": "user", "content": "x"}]})]
    tasks = []
    for _ in range(10_000):
        path, body = rng.choice(seeds)
        tasks.append((path, mutate(rng, json.dumps(body).encode())))

    def send(batch):
        statuses = {}
        with httpx.Client(base_url=server.url, timeout=60) as session:
            for path, body in batch:
                response = session.post(path, content=body, headers={"content-type": "application/json"})
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                if response.status_code == 200:
                    if not response.headers["content-type"].startswith("text/event-stream"):
                        response.json()
                else:
                    assert response.status_code in (400, 404, 413, 501), (response.status_code, body)
                    assert_error_shape(response)
        return statuses

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(send, [tasks[i::8] for i in range(8)]))
    assert sum(sum(c.values()) for c in counts) == 10_000
    assert server.process.poll() is None


def test_bytes_that_are_not_http_do_not_disturb_the_server(server):
    rng = random.Random(1)
    host, port = server.url.removeprefix("http://").split(":")
    for attempt in range(200):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            if attempt % 2:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n" +
                                   bytes(rng.randrange(256) for _ in range(rng.randint(0, 10))))
            else:
                connection.sendall(bytes(rng.randrange(256) for _ in range(rng.randint(1, 200))))
    assert httpx.get(server.url + "/health", timeout=30).status_code == 200


def test_a_term_signal_drains_running_streams_and_exits_cleanly():
    with running() as server:
        with httpx.stream("POST", server.url + "/v1/completions", timeout=120,
                          json={"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.terminate()
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(timeout=60) == 0


def test_api_keys_are_asked_for_and_never_logged(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# team\nsk-test-secret-one\nsk-test-secret-two\n")
    with running("--api-keys-file", str(keys)) as server:
        assert httpx.get(server.url + "/health").status_code == 200
        denied = httpx.get(server.url + "/v1/models")
        assert denied.status_code == 401
        assert assert_error_shape(denied)["type"] == "authentication_error"
        assert httpx.get(server.url + "/v1/models",
                         headers={"authorization": "Bearer sk-test-secret-on"}).status_code == 401
        for key in ("sk-test-secret-one", "sk-test-secret-two"):
            assert httpx.get(server.url + "/v1/models",
                             headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert "sk-test-secret" not in server.log()
