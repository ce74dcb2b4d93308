"""Train the demo model on the generated corpus until a wall-clock deadline.

The learning rate follows the clock (warm-up, plateau, linear decay to zero at the deadline), so that
a busy machine only costs tokens. Checkpoints go to --work; --resume continues from the latest one.
"""
import argparse
import datetime
import json
import pathlib
import random
import time

import torch
from tokenizers import Tokenizer

import corpus
from model import Config, HeadLoss, Model
from optim import Muon


class Batches:
    """Rows of whole documents packed to a fixed length, with loss weights and document ids."""

    def __init__(self, tokenizer, rows, length, seed, mixture=None):
        self.tokenizer, self.rows, self.length = tokenizer, rows, length
        self.stream, self.pool = corpus.documents(seed, mixture), []

    def refill(self):
        docs = [next(self.stream) for _ in range(2048)]
        parts = [part for doc in docs for part in doc]
        encoded = iter(self.tokenizer.encode_batch_fast([text for text, _ in parts]))
        for doc in docs:
            ids, weights = [], []
            for _, weight in doc:
                part = next(encoded).ids
                ids += part
                weights += [weight] * len(part)
            if len(ids) <= self.length:
                self.pool.append((ids, weights))

    def row(self):
        ids, weights, documents, misses, at = [], [], [], 0, len(self.pool) - 1
        while misses < 16 and at >= 0:
            if len(ids) + len(self.pool[at][0]) <= self.length + 1:
                i, w = self.pool.pop(at)
                documents += [documents[-1] + 1 if documents else 0] * len(i)
                ids += i
                weights += [0.0] + w[1:]  # nothing predicts a document's first token
            else:
                misses += 1
            at -= 1
        pad = self.length + 1 - len(ids)
        return ids + [0] * pad, weights + [0.0] * pad, documents + [-1] * pad

    def next(self):
        if len(self.pool) < 1024:
            self.refill()
        ids, weights, documents = (torch.tensor(x) for x in zip(*(self.row() for _ in range(self.rows))))
        return ids[:, :-1], ids[:, 1:], weights[:, 1:], documents[:, :-1]


@torch.no_grad()
def probe(model, tokenizer, count):
    """Exact match by family: every answer token is the most likely one given the true ones before it."""
    out = {}
    model.eval()
    for task in corpus.TASK_NAMES:
        items = corpus.evaluation_items(task, count)
        prompts = [tokenizer.encode(i.prompt).ids for i in items]
        rows = [p + tokenizer.encode(i.answer + "\n").ids for p, i in zip(prompts, items)]
        ids = torch.tensor([r + [0] * (max(map(len, rows)) - len(r)) for r in rows])
        best = model.logits(model(ids)[0]).argmax(-1)
        out[task] = sum(bool((best[n, len(p) - 1:len(r) - 1] == ids[n, len(p):len(r)]).all())
                        for n, (p, r) in enumerate(zip(prompts, rows))) / len(items)
    model.train()
    return out


def schedule(progress, step, plateau):
    warm = min(1.0, (step + 1) / 60)
    return warm * min(1.0, max(0.0, (1 - progress) / (1 - plateau)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--deadline", required=True, help="HH:MM, today, local time")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--lr", type=float, default=0.02, help="Muon")
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--balance", type=float, default=0.01)
    parser.add_argument("--plateau", type=float, default=0.45)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mixture", help="JSON overrides of corpus.MIXTURE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--restart-clock", action="store_true", help="with --resume: a new schedule from now")
    parser.add_argument("--steps", type=int, default=10**9, help="for measurements")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = Model(Config(vocab=tokenizer.get_vocab_size()))
    c = model.c
    splits = {"qkv": [c.heads * c.head_dim] + [c.kv_heads * c.head_dim] * 2, "o": [c.hidden],
              "gate_up": [c.intermediate] * 2, "down": [c.hidden]}
    matrices = [(p, splits[n.split(".")[-1]]) for n, p in model.named_parameters() if n.split(".")[-1] in splits]
    rest = [p for n, p in model.named_parameters() if n.split(".")[-1] not in splits]
    optimizers = [Muon(matrices, args.lr, weight_decay=0.05),
                  torch.optim.AdamW(rest, args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    bases = [args.lr, args.adam_lr]
    step = tokens = 0
    spent, start, path = 0.0, time.time(), args.work / "checkpoint.pt"
    if args.resume:
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        for o, s in zip(optimizers, saved["optimizers"]):
            o.load_state_dict(s)
        step, tokens, spent = saved["step"], saved["tokens"], saved["spent"]
        start = start if args.restart_clock else saved["start"]
    hours, minutes = map(int, args.deadline.split(":"))
    deadline = datetime.datetime.now().replace(hour=hours, minute=minutes, second=0).timestamp()
    mixture = corpus.MIXTURE | json.loads(args.mixture or "{}")
    batches = Batches(tokenizer, args.rows, args.length, f"train-{args.seed}-{step}", mixture)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {args}", flush=True)

    def save():
        torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                    "tokens": tokens, "spent": spent + time.time() - began, "start": start, "config": c.to_dict()},
                   path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    began = last_log = last_save = last_probe = time.time()
    seen, total, last_step = 0, 0.0, step + args.steps
    while time.time() < deadline and step < last_step:
        rate = schedule((time.time() - start) / (deadline - start), step, args.plateau)
        for o, base in zip(optimizers, bases):
            for group in o.param_groups:
                group["lr"] = base * rate
        inputs, targets, weights, documents = batches.next()
        hidden, balance = model(inputs, documents)
        loss = HeadLoss.apply(hidden.flatten(0, 1), model.embed, targets.flatten(), weights.flatten() / weights.sum())
        (loss + args.balance * balance).backward()
        for o in optimizers:
            o.step()
        model.zero_grad(set_to_none=True)
        step += 1
        tokens += int((documents >= 0).sum())
        seen += int((documents >= 0).sum())
        total = loss.item() if total == 0 else 0.95 * total + 0.05 * loss.item()
        now = time.time()
        if step % 50 == 0 or step == last_step:
            low = [min(layer.load.tolist()) / layer.load.sum().item() * c.experts for layer in model.layers]
            print(f"{datetime.datetime.now():%H:%M:%S} step {step} tokens {tokens / 1e6:.2f}M loss {total:.4f} "
                  f"balance {balance.item():.3f} least expert {min(low):.2f} lr x{rate:.2f} "
                  f"{seen / (now - last_log):.0f} tok/s", flush=True)
            last_log, seen = time.time(), 0
        if now - last_probe > 240:
            print("probe " + " ".join(f"{t}={v:.2f}" for t, v in probe(model, tokenizer, 40).items()), flush=True)
            last_probe = time.time()
        if now - last_save > 120:
            save()
            last_save = time.time()
    save()
    print("final probe " + " ".join(f"{t}={v:.2f}" for t, v in probe(model, tokenizer, 100).items()), flush=True)


if __name__ == "__main__":
    main()
