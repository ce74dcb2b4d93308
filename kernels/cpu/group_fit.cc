#include "kernels/cpu/group_fit.h"

namespace sluice::cpu {

namespace scalar {
extern const GroupFit kGroupFit;
}
#if defined(__x86_64__)
namespace avx2 {
extern const GroupFit kGroupFit;
}
namespace avx512 {
extern const GroupFit kGroupFit;
}
#endif

const GroupFit* SelectGroupFit(Isa isa) {
  if (SelectOps(isa) == nullptr) return nullptr;
#if defined(__x86_64__)
  if (isa == Isa::kAuto) {
    return SelectOps(Isa::kAvx512) != nullptr ? &avx512::kGroupFit
           : SelectOps(Isa::kAvx2) != nullptr ? &avx2::kGroupFit
                                              : &scalar::kGroupFit;
  }
  if (isa == Isa::kAvx2) return &avx2::kGroupFit;
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) return &avx512::kGroupFit;
#endif
  // Four lanes of portable vectors are what NEON has.
  return &scalar::kGroupFit;
}

}  // namespace sluice::cpu
