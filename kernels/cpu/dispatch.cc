// Picks a kernel table by name and by what this CPU and its operating system offer.
#include <cstring>

#include "kernels/cpu/ops.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace sluice::cpu {

namespace scalar {
extern const Ops kOps;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Ops kOps;
}
namespace avx512 {
extern const Ops kOps;
}
namespace avx512bf16 {
extern const Ops kOps;
}
#elif defined(__aarch64__)
namespace neon {
extern const Ops kOps;
}
#endif

namespace {

#if defined(__x86_64__)
struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool avx512bf16 = false;
};

// Intel's manual, volume 1, sections 14.3 and 15.2: an instruction set may be used when the CPU has
// it and the operating system saves its registers (XCR0).
Features DetectFeatures() {
  Features features;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = (c & bit_OSXSAVE) != 0;
  const bool fma_f16c = (c & bit_FMA) != 0 && (c & bit_F16C) != 0 && (c & bit_AVX) != 0;
  if (!osxsave) return features;
  unsigned xcr0_low = 0, xcr0_high = 0;
  __asm__("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
  const bool saves_ymm = (xcr0_low & 0x6) == 0x6;
  const bool saves_zmm = (xcr0_low & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const unsigned wanted512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  features.avx2 = saves_ymm && fma_f16c && (b & bit_AVX2) != 0;
  features.avx512 =
      features.avx2 && saves_zmm && (b & wanted512) == wanted512 && (c & bit_AVX512VNNI) != 0;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    features.avx512bf16 = features.avx512 && (a & (1u << 5)) != 0;
  }
  return features;
}

const Features& CpuFeatures() {
  // Asked once: under a hypervisor every CPUID costs microseconds.
  static const Features features = DetectFeatures();
  return features;
}
#endif

}  // namespace

const Ops* SelectOps(Isa isa) {
  if (isa == Isa::kScalar) return &scalar::kOps;
#if defined(__x86_64__)
  const Features& has = CpuFeatures();
  switch (isa) {
    case Isa::kAuto:
      return has.avx512bf16 ? &avx512bf16::kOps
             : has.avx512   ? &avx512::kOps
             : has.avx2     ? &avx2::kOps
                            : &scalar::kOps;
    case Isa::kAvx2:
      return has.avx2 ? &avx2::kOps : nullptr;
    case Isa::kAvx512:
      return has.avx512 ? &avx512::kOps : nullptr;
    case Isa::kAvx512Bf16:
      return has.avx512bf16 ? &avx512bf16::kOps : nullptr;
    default:
      return nullptr;
  }
#elif defined(__aarch64__)
  // Advanced SIMD is part of the AArch64 baseline, its dot products are not.
  const bool has_neon = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  if (isa == Isa::kAuto) return has_neon ? &neon::kOps : &scalar::kOps;
  return isa == Isa::kNeon && has_neon ? &neon::kOps : nullptr;
#else
  return isa == Isa::kAuto ? &scalar::kOps : nullptr;
#endif
}

bool ParseIsa(const char* name, Isa* isa) {
  static constexpr struct {
    const char* name;
    Isa isa;
  } kNames[] = {{"auto", Isa::kAuto}, {"scalar", Isa::kScalar},
                {"avx2", Isa::kAvx2}, {"avx512", Isa::kAvx512},
                {"neon", Isa::kNeon}, {"avx512bf16", Isa::kAvx512Bf16}};
  for (const auto& entry : kNames) {
    if (std::strcmp(entry.name, name) == 0) {
      *isa = entry.isa;
      return true;
    }
  }
  return false;
}

}  // namespace sluice::cpu
