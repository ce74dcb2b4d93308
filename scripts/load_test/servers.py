"""Servers under test: starting and stopping them, and reading their /metrics."""
import asyncio
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url, path):
    """The status of a GET, or 0."""
    try:
        with urllib.request.urlopen(url + path, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


class ServerProcess:
    """Runs a command in which {port} stands for a free port, until the server answers /health (and, where it has one,
    /ready) with 200. Its output goes to `log`."""

    def __init__(self, command, ready_seconds=120):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = [word.replace("{port}", str(self.port)) for word in shlex.split(command)]
        if "{port}" not in command:
            raise ValueError(f"the command has no {{port}}: {command}")
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log", errors="replace")
        self.process = subprocess.Popen(arguments, stdout=self._log, stderr=subprocess.STDOUT)
        limit = time.monotonic() + ready_seconds
        while not (answers(self.url, "/health") == 200 and answers(self.url, "/ready") in (200, 404)):
            if self.process.poll() is not None or time.monotonic() > limit:
                self.stop()
                raise RuntimeError(f"the server did not become ready: {command}\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def log(self):
        with open(self._log.name, errors="replace") as file:
            return file.read()

    def status_bytes(self, field):
        """VmRSS or VmHWM of the process."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":")), 0)

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


# ---- Metrics ----

def parse_metrics(text):
    """Prometheus' text format as {name: sum over labels}; names with labels also as {'name{labels}': value}."""
    values = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        try:
            number = float(value)
        except ValueError:
            continue
        plain = name.split("{", 1)[0]
        values[plain] = values.get(plain, 0.0) + number
        if plain != name:
            values[name] = number
    return values


async def read_metrics(client, key=""):
    """{} where there are none."""
    status, text = await client.get("/metrics", key)
    return parse_metrics(text) if status == 200 else {}


def expert_figures(before, after):
    """What experts cost between two readings of a Sluice server's metrics; {} for other servers.

    unique_experts_per_step: distinct experts summed over the layers of a step. bytes_read_per_token: expert bytes that
    came from disk, for whatever reason, per generated token."""
    if "sluice_steps_total" not in after:
        return {}

    def grown(name):
        return after.get(name, 0.0) - before.get(name, 0.0)

    def ratio(part, whole):
        return part / whole if whole > 0 else 0.0

    steps, tokens = grown("sluice_steps_total"), grown("sluice_generated_tokens_total")
    hits, misses = grown("sluice_expert_hits_total"), grown("sluice_expert_misses_total")
    return {
        "unique_experts_per_step": ratio(grown("sluice_unique_experts_total"), steps),
        "bytes_read_per_token": ratio(grown("sluice_link_bytes_total"), tokens),
        "expert_hit_rate": ratio(hits, hits + misses) if hits + misses else 1.0,
        "stall_seconds": grown("sluice_expert_stall_seconds_total"),
        "steps": steps,
        "tokens_per_step": ratio(grown("sluice_step_tokens_sum"), grown("sluice_step_tokens_count")),
        "step_busy_seconds": grown("sluice_step_busy_seconds_total"),
        "preemptions": grown("sluice_preemptions_total"),
    }


async def settle(client, key="", seconds=20.0):
    """Waits until a Sluice server has nothing running or waiting; its last metrics."""
    limit = time.monotonic() + seconds
    while True:
        values = await read_metrics(client, key)
        idle = values.get("sluice_sequences_running") == 0 and values.get("sluice_sequences_waiting") == 0
        if idle or time.monotonic() > limit:
            return values
        await asyncio.sleep(0.05)
