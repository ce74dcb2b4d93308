// Test support: the golden checkpoints of tests/data/models and a driver for one model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "engine/model/model.h"

namespace sluice::testing {

struct Golden {
  std::string name;
  std::filesystem::path directory;
  std::string dtype;  // "F32", "BF16", "F16"
  std::vector<int32_t> prompt;
  std::vector<int32_t> continuation;
  int vocab = 0;
  std::vector<float> logits;  // [prompt, vocab], as the reference runs it in its own dtype
  std::vector<float> upcast;  // half-precision checkpoints: the same weights run in F32
};

// Every golden, by name.
std::vector<Golden> LoadGoldens();
Golden LoadGolden(const std::string& name);

// Loads or fails the test with the error's message.
std::unique_ptr<Model> LoadOrFail(const std::filesystem::path& directory, ModelOptions options);
ModelOptions SmallOptions();

// A sequence with a block table of its own.
struct TestSequence {
  std::vector<int32_t> blocks;
  int position = 0;

  // Blocks [first, first + count) in reverse order, so that the table is not the identity.
  TestSequence(int first, int count) : blocks(static_cast<size_t>(count)) {
    std::iota(blocks.rbegin(), blocks.rend(), first);
  }
  SequenceChunk Chunk(std::span<const int32_t> tokens, LogitRows rows) {
    const SequenceChunk chunk = {tokens, position, blocks, rows};
    position += static_cast<int>(tokens.size());
    return chunk;
  }
};

// Every instruction set that this machine has.
std::vector<cpu::Isa> UsableIsas();

int Argmax(std::span<const float> row);

}  // namespace sluice::testing
