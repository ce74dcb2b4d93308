// Decoding token by token, for streams. The pieces from all Push calls and Finish, put together,
// are byte for byte what Tokenizer::Decode gives for all the ids; no piece splits a character.
//
// A piece may be empty: bytes of an unfinished character wait for the rest, and byte-fallback
// tokens
// ("<0xE4>") for the first token of another kind, since one invalid byte changes the whole run.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/text/tokenizer.h"

namespace sluice {

namespace text {
class DecodeStream;
}

// One stream; one thread at a time. Movable.
class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special = true);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  // The text that became certain with this token.
  std::string Push(int32_t id);
  // The text still held back. No Push after it.
  std::string Finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<text::DecodeStream> stream_;
  bool skip_special_;
};

}  // namespace sluice
