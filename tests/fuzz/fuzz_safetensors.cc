// Any bytes as a safetensors file: opening and reading every tensor must not crash, hang or leave
// the file.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int descriptor = memfd_create("fuzz_safetensors", 0);
  SLUICE_CHECK(descriptor >= 0);
  SLUICE_CHECK(write(descriptor, data, size) == static_cast<ssize_t>(size));
  const sluice::Result<sluice::SafetensorsReader> reader =
      sluice::SafetensorsReader::OpenFile("/proc/self/fd/" + std::to_string(descriptor));
  if (reader) {
    for (const sluice::TensorInfo& info : reader->tensors()) {
      SLUICE_CHECK(info.offset + info.bytes <= size);
      SLUICE_CHECK(reader->Find(info.name) == &info);
      std::vector<std::byte> bytes(info.bytes);
      SLUICE_CHECK(reader->Read(info, 0, bytes).has_value() == info.readable);
    }
  }
  close(descriptor);
  return 0;
}
