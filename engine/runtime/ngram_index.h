// Finds where the end of a sequence occurred in it before, to guess that it goes on likewise
// (prompt lookup: Saxena 2023, "Prompt Lookup Decoding"; the same idea as LLMA, Yang et al. 2023).
//
// Positions are chained by a hash of their last kLeastMatch tokens, the newest first. A look-up
// compares at most kCandidates of them, backwards for at most kMostMatch tokens, and takes the
// longest match, of equals the newest. So a new token costs a bounded time, whatever the length of
// the sequence (tables that grow are filled again: a constant share more).
//
// Memory: 8 to 16 bytes per token. Single owner; no locking.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sluice {

class NgramIndex {
 public:
  static constexpr int kLeastMatch = 2;
  static constexpr int kMostMatch = 32;
  static constexpr int kCandidates = 16;

  struct Match {
    int length = 0;  // tokens that agree, at most kMostMatch; 0: none
    int next = 0;    // the position behind the earlier occurrence
  };

  // `tokens` is the whole sequence so far: what was given before, and perhaps more. Takes in what
  // is new and finds the earlier occurrence of its end.
  Match Find(std::span<const int32_t> tokens);

 private:
  static uint32_t Hash(int32_t before, int32_t last);
  void Insert(std::span<const int32_t> tokens, int position);
  void Grow(std::span<const int32_t> tokens);

  std::vector<int32_t> heads_;     // by hash, a power of two: the newest position, or -1
  std::vector<int32_t> previous_;  // by position: the one before it with its hash, or -1
};

}  // namespace sluice
