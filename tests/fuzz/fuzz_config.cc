// Any bytes as config.json, and as config.json with generation_config.json behind a NUL: parsing
// must not crash, and what it accepts must hold the promises of ModelConfig and be usable.
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/arch/rope.h"
#include "engine/arch/tensor_names.h"
#include "engine/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t split = text.find('\0');
  const sluice::Result<sluice::ModelConfig> parsed = sluice::ParseHfConfig(
      text.substr(0, split), split == text.npos ? std::string_view() : text.substr(split + 1));
  if (!parsed) {
    SLUICE_CHECK(!parsed.error().message.empty());
    return 0;
  }
  const sluice::ModelConfig& config = *parsed;
  SLUICE_CHECK(config.hidden > 0 && config.vocab > 0 && config.num_layers() > 0);
  SLUICE_CHECK(config.kv_heads > 0 && config.heads % config.kv_heads == 0);
  SLUICE_CHECK(config.head_dim >= 2 && config.head_dim % 2 == 0);
  SLUICE_CHECK(config.max_positions > 0);
  SLUICE_CHECK(config.router.experts_per_token >= 1 &&
               config.router.experts_per_token <= config.router.num_experts);
  for (const int32_t id : config.eos_ids) SLUICE_CHECK(id >= 0 && id < config.vocab);
  SLUICE_CHECK(config.bos_id >= -1 && config.bos_id < config.vocab);
  for (const sluice::LayerConfig& layer : config.layers) SLUICE_CHECK(layer.sliding_window >= 0);

  const sluice::RopeTable rope(config);
  std::vector<float> cos(static_cast<size_t>(rope.half_dim()));
  std::vector<float> sin(static_cast<size_t>(rope.half_dim()));
  for (const int position : {0, 1, config.max_positions - 1}) {
    rope.CosSin(position, cos.data(), sin.data());
    for (size_t i = 0; i < cos.size(); ++i) {
      SLUICE_CHECK(std::isfinite(cos[i]) && std::isfinite(sin[i]));
    }
  }
  if (config.num_layers() * config.router.num_experts < 4096) {
    const std::vector<int64_t> shape = {1};
    const auto lookup = [&](std::string_view) { return &shape; };
    SLUICE_CHECK(!sluice::CheckTensors(config, lookup).has_value());  // no embedding is a vector
  }
  return 0;
}
