// A Hugging Face directory as a Checkpoint: safetensors in F32, F16 or BF16.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/base/result.h"
#include "engine/convert/checkpoint.h"

namespace sluice {

// Reads the documents and the headers. Errors: those of ModelFiles::Read, LoadHfConfig and
// SafetensorsReader::Open, and the first weight of the model that is missing, of another shape or
// of a type that is not read.
Result<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::filesystem::path& directory);

}  // namespace sluice
