// Any bytes as a GGUF file: opening it and dequantizing every tensor must not crash, hang or leave
// the file.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/formats/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int descriptor = memfd_create("fuzz_gguf", 0);
  SLUICE_CHECK(descriptor >= 0);
  SLUICE_CHECK(write(descriptor, data, size) == static_cast<ssize_t>(size));
  const sluice::Result<sluice::GgufReader> reader =
      sluice::GgufReader::Open("/proc/self/fd/" + std::to_string(descriptor));
  if (reader) {
    for (const sluice::GgufTensor& tensor : reader->tensors()) {
      if (!tensor.type) continue;
      SLUICE_CHECK(tensor.offset + tensor.bytes <= size);
      std::vector<float> values(static_cast<size_t>(tensor.values()));
      SLUICE_CHECK(reader->ReadF32(tensor, 0, values).has_value());
    }
  }
  close(descriptor);
  return 0;
}
