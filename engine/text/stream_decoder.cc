#include "engine/text/stream_decoder.h"

#include <optional>
#include <string_view>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/decoder.h"

namespace sluice {

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {
  SLUICE_CHECK(tokenizer_ != nullptr);
  stream_ = std::make_unique<text::DecodeStream>(&tokenizer_->decoder());
}

StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::Push(int32_t id) {
  std::string piece;
  if (const std::optional<std::string_view> token = tokenizer_->DecodedToken(id, skip_special_)) {
    stream_->Push(*token, &piece);
  }
  return piece;
}

std::string StreamDecoder::Finish() {
  std::string piece;
  stream_->Finish(&piece);
  return piece;
}

}  // namespace sluice
