#!/usr/bin/env python3
"""Makes the model goldens in tests/data/models: tiny random checkpoints and what transformers says of them.

Every family and every configuration switch that the engine serves has a directory, in Hugging Face format, with
logits of a prompt and a greedy continuation (see tests/data/models/README.md for the files). Seeds are searched until
the result is a fair test of another implementation: the two best logits of every greedy step and the last chosen and
first rejected router scores of every token are well apart, and half-precision checkpoints route as their float32
upcast does. Also writes rope.json: inverse frequencies, cosines and sines of every rope kind.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/goldens/requirements.txt
    .venv/bin/python scripts/goldens/model_goldens.py [--only NAME ...]
"""

import argparse
import copy
import json
import pathlib
import shutil
import sys
import zlib

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "tests" / "data" / "models"
CONTINUATION = 64
MIN_LOGIT_MARGIN = 5e-3  # between the two best logits of a greedy step
MIN_ROUTER_MARGIN = 1e-3  # between the router logits at the edge of the top k

CLASSES = {
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM),
    "qwen2_moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
BASE = {
    "mixtral": dict(vocab_size=112, hidden_size=40, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2, max_position_embeddings=128,
                    rms_norm_eps=1e-5),
    "olmoe": dict(vocab_size=120, hidden_size=40, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=4, num_experts=6, num_experts_per_tok=3, max_position_embeddings=128,
                  rms_norm_eps=1e-5, pad_token_id=None),
    "qwen2_moe": dict(vocab_size=104, hidden_size=40, intermediate_size=36, moe_intermediate_size=20,
                      shared_expert_intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, num_experts=5, num_experts_per_tok=2, max_position_embeddings=128),
    "qwen3_moe": dict(vocab_size=108, hidden_size=40, intermediate_size=44, moe_intermediate_size=18,
                      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=16, num_experts=6,
                      num_experts_per_tok=2, max_position_embeddings=128),
}
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)

# name: (family, overrides of BASE, how to write it). Writing: `legacy` gives the configuration the form of files
# published before transformers 5, `fused` keeps experts fused, `shard` splits the weights, `eos` is "list", "int" or
# "config" (no generation_config.json).
MODELS = {
    "mixtral": ("mixtral", dict(), dict(legacy=True)),
    "mixtral_sliding": ("mixtral", dict(sliding_window=8, num_key_value_heads=4, hidden_size=48, num_local_experts=4), dict()),
    "mixtral_tied": ("mixtral", dict(tie_word_embeddings=True, num_key_value_heads=1), dict(eos="config")),
    "mixtral_yarn": ("mixtral", dict(head_dim=16, rope_parameters=YARN), dict(eos="list")),
    "mixtral_fused": ("mixtral", dict(num_local_experts=4), dict(fused=True)),
    "olmoe": ("olmoe", dict(), dict(legacy=True)),
    "olmoe_norm_topk": ("olmoe", dict(norm_topk_prob=True, num_key_value_heads=2), dict(shard=True)),
    "olmoe_clip_qkv": ("olmoe", dict(clip_qkv=0.8, num_experts=8, intermediate_size=16), dict(eos="list")),
    "olmoe_attention_bias": ("olmoe", dict(attention_bias=True, num_key_value_heads=1), dict(eos="config")),
    "qwen2_moe": ("qwen2_moe", dict(), dict(legacy=True)),
    "qwen2_moe_sparse_step": ("qwen2_moe", dict(decoder_sparse_step=2, num_hidden_layers=4, num_experts=4, moe_intermediate_size=14,
                                   shared_expert_intermediate_size=18),
                              dict(eos="list")),
    "qwen2_moe_dense_layers": ("qwen2_moe", dict(mlp_only_layers=[0, 2], num_hidden_layers=3, num_key_value_heads=4,
                                             intermediate_size=52),
                               dict()),
    "qwen2_moe_norm_topk": ("qwen2_moe", dict(norm_topk_prob=True, qkv_bias=False, num_experts_per_tok=3,
                                          hidden_size=64, moe_intermediate_size=12, num_experts=4,
                                          vocab_size=96, shared_expert_intermediate_size=16), dict()),
    "qwen2_moe_sliding": ("qwen2_moe", dict(use_sliding_window=True, sliding_window=6, max_window_layers=3,
                                            num_hidden_layers=4, num_experts=4, moe_intermediate_size=14,
                                   shared_expert_intermediate_size=18), dict(legacy=True)),
    "qwen2_moe_tied_fused": ("qwen2_moe", dict(tie_word_embeddings=True, num_key_value_heads=1), dict(fused=True)),
    "qwen3_moe": ("qwen3_moe", dict(norm_topk_prob=True), dict(legacy=True)),
    "qwen3_moe_tied": ("qwen3_moe", dict(tie_word_embeddings=True, num_key_value_heads=4, attention_bias=True),
                       dict(shard=True)),
    "qwen3_moe_llama3": ("qwen3_moe", dict(rope_parameters=LLAMA3, num_key_value_heads=2), dict()),
    "qwen3_moe_linear": ("qwen3_moe", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
                         dict(legacy=True)),
    "qwen3_moe_dynamic": ("qwen3_moe", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0),
                                            max_position_embeddings=32, norm_topk_prob=True), dict()),
    "qwen3_moe_dense_layers": ("qwen3_moe", dict(mlp_only_layers=[1], num_hidden_layers=3, num_experts=5),
                               dict(eos="list")),
    "qwen3_moe_sliding": ("qwen3_moe", dict(use_sliding_window=True, sliding_window=9, head_dim=8,
                                            num_key_value_heads=2), dict(fused=True)),
}
for _family in CLASSES:
    for _dtype in ("bf16", "f16"):
        MODELS[f"{_family}_{_dtype}"] = (_family, dict(), dict(dtype=_dtype))
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def randomize(model, generator):
    """Gives every weight a scale at which attention, routing and logits all matter."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                value = 1.0 + 0.25 * noise
            elif name.endswith("bias"):
                value = 0.4 * noise
            elif name.endswith("mlp.gate.weight"):
                value = noise * 1.5 / weight.shape[-1] ** 0.5
            elif "embed_tokens" in name:
                value = 0.3 * noise if model.config.tie_word_embeddings else noise
            elif name == "lm_head.weight":
                value = noise * 3.0 / weight.shape[-1] ** 0.5
            else:
                value = noise * 1.3 / weight.shape[-1] ** 0.5
            weight.copy_(value)
    model.tie_weights()


class RouterProbe:
    """Records, for each sparse layer, the chosen experts and the distance to the first rejected one."""

    def __init__(self, model):
        self.hooks = [m.register_forward_hook(self.see) for n, m in model.named_modules() if n.endswith("mlp.gate")]
        self.clear()

    def clear(self):
        self.margin = float("inf")
        self.chosen = []

    def see(self, module, _inputs, output):
        scores = output[0].float()
        top = torch.topk(scores, min(module.top_k + 1, scores.shape[-1]), dim=-1)
        if top.values.shape[-1] > module.top_k:
            self.margin = min(self.margin, (top.values[:, -2] - top.values[:, -1]).min().item())
        self.chosen.append(top.indices[:, : module.top_k].sort(dim=-1).values)

    def close(self):
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def greedy(model, prompt, steps):
    """The continuation, and the smallest distance between the two best logits of a step."""
    ids = torch.tensor([prompt])
    cache, tokens, margin = None, [], float("inf")
    for _ in range(steps):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = torch.topk(out.logits[0, -1].float(), 2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        tokens.append(int(best.indices[0]))
        ids = torch.tensor([[tokens[-1]]])
    return tokens, margin


@torch.no_grad()
def prompt_logits(model, prompt):
    return model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float().numpy()


def eager(model):
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model.eval()


def legacy_config(config, family):
    """The same configuration as files published before transformers 5 spell it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if family != "mixtral" and "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    if family == "mixtral":
        config.pop("head_dim", None)
    if config.get("sliding_window") == 0:
        config["sliding_window"] = 32768
    return config


def write(directory, model, how, eos):
    shutil.rmtree(directory, ignore_errors=True)
    model.config.eos_token_id = None
    model.config.bos_token_id = None
    # Only the ids below go into generation_config.json.
    model.generation_config = transformers.GenerationConfig()
    options = dict(save_original_format=not how.get("fused", False))
    if how.get("shard"):
        options["max_shard_size"] = "90KB"
    model.save_pretrained(directory, **options)
    config = json.loads((directory / "config.json").read_text())
    if how.get("legacy"):
        config = legacy_config(config, config["model_type"])
    config["bos_token_id"] = 1
    config["eos_token_id"] = eos[0] if how.get("eos", "int") != "list" else eos
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = directory / "generation_config.json"
    if how.get("eos") == "config":
        generation.unlink()
    else:
        ids = eos if how.get("eos") == "list" else eos[0]
        generation.write_text(json.dumps(dict(bos_token_id=1, eos_token_id=ids, do_sample=False)) + "\n")


def make(name):
    family, overrides, how = MODELS[name]
    config_class, model_class = CLASSES[family]
    settings = {**copy.deepcopy(BASE[family]), **copy.deepcopy(overrides)}
    dtype = how.get("dtype", "f32")
    for attempt in range(400):
        seed = zlib.crc32(name.encode()) % 1000000 + attempt
        generator = torch.Generator().manual_seed(seed)
        config = config_class(**copy.deepcopy(settings), bos_token_id=None, eos_token_id=None)
        model = eager(model_class(config).float())
        randomize(model, generator)
        length = 24 if "dynamic" in name else int(torch.randint(26, 41, (1,), generator=generator))
        prompt = torch.randint(3, settings["vocab_size"], (length,), generator=generator).tolist()
        native = None
        if dtype != "f32":
            # Parameters only: the rope frequencies stay float32, as when transformers loads such a file.
            native = copy.deepcopy(model)
            for weight in native.parameters():
                weight.data = weight.data.to(DTYPES[dtype])
            native.config.dtype = DTYPES[dtype]
            native.tie_weights()
            model = copy.deepcopy(native).float()

        probe = RouterProbe(model)
        logits = prompt_logits(model, prompt)
        routes = probe.chosen
        continuation, margin = greedy(model, prompt, CONTINUATION)
        router_margin = probe.margin
        probe.close()
        if margin < MIN_LOGIT_MARGIN or router_margin < MIN_ROUTER_MARGIN or len(set(continuation)) < 12:
            continue
        expected = logits
        if native is not None:
            probe = RouterProbe(native)
            expected = prompt_logits(native, prompt)
            same = all(torch.equal(a, b) for a, b in zip(routes, probe.chosen))
            probe.close()
            if not same:
                continue
        break
    else:
        sys.exit(f"{name}: no seed gives a fair test")

    unused = [t for t in range(2, settings["vocab_size"]) if t not in prompt and t not in continuation]
    directory = OUTPUT / name
    write(directory, native or model, how, unused[:2])
    # The directory, as written, is the same model to transformers.
    loaded = eager(model_class.from_pretrained(directory, dtype=DTYPES[dtype]))
    difference = np.abs(prompt_logits(loaded, prompt) - expected).max()
    if difference > (1e-5 if dtype == "f32" else 0.05):  # rounding only: sums depend on alignment
        sys.exit(f"{name}: the written checkpoint gives logits that differ by {difference}")
    if dtype == "f32" and greedy(loaded, prompt, CONTINUATION)[0] != continuation:
        sys.exit(f"{name}: the written checkpoint continues otherwise")

    expected.astype("<f4").tofile(directory / "logits.f32")
    if native is not None:
        logits.astype("<f4").tofile(directory / "logits_upcast.f32")
    facts = dict(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        dtype=dtype.upper(),
        seed=seed,
        prompt=prompt,
        logits_shape=list(expected.shape),
        continuation=continuation,
        eos_token_ids=unused[:2] if how.get("eos") == "list" else unused[:1],
        min_logit_margin=round(margin, 6),
        min_router_margin=round(router_margin, 6),
    )
    (directory / "expected.json").write_text(json.dumps(facts, sort_keys=True) + "\n")
    size = sum(p.stat().st_size for p in directory.iterdir())
    drift = "" if native is None else (
        f", distance from float32 {np.linalg.norm(expected - logits) / np.linalg.norm(logits):.4f} relative")
    print(f"{name}: seed {seed}, logits std {logits.std():.2f}, margins {margin:.4f} and {router_margin:.4f}, "
          f"{len(set(continuation))} distinct tokens, {size // 1024} KiB{drift}", flush=True)


def rope_goldens():
    """One entry for each rope kind and option; positions of dynamic entries are decoded one by one."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

    cases = {
        "default": dict(rope_type="default", rope_theta=10000.0),
        "default, theta 1e6, 128 wide": dict(rope_type="default", rope_theta=1000000.0),
        "linear": dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
        "dynamic": dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0),
        "dynamic, factor 1": dict(rope_type="dynamic", rope_theta=50000.0, factor=1.0),
        "llama3": dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=64),
        "yarn": dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64),
        "yarn, not truncated": dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, truncate=False,
                                    original_max_position_embeddings=64),
        "yarn, attention factor given": dict(rope_type="yarn", rope_theta=1000000.0, factor=8.0, attention_factor=1.25,
                                             original_max_position_embeddings=64),
        "yarn, mscale": dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, mscale=1.0, mscale_all_dim=0.7,
                             original_max_position_embeddings=64),
        "yarn, betas": dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=16.0, beta_slow=2.0,
                            original_max_position_embeddings=64),
        "yarn, factor null": dict(rope_type="yarn", rope_theta=10000.0, factor=None,
                                  original_max_position_embeddings=64),
        "yarn, factor below 1": dict(rope_type="yarn", rope_theta=10000.0, factor=0.5,
                                     original_max_position_embeddings=64),
        "yarn, original length absent": dict(rope_type="yarn", rope_theta=10000.0, factor=2.0),
    }
    positions = [0, 1, 2, 7, 63, 64, 255, 256, 257, 300, 511, 1000]
    entries = []
    for name, parameters in cases.items():
        settings = dict(model_type="qwen3_moe", hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
                        head_dim=128 if "128 wide" in name else 32, max_position_embeddings=256)
        config = transformers.Qwen3MoeConfig(**settings, rope_parameters=copy.deepcopy(parameters))
        cos, sin = [], []
        for position in positions:
            rope = Qwen3MoeRotaryEmbedding(config)
            frequencies = rope.inv_freq.clone()
            one, other = rope(torch.zeros(1, dtype=torch.float32), torch.tensor([[position]]))
            half = one.shape[-1] // 2
            cos.append(one[0, 0, :half].tolist())
            sin.append(other[0, 0, :half].tolist())
        entries.append(dict(name=name, config=dict(settings, rope_parameters=parameters),
                            inverse_frequencies=frequencies.tolist(), attention_factor=float(rope.attention_scaling),
                            positions=positions, cos=cos, sin=sin))
    text = ",\n".join(json.dumps(entry) for entry in entries)
    (OUTPUT / "rope.json").write_text("[" + text + "]\n")
    print(f"rope.json: {len(entries)} entries")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these models, or rope; default all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or [*MODELS, "rope"]:
        rope_goldens() if name == "rope" else make(name)


if __name__ == "__main__":
    main()
