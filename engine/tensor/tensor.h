// Views of tensors (non-owning, copied by value). Owners are DeviceBuffers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/cpu/ops.h"

namespace sluice {

// A row-major matrix somewhere in a buffer. Rows are contiguous, without padding.
struct TensorView {
  DType dtype = DType::kF32;
  const void* data = nullptr;
  int rows = 0;
  int cols = 0;

  explicit operator bool() const { return data != nullptr; }
  size_t bytes() const { return static_cast<size_t>(rows) * cols * DTypeBytes(dtype); }
};

// A weight matrix [rows = outputs, cols = inputs] packed into panels of 16 rows (kernels/cpu/ops.h
// has the layout). `data` is 64-byte aligned.
struct PackedMatrix {
  DType dtype = DType::kF32;
  const void* data = nullptr;
  int rows = 0;
  int cols = 0;

  explicit operator bool() const { return data != nullptr; }
  int panels() const { return cpu::PanelCount(rows); }
  size_t panel_bytes() const { return cpu::PanelBytes(dtype, cols); }
  size_t bytes() const { return cpu::PackedMatrixBytes(dtype, rows, cols); }
  const std::byte* panel(int index) const {
    return static_cast<const std::byte*>(data) + static_cast<size_t>(index) * panel_bytes();
  }
};

}  // namespace sluice
