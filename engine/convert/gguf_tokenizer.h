// The tokenizer and the chat template of a GGUF file, written as a Hugging Face tokenizer.json and
// tokenizer_config.json that engine/text reads.
//
// Served are tokenizer.ggml.model "gpt2" (byte-level BPE; the split into words goes by
// tokenizer.ggml.pre) and "llama" (SentencePiece BPE by scores, with byte fallback). What the file
// does not hold cannot come back: whether added tokens take the space beside them along, and the
// normalizer, which is taken from the published tokenizers that each `pre` stands for.
// Sources: llama.cpp, src/llama-vocab.cpp (names and defaults) and gguf-py/gguf/constants.py;
// transformers, convert_slow_tokenizer.py (merges from scores); the published tokenizer.json files.
#pragma once

#include <map>
#include <string>

#include "engine/base/result.h"
#include "engine/formats/gguf.h"

namespace sluice {

// Adds "tokenizer.json" and "tokenizer_config.json" to `files`; only the latter, or nothing, when
// the file has no tokenizer. `vocab`: rows of the embedding. Errors: a sentence with the file and
// the key.
Result<> WriteGgufTokenizer(const GgufReader& reader, int vocab,
                            std::map<std::string, std::string>* files);

}  // namespace sluice
