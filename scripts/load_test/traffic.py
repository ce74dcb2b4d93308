"""Sends planned requests as they would come: closed loop (a fixed number of streams, each sending its next request when the
last has ended) or open (Poisson arrivals, whatever the server does)."""
import asyncio
import collections
import random
import time
from dataclasses import dataclass, field

from load_test import client as http
from load_test import servers


@dataclass
class Arrivals:
    streams: int = 0     # closed loop
    rate: float = 0.0    # Poisson, requests per second
    warm_up: int = 0     # requests that are sent first and not counted
    timeout: float = 600.0

    def __str__(self):
        return f"{self.rate:g} requests/s" if self.rate else f"{self.streams} streams"


@dataclass
class Intruder:
    """One long prompt that arrives among the others, `at` seconds into the counted part."""
    planned: object
    at: float


@dataclass
class Run:
    """What came back. The window is the counted part while load lasts: closed loop, until the first stream has nothing
    left to send; open, until the last request has ended."""
    exchanges: list = field(default_factory=list)
    window_start: float = 0.0
    window_end: float = 0.0
    before: dict = field(default_factory=dict)  # /metrics
    after: dict = field(default_factory=dict)
    intruder: object = None                     # its Exchange
    client_cpu_seconds: float = 0.0
    client_stall_seconds: float = 0.0           # see OwnStalls


class OwnStalls:
    """Notices when this process itself was held up (stopped, starved, or busy): then its stamps say nothing of the server."""

    STEP_SECONDS = 0.02

    def __init__(self):
        self.stalls = []  # (start, end), of at least `least` seconds

    async def watch(self, least=0.1):
        while True:
            before = time.perf_counter()
            await asyncio.sleep(self.STEP_SECONDS)
            now = time.perf_counter()
            if now - before - self.STEP_SECONDS >= least:
                self.stalls.append((before, now))

    def within(self, start, end):
        """Seconds of [start, end] in stalls."""
        return sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.stalls)


class Driver:
    def __init__(self, url, path, arrivals, stream=True, key=""):
        self.client = http.Client(url)
        self.path, self.arrivals, self.stream, self.key = path, arrivals, stream, key
        self.run = Run()
        self._cpu = 0.0

    async def send(self, planned, counted=True):
        exchange = http.Exchange(key=planned.key, domain=planned.domain, counted=counted, tag=planned.tag)
        self.run.exchanges.append(exchange)
        return await self.client.send(exchange, "POST", self.path, planned.body, planned.key or self.key,
                                      self.arrivals.timeout)

    async def _open_window(self):
        self.run.before = await servers.read_metrics(self.client, self.key)
        self._cpu = time.process_time()
        self.run.window_start = time.perf_counter()

    async def _close_window(self):
        if self.run.window_end:
            return
        self.run.window_end = time.perf_counter()
        self.run.client_cpu_seconds = time.process_time() - self._cpu
        self.run.after = await servers.read_metrics(self.client, self.key)

    async def drive(self, plan, intruder=None, seed=1):
        """Runs the whole plan; its first `warm_up` requests are not counted."""
        warm, counted = plan[:self.arrivals.warm_up], plan[self.arrivals.warm_up:]
        stalls = OwnStalls()
        watch = asyncio.create_task(stalls.watch())
        try:
            if self.arrivals.rate:
                await self._open_loop(warm, counted, intruder, seed)
            else:
                await self._closed_loop(warm, counted, intruder)
            await self._close_window()
        finally:
            watch.cancel()
            self.client.close()
        self.run.client_stall_seconds = stalls.within(self.run.window_start, self.run.window_end)
        for exchange in self.run.exchanges:
            if exchange.status == 200:
                (http.parse_stream if self.stream else http.parse_whole)(exchange)
        return self.run

    async def _intrude(self, intruder):
        await asyncio.sleep(intruder.at)
        exchange = http.Exchange(key=intruder.planned.key, domain="intruder", counted=False)
        self.run.intruder = exchange
        await self.client.send(exchange, "POST", self.path, intruder.planned.body, intruder.planned.key or self.key,
                               self.arrivals.timeout)
        if exchange.status == 200:
            (http.parse_stream if self.stream else http.parse_whole)(exchange)

    async def _closed_loop(self, warm, counted, intruder):
        streams = self.arrivals.streams
        queue = collections.deque(warm)

        async def work(is_counted):
            while queue:
                await self.send(queue.popleft(), is_counted)
            if is_counted and intruder is None:
                await self._close_window()

        await asyncio.gather(*(work(False) for _ in range(min(streams, len(queue)))))
        await self._open_window()
        queue.extend(counted)
        extra = [self._intrude(intruder)] if intruder else []
        await asyncio.gather(*(work(True) for _ in range(min(streams, len(queue)))), *extra)

    async def _open_loop(self, warm, counted, intruder, seed):
        rng = random.Random(f"arrivals {seed}")
        for planned in warm:
            await self.send(planned, False)
        await self._open_window()
        tasks = [asyncio.create_task(self._intrude(intruder))] if intruder else []
        due = time.perf_counter()
        for planned in counted:
            due += rng.expovariate(self.arrivals.rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self.send(planned)))
        await asyncio.gather(*tasks)
