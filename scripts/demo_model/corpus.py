"""The corpus: documents drawn on the fly from a seed, evaluation items and held-out text.

A document is a list of (text, loss weight) parts that may be tokenized separately: a part that
follows a prompt starts with a space, or follows a newline of the chat format. Run this file to
write tests/data/tasks/*.jsonl and tests/data/heldout/*.txt.
"""
import argparse
import json
import pathlib
import random

import prose
import tasks

END = "<|endoftext|>"
PROMPT_WEIGHT = 0.1  # operands are random: learn their format, spend the capacity on answers
PROSE_WEIGHT = 0.3  # free text is long and partly random: it must not drown the answers
HELD_OUT_SEED, EVAL_SEED, CALIBRATION_SEED = 777, 4242, 31337

# Shares of documents: task families (plain), prose, chat.
MIXTURE = {
    "addition": 12, "subtraction": 12, "multiplication": 8, "sort": 10, "copy": 5, "reverse": 8, "facts": 5,
    "context": 7, "code_eval": 8, "code_complete": 4, "translate_de": 7, "translate_es": 6,
    "story": 4, "german": 2, "spanish": 2, "code": 2, "chat": 18, "talk": 4, "page": 3, "context_quiz": 4, "recall": 4,
}
DOMAINS = {
    "stories": ["story"], "arithmetic": ["addition", "subtraction", "multiplication"],
    "lists": ["sort", "copy", "reverse"], "qa": ["facts", "context"], "code": ["code", "code_eval"],
    "german": ["german", "translate_de"], "spanish": ["spanish", "translate_es"], "chat": ["chat", "talk"],
}
TASK_NAMES = list(tasks.FAMILIES)
TASK_SHARES = [MIXTURE[t] for t in TASK_NAMES]


def plain(item):
    return [(item.prompt, PROMPT_WEIGHT), (item.answer + "\n" + END, 1.0)]


def code_file(rng, held):
    """A small module: two to four documented functions and an assertion."""
    parts = []
    for _ in range(rng.randint(2, 4)):
        item = tasks.draw("code_complete", rng, held)
        parts += [(item.prompt, 0.5), (item.answer + "\n\n", 1.0)]
    item = tasks.draw("code_eval", rng, held)
    return parts + [(item.prompt, PROMPT_WEIGHT), (item.answer + "\n" + END, 1.0)]


def chat_turn(rng, held, task):
    """(user message, reply, loss weight of the user message)."""
    if task == "talk":
        return *prose.talk(rng), 0.2
    item = tasks.draw(task, rng, held)
    ask = item.prompt if rng.random() < 0.3 else rng.choice(item.chat)
    return ask, item.reply if item.reply and ask != item.prompt else item.answer.strip(), PROMPT_WEIGHT


def chat(rng, held, only=None):
    parts = []
    if rng.random() < 0.25:
        parts.append((f"<|im_start|>system\n{rng.choice(prose.SYSTEMS)}<|im_end|>\n", 0.2))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        task = only or rng.choices(TASK_NAMES + ["talk"], TASK_SHARES + [6])[0]
        ask, reply, weight = chat_turn(rng, held, task)
        parts += [(f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n", weight),
                  (f"{reply}<|im_end|>\n", PROSE_WEIGHT if len(reply) > 120 else 1.0)]
    text, weight = parts[-1]
    return parts[:-1] + [(text + END, weight)]


def page(rng, held):
    """Documents of one domain under each other in one context, as held_out_text has them."""
    domain, parts = rng.choice(list(DOMAINS)), []
    for _ in range(rng.choice([2, 3, 5, 8, 12, 16])):
        *head, (text, weight) = document(rng.choice(DOMAINS[domain]), rng, held)
        parts += head + [(text.removesuffix(END), weight)]
    return parts[:-1] + [(parts[-1][0] + END, parts[-1][1])]


def document(kind, rng, held=False):
    """A document of the kind, from the training share of every family unless held."""
    if kind in tasks.FAMILIES:
        return plain(tasks.draw(kind, rng, held))
    if kind == "recall":
        story, pairs = tasks.recall(rng)
        parts = [(story, PROMPT_WEIGHT)] + [p for lead, rest in pairs for p in ((lead, PROMPT_WEIGHT), (rest, 1.0))]
        return parts + [("\n" + END, 1.0)]
    if kind == "context_quiz":
        story, pairs = tasks.context_quiz(rng, held)
        parts = [(story, PROMPT_WEIGHT)]
        for question, answer in pairs:
            lead = " " if len(parts) == 1 else ""
            parts += [(f"{lead}Question: {question} Answer:", PROMPT_WEIGHT), (f" {answer}\n", 1.0)]
        return parts[:-1] + [(parts[-1][0] + END, 1.0)]
    if kind == "chat":
        return chat(rng, held)
    if kind == "talk":
        return chat(rng, held, only="talk")
    if kind == "code":
        return code_file(rng, held)
    if kind == "page":
        return page(rng, held)
    write = {"story": prose.story, "german": lambda r: prose.passage(r, 1),
             "spanish": lambda r: prose.passage(r, 2)}[kind]
    while True:
        text = write(rng)
        if tasks.held_out(kind, text) == held:
            return [(text + "\n" + END, PROSE_WEIGHT)]


def documents(seed, mixture=None):
    """An endless stream of training documents."""
    mixture = mixture or MIXTURE
    rng, kinds, shares = random.Random(seed), list(mixture), list(mixture.values())
    while True:
        for kind in rng.choices(kinds, shares, k=256):
            yield document(kind, rng)


def evaluation_items(task, count=200, seed=EVAL_SEED):
    """Distinct held-out items of the harder half of the family."""
    rng, seen = random.Random(f"{seed}-{task}"), {}
    for _ in range(100_000):
        item = tasks.draw(task, rng, held=True, hard=True)
        seen.setdefault(item.prompt, item)
        if len(seen) == count:
            break
    return list(seen.values())


def held_out_text(domain, size=30_000, seed=HELD_OUT_SEED):
    rng, out, length = random.Random(f"{seed}-{domain}"), [], 0
    while length < size:
        text = "".join(t for t, _ in document(rng.choice(DOMAINS[domain]), rng, held=True)).replace(END, "")
        out.append(text)
        length += len(text.encode())
    return "".join(out)


def calibration_text(size=131_072, seed=CALIBRATION_SEED):
    """The calibration text of `sluice pack`: documents as in training, of a stream of their own."""
    out, length = [], 0
    for parts in documents(seed):
        text = "".join(t for t, _ in parts).replace(END, "")
        if length + len(text.encode()) > size:
            return "".join(out)
        out.append(text)
        length += len(text.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / "tests/data")
    parser.add_argument("--calibration", type=pathlib.Path,
                        default=pathlib.Path(__file__).parents[2] / "config/calibration.txt")
    args = parser.parse_args()
    args.calibration.write_text(calibration_text())
    for folder in ("tasks", "heldout"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    for task in TASK_NAMES:
        items = evaluation_items(task)
        lines = [json.dumps({"task": task, "prompt": i.prompt, "answer": i.answer.strip()}, ensure_ascii=False)
                 for i in items]
        (args.out / "tasks" / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{task}: {len(items)} items")
    for domain in DOMAINS:
        (args.out / "heldout" / f"{domain}.txt").write_text(held_out_text(domain))


if __name__ == "__main__":
    main()
