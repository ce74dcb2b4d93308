"""GGUF files through the binary: the demo model as other tools would write it, packed on first use and served."""
import json
import struct

import gguf
import httpx
import numpy
import pytest

from conftest import DEMO_MODEL, ROOT, running
from test_commands import sluice

TEXT = ROOT / "tests" / "data" / "heldout" / "qa.txt"
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp"}


def demo_tensors():
    """The checkpoint's tensors by name, as F32 (BF16 widened exactly)."""
    raw = (DEMO_MODEL / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, info in json.loads(raw[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in info["data_offsets"])
        assert info["dtype"] == "BF16"
        wide = numpy.frombuffer(raw[begin:end], dtype="<u2").astype(numpy.uint32) << 16
        tensors[name] = wide.view(numpy.float32).reshape(info["shape"])
    return tensors


def write_gguf(path, kind):
    """kind: BF16, F16, Q8_0 or Q4_0, for every matrix but the router."""
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    tensors = demo_tensors()
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("demo")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", config.get("rope_parameters", {}).get("rope_theta", 10000.0)))
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    special = {t["id"] for t in tokenizer["added_tokens"]}
    tokens = [t for t, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_chat_template((DEMO_MODEL / "chat_template.jinja").read_text())

    def add(name, values, matrix=True):
        if not matrix:
            writer.add_tensor(name, values.astype(numpy.float32))
            return
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)

    add("token_embd.weight", tensors["model.embed_tokens.weight"])
    add("output_norm.weight", tensors["model.norm.weight"], matrix=False)
    if not config["tie_word_embeddings"]:
        add("output.weight", tensors["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for theirs, ours in NAMES.items():
            values = tensors[f"{block}{theirs}.weight"]
            add(f"blk.{layer}.{ours}.weight", values, matrix=values.ndim == 2 and ours != "ffn_gate_inp")
        for part in ("gate", "up", "down"):
            stacked = numpy.stack([tensors[f"{block}mlp.experts.{e}.{part}_proj.weight"]
                                   for e in range(config["num_experts"])])
            add(f"blk.{layer}.ffn_{part}_exps.weight", stacked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: write_gguf(folder / f"demo-{kind.lower()}.gguf", kind) for kind in ("BF16", "Q8_0", "Q4_0")}


def divergence(model):
    return json.loads(sluice("eval", "--model", str(model), "--reference", str(DEMO_MODEL), "--text", str(TEXT),
                             "--context", "192", "--json").stdout)


def test_a_bf16_file_predicts_exactly_what_the_checkpoint_does(files):
    report = divergence(files["BF16"])
    assert report["kl_per_token"] == 0 and report["top1_agreement"] == 1 and report["logit_error"] == 0


def test_quantized_files_stay_near_the_checkpoint(files):
    eight, four = divergence(files["Q8_0"]), divergence(files["Q4_0"])
    assert 0 < eight["kl_per_token"] < 0.003 < four["kl_per_token"] < 0.1, (eight, four)
    assert eight["top1_agreement"] > 0.95


def test_packing_a_quantized_file_keeps_its_size(files, tmp_path):
    for kind in ("Q8_0", "Q4_0"):
        pack = tmp_path / f"{kind}.sluice"
        report = json.loads(sluice("pack", str(files[kind]), str(pack), "--json").stdout)
        assert report["pack_bytes"] < 1.05 * files[kind].stat().st_size, report


def test_a_gguf_file_is_packed_once_and_chats(files, tmp_path):
    cache = tmp_path / "cache"
    for first in (True, False):
        with running("--cache-dir", str(cache), model=files["Q8_0"]) as server:
            assert ("(once)" in server.log()) == first
            name = httpx.get(server.url + "/v1/models").json()["data"][0]["id"]
            assert name == "demo-q8_0"
            reply = httpx.post(server.url + "/v1/chat/completions", timeout=60, json={
                "model": name, "messages": [{"role": "user", "content": "Sort: 7 3 9 1"}], "temperature": 0,
                "max_tokens": 24}).json()
            assert reply["choices"][0]["message"]["content"].strip() == "1 3 7 9"
            assert reply["choices"][0]["finish_reason"] == "stop"


def test_a_truncated_file_is_refused_by_name(files, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["Q8_0"].read_bytes()[:1_000_000])
    done = sluice("serve", "--model", str(cut), "--port", "0", "--cache-dir", str(tmp_path / "cache"), check=False)
    assert done.returncode != 0 and "cut.gguf" in done.stderr
    assert not list((tmp_path / "cache").glob("*.sluice"))
