#include "engine/model/model.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "engine/arch/hf_config.h"
#include "engine/formats/pack.h"
#include "engine/formats/safetensors.h"
#include "engine/model/pack_weights.h"
#include "engine/model/transformer.h"
#include "engine/model/weights.h"
#include "engine/tensor/cpu_backend.h"

namespace sluice {
namespace {

constexpr int kMaxThreads = 1024;

// What the kernels ask of a model's shapes (AttentionArgs in kernels/cpu/ops.h).
Result<> CheckShapes(const ModelConfig& config) {
  if (config.head_dim > 256) {
    return Unsupported("head_dim is " + std::to_string(config.head_dim) +
                       "; it must be at most 256");
  }
  return {};
}

Result<> CheckOptions(const ModelOptions& options) {
  const auto positive = [](int value, const char* name) -> Result<> {
    if (value > 0) return {};
    return InvalidArgument(std::string(name) + " must be positive, not " + std::to_string(value));
  };
  if (auto ok = positive(options.max_batch_tokens, "max_batch_tokens"); !ok) return ok;
  if (auto ok = positive(options.max_sequences, "max_sequences"); !ok) return ok;
  if (auto ok = positive(options.kv_blocks, "kv_blocks"); !ok) return ok;
  if (options.max_logit_rows < 0) return InvalidArgument("max_logit_rows must not be negative");
  if (options.max_context < 0) return InvalidArgument("max_context must not be negative");
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgument("threads must be between 0 and " + std::to_string(kMaxThreads));
  }
  if (options.expert_bits != 0 && (options.expert_bits < 2 || options.expert_bits > 8)) {
    return InvalidArgument("the experts' precision must be 0 (all there is) or 2 to 8 bits, not " +
                           std::to_string(options.expert_bits));
  }
  if (options.activation_bits != 8 && options.activation_bits != 16 &&
      options.activation_bits != 24) {
    return InvalidArgument("activation_bits must be 8, 16 or 24, not " +
                           std::to_string(options.activation_bits));
  }
  if (options.kv_blocks > INT32_MAX / kKvBlockTokens) {
    return InvalidArgument("kv_blocks must be at most " +
                           std::to_string(INT32_MAX / kKvBlockTokens));
  }
  return {};
}

Result<ModelWeights> LoadAnyWeights(const std::filesystem::path& path, const ModelConfig& config,
                                    const ModelOptions& options, Backend* backend) {
  if (PackReader::LooksLikePack(path)) {
    Result<PackReader> pack = PackReader::Open(path);
    if (!pack) return pack.error();
    auto weights = LoadPackWeights(std::make_shared<const PackReader>(std::move(*pack)), config,
                                   options, backend);
    if (!weights) return WithContext(path.string(), weights.error());
    return weights;
  }
  const Result<SafetensorsReader> reader = SafetensorsReader::Open(path);
  if (!reader) return reader.error();
  auto weights = LoadWeights(*reader, config, backend, options.progress);
  if (!weights) return WithContext(path.string(), weights.error());
  return weights;
}

}  // namespace

std::string WeightName(const Model& model) {
  if (!model.nested_weights()) return DTypeName(model.weight_dtype());
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f-bit", model.footprint().expert_bits);
  return text;
}

Result<ModelFiles> ReadModelFiles(const std::filesystem::path& path) {
  if (!PackReader::LooksLikePack(path)) return ModelFiles::Read(path);
  const Result<PackReader> pack = PackReader::Open(path);
  if (!pack) return pack.error();
  return ModelFiles(path, pack->metadata().files);
}

Result<uint64_t> DensePackBytes(const std::filesystem::path& path) {
  const Result<PackReader> pack = PackReader::Open(path);
  if (!pack) return pack.error();
  uint64_t bytes = 0;
  for (const PackTensor& tensor : pack->tensors()) bytes += tensor.bytes;
  return bytes;
}

Result<std::unique_ptr<Model>> LoadTransformer(const std::filesystem::path& path,
                                               ModelOptions options,
                                               std::unique_ptr<Backend> backend) {
  if (auto ok = CheckOptions(options); !ok) return ok.error();
  const Result<ModelFiles> files = ReadModelFiles(path);
  if (!files) return files.error();
  Result<ModelConfig> config = LoadHfConfig(*files);
  if (!config) return config.error();
  if (auto ok = CheckShapes(*config); !ok) return WithContext(path.string(), ok.error());
  if (options.max_context == 0) options.max_context = config->max_positions;
  if (options.max_logit_rows == 0) options.max_logit_rows = options.max_batch_tokens;
  // No sequence can outgrow the cache, so neither need the tables.
  options.max_context = static_cast<int>(
      std::min<int64_t>(options.max_context, int64_t{options.kv_blocks} * kKvBlockTokens));

  Result<ModelWeights> weights = LoadAnyWeights(path, *config, options, backend.get());
  if (!weights) return weights.error();
  if (!options.kv_dtype) {
    const PackedMatrix& q = weights->layers[0].q;
    options.kv_dtype = !q.is_nested() && q.dtype == DType::kF32 ? KvDType::kF32 : KvDType::kF16;
  }
  return Transformer::Create(*config, options, std::move(backend), std::move(*weights));
}

Result<std::unique_ptr<Model>> Model::Load(const std::filesystem::path& path,
                                           const ModelOptions& options) {
  if (auto ok = CheckOptions(options); !ok) return ok.error();
  const cpu::Ops* ops = cpu::SelectOps(options.isa);
  if (ops == nullptr) {
    return Unsupported("this CPU (or this build) lacks the instruction set asked for with cpu_isa");
  }
  ModelOptions resolved = options;
  if (resolved.threads == 0) resolved.threads = cpu::UsableCores();
  auto backend = std::make_unique<CpuBackend>(ops, resolved.threads, resolved.pin_threads,
                                              resolved.activation_bits / 8);
  return LoadTransformer(path, std::move(resolved), std::move(backend));
}

}  // namespace sluice
