#!/usr/bin/env python3
"""Drives an OpenAI-style server with many users at once and prints what they see.

    scripts/load.py --model deploy/demo-model --streams 8 --requests 200
    scripts/load.py --url http://box:8080 --key sk-one --rate 5 --requests 300 --json load.json
    scripts/load.py --model demo.sluice --setting fcfs="--batch-order fcfs" --setting affinity="--batch-order affinity" \\
        --repeats 3 --plot compare.svg
    scripts/load.py --server ours="build/sluice serve --model m.sluice --port {port}" \\
        --server theirs="llama-server -m m.gguf --port {port} -np 8 -c 32768" --streams 8 --requests 64

One server: figures of one run (of --repeats runs, each on a fresh server where the script starts it). Two or more: they take turns, one
running at a time, --repeats times each, with the same requests; medians, every figure over the first one's, and how many answers
have the same text (for settings of Sluice that do not change results: all).

Requests: --prompts text takes passages from the held-out texts of the demo model's corpus, one file per domain; --prompts tokens
draws token ids for models with random weights, every domain with its own words. Lengths are ranges, drawn log-uniformly. --streams
is a closed loop, --rate Poisson arrivals. --intruder adds one long prompt in the middle.

Times are as the client sees them: TTFT from sending to the first event with text, "between tokens" between two such events, the
longest of these is the longest gap. Only whole answers count, errors are counted by kind. Throughput is of tokens that arrived in the
window: from the end of the warm-up until a stream of the closed loop finds nothing left to send, or the last answer of an
open one. From a Sluice server's /metrics: distinct experts per step (summed over layers), bytes read from disk per generated token.

The plot needs matplotlib (scripts/quality_requirements.txt); everything else Python alone.
"""
import argparse
import asyncio
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from load_test import client as http  # noqa: E402
from load_test import prompts, report, servers, traffic  # noqa: E402


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    server = parser.add_argument_group("servers")
    server.add_argument("--url", help="a running server, such as http://127.0.0.1:8080")
    server.add_argument("--server", action="append", default=[], metavar="NAME=COMMAND",
                        help="a server to start; {port} stands for its port")
    server.add_argument("--model", help="start `sluice serve` with this model")
    server.add_argument("--setting", action="append", default=[], metavar="NAME=FLAGS",
                        help="with --model: flags of one of the servers to compare")
    server.add_argument("--flags", default="", help="with --model: flags of all of them")
    server.add_argument("--binary", default=str(ROOT / "build/sluice"))
    server.add_argument("--prefix", default="", help="a command that runs the servers, such as one that enters a cgroup")
    server.add_argument("--repeats", type=int, default=1, help="turns of every server (default 1; medians are printed)")
    load = parser.add_argument_group("arrivals")
    load.add_argument("--streams", type=int, default=8, help="closed loop of so many clients (default 8)")
    load.add_argument("--rate", type=float, default=0, help="instead: Poisson arrivals per second")
    load.add_argument("--requests", type=int, default=64, help="counted requests (default 64)")
    load.add_argument("--warm-up", type=int, help="requests sent before (default: as many as --streams)")
    load.add_argument("--timeout", type=float, default=600, help="seconds until a client gives up (default 600)")
    load.add_argument("--key", action="append", default=[], metavar="KEY[=SHARE]",
                      help="API key, and its share of the requests; the first also reads /metrics")
    load.add_argument("--intruder", type=int, default=0, metavar="TOKENS", help="one more request with so long a prompt")
    load.add_argument("--intruder-at", type=float, default=2, metavar="SECONDS", help="after the warm-up (default 2)")
    load.add_argument("--seed", type=int, default=1)
    mix = parser.add_argument_group("requests")
    mix.add_argument("--prompts", choices=["text", "tokens"], default="text")
    mix.add_argument("--texts", default=str(ROOT / "tests/data/heldout"), help="directory with a .txt for every domain")
    mix.add_argument("--domains", default="", help="text: names, separated by commas (default: all); tokens: how many (8)")
    mix.add_argument("--vocabulary", type=int, default=50000, help="tokens: ids are below this (default 50000)")
    mix.add_argument("--words", type=int, default=2000, help="tokens: ids of one domain (default 2000)")
    mix.add_argument("--zipf", type=float, default=1.0, help="tokens: exponent of their frequencies; 0: all alike")
    mix.add_argument("--striped", action="store_true",
                     help="tokens: domain i has the ids that leave i when divided by the number of domains, as the topics of "
                          "scripts/benchmark_model.py")
    mix.add_argument("--confine", action="store_true",
                     help=f"tokens: bias generation to the {prompts.MAX_BIAS} most frequent words of the domain")
    mix.add_argument("--prompt-tokens", default="16-192", metavar="N or A-B", help="default 16-192; of text, roughly")
    mix.add_argument("--max-tokens", default="64", metavar="N or A-B", help="default 64")
    mix.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS",
                     help="every prompt of a domain begins with the same so many tokens")
    mix.add_argument("--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions")
    mix.add_argument("--no-stream", action="store_true", help="whole answers (no TTFT, no gaps)")
    mix.add_argument("--until-eos", action="store_true", help="let the model end its answers (default: ignore_eos)")
    mix.add_argument("--temperature", type=float, default=1.0)
    mix.add_argument("--fields", default="{}", metavar="JSON", help="more fields of every request")
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help="figures as JSON; - for standard output instead of the table")
    out.add_argument("--plot", metavar="FILE", help="distributions of the three times, as SVG or PNG")
    options = parser.parse_args(given)
    if sum(map(bool, (options.url, options.server, options.model))) != 1:
        parser.error("give one of --url, --server and --model")
    if options.setting and not options.model:
        parser.error("--setting goes with --model")
    if options.streams < 1 or options.requests < 1 or options.repeats < 1 or options.rate < 0:
        parser.error("--streams, --requests and --repeats are at least 1")
    if options.warm_up is None:
        options.warm_up = options.streams
    try:
        options.prompt_tokens = prompts.Lengths.parse(options.prompt_tokens)
        options.max_tokens = prompts.Lengths.parse(options.max_tokens)
        options.fields = json.loads(options.fields)
    except ValueError as error:
        parser.error(str(error))
    return options


def named(items, what):
    pairs = [item.partition("=")[::2] for item in items]
    for name, value in pairs:
        if not name or (what == "--server" and not value):
            sys.exit(f"{what} takes NAME=..., not {name}={value}")
    if len({name for name, _ in pairs}) != len(pairs):
        sys.exit(f"{what}: the names must differ")
    return pairs


def commands(options):
    """(name, command) of the servers to start."""
    if options.server:
        found = named(options.server, "--server")
    elif options.model:
        base = f"{options.binary} serve --model {options.model} --port {{port}} --log-level warn {options.flags}"
        found = [(name, f"{base} {flags}") for name, flags in named(options.setting or ["sluice="], "--setting")]
    else:
        found = []
    return [(name, f"{options.prefix} {command}".strip()) for name, command in found]


def keys(options):
    found = []
    for item in options.key:
        name, equals, share = item.rpartition("=")
        try:
            found.append((name, float(share)) if equals else (item, 1.0))
        except ValueError:
            found.append((item, 1.0))
    return found


async def character_rates(url, texts, key):
    """Characters per token of every domain, as the server's tokenizer counts; 3 where it does not tell."""
    client, rates = http.Client(url), {}
    for domain, text in texts.items():
        sample = text[:4000]
        exchange = http.Exchange()
        await client.send(exchange, "POST", "/tokenize", {"content": sample}, key=key, timeout=30)
        try:
            rates[domain] = len(sample) / len(json.loads(exchange.body())["tokens"])
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            rates[domain] = 3.0
    client.close()
    return rates


class Load:
    """One plan of requests, sent to one server after the other."""

    def __init__(self, options):
        self.options = options
        self.keys = keys(options)
        self.plan = None
        self.intruder = None

    async def prepare(self, url):
        """The first server's tokenizer settles the lengths of texts; all servers get the same requests."""
        if self.plan is not None:
            return
        o = self.options
        if o.prompts == "text":
            source = prompts.TextPrompts(o.texts, [d for d in o.domains.split(",") if d])
            source.rates = await character_rates(url, source.texts, self.keys[0][0] if self.keys else "")
        else:
            source = prompts.TokenPrompts(o.vocabulary, int(o.domains or 8), o.words, o.zipf, o.confine, o.seed,
                                          striped=o.striped)
        mix = prompts.Mix(source, o.prompt_tokens, o.max_tokens, o.chat, not o.no_stream, not o.until_eos, o.shared_prefix,
                          {"temperature": o.temperature, **o.fields}, self.keys)
        self.plan = mix.plan(o.warm_up + o.requests, o.seed)
        if o.intruder:
            mix.prompt_tokens, mix.max_tokens = prompts.Lengths(o.intruder, o.intruder), prompts.Lengths(16, 16)
            self.intruder = traffic.Intruder(mix.plan(1, f"{o.seed} intruder")[0], o.intruder_at)

    async def run(self, url):
        await self.prepare(url)
        o = self.options
        driver = traffic.Driver(url, "/v1/chat/completions" if o.chat else "/v1/completions",
                                traffic.Arrivals(o.streams, o.rate, o.warm_up, o.timeout), not o.no_stream,
                                self.keys[0][0] if self.keys else "")
        return await driver.drive(self.plan, self.intruder, o.seed)


def measure(load, command, url):
    """(Run, figures) of one turn."""
    if not command:
        run = asyncio.run(load.run(url))
        return run, report.summarize(run)
    server = servers.ServerProcess(command)
    try:
        before = server.cpu_seconds()
        run = asyncio.run(load.run(server.url))
        figures = report.summarize(run, server)
        figures["server_cpu_seconds"] = server.cpu_seconds() - before
    except BaseException:
        print(server.log()[-2000:], file=sys.stderr)
        raise
    finally:
        server.stop()
    return run, figures


def same_answers(base, other):
    """How many of the requests that both answered whole got the same text, and how many those are."""
    texts = {e.tag: e.text for e in base.exchanges if e.counted and not http.error_name(e)}
    pairs = [(texts[e.tag], e.text) for e in other.exchanges
             if e.counted and not http.error_name(e) and e.tag in texts]
    return {"same": sum(a == b for a, b in pairs), "compared": len(pairs)}


def main():
    options = arguments()
    load = Load(options)
    turns = commands(options) or [(options.url, "")]
    taken = {name: [] for name, _ in turns}
    runs = {name: [] for name, _ in turns}
    for turn in range(options.repeats):
        for name, command in turns:
            run, figures = measure(load, command, options.url)
            taken[name].append(figures)
            runs[name].append(run)
            if options.json != "-":
                label = name if options.repeats == 1 else f"{name}, turn {turn + 1}"
                print(report.table(figures, label) + "\n", flush=True)
    result = {"arrivals": str(traffic.Arrivals(options.streams, options.rate)), "seed": options.seed}
    names = list(taken)
    if len(names) == 1 and options.repeats == 1:
        result.update(taken[names[0]][0])
    else:
        middle = {name: report.medians(taken[name]) for name in names}
        result["settings"] = {name: {"command": command, "median": middle[name], "repeats": taken[name]}
                              for name, command in turns}
        result["ratios"] = {name: report.ratios(middle[names[0]], middle[name]) for name in names[1:]}
        result["same_answers"] = {name: same_answers(runs[names[0]][0], runs[name][0]) for name in names[1:]}
        if options.json != "-":
            print(report.comparison_table(names, middle))
            for name, same in result["same_answers"].items():
                print(f"{name}: {same['same']} of {same['compared']} answers are those of {names[0]}")
    if options.json == "-":
        print(json.dumps(result, indent=1))
    elif options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        report.plot(options.plot, list(runs.items()), f"{result['arrivals']}, {options.requests} requests")
    failed = [f for figures in taken.values() for f in figures if not f["completed"]]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
