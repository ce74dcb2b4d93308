// A GGUF file as a Checkpoint: the four families under their llama.cpp names (gguf_config.h), with
// stacked experts (blk.N.ffn_gate_exps), gate and up stacked in one (blk.N.ffn_gate_up_exps), or
// one tensor per expert as files of early 2024 have them (blk.N.ffn_gate.E), query, key and value
// apart or in one (blk.N.attn_qkv).
#pragma once

#include <filesystem>
#include <memory>

#include "engine/base/result.h"
#include "engine/convert/checkpoint.h"

namespace sluice {

// Writes the documents and checks that the file has every weight of the model, of the right shape
// and of a type that is read, and no tensor whose part in the model is not known. Errors name the
// file and the key or tensor.
Result<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::filesystem::path& path);

}  // namespace sluice
