#include "server/openai/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace sluice::openai {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) SLUICE_CHECK(!stop.empty());
}

std::string StopMatcher::Push(std::string_view piece) {
  if (matched_) return {};
  held_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) {
    matched_ = true;
    std::string text = held_.substr(0, first);
    held_.clear();
    return text;
  }
  size_t keep = 0;  // the longest tail that begins some stop string
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) keep = length;
    }
  }
  std::string text = held_.substr(0, held_.size() - keep);
  held_.erase(0, text.size());
  return text;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace sluice::openai
