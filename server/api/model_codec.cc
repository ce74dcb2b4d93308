#include "server/api/model_codec.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/base/utf8.h"
#include "engine/text/chat_template.h"
#include "engine/text/stream_decoder.h"
#include "engine/text/tokenizer.h"

namespace sluice {
namespace {

class ModelTextStream final : public TextStream {
 public:
  ModelTextStream(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special), decoder_(tokenizer, skip_special) {}

  void Continue(std::span<const int32_t> prompt) override {
    size_t given = 0;
    for (const int32_t id : prompt) given += decoder_.Push(id).size();
    // The decoder may hold back the end of the prompt until it sees more.
    const std::string whole = tokenizer_->Decode(prompt, skip_special_);
    held_of_prompt_ = whole.substr(std::min(given, whole.size()));
  }

  std::string Push(int32_t token) override { return WithoutPrompt(decoder_.Push(token)); }
  std::string Finish() override { return WithoutPrompt(decoder_.Finish()); }

 private:
  // Cuts the prompt's held-back end off the first text that comes. It differs from what Decode
  // gave where the prompt ended inside a character: then the whole character is new text.
  std::string WithoutPrompt(std::string text) {
    if (held_of_prompt_.empty() || text.empty()) return text;
    size_t common = static_cast<size_t>(
        std::mismatch(text.begin(), text.end(), held_of_prompt_.begin(), held_of_prompt_.end())
            .first -
        text.begin());
    const auto inside = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; };
    while (common > 0 && common < text.size() && inside(text[common])) --common;
    held_of_prompt_.erase(0, common == text.size() ? common : std::string::npos);
    text.erase(0, common);
    return text;
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const bool skip_special_;
  StreamDecoder decoder_;
  std::string held_of_prompt_;
};

class ModelCodec final : public TextCodec {
 public:
  ModelCodec(std::shared_ptr<const Tokenizer> tokenizer, std::optional<ChatTemplate> chat)
      : tokenizer_(std::move(tokenizer)), chat_(std::move(chat)) {}

  std::vector<int32_t> Encode(std::string_view text, bool add_special,
                              bool parse_special) const override {
    return tokenizer_->Encode(text,
                              {.add_special_tokens = add_special, .parse_special = parse_special});
  }
  std::string TokenBytes(int32_t token) const override { return tokenizer_->TokenBytes(token); }
  bool IsSpecial(int32_t token) const override { return tokenizer_->IsSpecial(token); }
  std::unique_ptr<TextStream> OpenStream(bool skip_special) const override {
    return std::make_unique<ModelTextStream>(tokenizer_, skip_special);
  }

  bool has_chat_template() const override { return chat_.has_value(); }

  Result<std::string> RenderChat(const nlohmann::ordered_json& messages,
                                 const nlohmann::ordered_json& arguments,
                                 bool add_generation_prompt) const override {
    nlohmann::ordered_json variables = arguments;
    variables["messages"] = messages;
    variables["add_generation_prompt"] = add_generation_prompt;
    variables["bos_token"] = tokenizer_->bos_token();
    variables["eos_token"] = tokenizer_->eos_token();
    if (!tokenizer_->pad_token().empty()) variables["pad_token"] = tokenizer_->pad_token();
    if (!tokenizer_->unk_token().empty()) variables["unk_token"] = tokenizer_->unk_token();
    return chat_->Render(variables);
  }

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::optional<ChatTemplate> chat_;
};

}  // namespace

Result<std::unique_ptr<TextCodec>> LoadModelCodec(const ModelFiles& files) {
  auto tokenizer = Tokenizer::Load(files);
  if (!tokenizer) return tokenizer.error();
  auto chat = ChatTemplate::Load(files);
  if (!chat) return chat.error();
  return std::unique_ptr<TextCodec>(
      std::make_unique<ModelCodec>(std::move(*tokenizer), std::move(*chat)));
}

Result<std::unique_ptr<TextCodec>> LoadModelCodec(const std::filesystem::path& directory) {
  const Result<ModelFiles> files = ModelFiles::Read(directory);
  if (!files) return files.error();
  return LoadModelCodec(*files);
}

}  // namespace sluice
