"""Train the demo model on the generated corpus until a wall-clock deadline.

The learning rate follows the clock (warm-up, plateau, linear decay to zero at the deadline), so that
a busy machine only costs tokens. Checkpoints go to --work; --resume continues from the latest one.

Every rank is a single-threaded process with its own share of the batch. Parameters and gradients
lie in shared memory: the ranks meet twice a step, between them each updates the parameters it owns
(so that a thread that loses its core for a while delays nobody inside a matrix product).
"""
import argparse
import datetime
import json
import pathlib
import time

import torch
import torch.multiprocessing as mp
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
def probe(model, tokenizer, count, names):
    """Exact match by family: every answer token is the most likely one given the true ones before it."""
    out = {}
    model.eval()
    for task in names:
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


SPLITS = {"qkv", "o", "gate_up", "down"}  # the matrices that Muon updates


def owner(name, ranks):
    """The rank that updates the parameter."""
    return int(name.split(".")[1]) % ranks if name.startswith("layers.") else 0


def optimizers_of(model, args, rank, states):
    """Muon and AdamW over the parameters that the rank owns, with their saved states."""
    c = model.c
    widths = {"qkv": [c.heads * c.head_dim] + [c.kv_heads * c.head_dim] * 2, "o": [c.hidden],
              "gate_up": [c.intermediate] * 2, "down": [c.hidden]}
    mine = {n: p for n, p in model.named_parameters() if owner(n, args.ranks) == rank}
    muon = Muon([(p, widths[n.split(".")[-1]]) for n, p in mine.items() if n.split(".")[-1] in SPLITS],
                args.lr, weight_decay=0.05)
    adam = torch.optim.AdamW([p for n, p in mine.items() if n.split(".")[-1] not in SPLITS], args.adam_lr,
                             betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for n, p in mine.items():
        if n in states:
            (muon if n.split(".")[-1] in SPLITS else adam).state[p] = states[n]
    return mine, muon, adam


def replace(path, content):
    torch.save(content, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def work(rank, args, model, shared, control, barrier, saved):
    """One rank. control, written by rank 0 before the first meeting: stop, save, probe, rate; then tokens by rank."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    step, tokens, spent, start = saved["step"], saved["tokens"], saved["spent"], saved["start"]
    states = {}
    for path in args.work.glob("states-*.pt") if args.resume else []:
        states |= torch.load(path)
    mine, muon, adam = optimizers_of(model, args, rank, states)
    hours, minutes = map(int, args.deadline.split(":"))
    deadline = datetime.datetime.now().replace(hour=hours, minute=minutes, second=0).timestamp()
    mixture = corpus.MIXTURE | json.loads(args.mixture or "{}")
    batches = Batches(tokenizer, args.rows // args.ranks, args.length, f"train-{args.seed}-{step}-{rank}", mixture)
    names = corpus.TASK_NAMES[rank::args.ranks]
    began = last_log = last_save = last_probe = time.time()
    seen, total, stop, last_step = 0, 0.0, False, step + args.steps

    def save():
        replace(args.work / f"states-{rank}.pt", {n: (muon.state if p in muon.state else adam.state)[p]
                                                  for n, p in mine.items()})
        if rank == 0:
            replace(args.work / "checkpoint.pt", {
                "model": model.state_dict(), "step": step, "tokens": tokens, "start": start,
                "spent": spent + time.time() - began, "config": model.c.to_dict()})

    def show(title, count):
        print(title, " ".join(f"{t}={v:.2f}" for t, v in probe(model, tokenizer, count, names).items()), flush=True)

    while not stop:
        inputs, targets, weights, documents = batches.next()
        hidden, balance = model(inputs, documents)
        loss = HeadLoss.apply(hidden.flatten(0, 1), model.embed, targets.flatten(), weights.flatten() / weights.sum())
        (loss + args.balance * balance).backward()
        for n, p in model.named_parameters():
            shared[n][rank].copy_(p.grad)
        control[4 + rank] = (documents >= 0).sum()
        if rank == 0:
            now = time.time()
            control[0] = now >= deadline or step + 1 >= last_step
            control[1], control[2] = now - last_save > 120, now - last_probe > 240
            control[3] = schedule((now - start) / (deadline - start), step, args.plateau)
        barrier.wait()
        stop, saving, probing = (bool(x) for x in control[:3])
        for optimizer, base in ((muon, args.lr), (adam, args.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = base * control[3].item()
        for n, p in model.named_parameters():
            p.grad = shared[n].mean(0) if n in mine else None
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        fresh = int(control[4:].sum())
        barrier.wait()
        step += 1
        tokens += fresh
        seen += fresh
        total = loss.item() if total == 0 else 0.95 * total + 0.05 * loss.item()
        if rank == 0 and (step % 50 == 0 or stop):
            low = [min(layer.load.tolist()) / layer.load.sum().item() * model.c.experts for layer in model.layers]
            print(f"{datetime.datetime.now():%H:%M:%S} step {step} tokens {tokens / 1e6:.2f}M loss {total:.4f} "
                  f"balance {balance.item():.3f} least expert {min(low):.2f} lr x{control[3].item():.2f} "
                  f"{seen / (time.time() - last_log):.0f} tok/s", flush=True)
            last_log, seen = time.time(), 0
        if probing and not stop:
            show("probe", 40)
            last_probe = time.time()
        if saving or stop:
            save()
            last_save = time.time()
    show("final probe", 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--deadline", required=True, help="HH:MM, today, local time")
    parser.add_argument("--rows", type=int, default=28)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--lr", type=float, default=0.014, help="Muon")
    parser.add_argument("--adam-lr", type=float, default=2.5e-3)
    parser.add_argument("--balance", type=float, default=0.01)
    parser.add_argument("--plateau", type=float, default=0.45)
    parser.add_argument("--ranks", type=int, default=2, help="processes of one thread")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mixture", help="JSON overrides of corpus.MIXTURE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--restart-clock", action="store_true", help="with --resume: a new schedule from now")
    parser.add_argument("--steps", type=int, default=10**9, help="for measurements")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = Model(Config(vocab=Tokenizer.from_file(str(args.work / "tokenizer.json")).get_vocab_size()))
    saved = {"step": 0, "tokens": 0, "spent": 0.0, "start": time.time()}
    if args.resume:
        loaded = torch.load(args.work / "checkpoint.pt")
        model.load_state_dict(loaded["model"])
        saved |= {k: loaded[k] for k in saved if not (k == "start" and args.restart_clock)}
    model.share_memory()
    shared = {n: torch.zeros(args.ranks, *p.shape).share_memory_() for n, p in model.named_parameters()}
    control = torch.zeros(4 + args.ranks, dtype=torch.float64).share_memory_()
    barrier = mp.get_context("spawn").Barrier(args.ranks)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {args}", flush=True)
    mp.spawn(work, (args, model, shared, control, barrier, saved), nprocs=args.ranks)


if __name__ == "__main__":
    main()
