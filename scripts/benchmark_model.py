#!/usr/bin/env python3
"""Writes a GGUF with random weights in the shape of OLMoE-1B-7B: what speed is measured with.

    scripts/benchmark_model.py olmoe.gguf                       Q4_0, 3.9 GB; routes every token at random
    scripts/benchmark_model.py topics.gguf --topics 16          routes by topic, as text does
    scripts/benchmark_model.py small.gguf --layers 2 --hidden 256 --experts 8 --expert-hidden 128 --heads 4 --vocabulary 4096

Without --topics every token is routed for itself: nothing that a cache does can help much. With them token v belongs to topic
v mod N. Embeddings of a topic share a direction (--focus: its part of their variance), so that tokens of one topic choose similar
experts, and the output head favours the topic of what came before, so that what is generated keeps to it (--loyalty). `scripts/load.py
--prompts tokens --domains N --striped` sends requests of such topics. Codes of every matrix have mean zero: a mean of
its own would make every token choose the same experts.

Needs the Python packages gguf and numpy.
"""
import argparse

import gguf
import numpy as np

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_k": gguf.GGMLQuantizationType.Q4_K}
T = gguf.GGMLQuantizationType


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--type", choices=TYPES, default="q4_0", help="of all matrices (default q4_0)")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--experts-per-token", type=int, default=8)
    parser.add_argument("--expert-hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--topics", type=int, default=0, metavar="N", help="default 0: none")
    parser.add_argument("--focus", type=float, default=0.5, metavar="F", help="0 to 1 (default 0.5)")
    parser.add_argument("--loyalty", type=float, default=7, metavar="X",
                        help="logits between the topic of the text and another, about (default 7)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def vocabulary(size):
    """Byte-level tokens: every byte, then pairs and quadruples of small letters; two special ones end it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    tokens = [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
    pairs = [a + b for a in map(chr, range(97, 123)) for b in map(chr, range(97, 123))]
    merges = [f"{pair[0]} {pair[1]}" for pair in pairs]
    longer = [(a, b) for a in pairs for b in pairs][:size - 2 - len(tokens) - len(pairs)]
    tokens += pairs + [a + b for a, b in longer] + ["<|endoftext|>", "<|padding|>"]
    assert len(tokens) == size, f"a vocabulary has {256 + 676 + 2} to {256 + 676 + 676 ** 2 + 2} tokens, not {size}"
    return tokens, merges + [f"{a} {b}" for a, b in longer]


class RandomTensors:
    def __init__(self, writer, seed):
        self.writer = writer
        self.rng = np.random.default_rng(seed)

    def codes(self, shape, kind, std):
        """Blocks of random codes whose values have this standard deviation."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape)) // block
        codes = self.rng.integers(0, 256, (count, size), dtype=np.uint8)

        def scales(value, jitter=0.2):
            return (value * (1 + jitter * self.rng.standard_normal(count))).astype(np.float16).view(np.uint8).reshape(-1, 2)

        if kind == T.Q4_0:
            low, high = codes & 15, codes >> 4  # -8 has no counterpart
            codes = np.where(low == 0, 8, low) | (np.where(high == 0, 8, high) << 4)
            codes = codes.astype(np.uint8)
            codes[:, 0:2] = scales(std / 4.3)
        elif kind == T.Q8_0:
            codes[:, 0:2] = scales(std / 73.9)
        elif kind == T.Q6_K:
            codes[:, 192:208] = self.rng.integers(40, 100, (count, 16), dtype=np.uint8)
            codes[:, 208:210] = scales(std / 18.5 / 70)
        elif kind == T.Q4_K:  # 6-bit scales and minima: any bytes; d and dmin set the size
            codes[:, 0:2], codes[:, 2:4] = scales(std / 4.6 / 32), scales(std * 1.7 / 32)
        return codes.reshape(*shape[:-1], shape[-1] // block * size)

    def add(self, name, shape, kind, std):
        if kind == T.F32:
            self.writer.add_tensor(name, (self.rng.standard_normal(shape) * std).astype(np.float32))
        else:
            self.writer.add_tensor(name, self.codes(shape, kind, std), raw_dtype=kind)

    def add_topical(self, name, centres, shape, kind, weight, std):
        """Row v: weight * centres[v mod topics] + noise of this deviation; of types that gguf can quantize."""
        rows = np.empty((shape[0], shape[1] // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        for start in range(0, shape[0], 4096):
            count = min(4096, shape[0] - start)
            noise = self.rng.standard_normal((count, shape[1]), dtype=np.float32) * std
            topic = np.arange(start, start + count) % len(centres)
            rows[start:start + count] = gguf.quantize((noise + weight * centres[topic]).astype(np.float32), kind)
        self.writer.add_tensor(name, rows, raw_dtype=kind)


def main():
    options = arguments()
    hidden, heads, size = options.hidden, options.heads, options.vocabulary
    writer = gguf.GGUFWriter(options.out, "olmoe", use_temp_file=True)
    writer.add_name(f"random-{options.topics}-topics" if options.topics else "random")
    writer.add_block_count(options.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(options.expert_hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_expert_count(options.experts)
    writer.add_expert_used_count(options.experts_per_token)
    writer.add_vocab_size(size)
    tokens, merges = vocabulary(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("olmo")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (size - 2) + [3, 3])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(size - 2)
    writer.add_pad_token_id(size - 1)

    kind = TYPES[options.type]
    tensors = RandomTensors(writer, options.seed)
    if options.topics:
        if kind == T.Q4_K:
            raise SystemExit("--topics: embeddings cannot be quantized to q4_k here; take q4_0 or q8_0")
        centres = tensors.rng.standard_normal((options.topics, hidden), dtype=np.float32)
        tensors.add_topical("token_embd.weight", centres, (size, hidden), kind, options.focus ** 0.5, (1 - options.focus) ** 0.5)
        # The last state has about `focus` of its variance in the topic's direction.
        tensors.add_topical("output.weight", centres, (size, hidden), T.Q8_0,
                            options.loyalty / (hidden * options.focus ** 0.5), hidden ** -0.5)
    else:
        tensors.add("token_embd.weight", (size, hidden), kind, 1.0)
        tensors.add("output.weight", (size, hidden), T.Q8_0 if kind == T.Q8_0 else T.Q6_K, hidden ** -0.5)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(options.layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(hidden, np.float32))
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors.add(f"{block}{matrix}.weight", (hidden, hidden), kind, hidden ** -0.5)
        tensors.add(f"{block}ffn_gate_inp.weight", (options.experts, hidden), T.F32, hidden ** -0.5)
        wide = (options.experts, options.expert_hidden, hidden)
        tensors.add(f"{block}ffn_gate_exps.weight", wide, kind, hidden ** -0.5)
        tensors.add(f"{block}ffn_up_exps.weight", wide, kind, hidden ** -0.5)
        # As Q4_K_M mixes: some down projections at 6 bits.
        fine = kind == T.Q4_K and (layer < options.layers // 8 or layer % 3 == 2)
        tensors.add(f"{block}ffn_down_exps.weight", (options.experts, hidden, options.expert_hidden), T.Q6_K if fine else kind,
                    options.expert_hidden ** -0.5)
        print(f"layer {layer + 1} of {options.layers}", flush=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


if __name__ == "__main__":
    main()
