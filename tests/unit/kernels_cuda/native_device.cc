// Ends the native tests at once where there is no GPU; ctest takes 77 as "skipped".
#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/runtime.h"

namespace sluice::cuda {
namespace {

const bool has_device = [] {
  if (DeviceCount() == 0) {
    std::fputs("no CUDA device: skipped\n", stderr);
    std::exit(77);
  }
  return true;
}();

}  // namespace
}  // namespace sluice::cuda
