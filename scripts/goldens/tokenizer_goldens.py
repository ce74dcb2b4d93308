"""Writes tests/data/tokenizers: small tokenizers of every style that Sluice supports, a corpus of hard
text, and what the `tokenizers` library makes of it.

    python scripts/goldens/tokenizer_goldens.py            # retrains and rewrites everything
    python scripts/goldens/tokenizer_goldens.py --check    # rewrites nothing, compares

No hub is needed: the vocabularies are trained here, on the corpus and on generated prose. Training is
deterministic. Needs the package `tokenizers` (0.23).

Files:
  corpus.jsonl          {"name", "text"} a line; long texts are given as {"name", "parts": [[text, count], ...]}
  NAME.json             a tokenizer.json
  NAME.expected.jsonl   {"encode": corpus name, "special": bool, "ids" or "fnv"+"count"}
                        {"decode": [ids], "skip": bool, "text": ...}
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "tokenizers"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What Oniguruma and PCRE2 read differently, and some that published tokenizers use.
RUBY = r"\p{N}{1,2}+|x{2}?y|^\h+$|\p{Han}|[\w-]+|[^\S\r\n]+|[a[bc]-]|\bq\B|."


def corpus():
    """(name, parts) pairs; a part is (text, repetitions)."""
    plain = {
        "empty": "",
        "english": "Hello, world! The quick brown fox can't jump over the lazy dog's back; they'll've tried it 12,345 times.",
        "prose": (
            "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of "
            "foolishness,\nit was the epoch of belief... We\u2019ve \u201cquoted\u201d \u2014 it\u2019s done.\n\n\tIndented.  Two spaces."
        ),
        "contractions": "I'M you'RE he'S we'LL they'D 'tis 'S 'll 'Ve don\u2019t 's's 'ſ I'ſ KELVIN\u212a",
        "digits": "0 1 12 123 1234 12345 123456789012 3.14159 1e-9 0x7fff ٣٤٥ ३४५ Ⅻ ½ ² x² 1st ①②③ 𝟘𝟙",
        "spaces": "a b  c   d    e     f                        g\u00a0h\u2003i\u3000j\u200bk\u202fl\u205fm\u1680n",
        "leading spaces": "   leading and trailing   ",
        "newlines": "a\nb\n\nc\n\n\nd\r\ne\r\n\r\nf\rg \n h \n\n  i\n \n j\u2028k\u2029l\u0085m\x0bn\x0co",
        "tabs": "\tone\t\ttwo \t three\t \n\t\tfour",
        "control": "".join(map(chr, range(1, 32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
        "nul": "a\x00b\x00\x00c",
        "code": (
            "def f(x: int) -> dict[str, list[int]]:\n    \"\"\"Doc.\"\"\"\n    return {k: [v**2 for v in x] for k in 'ab'}\n\n"
            "#include <vector>\nint main() { std::vector<int> v{1,2,3}; for (auto& x : v) x <<= 1; return v[0] != 2; }\n"
            "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x_'; -- note\n<p class=\"a\">&amp;</p> $x = @$y[\"k\"] ?? null; // done\n"
        ),
        "urls": "https://example.com/a/b?c=d&e=%20f#g user.name+tag@example.co.uk C:\\dir\\file.txt ~/.bashrc",
        "punctuation": "!!! ... ?!?! --- === *** ### (((a))) [[b]] {{c}} <<d>> ``e`` ''f'' ~~g~~ ¡¿§¶†‡•…‰′″‹›«»„“”",
        "latin": "Ünïcödé àéîõü ÀÉÎÕÜ ßẞ ŒœÆæ Łódź Škoda İstanbul ıI ﬁﬂ ŉ ǅ ĳ",
        "combining": "e\u0301 é a\u0308\u0323 a\u0323\u0308 \u0301x n\u0303o Z\u0351\u0327\u032e\u0349a\u0315\u0321l\u035fg\u0334o \u1e9b\u0323 q\u0307\u0323",
        "vietnamese": "Tiếng Việt: Tôi đang học. Việt viê\u0323t",
        "greek": "Ελληνικά: Ὀδυσσεύς, Σίσυφος ΣΑΣ ᾧ",
        "cyrillic": "Русский текст: съешь ещё этих мягких французских булок, да выпей чаю. Ї ґ",
        "georgian armenian": "ქართული ენა ႠႡ Հայերեն և",
        "hebrew": "עברית: בְּרֵאשִׁית בָּרָא אֱלֹהִים",
        "arabic": "العربية: مرحبًا بالعالم ـــ لا إله ﷺ ﷽ ٠١٢٣",
        "devanagari": "हिन्दी: नमस्ते दुनिया, क्षत्रिय ज्ञान। १२३",
        "indic": "বাংলা ગુજરાતી ਪੰਜਾਬੀ தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ଓଡ଼ିଆ",
        "southeast asian": "ภาษาไทย: สวัสดีชาวโลก ລາວ ខ្មែរ မြန်မာ",
        "tibetan mongolian": "བོད་ཡིག བཀྲ་ཤིས། ᠮᠣᠩᠭᠣᠯ\u180eᠠ ᠎",
        "chinese": "中文：你好，世界！今天天气不错，我们去公园吧。繁體字「龍」。３１４",
        "rare han": "𠀀𠮷𪚥𫝀𫠠𬺰𮯰𮹝𰀀𱍊𱍐𲎯 ⼀⿰㐀豈",
        "japanese": "日本語：こんにちは世界。カタカナ、ｶﾀｶﾅ、ひらがな々〆ヶー゛゜",
        "korean": "한국어: 안녕하세요 세계 \u1112\u1161\u11ab ㅎㅏㄴ ﾡ",
        "ethiopic cherokee": "አማርኛ ሰላም ᏣᎳᎩ ꮳꮃꭹ ⵜⵉⴼⵉⵏⴰⵖ ߒߞߏ",
        "ancient": "𐎠𐎡𐎢 𒀀𒁀 𓀀𓂀 𐤀𐤁 ᚠᚢᚦ 𐌰𐌱 ⲁⲃ 𑀅 𐐀𐐨",
        "newer scripts": "\U00011F04\U00011F12 \U0001E4D0 \U00010D4A\U00010D50\U00010D70 \U000105C0 \U00016100 \U00011380 \U00016D40 \ua7cb\u1c89\u1c8a",
        "newer marks": "e\u0898\u0301 e\u0c3c\u0301 e\u0301\u0c3c \u32ff \ua7f2 \U0001fbf3 a\u1abf\u0323 \U00011935\U00011930 \U00011938 "
                       "\u1c89 \ua7cb\ua7cc\ua7dc \U00016ea0 \U0001e030 a\U0001e08f\u0323 \U00010780\U00010786\ua7d0\u2c2f",
        "symbols": "∀x∈ℝ: ⌈x⌉ ≤ ∑ᵢ√π ∞ ∂/∂t ≠ ← → ⇒ ♠♥ ☃ ★ © ® ™ € £ ¥ ₿ ℃ № ㎏ ⅓ ⓐⒶ 🄰 🅐 🅰",
        "emoji": "😀😃 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☺︎ 1️⃣ #️⃣ 👩🏿‍🚀 🫨🪿 🏴\U000e0067\U000e0062\U000e007f",
        "math alphabets": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒞ℴ𝓁 𝟙 ｆｕｌｌｗｉｄｔｈ ＡＢＣ ⁱⁿ ₐ",
        "bidi": "\u202eabc\u202c \u2066x\u2069 \u200fy\u200e \u200dz\u200c \ufeffw",
        "private use": "\ue000\uf8ff\U000f0000\U0010ffff \ufdd0 \uffff \ufffd\ufffe",
        "special tokens": "<|endoftext|> <s> </s> <unk> <pad>a<|im_start|>user\nHi<|im_end|>\n<|im_start|> <|nope|> [SPEC]x [SPEC] <|endoftext|><|endoftext|>",
        "added tokens": "a <left>b <right> c  <left>  <right>  d word unword words  word. Norm NORM Straße <both>   <both> x<tool>y<tool_call>z",
        "metaspace": "▁a▁▁b ▁ c▁ ▁▁▁",
        "byte tokens": "<0x0A><0x41> Ġthe Ċ âĢĻ ¬ \xad\xa0",
        "mixed": "Zażółć 我的 code: x+=1; // 😀 naïve\n\tरिपोर्ट 3×4=12 – “done”\u3000終",
        "spaces and words": "  a   bb    ccc\n\n  dddd\t\teeeee \n",
        "html": "&lt;a href='x'&gt; &#x1F600; <!-- c --> <br/>\n\n\n<|x|>",
    }
    items = [(name, [(text, 1)]) for name, text in plain.items()]
    items += [
        ("long spaces", [("x", 1), (" ", 3000), ("y", 1)]),
        ("long newlines", [("x", 1), ("\n", 2000), ("y", 1), ("\r\n", 500), (" \n", 500)]),
        ("long word", [("a", 100_000)]),
        ("long mixed word", [("abcdefghij", 10_000)]),
        ("long digits", [("1234567890", 2_000)]),
        ("long han", [("中文字", 7_000)]),
        ("long emoji", [("👨‍👩‍👧", 1_500)]),
        ("long punctuation", [("!?", 20_000)]),
        ("long marks", [("a", 1), ("\u0301\u0323", 5_000)]),
        ("long nul", [("\x00", 5_000)]),
        ("long special", [("<|endoftext|>", 1_000)]),
        ("long prose", [(plain["prose"], 100)]),
    ]
    rng = random.Random(7)
    ranges = [(0x20, 0x7F), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x1E00, 0x2070),
              (0x2070, 0x2C00), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xFE00, 0xFFF0), (0x1F000, 0x1FB00)]
    for i in range(12):
        chars = []
        while len(chars) < 120:
            low, high = rng.choice(ranges)
            chars += [chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6))]
            chars += rng.choice([" ", "", "\n", "  ", "'", ""])
        items.append((f"random {i}", [("".join(chars), 1)]))
    return items


def training_text(items):
    lines = ["".join(text for text, _ in parts) for _, parts in items]
    words = ("the of and to in is that it was for on are with as his they at be this from have or by one had not but what all were "
             "when we there can an your which their said if do will each about how up out them then she many some so these would "
             "other into has more her two like him see time could no make than first been its who now people my made over did down "
             "only way find use may water long little very after words called just where most know get through back much before").split()
    rng = random.Random(3)
    for _ in range(400):
        lines.append(" ".join(rng.choice(words) for _ in range(12)).capitalize() + rng.choice([".", "!", "?", ";\n"]))
    for _ in range(60):
        lines.append("    " * rng.randrange(4) + "return x[%d] + y\n" % rng.randrange(1000))
    return lines


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
ADDED = [
    AddedToken("<left>", lstrip=True, normalized=False, special=False),
    AddedToken("<right>", rstrip=True, normalized=False, special=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=True, special=False),
    AddedToken("word", single_word=True, normalized=False, special=False),
    AddedToken("Norm", normalized=True, special=False),
    AddedToken("<tool>", normalized=False, special=False),
    AddedToken("<tool_call>", normalized=False, special=False),
    AddedToken("[SPEC]", normalized=True, special=True),
    AddedToken("  ", normalized=False, special=False),
]


def byte_level(lines, vocab, pre, normalizer=None, post=None, merge_tweak=None, added=ADDED[:], **model):
    """A byte-level BPE tokenizer with `pre` as its pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False, max_token_length=24)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens(added)
    if post is not None:
        tokenizer.post_processor = post(tokenizer)
    return tokenizer


def alphabet(lines, count):
    """The most frequent characters. (The trainer's own choice among equals changes from run to run.)"""
    counts = Counter("".join(lines))
    return sorted(sorted(counts, key=lambda c: (-counts[c], c))[:count])


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def sentencepiece(lines, vocab, **options):
    """Mixtral and Llama 2: no pre-tokenizer; spaces are U+2581; unknown characters become byte tokens."""
    base = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line.replace("\n", " ").replace(" ", "▁") for line in lines]
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False, max_token_length=16, limit_alphabet=220,
                                  initial_alphabet=alphabet(lines, 220))
    base.train_from_iterator(lines, trainer)
    learned = json.loads(base.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    merges = [tuple(m) for m in learned["merges"]]
    made = [t for t, _ in sorted(learned["vocab"].items(), key=lambda item: item[1]) if t not in names]
    # Runs of spaces, as SentencePiece learns them.
    for n in (2, 4, 8):
        if "▁" * n not in made:
            made.append("▁" * n)
            merges.append(("▁" * (n // 2), "▁" * (n // 2)))
    table = {token: i for i, token in enumerate(dict.fromkeys(names + made))}
    model = models.BPE(vocab=table, merges=merges, unk_token="<unk>", fuse_unk=True, **options)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    bos(tokenizer)
    return tokenizer


def word_pieces(lines):
    """Every character comes in four forms; merges spell frequent words from the left. (The trainer would number
    these in another order each run.)"""
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip(left=True, right=False)])
    lines = [normalizer.normalize_str(line) for line in lines]
    tokens = ["<unk>"] + [p + c + s for c in alphabet(lines, 110) if not c.isspace() for p in ("", "##") for s in ("", "</w>")]
    known = dict.fromkeys(tokens)
    merges = []
    counts = Counter(word for line in lines for word in line.split() if len(word) > 1)
    for word in sorted(counts, key=lambda w: (-counts[w], w))[:160]:
        pieces = [("##" if i else "") + c + ("</w>" if i == len(word) - 1 else "") for i, c in enumerate(word)]
        if any(piece not in known for piece in pieces):
            continue
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right[2:]
            known.setdefault(left)
    model = models.BPE(vocab={token: i for i, token in enumerate(known)}, merges=merges, unk_token="<unk>",
                       continuing_subword_prefix="##", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return tokenizer


def bos(tokenizer, token="<s>"):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, tokenizer.token_to_id(token))])


def legacy_merges(text):
    """merges as "a b" strings, as files of before 2024 have them."""
    data = json.loads(text)
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    return json.dumps(data, ensure_ascii=False)


def build(items):
    lines = training_text(items)
    made = {}
    made["gpt2"] = byte_level(lines, 900, pre_tokenizers.ByteLevel(add_prefix_space=False), post=lambda _: processors.ByteLevel())
    made["gpt2_prefix"] = byte_level(lines, 500, pre_tokenizers.ByteLevel(add_prefix_space=True))
    made["llama3"] = byte_level(
        lines, 1000, pre_tokenizers.Sequence([split(LLAMA3), bytes_only()]), ignore_merges=True,
        post=lambda t: processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|>:1 $B:1",
                                          special_tokens=[("<|endoftext|>", t.token_to_id("<|endoftext|>"))])]))
    made["qwen2"] = byte_level(lines, 1000, pre_tokenizers.Sequence([split(QWEN2), bytes_only()]),
                               normalizer=normalizers.NFC(), post=lambda _: processors.ByteLevel(trim_offsets=False))
    made["neox"] = byte_level(
        lines, 700, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True), normalizer=normalizers.NFC(),
        added=[AddedToken(" " * n, normalized=True, special=False) for n in range(24, 1, -1)] + ADDED[:5],
        post=lambda t: processors.TemplateProcessing(single="$A <|endoftext|>", pair="$A $B", special_tokens=[
            ("<|endoftext|>", t.token_to_id("<|endoftext|>"))]))
    made["deepseek"] = byte_level(
        lines, 900, pre_tokenizers.Sequence([split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK), bytes_only()]))
    made["o200k"] = byte_level(lines, 900, pre_tokenizers.Sequence([split(O200K), bytes_only()]), ignore_merges=True)
    made["digits"] = byte_level(
        lines, 500, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("contiguous"),
                                             pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]))
    made["ruby"] = byte_level(lines, 500, pre_tokenizers.Sequence([split(RUBY, "merged_with_previous"), bytes_only()]),
                              normalizer=normalizers.NFD())
    made["inverted"] = byte_level(
        lines, 500, pre_tokenizers.Sequence([split(r"\w+|[^\w\s]+", "removed", invert=True),
                                             pre_tokenizers.Split("e", "merged_with_next"), pre_tokenizers.Digits(), bytes_only()]),
        normalizer=normalizers.Sequence([normalizers.NFKD(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]))
    made["mixtral"] = sentencepiece(lines, 1100, byte_fallback=True)
    made["no_fallback"] = sentencepiece(lines, 700, byte_fallback=False)
    metaspace = sentencepiece(lines, 700, byte_fallback=True)
    metaspace.normalizer = None
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    metaspace.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="first")])
    metaspace.add_tokens(ADDED)
    made["metaspace"] = metaspace
    made["words"] = word_pieces(lines)
    texts = {name: tokenizer.to_str() for name, tokenizer in made.items()}
    for name in ("gpt2", "mixtral"):
        texts[name] = legacy_merges(texts[name])
    return {name: json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) + "\n" for name, text in texts.items()}


def fnv(ids):
    """FNV-1a over the ids as little-endian 32-bit words: long id lists are compared by hash."""
    h = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = (h ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{h:016x}"


def expected(text, items):
    tokenizer = Tokenizer.from_str(text)
    size = tokenizer.get_vocab_size()
    rng = random.Random(11)
    rows = []
    for name, parts in items:
        full = "".join(piece * count for piece, count in parts)
        ids = tokenizer.encode(full).ids
        row = {"encode": name}
        if len(ids) <= 300:
            row["ids"] = ids
        else:
            row |= {"count": len(ids), "fnv": fnv(ids)}
        rows.append(row)
        if len(ids) <= 60:
            rows.append({"decode": ids, "skip": False, "text": tokenizer.decode(ids, skip_special_tokens=False)})
    for name in ("special tokens", "added tokens", "english"):
        full = "".join(piece * count for piece, count in dict(items)[name])
        rows.append({"encode": name, "special": False, "ids": tokenizer.encode(full, add_special_tokens=False).ids})
        tokenizer.encode_special_tokens = True
        rows.append({"encode": name, "parse_special": False, "ids": tokenizer.encode(full).ids})
        tokenizer.encode_special_tokens = False
    for _ in range(30):
        ids = [rng.randrange(size) for _ in range(rng.randrange(1, 12))]
        if rng.random() < 0.3:
            ids = [rng.randrange(min(size, 262)) for _ in ids]
        for skip in (True, False):
            rows.append({"decode": ids, "skip": skip, "text": tokenizer.decode(ids, skip_special_tokens=skip)})
    rows.append({"decode": [], "skip": True, "text": tokenizer.decode([])})
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    items = corpus()
    files = {"corpus.jsonl": "".join(
        json.dumps({"name": n, "text": p[0][0]} if len(p) == 1 and p[0][1] == 1 else {"name": n, "parts": p},
                   separators=(",", ":")) + "\n" for n, p in items)}
    for name, text in build(items).items():
        files[f"{name}.json"] = text
        files[f"{name}.expected.jsonl"] = expected(text, items)
    OUT.mkdir(parents=True, exist_ok=True)
    different = [n for n, text in files.items() if not (OUT / n).exists() or (OUT / n).read_bytes() != text.encode()]
    if check:
        print("different: " + ", ".join(different) if different else "all files are as generated")
        sys.exit(bool(different))
    for name, text in files.items():
        (OUT / name).write_bytes(text.encode())
    print(f"{len(files)} files, {sum(len(t.encode()) for t in files.values())} bytes in {OUT}")


if __name__ == "__main__":
    main()
