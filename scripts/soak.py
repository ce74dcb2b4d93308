#!/usr/bin/env python3
"""Ten thousand requests of every kind against one small server: whole and streamed answers, clients that leave at random
moments, deadlines that pass, malformed requests, slow readers, and more of them at a time than the server takes.

    scripts/soak.py                                     build/sluice with the demo model
    scripts/soak.py --model demo.sluice --flags "--memory-budget 40MiB"

Calm and overload alternate. The bodies of requests come from a fixed set whose answers were taken one at a time before; every
answer that arrives whole must be the same bytes, whoever shared its batch. At the end the server must have nothing left: no sequence,
no KV block, no pinned expert, no connection, no file that it had not before; and its memory must not have grown since a tenth of the requests were
done. Exit code 0: all of that holds. The longest waits are printed beside --longest-wait, which is one of the checks.
"""
import argparse
import asyncio
import collections
import json
import pathlib
import random
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from load_test import client as http  # noqa: E402
from load_test import prompts, servers, traffic  # noqa: E402

MIB = 1 << 20
KINDS = {"stream": 46, "whole": 12, "cancel": 16, "leave at once": 3, "deadline": 12, "invalid": 5, "slow reader": 3,
         "half closed": 3}
INVALID = [{"prompt": 7}, {"prompt": "x", "max_tokens": -1}, {"prompt": "x", "temperature": "hot"}, {"prompt": "x" * 40000},
           {"prompt": "x", "max_tokens": 10**9}, {"prompt": "x", "n": 0}, {"prompt": ""}]
GROWTH_BYTES = 8 * MIB  # of resident memory that allocators may keep for themselves
GROWTH_SHARE = 0.05


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/sluice"))
    parser.add_argument("--model", default=str(ROOT / "deploy/demo-model"))
    parser.add_argument("--flags", default="--threads 2", help="of sluice serve (default: --threads 2)")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--bodies", type=int, default=64, help="different requests (default 64)")
    parser.add_argument("--max-running", type=int, default=12)
    parser.add_argument("--max-queue", type=int, default=24)
    parser.add_argument("--clients", type=int, default=72, help="at a time under overload; a tenth of them in calm")
    parser.add_argument("--longest-wait", type=float, default=30, metavar="SECONDS",
                        help="that an accepted request may wait for its first token (default 30)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


class Soak:
    def __init__(self, options, server):
        self.options, self.server = options, server
        self.rng = random.Random(options.seed)
        self.client = http.Client(server.url)
        text = prompts.TextPrompts(ROOT / "tests/data/heldout")
        mixes = [prompts.Mix(text, prompts.Lengths(4, 150), prompts.Lengths(1, 64), chat=chat, ignore_eos=ignore, stream=False)
                 for chat in (False, True) for ignore in (True, True, False)]
        self.bodies = [mixes[i % len(mixes)].plan(1, f"{options.seed} {i}")[0].body for i in range(options.bodies)]
        for i, body in enumerate(self.bodies):
            body["temperature"] = (0.0, 0.7, 1.0)[i % 3]
        self.expected = []
        self.left = options.requests
        self.counts, self.problems, self.longest = collections.Counter(), [], collections.Counter()
        self.memory = []  # (requests done, resident bytes)
        self.stalls = traffic.OwnStalls()

    def path(self, body):
        return "/v1/chat/completions" if "messages" in body else "/v1/completions"

    def wait(self, name, start, end):
        """Notes a wait; time for which this client was itself held up does not count."""
        self.longest[name] = max(self.longest[name], end - start - self.stalls.within(start, end))

    def problem(self, text):
        if len(self.problems) < 20:
            print("PROBLEM:", text, flush=True)
        self.problems.append(text)

    async def references(self):
        for body in self.bodies:
            exchange = await self.client.send(http.Exchange(), "POST", self.path(body), body, timeout=60)
            http.parse_whole(exchange)
            if http.error_name(exchange):
                raise RuntimeError(f"a request alone failed: {exchange.error or exchange.body()[:300]}")
            self.expected.append((exchange.text, exchange.finish_reason, exchange.completion_tokens))

    # ---- One request ----

    async def one(self):
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        number = self.rng.randrange(len(self.bodies))
        body = dict(self.bodies[number])
        if kind != "whole" and (kind not in ("cancel", "deadline") or self.rng.random() < 0.7):
            body.update(stream=True, stream_options={"include_usage": True})
        if kind == "invalid":
            return self.check_invalid(await self.client.send(http.Exchange(), "POST", "/v1/completions",
                                                             self.rng.choice(INVALID), timeout=60))
        if kind in ("slow reader", "half closed"):
            return await self.raw(kind, body)
        limits = {"cancel": {"cancel_after": self.rng.random() ** 2 * 0.5}, "leave at once": {"cancel_after": 0.0},
                  "deadline": {"timeout": self.rng.uniform(0.002, 0.2)}}.get(kind, {})
        limits.setdefault("timeout", self.options.longest_wait + 60)
        exchange = await self.client.send(http.Exchange(tag=number), "POST", self.path(body), body, **limits)
        return self.check(kind, exchange, body.get("stream", False))

    def check(self, kind, exchange, streamed):
        if exchange.status == 429:
            if not exchange.headers.get("retry-after", "").isdigit():
                self.problem(f"429 without Retry-After: {exchange.headers}")
            self.check_error(exchange, 429)
            return "refused"
        if exchange.status == 0 and exchange.error in ("cancelled", "timeout") and kind not in ("stream", "whole"):
            return "left before the head"
        if exchange.status != 200:
            self.problem(f"{kind}: status {exchange.status}, {exchange.error}, {exchange.body()[:200]}")
            return "wrong"
        if exchange.pieces:
            self.wait("to the first byte", exchange.start, exchange.pieces[0][0])
        if exchange.error:
            if exchange.error in ("cancelled", "timeout") and kind not in ("stream", "whole"):
                # What came before must be well-formed as far as it goes, and the start of the answer.
                http.parse_stream(exchange) if streamed else None
                if exchange.error.startswith("malformed") or not self.expected[exchange.tag][0].startswith(exchange.text):
                    self.problem(f"{kind}: the beginning of an answer is wrong: {exchange.error} {exchange.text!r}")
                return "left"
            self.problem(f"{kind}: {exchange.error} after {len(exchange.body())} bytes")
            return "wrong"
        if streamed:
            http.parse_stream(exchange, strict=True)
            for a, b in zip(exchange.event_times, exchange.event_times[1:]):
                self.wait("between tokens", a, b)
        else:
            http.parse_whole(exchange)
        self.wait("to the last byte", exchange.start, exchange.end)
        answer = (exchange.text, exchange.finish_reason, exchange.completion_tokens)
        if exchange.error or answer != self.expected[exchange.tag]:
            self.problem(f"{kind}: {exchange.error or 'another answer'}: {answer} instead of {self.expected[exchange.tag]}")
            return "wrong"
        return "whole"

    def check_error(self, exchange, status):
        try:
            error = json.loads(exchange.body())["error"]
            good = error["message"] and {"type", "param", "code"} <= set(error) and exchange.status == status
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            self.problem(f"not an error as it should be: {exchange.status} {exchange.error} {exchange.body()[:200]}")

    def check_invalid(self, exchange):
        if exchange.status == 429:  # a full queue refuses before it looks
            return self.check("invalid", exchange, False)
        self.check_error(exchange, 400)
        return "invalid"

    async def raw(self, kind, body):
        """Clients that the ordinary one cannot play: one that reads in sips, and one that closes its sending side."""
        payload = json.dumps(body).encode()
        head = (f"POST {self.path(body)} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n").encode()
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection(self.client.host, self.client.port, limit=512)
        try:
            writer.write(head + payload)
            if kind == "half closed":
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 60)
                return "left"
            for _ in range(self.rng.randrange(1, 30)):
                if not await asyncio.wait_for(reader.read(40), self.options.longest_wait + 60):
                    break
                await asyncio.sleep(0.01)
            return "left"
        except (ConnectionError, asyncio.TimeoutError) as error:
            if isinstance(error, asyncio.TimeoutError) and not self.stalls.within(start, time.perf_counter()):
                self.problem(f"{kind}: nothing came")
            return "left"
        finally:
            writer.transport.abort()

    # ---- All of them ----

    async def worker(self, phase):
        while self.left > 0 and phase.active():
            self.left -= 1
            outcome = await self.one()
            self.counts[outcome] += 1
            done = sum(self.counts.values())
            if done % max(1, self.options.requests // 20) == 0:
                self.memory.append((done, self.server.status_bytes("VmRSS")))
                print(f"{done:>6} requests, {self.memory[-1][1] / MIB:.1f} MiB resident, {dict(self.counts)}", flush=True)
            if outcome == "refused":
                await asyncio.sleep(self.rng.uniform(0.01, 0.1))

    async def run(self):
        watch = asyncio.create_task(self.stalls.watch())
        baseline = await servers.read_metrics(self.client)
        await self.references()
        share = max(1, self.options.requests // 16)
        overload = True
        while self.left > 0:
            end = max(0, self.left - share)
            phase = Phase(self, end)
            clients = self.options.clients if overload else max(2, self.options.clients // 10)
            await asyncio.gather(*(self.worker(phase) for _ in range(clients)))
            overload = not overload
        watch.cancel()
        self.client.close()
        await self.check_end(baseline)

    async def check_end(self, baseline):
        limit = time.monotonic() + 30
        while True:
            after = await servers.settle(self.client)
            busy = {name: after.get(name) for name in ("sluice_sequences_running", "sluice_sequences_waiting",
                                                       "sluice_kv_blocks_used") if after.get(name) != 0}
            if after.get("sluice_expert_pinned", 0):
                busy["sluice_expert_pinned"] = after["sluice_expert_pinned"]
            if after.get("sluice_http_connections", 0) > 1:
                busy["sluice_http_connections"] = after["sluice_http_connections"]
            if after.get("process_open_fds", 0) > baseline.get("process_open_fds", 0):
                busy["process_open_fds"] = after["process_open_fds"]
            if not busy or time.monotonic() > limit:
                break
            await asyncio.sleep(0.2)
        for name, value in busy.items():
            self.problem(f"left behind: {name} {value}")
        finished = sum(after.get(f'sluice_requests_total{{reason="{r}"}}', 0) for r in ("stop", "length", "abort", "error"))
        print(f"server: {finished:.0f} sequences ended, {after.get('sluice_preemptions_total', 0):.0f} preemptions, "
              f"{after.get('sluice_generated_tokens_total', 0):.0f} tokens")
        early = [size for done, size in self.memory if done <= self.options.requests // 10] or [self.memory[0][1]]
        last = self.server.status_bytes("VmRSS")
        if last > early[-1] * (1 + GROWTH_SHARE) + GROWTH_BYTES:
            self.problem(f"resident memory grew from {early[-1] / MIB:.1f} to {last / MIB:.1f} MiB")
        if self.longest["to the first byte"] > self.options.longest_wait:
            self.problem(f"a request waited {self.longest['to the first byte']:.1f} s")
        self.figures = {"outcomes": dict(self.counts), "problems": self.problems, "requests": self.options.requests,
                        "client_stall_seconds": round(sum(b - a for a, b in self.stalls.stalls), 2),
                        "longest_seconds": {name: round(value, 4) for name, value in self.longest.items()},
                        "resident_bytes": self.memory, "resident_bytes_after": last}


class Phase:
    """Lasts until so many requests are left."""

    def __init__(self, soak, end):
        self.soak, self.end = soak, end

    def active(self):
        return self.soak.left > self.end


def main():
    options = arguments()
    command = (f"{options.binary} serve --model {options.model} --port {{port}} --log-level warn --max-running "
               f"{options.max_running} --max-queue {options.max_queue} {options.flags}")
    server = servers.ServerProcess(command)
    start = time.monotonic()
    soak = Soak(options, server)
    try:
        asyncio.run(soak.run())
    finally:
        code = server.stop()
    if code != 0:
        soak.problem(f"the server ended with {code}: {server.log()[-500:]}")
    print(f"{options.requests} requests in {time.monotonic() - start:.1f} s: {dict(soak.counts)}")
    print(f"this client was itself held up for {soak.figures['client_stall_seconds']} s, which counts in no wait")
    print("longest: " + ", ".join(f"{1000 * value:.0f} ms {name}" for name, value in sorted(soak.longest.items())))
    print(f"resident: {soak.memory[0][1] / MIB:.1f} MiB after {soak.memory[0][0]} requests, "
          f"{soak.figures['resident_bytes_after'] / MIB:.1f} MiB at the end")
    print("no problem" if not soak.problems else f"{len(soak.problems)} PROBLEMS")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(soak.figures, indent=1) + "\n")
    sys.exit(1 if soak.problems else 0)


if __name__ == "__main__":
    main()
