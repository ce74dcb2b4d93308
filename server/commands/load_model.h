// From a model's path and settings to a ServedModel.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "engine/base/log.h"
#include "engine/base/result.h"
#include "engine/model/model.h"
#include "server/api/served_model.h"
#include "server/commands/model_path.h"
#include "server/config/config.h"
#include "server/metrics/metrics.h"

namespace sluice {

// Name that clients use: model.id, or the last part of the path without .sluice or .gguf.
std::string ModelId(const ModelSettings& settings);

// model.path as it is served: packed first if it is not a pack yet (model_path.h).
Result<ResolvedModel> ServedModelPath(const Config& config, Logger& log);

// model.kv_dtype, with "auto" settled from the type that config.json gives the weights.
Result<KvDType> ServedKvDType(const Config& config, const ModelFiles& files);

// What `serve` loads a model with, KV memory planned and the default budget settled. Errors name
// the setting that does not fit.
Result<ModelOptions> ServedModelOptions(const Config& config, const std::filesystem::path& path,
                                        const ModelFiles& files, const ModelConfig& architecture,
                                        Logger& log);

// Packs the model if it is not a pack yet (model_path.h), plans KV memory, loads weights, tokenizer
// and template, and starts the engine, whose accounts have
// these weights. Takes as long as reading the weights does. Errors name the
// file and the fault.
Result<std::shared_ptr<ServedModel>> LoadServedModel(const Config& config,
                                                     std::vector<double> account_weights,
                                                     std::shared_ptr<Metrics> metrics, Logger& log);

}  // namespace sluice
