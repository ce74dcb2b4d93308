// The configuration that a GGUF file's metadata and tensors describe, written as a Hugging Face
// config.json and generation_config.json.
//
// Keys as llama.cpp's convert_hf_to_gguf.py writes them (gguf-py/gguf/constants.py), what a loader
// assumes where they are absent as llama.cpp's loader does (src/llama-model.cpp, src/models/*.cpp):
// those models renormalise the weights of selected experts or not by family, whatever the
// configuration that the file was made from said, unless `expert_weights_norm` is there.
#pragma once

#include <string>

#include "engine/base/result.h"
#include "engine/formats/gguf.h"

namespace sluice {

struct GgufConfigTexts {
  std::string config;      // config.json
  std::string generation;  // generation_config.json: the ids that end a text
};

// Errors: a sentence with the file and the key or tensor that is missing, out of range, or stands
// for something that is not served.
Result<GgufConfigTexts> WriteGgufConfig(const GgufReader& reader);

// The architecture names of GGUF files that are served: "llama (with experts), olmoe, ...".
std::string ServedGgufArchitectures();

}  // namespace sluice
