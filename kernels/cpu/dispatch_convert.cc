#include "kernels/cpu/convert_ops.h"

namespace sluice::cpu {

namespace scalar {
extern const ConvertOps kConvertOps;
}
#if defined(__x86_64__)
namespace avx2 {
extern const ConvertOps kConvertOps;
}
namespace avx512 {
extern const ConvertOps kConvertOps;
}
#endif

const ConvertOps* SelectConvertOps(Isa isa) {
  if (SelectOps(isa) == nullptr) return nullptr;
#if defined(__x86_64__)
  if (isa == Isa::kAuto) {
    return SelectOps(Isa::kAvx512) != nullptr ? &avx512::kConvertOps
           : SelectOps(Isa::kAvx2) != nullptr ? &avx2::kConvertOps
                                              : &scalar::kConvertOps;
  }
  if (isa == Isa::kAvx2) return &avx2::kConvertOps;
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) return &avx512::kConvertOps;
#endif
  // Four lanes of portable vectors are what NEON has.
  return &scalar::kConvertOps;
}

}  // namespace sluice::cpu
