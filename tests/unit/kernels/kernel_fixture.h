// What the kernel tests share: every table that this CPU can run, reproducible numbers, and buffers
// that notice writes outside their bounds.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/half.h"
#include "kernels/cpu/ops.h"

namespace sluice::cpu {

inline std::vector<const Ops*> AvailableOps() {
  std::vector<const Ops*> tables;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kNeon}) {
    if (const Ops* ops = SelectOps(isa)) tables.push_back(ops);
  }
  return tables;
}

inline constexpr DType kAllDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
inline constexpr KvDType kAllKvDTypes[] = {KvDType::kF32, KvDType::kF16, KvDType::kBF16,
                                           KvDType::kQ8};

// Rounds activations for this table and weight type? (ops.h, "Packed activations".)
inline DType ActivationRounding(const Ops& ops, DType weight_dtype) {
  const bool dot = std::strcmp(ops.name, "avx512bf16") == 0;
  return dot && weight_dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

// xorshift64*, uniform in [-1, 1).
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  float Next() { return static_cast<float>(Bits() >> 40) * 0x1p-23f - 1.0f; }
  int Below(int n) { return static_cast<int>(Bits() >> 33) % n; }
  std::vector<float> Vector(size_t n, float scale = 1.0f) {
    std::vector<float> v(n);
    for (float& x : v) x = scale * Next();
    return v;
  }

 private:
  uint64_t state_;
};

// A buffer of n elements that starts `misalign` bytes past a 64-byte boundary, with guard bytes on
// both sides.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t n, size_t misalign = 0)
      : bytes_(n * sizeof(T)), raw_(bytes_ + 64 + 2 * kGuard + misalign, kPattern) {
    const auto address = reinterpret_cast<uintptr_t>(raw_.data()) + kGuard;
    start_ = kGuard + (64 - address % 64) % 64 + misalign;
  }
  T* data() { return reinterpret_cast<T*>(raw_.data() + start_); }
  const T* data() const { return reinterpret_cast<const T*>(raw_.data() + start_); }
  void Assign(const std::vector<T>& values) { std::memcpy(data(), values.data(), bytes_); }
  bool Intact() const {
    for (size_t i = 0; i < raw_.size(); ++i) {
      if ((i < start_ || i >= start_ + bytes_) && raw_[i] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 128;
  static constexpr uint8_t kPattern = 0xa5;
  size_t bytes_;
  std::vector<uint8_t> raw_;
  size_t start_ = 0;
};

// The values as an array of dtype.
inline std::vector<uint8_t> Encoded(DType dtype, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      const uint16_t half = dtype == DType::kF16 ? F32ToF16(values[i]) : F32ToBf16(values[i]);
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}

inline std::string Case(const Ops& ops, DType dtype, const char* what, long long value) {
  return std::string(ops.name) + " " + DTypeName(dtype) + " " + what + " " + std::to_string(value);
}

inline std::string Case(const Ops& ops, KvDType dtype, const char* what, long long value) {
  return std::string(ops.name) + " " + KvDTypeName(dtype) + " " + what + " " +
         std::to_string(value);
}

}  // namespace sluice::cpu
