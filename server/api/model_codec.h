// TextCodec over the model's own tokenizer and chat template.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/base/result.h"
#include "server/api/text_codec.h"

namespace sluice {

// Reads tokenizer.json, tokenizer_config.json and the chat template, if there is one.
Result<std::unique_ptr<TextCodec>> LoadModelCodec(const std::filesystem::path& directory);

}  // namespace sluice
