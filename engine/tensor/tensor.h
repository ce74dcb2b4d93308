// Views of tensors (non-owning, copied by value). Owners are DeviceBuffers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/nested.h"
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

// The planes of a bit-nested matrix (kernels/common/nested.h), at the precision of those present.
struct NestedPlanesView {
  NestedFormat format;
  NestedLevel level;  // of the precision that `count` planes give
  int count = 0;      // planes present; 0: the matrix is not bit-nested
  std::array<const std::byte*, kMaxPlanes> planes{};  // panel 0 of each, 64-byte aligned
};

// What the input of a matrix is packed as: one form per type of weights.
enum class ActivationForm : uint8_t { kForF32, kForF16, kForBF16, kForNested };
inline constexpr int kActivationForms = 4;

// A set of forms.
class ActivationForms {
 public:
  static constexpr ActivationForms All() { return ActivationForms((1U << kActivationForms) - 1); }
  constexpr ActivationForms() = default;

  constexpr void Add(ActivationForm form) { bits_ |= 1U << static_cast<unsigned>(form); }
  constexpr void Add(ActivationForms forms) { bits_ |= forms.bits_; }
  constexpr bool Has(ActivationForm form) const {
    return (bits_ >> static_cast<unsigned>(form) & 1U) != 0;
  }

 private:
  explicit constexpr ActivationForms(unsigned bits) : bits_(bits) {}
  unsigned bits_ = 0;
};

// A weight matrix [rows = outputs, cols = inputs] in panels of 16 rows: of floats
// (kernels/cpu/ops.h has the layout), or bit-nested.
struct PackedMatrix {
  DType dtype = DType::kF32;   // floats only
  const void* data = nullptr;  // floats only: 64-byte aligned
  int rows = 0;
  int cols = 0;
  NestedPlanesView nested = {};

  bool is_nested() const { return nested.count > 0; }
  explicit operator bool() const { return data != nullptr || is_nested(); }
  ActivationForm activation_form() const {
    return is_nested() ? ActivationForm::kForNested : static_cast<ActivationForm>(dtype);
  }
  int panels() const { return cpu::PanelCount(rows); }
  // Of all planes together, when bit-nested.
  size_t panel_bytes() const {
    if (!is_nested()) return cpu::PanelBytes(dtype, cols);
    size_t bytes = 0;
    for (int i = 0; i < nested.count; ++i) bytes += NestedPanelBytes(nested.format, cols, i);
    return bytes;
  }
  size_t bytes() const { return panel_bytes() * static_cast<size_t>(panels()); }
  // Floats only.
  const std::byte* panel(int index) const {
    return static_cast<const std::byte*>(data) + static_cast<size_t>(index) * panel_bytes();
  }
};

}  // namespace sluice
