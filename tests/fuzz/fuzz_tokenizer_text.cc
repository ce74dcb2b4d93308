// Text from clients: any bytes, through tokenizers that are known to load. Encoding is total and
// repeatable, its ids decode to valid UTF-8, and streams give what whole lists give.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "engine/text/stream_decoder.h"
#include "engine/text/tokenizer.h"

namespace {

// The byte alphabet and a few merges are spelled out here, so that the target needs no files.
std::string ByteLevelJson() {
  std::string vocab, name;
  int id = 0;
  char32_t shifted = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    name.clear();
    sluice::AppendUtf8(itself ? byte : shifted++, &name);
    if (name == "\"" || name == "\\") name.insert(0, "\\");
    vocab += "\"" + name + "\":" + std::to_string(id++) + ",";
  }
  return R"({"added_tokens":[{"content":"<s>","special":true},{"content":" x ","lstrip":true,)"
         R"("rstrip":true,"normalized":true},{"content":"ab","single_word":true}],)"
         R"("normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[)"
         R"({"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+)"
         R"(|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},)"
         R"("behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,)"
         R"("use_regex":false}]},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" +
         vocab + R"("aa":256,"aaaa":257,"Ġa":258},"merges":["a a","aa aa","Ġ a"]}})";
}

std::string SentencePieceJson() {
  std::string vocab = R"("<unk>":0)";
  int id = 1;
  const char* digits = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    vocab += std::string(",\"<0x") + digits[byte / 16] + digits[byte % 16] +
             ">\":" + std::to_string(id++);
  }
  for (const char* token : {"▁", "a", "b", "ab", "▁a", "▁▁"}) {
    vocab += std::string(",\"") + token + "\":" + std::to_string(id++);
  }
  return R"({"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},)"
         R"({"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"decoder":{"type":)"
         R"("Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},)"
         R"({"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,)"
         R"("stop":0}]},"model":{"type":"BPE","byte_fallback":true,"unk_token":"<unk>",)"
         R"("fuse_unk":true,"vocab":{)" +
         vocab + R"(},"merges":["a b","▁ a","▁ ▁"]}})";
}

std::shared_ptr<const sluice::Tokenizer> Make(const std::string& json) {
  const auto loaded = sluice::Tokenizer::FromJson(json, "");
  SLUICE_CHECK(loaded.has_value(), loaded.has_value() ? "" : loaded.error().message);
  return *loaded;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::shared_ptr<const sluice::Tokenizer> tokenizers[] = {Make(ByteLevelJson()),
                                                                        Make(SentencePieceJson())};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& tokenizer : tokenizers) {
    const std::vector<int32_t> ids = tokenizer->Encode(text);
    SLUICE_CHECK(ids == tokenizer->Encode(text));
    SLUICE_CHECK(ids == tokenizer->Encode(sluice::ReplaceInvalidUtf8(text)));
    const std::string whole = tokenizer->Decode(ids, false);
    SLUICE_CHECK(sluice::IsValidUtf8(whole));
    sluice::StreamDecoder stream(tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string part = stream.Push(id);
      SLUICE_CHECK(sluice::IsValidUtf8(part));
      streamed += part;
    }
    SLUICE_CHECK(streamed + stream.Finish() == whole);
  }
  // Byte fallback loses nothing but the first space that normalization added, unless the text holds
  // the space's own symbol.
  if (text.find("\xE2\x96\x81") == text.npos) {
    const auto ids = tokenizers[1]->Encode(text);
    SLUICE_CHECK(tokenizers[1]->Decode(ids, false) == sluice::ReplaceInvalidUtf8(text));
  }
  return 0;
}
