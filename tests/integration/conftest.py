"""Starts the real binary on a free port with the demo model and hands tests its address."""
import contextlib
import os
import pathlib
import signal
import subprocess
import tempfile

import httpx
import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("SLUICE_BINARY", ROOT / "build" / "sluice"))
DEMO_MODEL = ROOT / "deploy" / "demo-model"

# Packs made by the tests' servers stay out of the user's cache.
CACHE = tempfile.TemporaryDirectory(prefix="sluice-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name
os.environ.pop("CACHE_DIRECTORY", None)


class Server:
    """A running `sluice serve`; `log()` is its standard error so far. `prefix`: a command that runs it."""

    def __init__(self, arguments=(), model=DEMO_MODEL, prefix=()):
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(
            [*prefix, str(BINARY), "serve", "--model", str(model), "--host", "127.0.0.1", "--port", "0", *arguments],
            stdout=subprocess.PIPE, stderr=self._log, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("ready on http://"):
            self.process.wait(timeout=30)
            raise RuntimeError(f"no ready line but {line!r}:\n{self.log()}")
        self.url = line.split()[-1]

    def log(self):
        with open(self._log.name) as file:
            return file.read()

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

    def stop(self, expected=0):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == expected, f"exit status {code}\n{self.log()}"


@contextlib.contextmanager
def running(*arguments, **options):
    server = Server(arguments, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server():
    with running() as instance:
        yield instance
    assert instance.process.returncode == 0


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def model_id(client):
    return client.models.list().data[0].id


@pytest.fixture()
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as session:
        yield session


def metric(server_url, name):
    """The sum of a metric's samples, over labels."""
    total, found = 0.0, False
    for line in httpx.get(server_url + "/metrics", timeout=30).text.splitlines():
        if line.startswith(name) and line[len(name)] in " {":
            total += float(line.rsplit(" ", 1)[1])
            found = True
    assert found, f"/metrics has no {name}"
    return total
