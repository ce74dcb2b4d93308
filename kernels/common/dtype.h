// Element types of tensors in files and in memory. Shared by every kernel family; no dependencies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice {

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t DTypeBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

constexpr const char* DTypeName(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16";
}

}  // namespace sluice
