// Remembers the ids of short words. Text repeats itself, and looking a word up is an order of
// magnitude cheaper than merging it.
//
// A direct-mapped table of fixed size: a word has one place, and a newcomer takes it over. So
// memory is bounded and no text can make it degrade beyond "always a miss". Safe from any thread;
// each stripe of places has a lock that is held for a copy of a few dozen bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

namespace sluice::text {

class WordCache {
 public:
  static constexpr size_t kMaxWordBytes = 32;
  static constexpr size_t kMaxIds = 8;

  // About 1.2 MB.
  WordCache();

  // Appends the ids of `word` and returns true, or returns false.
  bool Find(std::string_view word, std::vector<int32_t>* ids) const;
  // Does nothing with words or id lists that are too long.
  void Put(std::string_view word, std::span<const int32_t> ids) const;

 private:
  static constexpr size_t kPlaces = size_t{1} << 14;
  static constexpr size_t kStripes = 64;

  struct Place {
    uint8_t word_bytes = 0;  // 0: free
    uint8_t id_count = 0;
    std::array<char, kMaxWordBytes> word;
    std::array<int32_t, kMaxIds> ids;
  };
  struct Table {
    std::array<std::mutex, kStripes> mutexes;  // mutexes[i % kStripes] guards places[i]
    std::array<Place, kPlaces> places;
  };

  std::unique_ptr<Table> table_;
};

}  // namespace sluice::text
