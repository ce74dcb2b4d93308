"""Write a training checkpoint as a Hugging Face Qwen3-MoE folder (bf16, published tensor names)."""
import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from model import Config, Model

TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def tensors(state, c: Config):
    """Published names and [out, in] orientation; the head is tied to the embedding and not stored."""
    out = {"model.embed_tokens.weight": state["embed"], "model.norm.weight": state["norm"]}
    for n in range(c.layers):
        s = {k.removeprefix(f"layers.{n}."): v for k, v in state.items() if k.startswith(f"layers.{n}.")}
        at = f"model.layers.{n}."
        q, k, v = s["qkv"].T.split([c.heads * c.head_dim] + [c.kv_heads * c.head_dim] * 2)
        out |= {at + "input_layernorm.weight": s["attention_norm"], at + "post_attention_layernorm.weight": s["moe_norm"],
                at + "self_attn.q_proj.weight": q, at + "self_attn.k_proj.weight": k,
                at + "self_attn.v_proj.weight": v, at + "self_attn.o_proj.weight": s["o"].T,
                at + "self_attn.q_norm.weight": s["q_norm"], at + "self_attn.k_norm.weight": s["k_norm"],
                at + "mlp.gate.weight": s["router"].T}
        for e in range(c.experts):
            gate, up = s["gate_up"][e].T.split(c.intermediate)
            expert = f"{at}mlp.experts.{e}."
            out |= {expert + "gate_proj.weight": gate, expert + "up_proj.weight": up,
                    expert + "down_proj.weight": s["down"][e].T}
    return {k: v.bfloat16().contiguous() for k, v in out.items()}


def config_json(c: Config, end, im_end):
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": end, "decoder_sparse_step": 1, "eos_token_id": im_end, "head_dim": c.head_dim,
        "hidden_act": "silu", "hidden_size": c.hidden, "initializer_range": 0.02,
        "intermediate_size": c.intermediate * c.top_k, "max_position_embeddings": 2048,
        "max_window_layers": c.layers, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": c.intermediate, "norm_topk_prob": True, "num_attention_heads": c.heads,
        "num_experts": c.experts, "num_experts_per_tok": c.top_k, "num_hidden_layers": c.layers,
        "num_key_value_heads": c.kv_heads, "output_router_logits": False, "rms_norm_eps": c.eps,
        "rope_scaling": None, "rope_theta": c.rope_theta, "router_aux_loss_coef": 0.01,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": c.vocab,
    }


def tokenizer_json(tokenizer):
    special = {t: tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    added = {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                      "special": True} for t, i in special.items()}
    return {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 2048, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
    }


def verify(model, out):
    """The folder, read by transformers, must give the logits of the training code within bf16 noise."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(out)
    other = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    worst = agree = count = 0
    for text in ("Sort: 7 3 9 1 -> 1 3 7 9\n", "Once upon a time, there was a small cat called Anna.",
                 "English: the red house. German: das rote Haus."):
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            ours, theirs = model.logits(model(ids)[0]), other(ids).logits
        worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
        agree += (ours.argmax(-1) == theirs.argmax(-1)).sum().item()
        count += ids.numel()
    print(f"logits against transformers: relative difference {worst:.4f}, same argmax {agree}/{count}")
    print(repr(tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False,
                                             add_generation_prompt=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of checkpoint.pt and tokenizer.json")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / "deploy/demo-model")
    args = parser.parse_args()
    saved = torch.load(args.work / "checkpoint.pt")
    model = Model(Config(**saved["config"])).eval()
    model.load_state_dict(saved["model"])
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    end, im_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors(saved["model"], model.c), args.out / "model.tmp", metadata={"format": "pt"})
    (args.out / "model.tmp").chmod(0o644)
    (args.out / "model.tmp").rename(args.out / "model.safetensors")
    shutil.copy(args.work / "tokenizer.json", args.out / "tokenizer.json")
    files = {"config.json": config_json(model.c, end, im_end), "tokenizer_config.json": tokenizer_json(tokenizer),
             "generation_config.json": {"bos_token_id": end, "do_sample": False, "eos_token_id": [im_end, end],
                                        "pad_token_id": end, "transformers_version": "4.51.0"}}
    for name, content in files.items():
        (args.out / name).write_text(json.dumps(content, indent=2) + "\n")
    (args.out / "chat_template.jinja").write_text(TEMPLATE.rstrip("\n"))
    print(f"step {saved['step']}, {saved['tokens'] / 1e6:.2f}M tokens, {saved['spent'] / 60:.1f} min, "
          f"{sum(f.stat().st_size for f in args.out.iterdir())} bytes")
    verify(model, args.out)


if __name__ == "__main__":
    main()
