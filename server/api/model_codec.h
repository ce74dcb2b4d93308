// TextCodec over the model's own tokenizer and chat template.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/base/model_files.h"
#include "engine/base/result.h"
#include "server/api/text_codec.h"

namespace sluice {

// From tokenizer.json, tokenizer_config.json and the chat template, if there is one.
Result<std::unique_ptr<TextCodec>> LoadModelCodec(const ModelFiles& files);
Result<std::unique_ptr<TextCodec>> LoadModelCodec(const std::filesystem::path& directory);

}  // namespace sluice
