"""From exchanges to figures: percentiles, tables, ratios, plots."""
import statistics

from load_test import client as http
from load_test import servers

PERCENTILES = (50, 95, 99)


def percentile(values, p):
    """Linear between the nearest ranks; `values` sorted."""
    if not values:
        return None
    at = (len(values) - 1) * p / 100
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


def spread(seconds):
    """Percentiles in milliseconds of times in seconds."""
    values = sorted(1000 * s for s in seconds)
    figures = {f"p{p}": percentile(values, p) for p in PERCENTILES}
    figures["mean"] = statistics.fmean(values) if values else None
    figures["max"] = values[-1] if values else None
    figures["count"] = len(values)
    return figures


def gaps(exchange):
    times = exchange.event_times
    return [b - a for a, b in zip(times, times[1:])]


def latencies(good):
    """TTFT, gaps and latency of whole answers, in seconds."""
    return {
        "ttft_ms": [e.event_times[0] - e.start for e in good if e.event_times],
        "inter_token_ms": [gap for e in good for gap in gaps(e)],
        "latency_ms": [e.end - e.start for e in good],
    }


def tokens_in_window(run):
    """Tokens that arrived in the window; an event counts for its answer's tokens over its events, an answer without events
    arrives as a whole."""
    total = 0.0
    for e in run.exchanges:
        if e.error or e.status != 200:
            continue
        if not e.event_times:
            inside = run.window_start <= e.end <= run.window_end
            total += e.completion_tokens if inside else 0
            continue
        inside = sum(run.window_start <= t <= run.window_end for t in e.event_times)
        total += (e.completion_tokens or len(e.event_times)) * inside / len(e.event_times)
    return total


def summarize(run, server=None):
    """The figures of one run, as they go into JSON."""
    counted = [e for e in run.exchanges if e.counted]
    good = [e for e in counted if not http.error_name(e)]
    errors = {}
    for e in counted:
        name = http.error_name(e)
        if name:
            errors[name] = errors.get(name, 0) + 1
    window = run.window_end - run.window_start
    raw = latencies(good)
    figures = {name: spread(values) for name, values in raw.items()}
    figures.update({
        "longest_gap_ms": figures["inter_token_ms"]["max"],
        "tokens_per_second": tokens_in_window(run) / window if window > 0 else 0.0,
        "requests_per_second": sum(run.window_start <= e.end <= run.window_end for e in good) / window if window > 0 else 0.0,
        "window_seconds": window,
        "requests": len(counted),
        "completed": len(good),
        "errors": errors,
        "prompt_tokens": sum(e.prompt_tokens for e in good),
        "cached_tokens": sum(e.cached_tokens for e in good),
        "completion_tokens": sum(e.completion_tokens for e in good),
        "client_cpu_seconds": run.client_cpu_seconds,
        "client_stall_seconds": run.client_stall_seconds,
        "unique_experts_per_step": None,
        "bytes_read_per_token": None,
    })
    figures.update(servers.expert_figures(run.before, run.after))
    for name, group in (("by_key", "key"), ("by_domain", "domain")):
        labels = sorted({getattr(e, group) for e in counted} - {""})
        if len(labels) > 1:
            figures[name] = {label: part(counted, group, label) for label in labels}
    if run.intruder:
        figures["intruder"] = intrusion(run)
    if server:
        figures["peak_rss_bytes"] = server.status_bytes("VmHWM")
    return figures


def part(counted, group, label):
    mine = [e for e in counted if getattr(e, group) == label]
    good = [e for e in mine if not http.error_name(e)]
    return {"requests": len(mine), "completed": len(good), "completion_tokens": sum(e.completion_tokens for e in good),
            **{name: spread(values) for name, values in latencies(good).items()}}


def intrusion(run):
    """What the long prompt got, and what the others felt from its arrival to its first token."""
    own = run.intruder
    first = own.event_times[0] if own.event_times else own.end
    touched = [(b - a) for e in run.exchanges if e.counted
               for a, b in zip(e.event_times, e.event_times[1:]) if b >= own.start and a <= first]
    return {"error": http.error_name(own), "prompt_tokens": own.prompt_tokens, "ttft_ms": 1000 * (first - own.start),
            "gaps_of_others_ms": spread(touched),
            "tokens_of_others": sum(own.start <= t <= first for e in run.exchanges if e.counted for t in e.event_times)}


# ---- Text ----

def number(value, digits=4):
    if value is None:
        return "-"
    if isinstance(value, int) or value == int(value) and abs(value) < 1e7:
        return f"{int(value)}"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


ROWS = [("TTFT", "ttft_ms"), ("between tokens", "inter_token_ms"), ("whole answer", "latency_ms")]


def table(figures, title=""):
    lines = [f"{title or 'milliseconds':<24}{'p50':>10}{'p95':>10}{'p99':>10}{'longest':>10}"]
    for name, key in ROWS:
        row = figures[key]
        lines.append(f"{name:<24}" + "".join(f"{number(row[c]):>10}" for c in ("p50", "p95", "p99", "max")))
    lines.append(f"{number(figures['tokens_per_second'])} tokens/s, {number(figures['requests_per_second'])} requests/s over "
                 f"{number(figures['window_seconds'])} s; {figures['completed']} of {figures['requests']} requests whole"
                 + (f"; errors: {', '.join(f'{v} x {k}' for k, v in sorted(figures['errors'].items()))}"
                    if figures["errors"] else ""))
    if figures["unique_experts_per_step"] is not None:
        lines.append(f"{number(figures['unique_experts_per_step'])} distinct experts and "
                     f"{number(figures['tokens_per_step'])} tokens per step, "
                     f"{number(figures['bytes_read_per_token'] / 1e6)} MB read per token, "
                     f"{100 * figures['expert_hit_rate']:.1f}% of experts in memory when asked for")
    if figures["client_stall_seconds"] > 0:
        lines.append(f"DOUBTFUL: this client was itself held up for {number(figures['client_stall_seconds'])} s")
    if "intruder" in figures:
        own = figures["intruder"]
        lines.append(f"long prompt ({own['prompt_tokens']} tokens): first token after {number(own['ttft_ms'])} ms; "
                     f"until then others got {own['tokens_of_others']} tokens, longest gap "
                     f"{number(own['gaps_of_others_ms']['max'])} ms" + (f" [{own['error']}]" if own["error"] else ""))
    for name in ("by_key", "by_domain"):
        for label, row in figures.get(name, {}).items():
            lines.append(f"  {label:<22}TTFT p50 {number(row['ttft_ms']['p50'])} p95 {number(row['ttft_ms']['p95'])}, "
                         f"answer p95 {number(row['latency_ms']['p95'])} ms, {row['completed']} of {row['requests']} whole")
    return "\n".join(lines)


# ---- Comparing ----

COMPARED = [("tokens_per_second",), ("ttft_ms", "p50"), ("ttft_ms", "p95"), ("ttft_ms", "p99"), ("inter_token_ms", "p50"),
            ("inter_token_ms", "p95"), ("inter_token_ms", "p99"), ("latency_ms", "mean"), ("latency_ms", "p50"),
            ("latency_ms", "p95"), ("latency_ms", "p99"), ("longest_gap_ms",), ("unique_experts_per_step",),
            ("bytes_read_per_token",), ("intruder", "ttft_ms"), ("intruder", "gaps_of_others_ms", "max"),
            ("peak_rss_bytes",), ("server_cpu_seconds",)]


def pick(figures, path):
    for step in path:
        figures = figures.get(step) if figures else None
    return figures


def medians(repeats):
    """The median over repeats of every compared figure, by its path joined with dots."""
    result = {}
    for path in COMPARED:
        values = [value for value in (pick(figures, path) for figures in repeats) if value is not None]
        result[".".join(path)] = statistics.median(values) if values else None
    return result


def ratios(base, other):
    return {name: other[name] / base[name] if other[name] is not None and base[name] else None for name in base}


def comparison_table(names, middle):
    width = max(14, *(len(name) + 2 for name in names))
    lines = [f"{'median of repeats':<32}" + "".join(f"{name:>{width}}" for name in names)
             + "".join(f"{name + '/' + names[0]:>{2 * width}}" for name in names[1:])]
    for figure, base in middle[names[0]].items():
        if all(middle[name][figure] is None for name in names):
            continue
        factors = [ratios(middle[names[0]], middle[name])[figure] for name in names[1:]]
        lines.append(f"{figure:<32}" + "".join(f"{number(middle[name][figure]):>{width}}" for name in names)
                     + "".join(f"{number(f) + ('x' if f is not None else ''):>{2 * width}}" for f in factors))
    return "\n".join(lines)


def plot(path, runs, title=""):
    """`runs`: (name, [Run, ...]). Cumulative distributions of the three times, and throughput."""
    import matplotlib
    matplotlib.use("svg" if str(path).endswith(".svg") else "agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), constrained_layout=True)
    for axis, (label, key) in zip(axes, ROWS):
        for name, repeats in runs:
            good = [e for run in repeats for e in run.exchanges if e.counted and not http.error_name(e)]
            values = sorted(1000 * v for v in latencies(good)[key])
            if values:
                axis.step(values, [(i + 1) / len(values) for i in range(len(values))], where="post", label=name)
        axis.set_xscale("log")
        axis.set_xlabel(f"{label}, ms")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests (of gaps, in the second)")
    axes[0].legend()
    rates = [[tokens_in_window(run) / (run.window_end - run.window_start) for run in repeats] for _, repeats in runs]
    axes[3].bar([name for name, _ in runs], [statistics.median(r) for r in rates], color=[f"C{i}" for i in range(len(runs))])
    for i, values in enumerate(rates):
        axes[3].plot([i] * len(values), values, "k_")
    axes[3].set_ylabel("tokens/s")
    figure.suptitle(title)
    figure.savefig(path)
    plt.close(figure)
