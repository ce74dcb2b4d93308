"""Prompts of mixed lengths from several domains.

TextPrompts cuts passages out of text files, one file per domain (tests/data/heldout: the held-out part of the demo model's
corpus). TokenPrompts draws token ids for models whose weights are random: a domain is a subset of the vocabulary with Zipf's
frequencies, so that requests of one domain route to similar experts, as real topics do; with `confine` a logit bias keeps what
the model generates inside the domain, too.

Everything follows from the seed: the same plan gives every server the same requests in the same order.
"""
import bisect
import itertools
import pathlib
import random
from dataclasses import dataclass, field

MAX_BIAS = 300  # entries of a logit bias that every server takes


@dataclass
class Planned:
    """One request to come."""
    body: dict
    domain: str
    key: str = ""
    tokens: int = 0  # of the prompt, approximately where text is sent
    tag: object = None


@dataclass
class Lengths:
    """Log-uniform between two bounds: short requests are common, long ones carry most of the work."""
    least: int
    most: int

    @classmethod
    def parse(cls, text):
        least, dash, most = text.partition("-")
        result = cls(int(least), int(most) if dash else int(least))
        if result.least < 1 or result.most < result.least:
            raise ValueError(f"{text}: a length or a range of lengths such as 16-256, at least 1")
        return result

    def draw(self, rng):
        if self.least == self.most:
            return self.least
        return min(self.most, int(self.least * (self.most / self.least + 1e-9) ** rng.random() + 0.5))


class TextPrompts:
    """`directory` holds one .txt per domain. `characters_per_token`: by domain, or one number for all."""

    def __init__(self, directory, only=(), characters_per_token=3.0):
        self.texts = {path.stem: path.read_text() for path in sorted(pathlib.Path(directory).glob("*.txt"))
                      if not only or path.stem in only}
        missing = set(only) - set(self.texts)
        if missing or not self.texts:
            raise ValueError(f"{directory}: no text file for {', '.join(sorted(missing)) or 'any domain'}")
        self.rates = characters_per_token
        self.domains = list(self.texts)

    def passage(self, rng, domain, tokens):
        text = self.texts[domain]
        rate = self.rates.get(domain, 3.0) if isinstance(self.rates, dict) else self.rates
        # From the start of a line, or of a sentence where lines are long.
        start = rng.randrange(len(text))
        cut = text.find("\n", start, start + 400)
        start = cut + 1 if cut >= 0 else start
        wanted = max(1, round(tokens * rate))
        repeated = text[start:] + text * (1 + wanted // len(text))
        return repeated[:wanted].rstrip() or "x"

    def draw(self, rng, domain, tokens, chat):
        passage = self.passage(rng, domain, tokens)
        return {"messages": [{"role": "user", "content": passage}]} if chat else {"prompt": passage}


class TokenPrompts:
    """Ids in [first_id, first_id + vocabulary). Completions only."""

    """`striped`: domain i has the ids that leave i when divided by the number of domains."""

    def __init__(self, vocabulary, count=8, words=2000, exponent=1.0, confine=False, seed=1, first_id=0, striped=False):
        if striped:
            words = min(words, vocabulary // count)
        if not 1 <= words <= vocabulary:
            raise ValueError(f"a domain of {words} tokens needs a vocabulary of at least as many, not {vocabulary}")
        self.domains = [f"domain{i}" for i in range(count)]
        self.words = {}
        for i, domain in enumerate(self.domains):
            rng = random.Random(f"{seed} {i}")
            ids = range(i, vocabulary, count) if striped else range(vocabulary)
            self.words[domain] = [first_id + word for word in rng.sample(ids, words)]
        weights = [(rank + 1) ** -exponent for rank in range(words)]
        self.cumulative = list(itertools.accumulate(weights))
        self.confine = confine

    def draw(self, rng, domain, tokens, chat):
        if chat:
            raise ValueError("token-id prompts go to /v1/completions: leave out --chat")
        words = self.words[domain]
        body = {"prompt": [words[bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])]
                           for _ in range(tokens)]}
        if self.confine:
            body["logit_bias"] = {str(word): 100 for word in words[:MAX_BIAS]}
        return body


@dataclass
class Mix:
    """What requests look like. `keys`: (API key, share) pairs; empty: no key."""
    prompts: object
    prompt_tokens: Lengths
    max_tokens: Lengths
    chat: bool = False
    stream: bool = True
    ignore_eos: bool = True
    shared_prefix: int = 0
    fields: dict = field(default_factory=dict)
    keys: list = field(default_factory=list)

    def plan(self, count, seed):
        rng = random.Random(seed)
        prefixes = {}
        planned = []
        for i in range(count):
            domain = rng.choice(self.prompts.domains)
            tokens = self.prompt_tokens.draw(rng)
            body = self.prompts.draw(rng, domain, tokens, self.chat)
            if self.shared_prefix:
                if domain not in prefixes:
                    own = random.Random(f"prefix {seed} {domain}")
                    prefixes[domain] = self.prompts.draw(own, domain, self.shared_prefix, self.chat)
                body = join(prefixes[domain], body)
            body["max_tokens"] = self.max_tokens.draw(rng)
            body["seed"] = rng.randrange(1 << 31)
            if self.stream:
                body["stream"] = True
                body["stream_options"] = {"include_usage": True}
            if self.ignore_eos:
                body["ignore_eos"] = True
            body.update(self.fields)
            key = rng.choices([k for k, _ in self.keys], [s for _, s in self.keys])[0] if self.keys else ""
            planned.append(Planned(body, domain, key, tokens + self.shared_prefix, i))
        return planned


def join(prefix, body):
    """`body` with the prompt of `prefix` in front."""
    joined = dict(body)
    if "messages" in body:
        joined["messages"] = [{"role": "system", "content": prefix["messages"][0]["content"]}, *body["messages"]]
    elif isinstance(body["prompt"], str):
        joined["prompt"] = prefix["prompt"] + "\n" + body["prompt"]
    else:
        joined["prompt"] = prefix["prompt"] + body["prompt"]
    return joined
