// tokenizer.json from nobody we know: any bytes give an error or a tokenizer that works. The input
// is the JSON, then a zero byte, then a text to encode. Seeds: tests/data/tokenizers/*.json.
#include <algorithm>
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

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view text = input.substr(std::min(end + 1, input.size()));
  const auto loaded = sluice::Tokenizer::FromJson(input.substr(0, end), "");
  if (!loaded) {
    SLUICE_CHECK(!loaded.error().message.empty());
    return 0;
  }
  const std::shared_ptr<const sluice::Tokenizer>& tokenizer = *loaded;
  for (const std::string_view piece :
       {text,
        std::string_view("Hello  w\xC3\xB6rld 123\n\n \xE2\x96\x81<s> \xF0\x9F\x98\x80\xFF!")}) {
    std::vector<int32_t> ids = tokenizer->Encode(piece);
    for (const int32_t id : ids) SLUICE_CHECK(id >= 0 && id < tokenizer->vocab_size());
    SLUICE_CHECK(ids == tokenizer->Encode(piece));  // the second time from the word cache
    // And some ids that the text did not give.
    for (const uint8_t byte : piece) ids.push_back(byte * 3 - 1);
    for (const bool skip : {false, true}) {
      sluice::StreamDecoder stream(tokenizer, skip);
      std::string streamed;
      for (const int32_t id : ids) {
        const std::string part = stream.Push(id);
        SLUICE_CHECK(sluice::IsValidUtf8(part));
        streamed += part;
      }
      streamed += stream.Finish();
      SLUICE_CHECK(streamed == tokenizer->Decode(ids, skip));
    }
    for (const int32_t id : ids) (void)tokenizer->TokenText(id);
  }
  return 0;
}
