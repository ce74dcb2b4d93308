#include "engine/text/decoder.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/base/utf8.h"
#include "engine/text/byte_level.h"
#include "engine/text/json_fields.h"

namespace sluice::text {
namespace {

// A Replace step may lengthen one token up to here.
constexpr size_t kMaxReplacedBytes = 64 * 1024;

// The byte that a token like "<0x0A>" stands for. The library reads the two digits with Rust's
// from_str_radix, which takes a plus sign too.
std::optional<uint8_t> FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  const int high = token[3] == '+' ? 0 : digit(token[3]);
  const int low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

std::string ReplaceCharacter(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  size_t copied = 0;
  for (size_t at = text.find(from); at != text.npos; at = text.find(from, copied)) {
    out.append(text.substr(copied, at - copied));
    out.append(to);
    copied = at + from.size();
  }
  out.append(text.substr(copied));
  return out;
}

}  // namespace

Decoder::Decoder() { steps_.emplace_back(JoinWithSpace{}); }

Result<Decoder> Decoder::FromJson(const nlohmann::json& component, std::string_view place) {
  Decoder decoder;
  if (component.is_null()) return decoder;
  decoder.steps_.clear();
  if (Result<void> added = decoder.Add(component, place, 0); !added) return added.error();
  return decoder;
}

Result<void> Decoder::Add(const nlohmann::json& component, std::string_view place, int depth) {
  if (Result<void> object = ExpectObject(component, place); !object) return object.error();
  Result<std::string> type = GetRequiredString(component, place, "type");
  if (!type) return type.error();
  if (depth > kMaxComponentDepth || steps_.size() >= kMaxComponentSteps) {
    return Unsupported(std::string(place) + " has too many or too deeply nested decoders");
  }
  if (*type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{});
  } else if (*type == "ByteFallback") {
    steps_.emplace_back(ByteFallback{});
  } else if (*type == "Fuse") {
    steps_.emplace_back(Fuse{});
  } else if (*type == "Strip") {
    Result<std::string> content = GetRequiredCharacter(component, place, "content");
    if (!content) return content.error();
    Result<int64_t> start = GetRequiredInt(component, place, "start", 0, 1 << 20);
    if (!start) return start.error();
    Result<int64_t> stop = GetRequiredInt(component, place, "stop", 0, 1 << 20);
    if (!stop) return stop.error();
    steps_.emplace_back(Strip{std::move(*content), *start, *stop});
  } else if (*type == "Metaspace") {
    Result<std::string> replacement = GetRequiredCharacter(component, place, "replacement");
    if (!replacement) return replacement.error();
    Result<std::optional<std::string>> scheme = GetString(component, place, "prepend_scheme");
    if (!scheme) return scheme.error();
    const std::string name = scheme->value_or("always");
    if (name != "always" && name != "first" && name != "never") {
      return Unsupported(std::string(place) + ": the prepend_scheme \"" + name +
                         "\" is not supported");
    }
    steps_.emplace_back(Metaspace{std::move(*replacement), name != "never"});
  } else if (*type == "Replace") {
    Result<Replacer> replacer = Replacer::FromJson(component, place);
    if (!replacer) return replacer.error();
    steps_.emplace_back(std::move(*replacer));
  } else if (*type == "Sequence") {
    Result<const nlohmann::json*> parts = GetRequiredArray(component, place, "decoders");
    if (!parts) return parts.error();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      Result<void> added = Add((**parts)[i], Indexed(place, "decoders", i), depth + 1);
      if (!added) return added.error();
    }
  } else {
    return Unsupported(std::string(place) + ": the decoder \"" + *type + "\" is not supported");
  }
  return {};
}

std::string Decoder::TokenBytes(std::string_view token, RegexScratch* scratch) const {
  std::string current(token);
  for (const Step& step : steps_) {
    if (const auto* replacer = std::get_if<Replacer>(&step)) {
      current = replacer->Apply(current, kMaxReplacedBytes, scratch);
    } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
      current = ReplaceCharacter(current, metaspace->replacement, " ");
    } else if (std::holds_alternative<ByteFallback>(step)) {
      // Bytes need not be text, so nothing behind this step can apply.
      if (const auto byte = FallbackByte(current)) return std::string(1, static_cast<char>(*byte));
    } else if (std::holds_alternative<ByteLevel>(step)) {
      std::string bytes;
      AppendByteLevelDecoded(current, &bytes);
      return bytes;
    }
  }
  return current;
}

DecodeStream::DecodeStream(const Decoder* decoder)
    : decoder_(decoder), states_(decoder->steps_.size()) {}

void DecodeStream::Push(std::string_view token, std::string* out) { Feed(0, token, true, out); }

void DecodeStream::Finish(std::string* out) { FinishStep(0, out); }

void DecodeStream::Feed(size_t step, std::string_view chunk, bool ends_token, std::string* out) {
  if (step == states_.size()) {
    out->append(chunk);
    return;
  }
  const Decoder::Step& kind = decoder_->steps_[step];
  State& state = states_[step];
  if (std::holds_alternative<Decoder::Fuse>(kind)) {
    if (!chunk.empty()) Feed(step + 1, chunk, false, out);
    return;
  }
  if (std::holds_alternative<Decoder::JoinWithSpace>(kind)) {
    if (std::exchange(state.later, true)) Feed(step + 1, " ", false, out);
    Feed(step + 1, chunk, ends_token, out);
    return;
  }
  if (std::holds_alternative<Decoder::Metaspace>(kind)) {
    FeedMetaspace(step, chunk, ends_token, out);
    return;
  }
  const auto* strip = std::get_if<Decoder::Strip>(&kind);
  if (strip != nullptr && strip->stop == 0) {
    FeedStrip(step, chunk, ends_token, out);
    return;
  }
  const auto* replacer = std::get_if<Replacer>(&kind);
  if (replacer != nullptr && replacer->is_single_character()) {
    Feed(step + 1, replacer->Apply(chunk, kMaxReplacedBytes, &scratch_), ends_token, out);
    return;
  }
  // The others need the whole token.
  if (!ends_token) {
    state.token.append(chunk);
    return;
  }
  std::string gathered;
  if (!state.token.empty()) {
    gathered = std::exchange(state.token, {});
    gathered.append(chunk);
    chunk = gathered;
  }
  if (std::holds_alternative<Decoder::ByteLevel>(kind)) {
    FeedByteLevel(step, chunk, out);
  } else if (std::holds_alternative<Decoder::ByteFallback>(kind)) {
    FeedByteFallback(step, chunk, out);
  } else if (strip != nullptr) {
    FeedStrip(step, chunk, true, out);
  } else {
    Feed(step + 1, replacer->Apply(chunk, kMaxReplacedBytes, &scratch_), true, out);
  }
}

// All tokens become one: the bytes they spell, repaired.
void DecodeStream::FeedByteLevel(size_t step, std::string_view token, std::string* out) {
  State& state = states_[step];
  AppendByteLevelDecoded(token, &state.bytes);
  std::string text;
  const size_t used = AppendRepairedUtf8(state.bytes, &text);
  state.bytes.erase(0, used);
  if (!text.empty()) Feed(step + 1, text, false, out);
}

void DecodeStream::FeedByteFallback(size_t step, std::string_view token, std::string* out) {
  if (const auto byte = FallbackByte(token)) {
    states_[step].bytes.push_back(static_cast<char>(*byte));
    return;
  }
  FlushByteRun(step, out);
  Feed(step + 1, token, true, out);
}

void DecodeStream::FlushByteRun(size_t step, std::string* out) {
  const std::string run = std::exchange(states_[step].bytes, {});
  if (run.empty()) return;
  if (IsValidUtf8(run)) {
    Feed(step + 1, run, true, out);
    return;
  }
  for (size_t i = 0; i < run.size(); ++i) Feed(step + 1, kReplacementUtf8, true, out);
}

void DecodeStream::FeedStrip(size_t step, std::string_view chunk, bool ends_token,
                             std::string* out) {
  const auto& strip = std::get<Decoder::Strip>(decoder_->steps_[step]);
  State& state = states_[step];
  while (state.stripped >= 0 && !chunk.empty()) {
    if (state.stripped < strip.start && chunk.starts_with(strip.content)) {
      ++state.stripped;
      chunk.remove_prefix(strip.content.size());
    } else {
      state.stripped = -1;
    }
  }
  // Only whole tokens come here when there is something to strip at the end.
  for (int64_t i = 0; i < strip.stop && chunk.ends_with(strip.content); ++i) {
    chunk.remove_suffix(strip.content.size());
  }
  if (ends_token) state.stripped = 0;
  Feed(step + 1, chunk, ends_token, out);
}

void DecodeStream::FeedMetaspace(size_t step, std::string_view chunk, bool ends_token,
                                 std::string* out) {
  const auto& metaspace = std::get<Decoder::Metaspace>(decoder_->steps_[step]);
  State& state = states_[step];
  const bool drop = !state.later && metaspace.drop_in_first;
  if (ends_token) state.later = true;
  Feed(step + 1, ReplaceCharacter(chunk, metaspace.replacement, drop ? "" : " "), ends_token, out);
}

void DecodeStream::FinishStep(size_t step, std::string* out) {
  if (step == states_.size()) return;
  const Decoder::Step& kind = decoder_->steps_[step];
  if (std::holds_alternative<Decoder::Fuse>(kind)) {
    Feed(step + 1, "", true, out);
  } else if (std::holds_alternative<Decoder::ByteLevel>(kind)) {
    const bool cut = !std::exchange(states_[step].bytes, {}).empty();
    Feed(step + 1, cut ? kReplacementUtf8 : std::string_view(), true, out);
  } else if (std::holds_alternative<Decoder::ByteFallback>(kind)) {
    FlushByteRun(step, out);
  }
  FinishStep(step + 1, out);
}

}  // namespace sluice::text
