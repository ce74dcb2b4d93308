// Text to token ids and back, as described by a Hugging Face tokenizer.json (byte-level BPE and
// SentencePiece-style BPE with byte fallback). Ids and decoded texts equal those of the Python
// `tokenizers` library, version 0.23; what that library can do and this cannot is refused at load,
// with the name and the place of the component.
//
// Encoding: added tokens in the raw text are cut out; what lies between is normalized; added tokens
// of the normalized text are cut out; the rest is pre-tokenized into words; BPE turns words into
// ids; the post-processor puts special tokens round the whole. Truncation and padding, which
// tokenizer.json may ask for, are not done.
//
// Differences by design:
// - Text that is not valid UTF-8 is repaired first: each ill-formed sequence becomes U+FFFD
//   (engine/base/utf8.h). The library takes only valid text.
// - A regular expression that meets its limits (regex.h) leaves the rest of its piece unsplit.
// - A character without a token, where unk_token is not in the vocabulary, is dropped; the library
//   fails.
//
// A Tokenizer is immutable after load and safe from any thread; it owns everything it needs.
// tokenizer.json is untrusted: any content gives an error or a working tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/model_files.h"
#include "engine/base/result.h"

namespace sluice {

namespace text {
class Decoder;
}

struct EncodeOptions {
  bool add_special_tokens = true;  // let the post-processor add BOS and the like
  bool parse_special = true;       // recognise special tokens written in the text
};

class Tokenizer {
 public:
  // From tokenizer.json and, when it is there, tokenizer_config.json. Errors name the file.
  static Result<std::shared_ptr<const Tokenizer>> Load(const ModelFiles& files);
  static Result<std::shared_ptr<const Tokenizer>> Load(const std::filesystem::path& model_dir);

  // `tokenizer_config_json` may be empty.
  static Result<std::shared_ptr<const Tokenizer>> FromJson(std::string_view tokenizer_json,
                                                           std::string_view tokenizer_config_json);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Takes any bytes. Time is O(n log n) in their number. Several MB/s for prose.
  std::vector<int32_t> Encode(std::string_view utf8, const EncodeOptions& options = {}) const;

  // Always valid UTF-8: bytes that form no character become U+FFFD. Ids that stand for no token
  // are skipped, and with skip_special the special tokens too.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = true) const;

  // The raw bytes that this token stands for, perhaps part of a character; empty for an id that
  // stands for no token.
  std::string TokenBytes(int32_t id) const;
  // The same as text: bytes that form no character become U+FFFD.
  std::string TokenText(int32_t id) const;

  // By its spelling in tokenizer.json ("Ġthe", "<|im_end|>").
  std::optional<int32_t> TokenToId(std::string_view token) const;
  bool IsSpecial(int32_t id) const;
  // The largest id plus one: how many logits a model needs for every token to be reachable.
  int32_t vocab_size() const;

  // From tokenizer_config.json; empty when absent.
  const std::string& bos_token() const;
  const std::string& eos_token() const;
  const std::string& pad_token() const;
  const std::string& unk_token() const;
  // The settings add_bos_token and add_eos_token there, if given. For the chat template and for
  // information: Encode follows tokenizer.json's post-processor alone, as the library does.
  std::optional<bool> add_bos_token() const;
  std::optional<bool> add_eos_token() const;

 private:
  friend class StreamDecoder;
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  // The spelling that Decode hands to the decoder; nothing when the id is skipped.
  std::optional<std::string_view> DecodedToken(int32_t id, bool skip_special) const;
  const text::Decoder& decoder() const;

  std::unique_ptr<const Parts> parts_;
};

}  // namespace sluice
