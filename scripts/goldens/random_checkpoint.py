#!/usr/bin/env python3
"""Writes a random checkpoint of any size, in Hugging Face format, that can be served: for measurements of speed.

Needs numpy only. Weights are streamed to disk, so memory stays small whatever the size. The vocabulary is byte-level:
256 bytes, three special tokens, then filler words that text never encodes to but that generated ids decode to.

    python3 scripts/goldens/random_checkpoint.py /tmp/olmoe-1g --family olmoe --layers 8 --hidden 1024 \\
        --experts 64 --experts-per-token 8 --expert-width 512
"""

import argparse
import json
import pathlib
import struct

import numpy as np

CHUNK = 1 << 22  # values generated at a time

FAMILIES = {
    "mixtral": dict(architecture="MixtralForCausalLM", moe="block_sparse_moe", parts=("w1", "w3", "w2")),
    "olmoe": dict(architecture="OlmoeForCausalLM", moe="mlp", parts=("gate_proj", "up_proj", "down_proj")),
    "qwen2_moe": dict(architecture="Qwen2MoeForCausalLM", moe="mlp", parts=("gate_proj", "up_proj", "down_proj")),
    "qwen3_moe": dict(architecture="Qwen3MoeForCausalLM", moe="mlp", parts=("gate_proj", "up_proj", "down_proj")),
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--family", choices=FAMILIES, default="olmoe")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dense-layers", type=int, default=0, help="Qwen families: the first layers are dense")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--head-dim", type=int, help="default: hidden / heads")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--experts-per-token", type=int, default=4)
    parser.add_argument("--expert-width", type=int, default=512)
    parser.add_argument("--shared-width", type=int, default=1024, help="Qwen2-MoE")
    parser.add_argument("--dense-width", type=int, default=2048, help="Qwen families, dense layers")
    parser.add_argument("--vocab", type=int, default=4096, help="at least 259")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--tied", action="store_true", help="tie the output head to the embedding")
    parser.add_argument("--shard-bytes", type=int, default=0, help="start a new file beyond this size; 0: one file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.vocab < 256 + len(SPECIALS):
        parser.error("--vocab must be at least 259")
    if arguments.family == "olmoe" and arguments.head_dim not in (None, arguments.hidden // arguments.heads):
        parser.error("OLMoE has no head_dim of its own")
    if arguments.dense_layers and not arguments.family.startswith("qwen"):
        parser.error("--dense-layers is for the Qwen families")
    arguments.kv_heads = arguments.kv_heads or arguments.heads
    arguments.head_dim = arguments.head_dim or arguments.hidden // arguments.heads
    return arguments


def configuration(a):
    config = dict(
        architectures=[FAMILIES[a.family]["architecture"]], model_type=a.family, vocab_size=a.vocab,
        hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads,
        max_position_embeddings=a.positions, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
        tie_word_embeddings=a.tied, num_experts_per_tok=a.experts_per_token, bos_token_id=None, eos_token_id=258,
        torch_dtype="bfloat16" if a.dtype == "bf16" else "float32",
    )
    if a.family == "mixtral":
        config.update(num_local_experts=a.experts, intermediate_size=a.expert_width, head_dim=a.head_dim)
    elif a.family == "olmoe":
        config.update(num_experts=a.experts, intermediate_size=a.expert_width, norm_topk_prob=False)
    else:
        config.update(num_experts=a.experts, moe_intermediate_size=a.expert_width, intermediate_size=a.dense_width,
                      norm_topk_prob=True, mlp_only_layers=list(range(a.dense_layers)), head_dim=a.head_dim)
        if a.family == "qwen2_moe":
            config.update(shared_expert_intermediate_size=a.shared_width, qkv_bias=True)
    return config


def tensors(a):
    """Names and shapes, in the order of use."""
    h, q, kv = a.hidden, a.heads * a.head_dim, a.kv_heads * a.head_dim
    gate, up, down = FAMILIES[a.family]["parts"]
    yield "model.embed_tokens.weight", (a.vocab, h)
    for layer in range(a.layers):
        block = f"model.layers.{layer}."
        attention = block + "self_attn."
        yield block + "input_layernorm.weight", (h,)
        for part, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            yield f"{attention}{part}.weight", (rows, h)
            if a.family == "qwen2_moe":
                yield f"{attention}{part}.bias", (rows,)
        yield attention + "o_proj.weight", (h, q)
        if a.family == "olmoe":
            yield attention + "q_norm.weight", (q,)
            yield attention + "k_norm.weight", (kv,)
        elif a.family == "qwen3_moe":
            yield attention + "q_norm.weight", (a.head_dim,)
            yield attention + "k_norm.weight", (a.head_dim,)
        yield block + "post_attention_layernorm.weight", (h,)
        if layer < a.dense_layers:
            yield block + "mlp.gate_proj.weight", (a.dense_width, h)
            yield block + "mlp.up_proj.weight", (a.dense_width, h)
            yield block + "mlp.down_proj.weight", (h, a.dense_width)
            continue
        moe = f"{block}{FAMILIES[a.family]['moe']}."
        yield moe + "gate.weight", (a.experts, h)
        for expert in range(a.experts):
            yield f"{moe}experts.{expert}.{gate}.weight", (a.expert_width, h)
            yield f"{moe}experts.{expert}.{up}.weight", (a.expert_width, h)
            yield f"{moe}experts.{expert}.{down}.weight", (h, a.expert_width)
        if a.family == "qwen2_moe":
            yield moe + "shared_expert.gate_proj.weight", (a.shared_width, h)
            yield moe + "shared_expert.up_proj.weight", (a.shared_width, h)
            yield moe + "shared_expert.down_proj.weight", (h, a.shared_width)
            yield moe + "shared_expert_gate.weight", (1, h)
    yield "model.norm.weight", (h,)
    if not a.tied:
        yield "lm_head.weight", (a.vocab, h)


def values(name, shape, tied, rng):
    """The tensor's values in float32, in chunks. Scales keep activations of order one."""
    count = int(np.prod(shape))
    while count > 0:
        noise = rng.standard_normal(min(count, CHUNK), dtype=np.float32)
        if "norm" in name:
            noise = 1 + np.float32(0.1) * noise
        elif name.endswith("bias"):
            noise *= np.float32(0.1)
        elif tied or "embed_tokens" not in name:
            noise *= np.float32(shape[-1] ** -0.5)
        yield noise
        count -= noise.size


def to_bf16(array):
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_file(path, entries, a, rng):
    width = 2 if a.dtype == "bf16" else 4
    header, offset = {}, 0
    for name, shape in entries:
        end = offset + int(np.prod(shape)) * width
        header[name] = dict(dtype=a.dtype.upper(), shape=list(shape), data_offsets=[offset, end])
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name, shape in entries:
            for chunk in values(name, shape, a.tied, rng):
                file.write((to_bf16(chunk) if a.dtype == "bf16" else chunk.astype("<f4")).tobytes())
    return offset


def byte_symbols():
    """The printable stand-in of each byte in byte-level BPE vocabularies (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, extra = {byte: chr(byte) for byte in plain}, 0
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + extra)
            extra += 1
    return [symbols[byte] for byte in range(256)]


def filler(index):
    """Distinct words of two letters and more."""
    word, index = "", index + 26
    while index >= 0:
        word = chr(ord("a") + index % 26) + word
        index = index // 26 - 1
    return "\u0120" + word


def write_tokenizer(directory, vocab_size):
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    first = 256 + len(SPECIALS)
    # Also in the vocabulary: the tokenizers library numbers added tokens that are not in it anew.
    vocab.update((text, 256 + i) for i, text in enumerate(SPECIALS))
    for index in range(vocab_size - first):
        vocab[filler(index)] = first + index
    added = [dict(id=256 + i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False,
                  special=True) for i, text in enumerate(SPECIALS)]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer = dict(
        version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=byte_level,
        post_processor=None, decoder=byte_level,
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=False, byte_fallback=False, ignore_merges=False, vocab=vocab, merges=[]),
    )
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>",
                    pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    a = parse_arguments()
    a.directory.mkdir(parents=True, exist_ok=True)
    config = configuration(a)
    (a.directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (a.directory / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[258, 256])) + "\n")
    write_tokenizer(a.directory, a.vocab)

    width = 2 if a.dtype == "bf16" else 4
    shards, size = [[]], 0
    for name, shape in tensors(a):
        nbytes = int(np.prod(shape)) * width
        if a.shard_bytes and shards[-1] and size + nbytes > a.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += nbytes
    rng = np.random.default_rng(a.seed)
    total, weight_map = 0, {}
    for number, entries in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        total += write_file(a.directory / name, entries, a, rng)
        weight_map.update((tensor, name) for tensor, _ in entries)
    if len(shards) > 1:
        index = dict(metadata=dict(total_size=total), weight_map=weight_map)
        (a.directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{a.directory}: {total / 1e9:.3f} GB of weights in {len(weight_map)} tensors")


if __name__ == "__main__":
    main()
