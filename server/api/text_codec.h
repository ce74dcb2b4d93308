// What the API needs of a tokenizer and its chat template; implemented over engine/text
// (model_codec.h) and by test fakes. Const calls are safe from several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace sluice {

// Tokens of one sequence to text, never splitting a UTF-8 character.
class TextStream {
 public:
  virtual ~TextStream() = default;
  // Before the first Push: what follows continues the text of `prompt` (its last tokens are
  // enough), which is not given out again.
  virtual void Continue(std::span<const int32_t> prompt) = 0;
  virtual std::string Push(int32_t token) = 0;
  // What is left of an unfinished character, as U+FFFD.
  virtual std::string Finish() = 0;
};

class TextCodec {
 public:
  virtual ~TextCodec() = default;
  virtual std::vector<int32_t> Encode(std::string_view text, bool add_special,
                                      bool parse_special) const = 0;
  // The bytes that a token stands for; special tokens give their name.
  virtual std::string TokenBytes(int32_t token) const = 0;
  virtual bool IsSpecial(int32_t token) const = 0;
  virtual std::unique_ptr<TextStream> OpenStream(bool skip_special) const = 0;

  virtual bool has_chat_template() const = 0;
  // `messages` is an array; members of `arguments` become variables of the template.
  virtual Result<std::string> RenderChat(const nlohmann::ordered_json& messages,
                                         const nlohmann::ordered_json& arguments,
                                         bool add_generation_prompt) const = 0;
};

}  // namespace sluice
