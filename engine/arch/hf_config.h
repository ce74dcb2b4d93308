// A Hugging Face `config.json` (untrusted) as a ModelConfig. Absent fields take the defaults of the
// family's configuration class; every field is range-checked, and a fault is one sentence naming
// the field. Switches that the family's reference implementation honours are honoured; what would
// change results and is not served (another activation, quantized weights, an unknown rope type) is
// refused by name.
#pragma once

#include <filesystem>
#include <string_view>

#include "engine/arch/model_config.h"
#include "engine/base/model_files.h"
#include "engine/base/result.h"

namespace sluice {

// `generation_config_json` may be empty; its eos_token_id and bos_token_id, when it has them, go
// before those of config.json. Special ids outside [0, vocab_size) can never be sampled and are
// left out of the result.
Result<ModelConfig> ParseHfConfig(std::string_view config_json,
                                  std::string_view generation_config_json);

// From config.json and, where there is one, generation_config.json. Errors name the file.
Result<ModelConfig> LoadHfConfig(const ModelFiles& files);
Result<ModelConfig> LoadHfConfig(const std::filesystem::path& directory);

}  // namespace sluice
