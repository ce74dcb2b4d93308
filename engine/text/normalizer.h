// The `normalizer` of tokenizer.json: rewrites text before it is split. Supported: NFC, NFD, NFKC,
// NFKD, Lowercase, Strip, Prepend, Replace, ByteLevel and Sequence.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/replacer.h"
#include "engine/text/unicode.h"

namespace sluice::text {

// Immutable; any thread.
class Normalizer {
 public:
  Normalizer() = default;  // changes nothing

  static Result<Normalizer> FromJson(const nlohmann::json& component, std::string_view place);

  bool empty() const { return steps_.empty(); }

  // REQUIRES: valid UTF-8; the result is again.
  std::string Apply(std::string_view text, RegexScratch* scratch) const;

 private:
  struct Lower {};
  struct ByteLevel {};
  struct Strip {
    bool left;
    bool right;
  };
  struct Prepend {
    std::string text;
  };
  using Step = std::variant<NormalForm, Lower, ByteLevel, Strip, Prepend, Replacer>;

  Result<void> Add(const nlohmann::json& component, std::string_view place, int depth);

  std::vector<Step> steps_;
};

}  // namespace sluice::text
