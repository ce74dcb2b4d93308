// kernels/cuda/runtime.h on the host, for kernels that run under cuda_emulation.h.
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/runtime.h"

namespace sluice::cuda {

int DeviceCount() { return 1; }
const char* StatusText(Status) { return "an emulated kernel failed"; }
Status Allocate(size_t bytes, void** memory) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory != nullptr ? Status::kOk : static_cast<Status>(2);
}
void Free(void* memory) { std::free(memory); }
Status Copy(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  return Status::kOk;
}
Status Synchronize(Stream) { return Status::kOk; }

}  // namespace sluice::cuda
