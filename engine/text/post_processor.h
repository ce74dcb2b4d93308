// The `post_processor` of tokenizer.json: puts special tokens (BOS, EOS) round an encoded text.
// Supported: TemplateProcessing (its `single` template), ByteLevel (changes offsets only, so
// nothing here) and Sequence.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace sluice::text {

// Immutable; any thread.
class PostProcessor {
 public:
  PostProcessor() = default;  // changes nothing

  static Result<PostProcessor> FromJson(const nlohmann::json& component, std::string_view place);

  // What becomes of `ids`. Without add_special_tokens, templates keep only their sequence.
  void Apply(bool add_special_tokens, std::vector<int32_t>* ids) const;

  // The largest id that Apply may add, or -1.
  int32_t largest_id() const { return largest_id_; }

 private:
  struct Part {
    bool is_sequence;          // the encoded text
    std::vector<int32_t> ids;  // otherwise
  };
  using Template = std::vector<Part>;

  Result<void> Add(const nlohmann::json& component, std::string_view place, int depth);
  Result<void> AddTemplate(const nlohmann::json& component, std::string_view place);

  std::vector<Template> templates_;
  int32_t largest_id_ = -1;
};

}  // namespace sluice::text
