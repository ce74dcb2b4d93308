// Any bytes as a GGUF model: opening it as a checkpoint writes a configuration and a tokenizer from
// its metadata. Whatever comes out must load or be refused, and every weight that is found must be
// readable. Start it with tests/data/checkpoints as a corpus, or it will not find the way past the
// reader.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/base/check.h"
#include "engine/base/model_files.h"
#include "engine/convert/gguf_checkpoint.h"
#include "engine/convert/gguf_config.h"
#include "engine/convert/gguf_tokenizer.h"
#include "engine/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int descriptor = memfd_create("fuzz_gguf_documents", 0);
  SLUICE_CHECK(descriptor >= 0);
  SLUICE_CHECK(write(descriptor, data, size) == static_cast<ssize_t>(size));
  const std::string path = "/proc/self/fd/" + std::to_string(descriptor);

  if (const auto reader = sluice::GgufReader::Open(path)) {
    if (const auto texts = sluice::WriteGgufConfig(*reader)) {
      (void)sluice::ParseHfConfig(texts->config, texts->generation);
    }
    std::map<std::string, std::string> files;
    if (sluice::WriteGgufTokenizer(*reader, 1 << 20, &files)) {
      const sluice::ModelFiles documents("fuzz", std::move(files));
      if (const auto tokenizer = sluice::Tokenizer::Load(documents)) {
        const auto ids = (*tokenizer)->Encode("Hello, \xE2\x96\x81 world 123\n<s>\xF0\x9F\x98\x80");
        (void)(*tokenizer)->Decode(ids);
      }
    }
  }
  if (const auto checkpoint = sluice::OpenGgufCheckpoint(path)) {
    for (const auto& expected : sluice::ExpectedTensors((*checkpoint)->config())) {
      const auto weight = (*checkpoint)->Find(expected.role, expected.layer, expected.expert);
      SLUICE_CHECK(weight.has_value());
      std::vector<float> row(static_cast<size_t>(weight->cols));
      for (const int at : {0, weight->rows - 1}) {
        SLUICE_CHECK((*checkpoint)->ReadF32(*weight, at, 1, row).has_value());
      }
    }
  }
  close(descriptor);
  return 0;
}
