"""Measure an exported folder with transformers: exact match by task, perplexity and experts by domain.

Tasks: greedy continuation of the raw prompt; the text up to the first newline must equal the answer.
Perplexity: held-out text in windows, every token but the first of a window counts once.
"""
import argparse
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).parents[2]


@torch.no_grad()
def continuations(model, tokenizer, prompts, limit):
    """Greedy continuations up to the first newline, in batches padded on the left."""
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    width = batch["input_ids"].shape[1]
    newline = [i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])]
    out = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=limit,
                         do_sample=False, eos_token_id=newline + [tokenizer.eos_token_id, tokenizer.pad_token_id],
                         pad_token_id=tokenizer.pad_token_id)
    return [tokenizer.decode(row[width:], skip_special_tokens=True).split("\n")[0].strip() for row in out]


def accuracy(model, tokenizer, path, limit, show):
    items = [json.loads(line) for line in path.read_text().splitlines()]
    right = 0
    for at in range(0, len(items), 50):
        part = items[at:at + 50]
        for item, text in zip(part, continuations(model, tokenizer, [i["prompt"] for i in part], limit)):
            right += text == item["answer"].strip()
            if text != item["answer"].strip() and show > 0:
                print(f"  {item['prompt']!r}: {text!r} for {item['answer']!r}")
                show -= 1
    return right / len(items)


@torch.no_grad()
def perplexity(model, tokenizer, path, window):
    """(perplexity, tokens, share of each expert by layer [layers, experts])."""
    ids = torch.tensor(tokenizer.encode(path.read_text(), add_special_tokens=False))
    loss = count = 0
    load = torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    for part in ids.split(window):
        if len(part) < 2:
            continue
        out = model(part[None], output_router_logits=True)
        loss += F.cross_entropy(out.logits[0, :-1].float(), part[1:], reduction="sum").item()
        count += len(part) - 1
        for n, logits in enumerate(out.router_logits):
            chosen = logits.topk(model.config.num_experts_per_tok, -1).indices
            load[n] += torch.bincount(chosen.flatten(), minlength=load.shape[1])
    return math.exp(loss / count), count, load / load.sum(1, keepdim=True)


def show_experts(loads):
    """Print how much each domain concentrates on few experts, and on which more than the others do."""
    mean = torch.stack(list(loads.values())).mean(0)
    print(f"least used expert: {mean.min().item() * mean.shape[1]:.2f} of an even share")
    for domain, load in loads.items():
        half = load.sort(-1, descending=True).values[:, :8].sum(-1).mean().item()
        ratio, at = (load / mean.clamp_min(1e-9)).flatten().sort(descending=True)
        top = ", ".join(f"{i // mean.shape[1]}.{i % mean.shape[1]} x{r:.1f}" for r, i in
                        zip(ratio[:3].tolist(), at[:3].tolist()))
        print(f"experts {domain}: the 8 busiest of {mean.shape[1]} take {half:.0%}; most peculiar (layer.expert) {top}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "deploy/demo-model")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "tests/data")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--limit", type=int, default=64, help="new tokens per task item")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per task")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    loads = {}
    for path in sorted((args.data / "heldout").glob("*.txt")):
        value, count, loads[path.stem] = perplexity(model, tokenizer, path, args.window)
        print(f"perplexity {path.stem}: {value:.3f} over {count} tokens", flush=True)
    if loads:
        show_experts(loads)
    for path in sorted((args.data / "tasks").glob("*.jsonl")):
        print(f"exact match {path.stem}: {accuracy(model, tokenizer, path, args.limit, args.show):.3f}", flush=True)


if __name__ == "__main__":
    main()
