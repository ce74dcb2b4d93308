#include <cuda_runtime.h>

#include "kernels/cuda/runtime.h"

namespace sluice::cuda {

int DeviceCount() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
const char* StatusText(Status status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}
Status Allocate(size_t bytes, void** memory) {
  return static_cast<Status>(cudaMalloc(memory, bytes));
}
void Free(void* memory) { cudaFree(memory); }
Status Copy(void* to, const void* from, size_t bytes) {
  return static_cast<Status>(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
Status Synchronize(Stream stream) { return static_cast<Status>(cudaStreamSynchronize(stream)); }

}  // namespace sluice::cuda
