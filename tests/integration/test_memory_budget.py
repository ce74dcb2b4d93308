"""A model larger than its memory: the budget is kept, tokens do not depend on it, and a file that changes under the
server costs requests, never the daemon.

Where cgroups with a memory controller may be made (SLUICE_TEST_CGROUP names the directory for them; without it the usual
ones are tried, which is for root), every server of the first test runs in a cgroup whose limit is exactly its budget.
With pytest -s the test prints what each took.
"""
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import httpx
import pytest

from conftest import ROOT, Server
from test_commands import sluice

SMALL = ("--kv-memory", "8MiB", "--max-batch-tokens", "64", "--prefill-chunk", "32", "--threads", "2")
PROMPTS = ["The sea was calm", "2 + 2 =", "Zwei Dinge sind", "def main():", "Once upon a time there was"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack of some 200 MB, nearly all of it routed experts (random weights)."""
    directory = tmp_path_factory.mktemp("random")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "goldens" / "random_checkpoint.py"), str(directory / "model"),
                    "--layers", "8", "--hidden", "512", "--experts", "32", "--experts-per-token", "2",
                    "--expert-width", "256", "--vocab", "1024", "--positions", "512"], check=True, timeout=120)
    sluice("pack", str(directory / "model"), str(directory / "random.sluice"))
    shutil.rmtree(directory / "model")
    yield directory / "random.sluice"
    shutil.rmtree(directory)


class Cgroup:
    """A memory cgroup of version 1 or 2, empty, with a limit. Raises OSError where that cannot be."""

    def __init__(self, parent, limit_bytes):
        self.directory = pathlib.Path(parent) / f"sluice-test-{os.getpid()}"
        self.directory.mkdir()
        try:
            self.v2 = (self.directory / "memory.max").exists()
            if self.v2 and (self.directory / "memory.swap.max").exists():
                (self.directory / "memory.swap.max").write_text("0")
            # Opened to be changed: in a directory that is no cgroup, it would otherwise be made.
            with open(self.directory / ("memory.max" if self.v2 else "memory.limit_in_bytes"), "r+") as limit:
                limit.write(str(limit_bytes))
        except OSError:
            self.directory.rmdir()
            raise

    def number(self, file, name=""):
        """The number in a file, or in its line `name NUMBER`; None where the kernel does not count it."""
        try:
            lines = (self.directory / file).read_text().splitlines()
            return next((int(line.split()[-1]) for line in lines if line.startswith(name)), None)
        except OSError:
            return None

    def killed(self):
        return self.number("memory.events" if self.v2 else "memory.oom_control", "oom_kill ")

    def peak_bytes(self):
        return self.number("memory.peak" if self.v2 else "memory.max_usage_in_bytes")

    # What must precede a command that is to run in it.
    @property
    def prefix(self):
        return ("sh", "-c", f'echo $$ > {self.directory}/cgroup.procs; exec "$@"', "sh")


def cgroup_parent():
    """Where cgroups can be made; None where they cannot."""
    if named := os.environ.get("SLUICE_TEST_CGROUP"):
        return named
    for parent in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        try:
            Cgroup(parent, 1 << 30).directory.rmdir()
            return parent
        except OSError:
            continue
    return None


@contextlib.contextmanager
def limited(limit_bytes):
    """A cgroup of this size; None where there can be none."""
    parent = cgroup_parent()
    if parent is None:
        yield None
        return
    group = Cgroup(parent, limit_bytes)
    try:
        yield group
        assert group.killed() in (0, None)
    finally:
        group.directory.rmdir()


@contextlib.contextmanager
def serving(pack, budget=0, prefix=(), arguments=()):
    server = Server([*SMALL, "--memory-budget", str(budget), *arguments], model=pack, prefix=prefix)
    try:
        yield server
    finally:
        server.stop()


def complete(server, prompt, tokens=12):
    name = httpx.get(server.url + "/v1/models", timeout=30).json()["data"][0]["id"]
    return httpx.post(server.url + "/v1/completions", timeout=60, json={
        "model": name, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "logprobs": 1})


def answers(server):
    replies = [complete(server, prompt) for prompt in PROMPTS]
    assert [reply.status_code for reply in replies] == [200] * len(PROMPTS), [reply.text for reply in replies]
    return [(reply.json()["choices"][0]["text"], reply.json()["choices"][0]["logprobs"]) for reply in replies]


def peak_bytes(server):
    with open(f"/proc/{server.process.pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def refusal(pack, budget):
    """The least that a refused budget names; None when it is served."""
    with pytest.raises(RuntimeError) as refused:
        with serving(pack, budget):
            pass
    found = re.search(r"give it at least (\d+) MiB", str(refused.value))
    assert found, refused.value
    return int(found.group(1)) * MIB


def test_a_budget_is_kept_and_changes_no_token(pack):
    with serving(pack) as server:
        expected = answers(server)
    size = pack.stat().st_size
    least = refusal(pack, 24 * MIB)
    assert least < size / 2
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        budget = int(size * share)
        if budget < least:
            assert refusal(pack, budget) - least < 4 * MIB
            print(f"{share:.0%} of the pack, {budget} bytes: refused, at least {least} is needed")
            continue
        check_budget(pack, budget, expected)
    # What is resident at the start varies a little from run to run.
    check_budget(pack, least + 2 * MIB, expected)


def check_budget(pack, budget, expected):
    with limited(budget) as group:
        with serving(pack, budget, group.prefix if group else ()) as server:
            assert answers(server) == expected, f"budget {budget}"
            peak = peak_bytes(server)
            assert peak <= budget * 1.03, f"{peak / MIB:.1f} MiB resident of {budget / MIB:.1f}"
            line = f"{budget / pack.stat().st_size:.0%} of the pack, {budget} bytes: {peak} resident"
        if group:
            line += f"; in the cgroup {group.peak_bytes()}, killed {group.killed()}"
        print(line)


def test_a_truncated_pack_fails_requests_with_its_name_and_the_daemon_lives(pack, tmp_path):
    copy = tmp_path / "copy.sluice"
    shutil.copy(pack, copy)
    with serving(copy, pack.stat().st_size // 2) as server:
        expected = answers(server)
        os.truncate(copy, pack.stat().st_size // 3)
        # New prompts need experts that are not in memory.
        replies = [complete(server, f"{i} {prompt} {7 * i}") for i, prompt in enumerate(PROMPTS * 3)]
        failed = [reply for reply in replies if reply.status_code != 200]
        assert failed, "no request needed the lost part of the file"
        for reply in failed:
            assert reply.status_code == 500
            message = reply.json()["error"]["message"]
            assert "expert" in message and "copy.sluice" in message, message
        assert httpx.get(server.url + "/health", timeout=30).status_code == 200
        assert server.process.poll() is None
        # What is given is right.
        for prompt, wanted in zip(PROMPTS, expected):
            reply = complete(server, prompt)
            assert reply.status_code in (200, 500)
            if reply.status_code == 200:
                assert reply.json()["choices"][0]["text"] == wanted[0]


def test_a_pack_that_is_replaced_by_rename_is_served_on(pack, tmp_path):
    copy, other = tmp_path / "copy.sluice", tmp_path / "other"
    shutil.copy(pack, copy)
    other.write_bytes(b"another file")
    with serving(copy, pack.stat().st_size // 2) as server:
        expected = answers(server)
        os.replace(other, copy)
        assert answers(server) == expected
        assert httpx.get(server.url + "/health", timeout=30).status_code == 200
