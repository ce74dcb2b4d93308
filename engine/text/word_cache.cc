#include "engine/text/word_cache.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace sluice::text {

WordCache::WordCache() : table_(std::make_unique<Table>()) {}

bool WordCache::Find(std::string_view word, std::vector<int32_t>* ids) const {
  if (word.empty() || word.size() > kMaxWordBytes) return false;
  const size_t index = std::hash<std::string_view>{}(word) % kPlaces;
  const std::lock_guard lock(table_->mutexes[index % kStripes]);
  const Place& place = table_->places[index];
  if (place.word_bytes != word.size() ||
      std::memcmp(place.word.data(), word.data(), word.size()) != 0) {
    return false;
  }
  ids->insert(ids->end(), place.ids.begin(), place.ids.begin() + place.id_count);
  return true;
}

void WordCache::Put(std::string_view word, std::span<const int32_t> ids) const {
  if (word.empty() || word.size() > kMaxWordBytes || ids.size() > kMaxIds) return;
  const size_t index = std::hash<std::string_view>{}(word) % kPlaces;
  const std::lock_guard lock(table_->mutexes[index % kStripes]);
  Place& place = table_->places[index];
  place.word_bytes = static_cast<uint8_t>(word.size());
  place.id_count = static_cast<uint8_t>(ids.size());
  std::copy(word.begin(), word.end(), place.word.begin());
  std::copy(ids.begin(), ids.end(), place.ids.begin());
}

}  // namespace sluice::text
