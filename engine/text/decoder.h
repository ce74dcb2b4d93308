// The `decoder` of tokenizer.json: turns tokens back into text. Supported: ByteLevel, Replace,
// ByteFallback, Fuse, Strip, Metaspace and Sequence; with no decoder, tokens are joined by spaces.
//
// The library decodes a whole list of tokens at once. Here each step of the chain is a small state
// machine, so the same code decodes a whole list and a stream of single tokens, to the same bytes.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/replacer.h"

namespace sluice::text {

// The chain of steps. Immutable; any thread.
class Decoder {
 public:
  Decoder();  // joins tokens with spaces

  static Result<Decoder> FromJson(const nlohmann::json& component, std::string_view place);

  // The bytes one token contributes, without regard to its neighbours: characters it spells with
  // the byte alphabet or as "<0x0A>" are bytes, replacements are made, nothing is stripped.
  std::string TokenBytes(std::string_view token, RegexScratch* scratch) const;

 private:
  friend class DecodeStream;
  struct JoinWithSpace {};
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct Strip {
    std::string content;  // one character
    int64_t start;
    int64_t stop;
  };
  struct Metaspace {
    std::string replacement;  // one character
    bool drop_in_first;       // dropped, not made a space, in the first token
  };
  using Step =
      std::variant<JoinWithSpace, ByteLevel, ByteFallback, Fuse, Strip, Metaspace, Replacer>;

  Result<void> Add(const nlohmann::json& component, std::string_view place, int depth);

  std::vector<Step> steps_;
};

// One run of a chain over a sequence of tokens. `decoder` must outlive it; one thread at a time.
//
// Text appears as soon as no later token can change it. A byte-fallback run ("<0xE4><0xBD>...") is
// held until a token of another kind follows, because one bad byte turns the whole run into U+FFFD.
class DecodeStream {
 public:
  explicit DecodeStream(const Decoder* decoder);

  // Appends to *out what becomes certain; whole characters only. `token` is valid UTF-8.
  void Push(std::string_view token, std::string* out);
  // The rest. No Push after it.
  void Finish(std::string* out);

 private:
  // What a step remembers; each kind uses some of it.
  struct State {
    std::string token;     // the current token so far, for steps that need it whole
    std::string bytes;     // ByteLevel: incomplete character; ByteFallback: the run
    int64_t stripped = 0;  // Strip: characters dropped from the current token; -1: no more to drop
    bool later = false;    // a token has been finished before
  };

  // A step reads tokens as chunks of whole characters, the last one marked.
  void Feed(size_t step, std::string_view chunk, bool ends_token, std::string* out);
  void FeedByteLevel(size_t step, std::string_view token, std::string* out);
  void FeedByteFallback(size_t step, std::string_view token, std::string* out);
  void FlushByteRun(size_t step, std::string* out);
  void FeedStrip(size_t step, std::string_view chunk, bool ends_token, std::string* out);
  void FeedMetaspace(size_t step, std::string_view chunk, bool ends_token, std::string* out);
  void FinishStep(size_t step, std::string* out);

  const Decoder* decoder_;
  std::vector<State> states_;
  RegexScratch scratch_;
};

}  // namespace sluice::text
