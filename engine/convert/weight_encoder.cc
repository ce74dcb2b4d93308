#include "engine/convert/weight_encoder.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "engine/base/check.h"

namespace sluice {
namespace {

constexpr size_t kPieceBytes = size_t{16} << 20;  // of F32 rows read at once

// The dtype that the source's floats have; F32 for quantized blocks.
DType FloatType(GgufType type) {
  if (type == GgufType::kF16) return DType::kF16;
  if (type == GgufType::kBF16) return DType::kBF16;
  return DType::kF32;
}

Result<> AllocatePlanes(EncodedWeight* out) {
  out->planes.clear();
  for (int i = 0; i < out->layout.planes(); ++i) {
    auto plane = DeviceBuffer::Host(out->layout.plane_bytes(i), "a converted weight");
    if (!plane) return plane.error();
    out->planes.push_back(std::move(*plane));
  }
  return {};
}

// Rows of a piece: whole panels, about kPieceBytes of F32.
int PieceRows(const CheckpointWeight& weight) {
  const int64_t rows = static_cast<int64_t>(kPieceBytes / sizeof(float)) / std::max(1, weight.cols);
  return static_cast<int>(std::max<int64_t>(1, rows / kNestedRows)) * kNestedRows;
}

}  // namespace

WeightEncoder::WeightEncoder(const Checkpoint& source, int threads)
    : source_(source),
      ops_(cpu::SelectOps(cpu::Isa::kAuto)),
      pool_(threads),
      panels_(static_cast<size_t>(threads)) {}

Result<> WeightEncoder::EncodeFloats(const CheckpointWeight& weight, EncodedWeight* out) {
  WeightLayout& layout = out->layout;
  if (auto ok = AllocatePlanes(out); !ok) return ok;
  const bool raw = IsGgufFloat(weight.type.type) && FloatType(weight.type.type) == layout.dtype;
  const size_t row_bytes = static_cast<size_t>(weight.cols) * DTypeBytes(layout.dtype);
  const int step = PieceRows(weight);
  for (int row = 0; row < weight.rows; row += step) {
    const int rows = std::min(step, weight.rows - row);
    const void* piece = nullptr;
    if (raw) {
      raw_.resize(static_cast<size_t>(rows) * row_bytes);
      if (auto ok = source_.ReadRaw(weight, row, rows, raw_); !ok) return ok;
      piece = raw_.data();
    } else {
      SLUICE_CHECK(layout.dtype == DType::kF32);
      floats_.resize(static_cast<size_t>(rows) * weight.cols);
      if (auto ok = source_.ReadF32(weight, row, rows, floats_); !ok) return ok;
      piece = floats_.data();
    }
    if (layout.form == WeightForm::kRowMajor) {
      const auto* bytes = static_cast<const std::byte*>(piece);
      std::copy_n(bytes, static_cast<size_t>(rows) * row_bytes,
                  out->planes[0].as<std::byte>() + static_cast<size_t>(row) * row_bytes);
      continue;
    }
    std::byte* packed =
        out->planes[0].as<std::byte>() +
        static_cast<size_t>(row / cpu::kPanelRows) * cpu::PanelBytes(layout.dtype, weight.cols);
    pool_.ParallelFor(cpu::PanelCount(rows), 4, [&](int64_t begin, int64_t end) {
      ops_->pack_matrix(layout.dtype, piece, rows, weight.cols, static_cast<int>(begin),
                        static_cast<int>(end), packed);
    });
  }
  return {};
}

Result<> WeightEncoder::EncodeNested(const CheckpointWeight& weight, const WeightTarget& target,
                                     EncodedWeight* out) {
  WeightLayout& layout = out->layout;
  if (auto ok = AllocatePlanes(out); !ok) return ok;
  std::vector<std::byte*> planes;
  for (const DeviceBuffer& plane : out->planes) planes.push_back(plane.as<std::byte>());
  const bool exact = target.kind == WeightTarget::Kind::kExact;
  const bool fit = !exact && target.fit_levels && layout.planes() > 1;
  // One per panel, merged in order: sums of floats must not depend on which worker had what.
  std::vector<LevelFit> fits;
  LevelFit whole(layout.nested);
  const size_t row_bytes = GgufBytes(weight.type, static_cast<uint64_t>(weight.cols));
  const int step = PieceRows(weight);
  for (int row = 0; row < weight.rows; row += step) {
    const int rows = std::min(step, weight.rows - row);
    if (exact) {
      raw_.resize(static_cast<size_t>(rows) * row_bytes);
      if (auto ok = source_.ReadRaw(weight, row, rows, raw_); !ok) return ok;
    } else {
      floats_.resize(static_cast<size_t>(rows) * weight.cols);
      if (auto ok = source_.ReadF32(weight, row, rows, floats_); !ok) return ok;
    }
    const int panels = cpu::PanelCount(rows);
    if (fit) fits.assign(static_cast<size_t>(panels), LevelFit(layout.nested));
    std::atomic<int> next{0};
    pool_.Run([&](int worker) {
      NestedPanel& scratch = panels_[static_cast<size_t>(worker)];
      for (int panel = next++; panel < panels; panel = next++) {
        const int first = panel * kNestedRows;
        const int count = std::min(kNestedRows, rows - first);
        if (exact) {
          ImportPanel(weight.type, raw_.data() + static_cast<size_t>(first) * row_bytes, count,
                      weight.cols, &scratch);
        } else {
          const float* values = floats_.data() + static_cast<size_t>(first) * weight.cols;
          QuantizePanel(target.quantizer, target.statistics, values, count, weight.cols, &scratch);
          if (fit) {
            fits[static_cast<size_t>(panel)].Add(target.statistics, values, count, weight.cols,
                                                 scratch);
          }
        }
        EncodeNestedPanel(layout.nested, weight.cols, scratch, row / kNestedRows + panel,
                          planes.data());
      }
    });
    for (const LevelFit& panel : fits) whole.Merge(panel);
  }
  if (fit) {
    layout.levels = whole.Levels(target.quantizer.keep_gain.value_or(kDefaultLevelKeepGain));
  }
  return {};
}

Result<EncodedWeight> WeightEncoder::Encode(const CheckpointWeight& weight,
                                            const WeightTarget& target) {
  EncodedWeight encoded;
  WeightLayout& layout = encoded.layout;
  layout.rows = weight.rows;
  layout.cols = weight.cols;
  using Kind = WeightTarget::Kind;
  if (target.kind == Kind::kFloats || target.kind == Kind::kF32) {
    layout.form = target.form;
    layout.dtype = target.kind == Kind::kF32 ? DType::kF32 : FloatType(weight.type.type);
    if (auto ok = EncodeFloats(weight, &encoded); !ok) return ok.error();
    return encoded;
  }
  layout.form = WeightForm::kNested;
  if (target.kind == Kind::kExact) {
    const std::optional<NestedFormat> format = ExactFormat(weight.type.type);
    SLUICE_CHECK(format.has_value(), "an exact import of a type that has no exact format");
    layout.nested = *format;
  } else {
    layout.nested = target.quantizer.format;
  }
  if (auto ok = EncodeNested(weight, target, &encoded); !ok) return ok.error();
  return encoded;
}

}  // namespace sluice
