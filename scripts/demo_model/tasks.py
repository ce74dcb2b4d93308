"""Task families: each function draws one Item from a random generator.

An Item has the plain prompt, its answer (starting with a space), two or more chat phrasings of the
same question, and a key. Items whose key hashes into the held-out share never reach training, in
any phrasing.
"""
import random
import zlib
from dataclasses import dataclass, field

import lexicon as lx


@dataclass
class Item:
    task: str
    key: str
    prompt: str
    answer: str
    chat: list = field(default_factory=list)  # user messages that ask the same
    reply: str = ""  # assistant message; the stripped answer when empty


HELD_OUT_ONE_IN = {"multiplication": 5, "facts": 5, "code_complete": 5}


def held_out(task: str, key: str) -> bool:
    """True for the fixed pseudo-random share of items that training must never see."""
    digest = zlib.crc32(f"{task}|{key}".encode())
    return digest % HELD_OUT_ONE_IN.get(task, 10) == 0


def number(rng, digits):
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def addition(rng, hard=False):
    digits = [3, 3, 2] if hard else [3, 3, 3, 2, 2, 1]
    a, b = number(rng, rng.choice(digits)), number(rng, rng.choice(digits))
    return Item("addition", f"{a}+{b}", f"Add: {a} + {b} =", f" {a + b}",
                [f"What is {a} + {b}?", f"Add {a} and {b}.", f"{a} + {b}", f"What is {a} plus {b}?"])


def subtraction(rng, hard=False):
    digits = [3, 3, 2] if hard else [3, 3, 3, 2, 2, 1]
    a, b = number(rng, rng.choice(digits)), number(rng, rng.choice(digits))
    a, b = max(a, b), min(a, b)
    return Item("subtraction", f"{a}-{b}", f"Subtract: {a} - {b} =", f" {a - b}",
                [f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"{a} - {b}", f"What is {a} minus {b}?"])


def multiplication(rng, hard=False):
    a, b = rng.randint(2, 9), rng.randint(11, 99) if hard or rng.random() < 0.8 else rng.randint(1, 10)
    if rng.random() < 0.5:
        a, b = b, a
    return Item("multiplication", f"{a}*{b}", f"Multiply: {a} * {b} =", f" {a * b}",
                [f"What is {a} * {b}?", f"Multiply {a} by {b}.", f"{a} * {b}", f"What is {a} times {b}?"])


def sort(rng, hard=False):
    n = rng.randint(4 if hard else 3, 7)
    top = 99 if hard or rng.random() < 0.7 else 9
    items = rng.sample(range(0, top + 1), n)
    text, out = " ".join(map(str, items)), " ".join(map(str, sorted(items)))
    return Item("sort", text, f"Sort: {text} ->", f" {out}",
                [f"Sort these numbers: {text}", f"Sort {text}", f"Please sort: {text}"])


def tokens_for_lists(rng, hard):
    n = rng.randint(4 if hard else 3, 7)
    kind = rng.randrange(3)
    if kind == 0:
        return [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(n)]
    if kind == 1:
        return [str(rng.randint(0, 99)) for _ in range(n)]
    return rng.sample(lx.WORDS, n)


def copy(rng, hard=False):
    text = " ".join(tokens_for_lists(rng, hard))
    return Item("copy", text, f"Copy: {text} ->", f" {text}",
                [f"Copy this: {text}", f"Repeat after me: {text}", f"Say {text}"])


def reverse(rng, hard=False):
    items = tokens_for_lists(rng, hard)
    text, out = " ".join(items), " ".join(reversed(items))
    return Item("reverse", text, f"Reverse: {text} ->", f" {out}",
                [f"Reverse this list: {text}", f"Reverse {text}", f"Please reverse: {text}"])


def _fact(rng):
    kind = rng.randrange(8)
    if kind < 2:
        c, capital, _ = rng.choice(lx.COUNTRIES)
        return capital, [f"What is the capital of {c}?", f"Which city is the capital of {c}?",
                         f"What is {c}'s capital?", f"Name the capital of {c}.", f"The capital of {c} is which city?"]
    if kind == 2:
        c, _, continent = rng.choice(lx.COUNTRIES)
        return continent, [f"On which continent is {c}?", f"Which continent is {c} in?",
                           f"Where is {c}?", f"Name the continent of {c}."]
    if kind == 3:
        c, capital, _ = rng.choice(lx.COUNTRIES)
        return c, [f"Of which country is {capital} the capital?", f"In which country is {capital}?",
                   f"{capital} is the capital of which country?", f"Where is {capital}?"]
    if kind < 6:
        a, b = rng.choice(lx.OPPOSITES)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return b, [f"What is the opposite of {a}?", f"Name the opposite of {a}.",
                   f"Which word is the opposite of {a}?", f"The opposite of {a} is what?"]
    animal, sound, young, legs = rng.choice(lx.ANIMALS)
    return [(sound, [f"What does a {animal} do?" if animal != "owl" else "What does an owl do?",
                     f"Which sound does the {animal} make?", f"How does the {animal} sound?"]),
            (young, [f"What is a young {animal} called?", f"Name the young of a {animal}.",
                     f"A young {animal} is called what?"]),
            (legs, [f"How many legs does the {animal} have?", f"How many legs has the {animal}?",
                    f"The {animal} has how many legs?"])][rng.randrange(3)]


def facts(rng, hard=False):
    answer, questions = _fact(rng)
    question = rng.choice(questions)
    frame = rng.choice(["Q: {} A:", "Question: {} Answer:"])
    return Item("facts", frame + question, frame.format(question), f" {answer}", [question])


def _context(rng, least, most):
    """(story, index of one fact, for every fact its [(question, answer)])."""
    n = rng.randint(least, most)
    names, things = rng.sample(lx.NAMES, n), rng.sample(lx.THINGS, n)
    colours = rng.sample(lx.COLOURS, n)
    article = ["an" if c[0] in "aeiou" else "a" for c in colours]
    i = rng.randrange(n)
    if rng.random() < 0.3:
        places = rng.sample(lx.PLACES, n)
        story = " ".join(f"The {c} {t} is in the {p}." for c, t, p in zip(colours, things, places))
        return story, i, [[(f"Where is the {t}?", f"in the {p}"), (f"What is in the {p}?", f"the {c} {t}")]
                          for c, t, p in zip(colours, things, places)]
    verb = rng.choice(["has", "bought", "found"])
    story = " ".join(f"{p} {verb} {a} {c} {t}." for p, a, c, t in zip(names, article, colours, things))
    base = {"has": "have", "bought": "buy", "found": "find"}[verb]
    do = "does" if verb == "has" else "did"
    return story, i, [[(f"What colour is the {t}?", c), (f"Who {verb} the {t}?", p),
                       (f"What {do} {p} {base}?", f"{a} {c} {t}")]
                      for p, a, c, t in zip(names, article, colours, things)]


def context(rng, hard=False):
    story, i, questions = _context(rng, 2, 4)
    question, answer = rng.choice(questions[i])
    return Item("context", story + question, f"{story} Question: {question} Answer:", f" {answer}",
                [f"{story} {question}", f"{story}\n{question}"])


def recall(rng):
    """(story, its [(lead, rest)] statements): the lookup of the context family without the carrying of a question.

    The story's facts are read back from its sentences, so that any draw of _context will do.
    """
    story, _, questions = _context(rng, 1, 4)
    out = []
    for sentence, asked in zip(story.split(". "), questions):
        words = sentence.rstrip(".").split()
        answers = [a for _, a in asked]
        if len(answers) == 2:  # The colour thing is in the place
            out += [(f" The {words[2]} is", f" {answers[0]}."), (f" In the {words[-1]} is", f" {answers[1]}.")]
        else:  # name verb a colour thing
            out += [(f" The {words[-1]} is", f" {answers[0]}."), (f" The {words[-1]} belongs to", f" {answers[1]}."),
                    (f" {words[0]} {words[1]}", f" {answers[2]}.")]
    return story, rng.sample(out, min(6, len(out)))


def context_quiz(rng, held):
    """(story, up to five of its [(question, answer)]): more answers to learn from than one item has."""
    while True:
        story, _, questions = _context(rng, 1, 4)
        pairs = [p for per_fact in questions for p in per_fact if held_out("context", story + p[0]) == held]
        if pairs:
            return story, rng.sample(pairs, min(5, len(pairs)))


def code_eval(rng, hard=False):
    items = [rng.randint(0, 30) for _ in range(rng.randint(3, 5))]
    word, other = rng.choice(lx.WORDS), rng.choice(lx.WORDS)
    i, a, b = rng.randrange(len(items)), rng.randint(1, 30), rng.randint(1, 30)
    low = rng.randint(0, 20)
    probe = rng.choice(items) if rng.random() < 0.5 else a
    expr = rng.choice([
        f"max({items})", f"min({items})", f"len({items})", f"sorted({items})", f"{items}[{i}]",
        f"{items}[-1]", f"{items}[::-1]", f"{word!r}.upper()", f"{word!r} + {other!r}",
        f"list(range({low}, {low + rng.randint(2, 5)}))", f"{probe} in {items}", f"{a} > {b}",
        f"{a} + {b}", f"len({word!r})", f"{word!r}[0]", f"{items}[:2]", f"{items} + [{a}]",
        f"max({a}, {b})"])
    value = repr(eval(expr))  # noqa: S307 - our own expression
    return Item("code_eval", expr, f"assert {expr} ==", f" {value}",
                [f"What does {expr} return?", f"Evaluate {expr}", f"What is the value of {expr}?"])


def code_complete(rng, hard=False):
    x, y = rng.sample("a b c n m x y z value count total size left right width price".split(), 2)
    seq = rng.choice("items values numbers words data xs names rows".split())
    k = rng.randint(1, 20)
    name, args, doc, body = rng.choice([
        (f"add_{k}", x, f"Return {x} plus {k}.", f"{x} + {k}"),
        (f"sub_{k}", x, f"Return {x} minus {k}.", f"{x} - {k}"),
        (f"times_{k}", x, f"Return {x} times {k}.", f"{x} * {k}"),
        (f"divides_{k}", x, f"Return True if {x} is divisible by {k}.", f"{x} % {k} == 0"),
        (f"above_{k}", x, f"Return True if {x} is greater than {k}.", f"{x} > {k}"),
        (f"below_{k}", x, f"Return True if {x} is less than {k}.", f"{x} < {k}"),
        ("add", f"{x}, {y}", f"Return the sum of {x} and {y}.", f"{x} + {y}"),
        ("subtract", f"{x}, {y}", f"Return {x} minus {y}.", f"{x} - {y}"),
        ("product", f"{x}, {y}", f"Return the product of {x} and {y}.", f"{x} * {y}"),
        ("larger", f"{x}, {y}", f"Return the larger of {x} and {y}.", f"max({x}, {y})"),
        ("smaller", f"{x}, {y}", f"Return the smaller of {x} and {y}.", f"min({x}, {y})"),
        ("same", f"{x}, {y}", f"Return True if {x} equals {y}.", f"{x} == {y}"),
        (f"first_{k}", seq, f"Return the first {k} of {seq}.", f"{seq}[:{k}]"),
        (f"last_{k}", seq, f"Return the last {k} of {seq}.", f"{seq}[-{k}:]"),
        (f"item_{k}", seq, f"Return {seq} at index {k}.", f"{seq}[{k}]"),
        (f"add_each_{k}", seq, f"Add {k} to each of {seq}.", f"[v + {k} for v in {seq}]"),
        (f"scale_{k}", seq, f"Multiply each of {seq} by {k}.", f"[v * {k} for v in {seq}]"),
        (f"keep_above_{k}", seq, f"Keep those of {seq} above {k}.", f"[v for v in {seq} if v > {k}]"),
        ("total", seq, f"Return the sum of {seq}.", f"sum({seq})"),
        ("count", seq, f"Return the length of {seq}.", f"len({seq})"),
        ("ordered", seq, f"Return {seq} in order.", f"sorted({seq})"),
        ("backwards", seq, f"Return {seq} reversed.", f"{seq}[::-1]"),
    ])
    prompt = f'def {name}({args}):\n    """{doc}"""\n    return'
    ask = doc[0].lower() + doc[1:-1]
    return Item("code_complete", prompt, prompt, f" {body}",
                [f"Write a Python function {name}({args}) to {ask}.".replace("to return", "that returns")
                 if ask.startswith("return") else f"Write a Python function {name}({args}). {doc}"],
                f"def {name}({args}):\n    return {body}")


def _sentence(rng):
    """One sentence in (English, German, Spanish), without the final stop, German and Spanish agreeing."""
    adjective = rng.choice(lx.ADJECTIVES) if rng.random() < 0.6 else None
    if rng.random() < 0.3:
        subject = (rng.choice(lx.NAMES),) * 3
    else:
        en, de, dg, es, sg = rng.choice(lx.ANIMATE)
        adj = rng.choice(lx.ADJECTIVES) if rng.random() < 0.35 else None
        subject = (f"The {adj[0]} {en}" if adj else f"The {en}",
                   {"m": "Der", "f": "Die", "n": "Das"}[dg] + (f" {adj[1]}e {de}" if adj else f" {de}"),
                   {"m": "El", "f": "La"}[sg] + f" {es}" + (f" {adj[2 if sg == 'm' else 3]}" if adj else ""))
    verb = rng.choice(lx.VERBS)
    en, de, dg, es, sg = rng.choice(lx.OBJECTS)
    obj = (f"the {adjective[0]} {en}" if adjective else f"the {en}",
           {"m": "den", "f": "die", "n": "das"}[dg]
           + (f" {adjective[1]}{'en' if dg == 'm' else 'e'} {de}" if adjective else f" {de}"),
           {"m": "el", "f": "la"}[sg] + f" {es}" + (f" {adjective[2 if sg == 'm' else 3]}" if adjective else ""))
    where = rng.choice(lx.WHERE) if rng.random() < 0.4 else None
    return [f"{subject[i]} {verb[i]} {obj[i]}" + (f" {where[i]}" if where else "") for i in range(3)]


def _translate(rng, hard, task, index, language):
    if not hard and rng.random() < 0.15:  # single nouns with their article
        noun = rng.choice(lx.ANIMATE + lx.OBJECTS)
        en = f"the {noun[0]}"
        out = [{"m": "der", "f": "die", "n": "das"}[noun[2]] + " " + noun[1],
               {"m": "el", "f": "la"}[noun[4]] + " " + noun[3]][index - 1]
        stop = ""
    else:
        sentence = _sentence(rng)
        en, out, stop = sentence[0], sentence[index], "."
    return Item(task, en, f"English: {en}{stop} {language}:", f" {out}{stop}",
                [f"Translate to {language}: {en}{stop}", f"Translate into {language}: {en}{stop}",
                 f"How do you say this in {language}? {en}{stop}"])


def translate_de(rng, hard=False):
    return _translate(rng, hard, "translate_de", 1, "German")


def translate_es(rng, hard=False):
    return _translate(rng, hard, "translate_es", 2, "Spanish")


FAMILIES = {f.__name__: f for f in (addition, subtraction, multiplication, sort, copy, reverse, facts, context,
                                    code_eval, code_complete, translate_de, translate_es)}


def draw(task: str, rng: random.Random, held: bool, hard: bool = False) -> Item:
    """An item of the family from the held-out share (held) or from the training share."""
    while True:
        item = FAMILIES[task](rng, hard)
        if held_out(task, item.key) == held:
            return item
