#!/usr/bin/env python3
"""Writes tests/data/checkpoints: GGUF files of the tiny models in tests/data/models, made by llama.cpp's own converter,
and a SentencePiece tokenizer with what the `sentencepiece` library makes of the corpus in tests/data/tokenizers.

    python scripts/goldens/checkpoint_goldens.py LLAMA_CPP     # a source tree of llama.cpp: convert_hf_to_gguf.py

Needs torch, transformers, gguf and sentencepiece (0.2). Last run with the llama.cpp in llama-cpp-python 0.3.36.

Files:
  FAMILY.gguf      tests/data/models/FAMILY_bf16 in BF16, with a small tokenizer: the converter wants one
  spm.json         {"tokens", "scores", "types", "texts": [{"encode": corpus name, "ids" or "fnv"+"count"}]}
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "data" / "checkpoints"
FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]

# The converter knows published tokenizers by a hash; ours is said to split as GPT-2's does.
CONVERT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def write_tokenizer(directory):
    """Single characters and one merge, four ids short of the vocabulary: those become unused tokens."""
    size = json.loads((directory / "config.json").read_text())["vocab_size"] - 4
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    vocab = {chr(33 + i) if i < 90 else f"t{i}": i for i in range(size - 1)} | {"ab": size - 1}
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                 fuse_unk=False, byte_fallback=False, ignore_merges=False, vocab=vocab, merges=[["a", "b"]])
    tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None,
                     pre_tokenizer=byte_level, post_processor=None, decoder=byte_level, model=model)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast")))


def convert(llama_cpp):
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as temporary:
            directory = pathlib.Path(temporary) / family
            shutil.copytree(ROOT / "tests" / "data" / "models" / f"{family}_bf16", directory)
            write_tokenizer(directory)
            subprocess.run([sys.executable, "-c", CONVERT, llama_cpp, str(directory), "--outfile",
                            str(OUT / f"{family}.gguf"), "--outtype", "bf16"], check=True)


def corpus():
    for line in (ROOT / "tests" / "data" / "tokenizers" / "corpus.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield row["name"], row["text"] if "text" in row else "".join(text * count for text, count in row["parts"])


def fnv(ids):
    h = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = (h ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{h:016x}"


def sentencepiece_golden():
    import sentencepiece

    # Other scripts are left to bytes.
    lines = [part for _, text in corpus() if len(text) < 20000 for part in text.split("\n")
             if part and all("\t" <= character < "\u0180" for character in part)]
    with tempfile.TemporaryDirectory() as temporary:
        prefix = temporary + "/spm"
        # As Mixtral's: identity normalization, bytes for what has no piece, digits apart.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=prefix, model_type="bpe", vocab_size=1000,
            character_coverage=1.0, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=True, allow_whitespace_only_pieces=True,
            user_defined_symbols=["<tool>"], num_threads=1)
        model = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    kinds = []
    for i in range(model.vocab_size()):
        user = model.id_to_piece(i) == "<tool>"
        kinds.append(2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 4 if user else 1)
    rows = []
    for name, text in corpus():
        # sentencepiece reads as far as a NUL; and behind an added token it puts no space, where tokenizer.json as
        # published for Mixtral (and llama.cpp) puts one.
        if "\0" in text or "<tool>" in text:
            continue
        ids = model.encode(text)
        rows.append({"encode": name} | ({"ids": ids} if len(ids) <= 200 else {"count": len(ids), "fnv": fnv(ids)}))
    tokens = [model.id_to_piece(i) for i in range(model.vocab_size())]
    scores = [model.get_score(i) for i in range(model.vocab_size())]
    golden = dict(tokens=tokens, scores=scores, types=kinds, texts=rows)
    (OUT / "spm.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    sentencepiece_golden()
    if len(sys.argv) > 1:
        convert(sys.argv[1])


if __name__ == "__main__":
    main()
