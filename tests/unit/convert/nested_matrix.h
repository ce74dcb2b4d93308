// Test support: a nested matrix in memory, built panel by panel.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/common/nested.h"

namespace sluice::testing {

class NestedMatrix {
 public:
  NestedMatrix(NestedFormat format, int rows, int cols)
      : format_(format), rows_(rows), cols_(cols), planes_(NestedPlanes(format.bits)) {
    for (size_t i = 0; i < planes_.size(); ++i) {
      planes_[i].resize(NestedPlaneBytes(format, rows, cols, static_cast<int>(i)));
    }
  }

  void Encode(const NestedPanel& panel, int index) {
    std::byte* starts[kMaxPlanes] = {};
    for (size_t i = 0; i < planes_.size(); ++i) starts[i] = planes_[i].data();
    EncodeNestedPanel(format_, cols_, panel, index, starts);
  }

  // [rows, cols] at the first `planes` planes, with the default level.
  std::vector<float> Values(int planes) const {
    return Values(planes, DefaultNestedLevel(format_, planes));
  }
  std::vector<float> Values(int planes, NestedLevel level) const {
    const std::byte* starts[kMaxPlanes] = {};
    for (size_t i = 0; i < planes_.size(); ++i) starts[i] = planes_[i].data();
    std::vector<float> values(static_cast<size_t>(rows_) * cols_);
    DequantizeNested(format_, cols_, starts, planes, level, 0, rows_, values.data());
    return values;
  }
  int planes() const { return static_cast<int>(planes_.size()); }

 private:
  NestedFormat format_;
  int rows_;
  int cols_;
  std::vector<std::vector<std::byte>> planes_;
};

}  // namespace sluice::testing
