// A model that is ready to answer: its engine, its text codec, and the facts that handlers check
// requests against.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/engine.h"
#include "server/api/served_routing.h"
#include "server/api/text_codec.h"
#include "server/config/pack_cache.h"

namespace sluice {

struct ServedModel {
  std::string id;
  int64_t created = 0;  // Unix seconds
  std::string family;   // "qwen3_moe"
  int vocab = 0;        // ids of prompts are in [0, vocab)
  int max_context = 0;  // tokens of one request
  int max_running = 1;
  int max_queue = 1;
  QualitySettings quality;  // of requests that do not say
  std::vector<int32_t> eos_ids;
  PackLease lease;  // of its pack in the cache of packs
  std::unique_ptr<TextCodec> codec;
  // Null where no expert leaves memory. Outlives the engine.
  std::unique_ptr<ServedRouting> routing;
  // Reset only when no other thread can reach this any more; replies that are destroyed later find
  // it null.
  std::unique_ptr<Engine> engine;

  // The engine's, with what only its listeners know.
  EngineStats Stats() const;
  void Cancel(RequestId id) {
    if (engine) engine->Cancel(id);
  }
};

inline EngineStats ServedModel::Stats() const {
  EngineStats stats = engine->Stats();
  if (routing == nullptr || stats.expert_tiers == nullptr) return stats;
  auto tiers = std::make_shared<ExpertTierStats>(*stats.expert_tiers);
  routing->AddOptimum(tiers.get());
  stats.expert_tiers = std::move(tiers);
  return stats;
}

}  // namespace sluice
