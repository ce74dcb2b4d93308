#include "engine/convert/expert_error.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "engine/base/check.h"
#include "kernels/cpu/ops.h"

namespace sluice {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
// 64-byte aligned memory, as the kernels want it.
using Memory = std::unique_ptr<void, Free>;
Memory Allocate(size_t bytes) {
  void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return Memory(p);
}

// y [n, rows] = x [n, cols] times the transpose of w [rows, cols].
std::vector<float> Product(std::span<const float> w, int rows, int cols, std::span<const float> x) {
  const cpu::Ops* ops = cpu::SelectOps(cpu::Isa::kAuto);
  const int n = static_cast<int>(x.size()) / cols;
  const Memory weights = Allocate(cpu::PackedMatrixBytes(DType::kF32, rows, cols));
  ops->pack_matrix(DType::kF32, w.data(), rows, cols, 0, cpu::PanelCount(rows), weights.get());
  const Memory inputs = Allocate(ops->activation_bytes(DType::kF32, n, cols));
  ops->pack_activations(DType::kF32, x.data(), cols, nullptr, n, cols, inputs.get());
  std::vector<float> y(static_cast<size_t>(n) * static_cast<size_t>(rows));
  ops->matmul({.weight_dtype = DType::kF32,
               .weights = weights.get(),
               .x = inputs.get(),
               .tokens = n,
               .cols = cols,
               .panel_begin = 0,
               .panel_end = cpu::PanelCount(rows),
               .rows = rows,
               .bias = nullptr,
               .y = y.data(),
               .y_stride = rows});
  return y;
}

std::vector<float> RunExpert(const ExpertFloats& expert, std::span<const float> samples) {
  std::vector<float> gate = Product(expert.gate, expert.intermediate, expert.hidden, samples);
  const std::vector<float> up = Product(expert.up, expert.intermediate, expert.hidden, samples);
  cpu::SelectOps(cpu::Isa::kAuto)
      ->silu_mul(gate.data(), up.data(), static_cast<int>(gate.size()), gate.data());
  return Product(expert.down, expert.hidden, expert.intermediate, gate);
}

// The matrix as it comes back from `format`.
std::vector<float> RoundTrip(NestedFormat format, const InputStatistics& statistics,
                             std::span<const float> matrix, int rows, int cols) {
  const int planes = NestedPlanes(format.bits);
  std::vector<std::vector<std::byte>> bytes(static_cast<size_t>(planes));
  std::byte* starts[kMaxPlanes] = {};
  for (int p = 0; p < planes; ++p) {
    bytes[p].resize(NestedPlaneBytes(format, kNestedRows, cols, p));
    starts[p] = bytes[p].data();
  }
  std::vector<float> values(matrix.size());
  NestedPanel panel;
  for (int first = 0; first < rows; first += kNestedRows) {
    const int count = std::min(kNestedRows, rows - first);
    const auto at = static_cast<ptrdiff_t>(first) * cols;
    QuantizePanel({.format = format, .level_weights = {}}, statistics, matrix.data() + at, count,
                  cols, &panel);
    EncodeNestedPanel(format, cols, panel, 0, starts);
    DequantizeNested(format, cols, starts, planes, DefaultNestedLevel(format, planes), 0, count,
                     values.data() + at);
  }
  return values;
}

}  // namespace

std::vector<double> ExpertOutputErrors(const ExpertFloats& expert, const InputStatistics& inputs,
                                       const InputStatistics& down_inputs,
                                       std::span<const float> samples,
                                       std::span<const NestedFormat> formats) {
  const auto matrix = static_cast<size_t>(expert.hidden) * static_cast<size_t>(expert.intermediate);
  SLUICE_CHECK(expert.gate.size() == matrix && expert.up.size() == matrix &&
               expert.down.size() == matrix &&
               samples.size() % static_cast<size_t>(expert.hidden) == 0);
  std::vector<double> errors(formats.size(), 0.0);
  if (samples.empty()) return errors;
  const auto n = static_cast<double>(samples.size()) / expert.hidden;
  const std::vector<float> exact = RunExpert(expert, samples);
  for (size_t f = 0; f < formats.size(); ++f) {
    const auto gate =
        RoundTrip(formats[f], inputs, expert.gate, expert.intermediate, expert.hidden);
    const auto up = RoundTrip(formats[f], inputs, expert.up, expert.intermediate, expert.hidden);
    const auto down =
        RoundTrip(formats[f], down_inputs, expert.down, expert.hidden, expert.intermediate);
    const std::vector<float> got =
        RunExpert({expert.hidden, expert.intermediate, gate, up, down}, samples);
    double lost = 0;
    for (size_t i = 0; i < exact.size(); ++i) lost += std::pow(double{exact[i]} - got[i], 2);
    errors[f] = std::sqrt(lost / n);
  }
  return errors;
}

ExpertProfile ProfileOf(const ExpertStatistics& statistics, int64_t tokens,
                        std::vector<double> output_error) {
  ExpertProfile profile;
  profile.output_error = std::move(output_error);
  profile.peak = statistics.peak;
  if (tokens > 0) {
    profile.frequency = static_cast<double>(statistics.count) / static_cast<double>(tokens);
  }
  if (statistics.count > 0) {
    profile.mean_weight = statistics.weight / static_cast<double>(statistics.count);
  }
  return profile;
}

}  // namespace sluice
