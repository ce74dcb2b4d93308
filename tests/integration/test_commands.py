"""The subcommands that scripts rely on."""
import json
import pathlib
import subprocess

import pytest

from conftest import BINARY, DEMO_MODEL, ROOT


def sluice(*arguments, check=True):
    done = subprocess.run([str(BINARY), *arguments], capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("command", [[], ["serve"], ["inspect"], ["bench"], ["eval"], ["plan"]])
def test_help_is_printed_for_every_command(command):
    assert "--help" in sluice(*command, "--help").stdout


def test_bench_prints_the_rows_that_scripts_read():
    rows = json.loads(sluice("bench", "--model", str(DEMO_MODEL), "--prompt", "32", "--generate", "8", "--streams",
                             "2", "--threads", "2", "--repeats", "2", "--json").stdout)
    assert {row["test"] for row in rows} == {"prefill", "decode"}
    for row in rows:
        assert 0 < row["min"] <= row["tokens_per_second"] <= row["max"]
        assert row["bound"] > 0 and abs(row["bound_fraction"] - row["tokens_per_second"] / row["bound"]) < 1e-6


def test_plan_foretells_what_a_budget_holds(tmp_path):
    pack = tmp_path / "demo.sluice"
    sluice("pack", str(DEMO_MODEL), str(pack), "--bits", "8", "--dense-bits", "8")
    settings = ["--model", str(pack), "--context", "64", "--max-running", "2", "--max-batch-tokens", "64"]

    def plan(*arguments):
        return json.loads(sluice("plan", *settings, "--json", *arguments).stdout)

    whole = plan()
    assert whole["hit_rate"] == 1 and whole["bytes_read_per_token"] == 0
    assert whole["expert_bytes_in_memory"] == whole["expert_bytes"] > 0
    assert whole["decode_tokens_per_second"] > 0 and whole["prefill_tokens_per_second"] > 0
    assert whole["startup_seconds"] > 0
    assert plan("--users", "2")["kv_bytes"] == 2 * whole["kv_bytes"] > 0

    part = plan("--memory-budget", str(whole["least_budget"] + whole["expert_bytes"] // 4))
    assert 0 < part["expert_bytes_in_memory"] < part["expert_bytes"]
    assert 0 < part["hit_rate"] < 1 and part["bytes_read_per_token"] > 0
    assert part["decode_tokens_per_second"] < whole["decode_tokens_per_second"]
    parts = sum(part[name] for name in ("weights_bytes", "kv_bytes", "buffer_bytes", "process_bytes",
                                        "expert_bytes_in_memory"))
    assert 0.97 * part["memory_budget"] < parts <= part["memory_budget"]

    refused = sluice("plan", *settings, "--memory-budget", "1MiB", check=False)
    assert refused.returncode == 2 and "at least" in refused.stderr


def test_eval_prints_perplexity_of_a_text():
    text = sorted((ROOT / "tests" / "data" / "heldout").glob("*.txt"))[0]
    report = json.loads(sluice("eval", "--model", str(DEMO_MODEL), "--text", str(text), "--json").stdout)
    assert report["tokens"] > 1000 and 1 < report["perplexity"] < 100


def test_the_demo_model_still_solves_its_tasks(tmp_path):
    """The first 25 items of every family; the full sets' figures are in the demo model's README."""
    subset = tmp_path / "subset.jsonl"
    lines = []
    for path in sorted((ROOT / "tests" / "data" / "tasks").glob("*.jsonl")):
        lines += path.read_text().splitlines()[:25]
    subset.write_text("\n".join(lines) + "\n")
    report = json.loads(sluice("eval", "--model", str(DEMO_MODEL), "--tasks", str(subset), "--json").stdout)
    accuracy = report["accuracy"]
    assert len(accuracy) >= 6
    assert sum(value >= 0.8 for value in accuracy.values()) > len(accuracy) / 2, accuracy


@pytest.mark.parametrize("arguments,words", [
    (["serve", "--model", "/nowhere"], ["/nowhere"]),
    (["serve", "--model", str(DEMO_MODEL), "--port", "99999"], ["port"]),
    (["bench", "--model", str(DEMO_MODEL), "--prompt", "0"], ["prompt"]),
    (["eval", "--model", str(DEMO_MODEL), "--text", "/nowhere.txt"], ["/nowhere.txt"]),
    (["eval", "--model", str(DEMO_MODEL), "--text", "/nowhere.txt", "--kv-dtype", "q4"], ["--kv-dtype", "q4", "q8"]),
    (["plan", "--model", "/nowhere"], ["/nowhere"]),
    (["plan", "--model", str(DEMO_MODEL), "--users", "0"], ["--users"]),
    (["plan", "--model", str(DEMO_MODEL), "--prompt", "2000000000"], ["2000000000", "longer than the model"]),
    (["plan", "--model", str(DEMO_MODEL), "--trace", "/nowhere.trace"], ["/nowhere.trace"]),
    (["bench", "--model", str(DEMO_MODEL), "--kv-dtype", "q4"], ["--kv-dtype", "q4", "q8"]),
])
def test_a_wrong_argument_is_refused_with_its_name(arguments, words):
    done = sluice(*arguments, check=False)
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr


def test_a_truncated_model_is_refused_by_name(tmp_path):
    for path in pathlib.Path(DEMO_MODEL).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = sluice("serve", "--model", str(tmp_path), "--port", "0", check=False)
    assert done.returncode != 0 and "model.safetensors" in done.stderr
