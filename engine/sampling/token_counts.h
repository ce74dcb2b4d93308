// Which tokens a sequence has seen, kept as it grows so that penalties cost one pass over the
// distinct tokens and never over the text. Single owner; no locking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice {

class TokenCounts {
 public:
  struct Entry {
    int32_t token = 0;
    int32_t output_count = 0;  // 0: seen in the prompt only
  };

  void AddPrompt(int32_t token) { Find(token); }
  void AddOutput(int32_t token) { ++Find(token).output_count; }

  // Distinct tokens in order of first sight.
  std::span<const Entry> entries() const { return entries_; }

 private:
  Entry& Find(int32_t token);
  void Grow();

  std::vector<Entry> entries_;
  std::vector<int32_t> index_;  // open addressing, power of two; entry number, or -1
};

}  // namespace sluice
