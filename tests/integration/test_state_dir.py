"""--state-dir: what a stopped server knew is there after its restart, and only for the same pack and settings."""

import time

import httpx
import pytest

from conftest import metric, running

PROMPT = "Once upon a time there was a clerk who kept every paper in its place. " * 6


def complete(url, prompt=PROMPT):
    reply = httpx.post(url + "/v1/completions", timeout=60, json={
        "prompt": prompt, "temperature": 0, "max_tokens": 24, "logprobs": 1})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    return body["choices"], body["usage"]["prompt_tokens_details"]["cached_tokens"], body["usage"]["prompt_tokens"]


def test_the_prefix_cache_survives_a_restart(tmp_path):
    state = ("--state-dir", str(tmp_path / "state"))
    with running(*state) as server:
        expected, cached, tokens = complete(server.url)
        assert cached == 0 and "begins cold" in server.log()
    file = tmp_path / "state" / "engine.state"
    assert file.stat().st_mode & 0o777 == 0o600
    with running(*state) as server:
        # The engine takes the state while the server is ready already; requests wait for it.
        deadline = time.monotonic() + 30
        while metric(server.url, "sluice_kv_blocks_cached") == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert metric(server.url, "sluice_kv_blocks_cached") > 0
        choices, cached, _ = complete(server.url)
        assert choices == expected and cached == (tokens - 1) // 16 * 16
    # Other numbers are in blocks of another format.
    with running(*state, "--kv-dtype", "q8") as server:
        assert complete(server.url)[1] == 0 and "another pack" in server.log()
    # That server has left its own. A damaged file is no file.
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with running(*state, "--kv-dtype", "q8") as server:
        assert complete(server.url)[1] == 0 and "damaged" in server.log()


def test_a_state_directory_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    # Both stop everyone, root too: a directory in the file's place, and one where nothing can be made.
    (tmp_path / "engine.state").mkdir()
    for directory in (str(tmp_path), "/proc/self/net"):
        with pytest.raises(RuntimeError) as refused:
            with running("--state-dir", directory):
                pass
        assert "engine.state_dir" in str(refused.value) and directory in str(refused.value)


def test_a_state_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    try:
        with running("--state-dir", str(tmp_path / "file" / "state")):
            raise AssertionError("it started")
    except RuntimeError as refused:
        assert "state_dir" in str(refused)
