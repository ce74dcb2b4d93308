// A model that is ready to answer: its engine, its text codec, and the facts that handlers check
// requests against.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/engine.h"
#include "server/api/text_codec.h"

namespace sluice {

struct ServedModel {
  std::string id;
  int64_t created = 0;  // Unix seconds
  std::string family;   // "qwen3_moe"
  int vocab = 0;        // ids of prompts are in [0, vocab)
  int max_context = 0;  // tokens of one request
  int max_running = 1;
  int max_queue = 1;
  std::vector<int32_t> eos_ids;
  std::unique_ptr<TextCodec> codec;
  // Reset only when no other thread can reach this any more; replies that are destroyed later find
  // it null.
  std::unique_ptr<Engine> engine;

  void Cancel(RequestId id) {
    if (engine) engine->Cancel(id);
  }
};

}  // namespace sluice
