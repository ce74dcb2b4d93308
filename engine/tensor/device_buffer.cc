#include "engine/tensor/device_buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace sluice {
namespace {

constexpr size_t kAlignment = 64;

Error NoMemory(size_t bytes, const char* what) {
  return ResourceExhausted("the system refused " + std::to_string(bytes) + " bytes of memory for " +
                           what + ": lower the memory settings or free memory");
}

}  // namespace

Result<DeviceBuffer> DeviceBuffer::Host(size_t bytes, const char* what) {
  if (bytes == 0) return DeviceBuffer();
  if (bytes > SIZE_MAX / 2) return NoMemory(bytes, what);
  if (bytes < kLargeBufferBytes) {
    void* data = std::aligned_alloc(kAlignment, AlignUp(bytes, kAlignment));
    if (data == nullptr) return NoMemory(bytes, what);
    std::memset(data, 0, bytes);
    return DeviceBuffer(data, bytes, [](void* p, size_t) { std::free(p); });
  }
  // Maps one huge page more than asked and gives back both ends, so that the start is aligned.
  const size_t size = AlignUp(bytes, 4096);
  const size_t mapped = size + kHugePageBytes;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return NoMemory(bytes, what);
  const auto base = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t start = AlignUp(base, kHugePageBytes);
  const size_t head = start - base;
  if (head > 0) munmap(raw, head);
  if (mapped - head > size) munmap(reinterpret_cast<void*>(start + size), mapped - head - size);
  void* data = reinterpret_cast<void*>(start);
  madvise(data, size, MADV_HUGEPAGE);  // A hint: without huge pages it is only slower.
  return DeviceBuffer(data, bytes, [](void* p, size_t n) { munmap(p, AlignUp(n, 4096)); });
}

}  // namespace sluice
