// Memory, embedding, linear layers and the small per-token ops; cpu_attention.cc and cpu_mlp.cc
// hold the rest.
#include "engine/tensor/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/base/check.h"
#include "engine/tensor/cpu_backend_inl.h"

namespace sluice {
namespace {

constexpr int64_t kSmallFloats = 16 << 10;  // below this, elementwise work stays on one thread

size_t AlignLine(size_t bytes) { return AlignUp(bytes, 64); }

// What rounding to 8 bits leaves of a row, taken as nested_pack_activations rounds
// (NestedMatmulArgs).
void Remainder(const float* value, int cols, float* remainder) {
  for (int begin = 0; begin < cols; begin += kNestedUnitCols) {
    const int end = std::min(cols, begin + kNestedUnitCols);
    float peak = 0;
    for (int k = begin; k < end; ++k) peak = std::max(peak, std::fabs(value[k]));
    const float scale = peak / 127.0f;
    for (int k = begin; k < end; ++k) {
      const float q = scale > 0 ? std::nearbyintf(value[k] / scale) : 0.0f;
      remainder[k] = std::fmaf(-scale, q, value[k]);
    }
  }
}

}  // namespace

CpuBackend::CpuBackend(const cpu::Ops* ops, int threads, bool pin_threads, int activation_terms)
    : ops_(ops),
      pool_(threads, pin_threads),
      terms_(activation_terms),
      shares_(static_cast<size_t>(threads)) {
  SLUICE_CHECK(ops != nullptr && activation_terms >= 1 && activation_terms <= 3);
}

Result<DeviceBuffer> CpuBackend::Allocate(size_t bytes, const char* what) {
  return DeviceBuffer::Host(bytes, what);
}

Result<> CpuBackend::Prepare(const WorkspaceLimits& limits) {
  limits_ = limits;
  const int tiles = (limits.max_tokens + kTileTokens - 1) / kTileTokens;
  size_t mlp_tile = 0;
  const int mlp_width = std::max(1, limits.max_mlp_width);
  for (int i = 0; i < kActivationForms; ++i) {
    const auto form = static_cast<ActivationForm>(i);
    const size_t tile = AlignLine(ActivationBytes(form, kTileTokens, limits.max_cols));
    auto buffer = Allocate(limits.linear_forms.Has(form) ? tile * tiles : 0, "packed activations");
    if (!buffer) return buffer.error();
    packed_[i] = std::move(*buffer);
    if (!limits.mlp_forms.Has(form)) continue;
    mlp_tile = std::max({mlp_tile, tile, AlignLine(ActivationBytes(form, kTileTokens, mlp_width))});
  }
  const size_t mlp_tiles = static_cast<size_t>(limits.max_mlp_rows) / kTileTokens +
                           static_cast<size_t>(limits.max_mlp_groups);
  auto packed = Allocate(mlp_tile * mlp_tiles, "packed expert activations");
  if (!packed) return packed.error();
  mlp_packed_ = std::move(*packed);
  auto values =
      Allocate(static_cast<size_t>(limits.max_mlp_values) * sizeof(float), "expert activations");
  if (!values) return values.error();
  mlp_values_ = std::move(*values);

  auto partials = Allocate(kPartialBytes, "attention's partial sums");
  if (!partials) return partials.error();
  partials_ = std::move(*partials);

  const size_t chunk_floats = kTileTokens * kChunkPanels * cpu::kPanelRows;
  const size_t row_floats =
      AlignUp(static_cast<size_t>(std::max({limits.max_cols, limits.max_mlp_width, 1024})), 16);
  const size_t normed_floats =
      AlignUp(static_cast<size_t>(kTileTokens) * static_cast<size_t>(limits.max_cols), 16);
  const size_t nested_floats =
      AlignUp(cpu::NestedScratchBytes(std::max(limits.max_cols, mlp_width)), 64) / sizeof(float);
  const size_t term_floats =
      terms_ > 1 ? static_cast<size_t>(terms_) *
                       (kTileTokens * static_cast<size_t>(std::max(limits.max_cols, mlp_width)) +
                        chunk_floats)
                 : 0;
  const size_t worker_floats =
      AlignUp(2 * chunk_floats + row_floats + normed_floats + nested_floats + term_floats, 1024);
  auto memory =
      Allocate(worker_floats * sizeof(float) * static_cast<size_t>(threads()), "worker scratch");
  if (!memory) return memory.error();
  worker_memory_ = std::move(*memory);
  workers_.clear();
  for (int i = 0; i < threads(); ++i) {
    float* base = worker_memory_.as<float>() + worker_floats * static_cast<size_t>(i);
    float* row = base + 2 * chunk_floats;
    float* normed = row + row_floats;
    float* nested = normed + normed_floats;
    float* terms = terms_ > 1 ? nested + nested_floats : nullptr;
    workers_.push_back({base, base + chunk_floats, row, normed, nested, terms});
  }
  places_.reserve(limits.max_mlp_groups);
  tiles_.reserve(mlp_tiles);
  chunks_.reserve(4096);
  return {};
}

size_t CpuBackend::workspace_bytes() const {
  size_t total =
      worker_memory_.bytes() + partials_.bytes() + mlp_packed_.bytes() + mlp_values_.bytes();
  for (const DeviceBuffer& buffer : packed_) total += buffer.bytes();
  return total;
}

size_t CpuBackend::ActivationBytes(ActivationForm form, int tokens, int cols) const {
  if (form == ActivationForm::kForNested) {
    return ops_->nested_activation_bytes(terms_ * tokens, cols);
  }
  return ops_->activation_bytes(static_cast<DType>(form), tokens, cols);
}

void CpuBackend::PackActivations(ActivationForm form, const float* x, ptrdiff_t x_stride,
                                 const int32_t* gather, int tokens, int cols, void* packed,
                                 Worker& worker) const {
  if (form == ActivationForm::kForNested && terms_ > 1) {
    PackTerms(x, x_stride, gather, tokens, cols, packed, worker);
  } else if (form == ActivationForm::kForNested) {
    ops_->nested_pack_activations(x, x_stride, gather, tokens, cols, packed);
  } else {
    ops_->pack_activations(static_cast<DType>(form), x, x_stride, gather, tokens, cols, packed);
  }
}

void CpuBackend::PackTerms(const float* x, ptrdiff_t x_stride, const int32_t* gather, int tokens,
                           int cols, void* packed, Worker& worker) const {
  float* values = worker.terms;
  const ptrdiff_t term_floats = static_cast<ptrdiff_t>(tokens) * cols;
  for (int t = 0; t < tokens; ++t) {
    const float* row = x + (gather != nullptr ? gather[t] : t) * x_stride;
    std::memcpy(values + static_cast<ptrdiff_t>(t) * cols, row, sizeof(float) * cols);
  }
  for (ptrdiff_t row = 0; row < static_cast<ptrdiff_t>(terms_ - 1) * tokens; ++row) {
    const float* value = values + row * cols;
    Remainder(value, cols, values + row * cols + term_floats);
  }
  ops_->nested_pack_activations(values, cols, nullptr, terms_ * tokens, cols, packed);
}

void CpuBackend::MatmulPanels(const Panels& panels, const Panels& next, const void* packed,
                              int tokens, const float* bias, float* y, ptrdiff_t y_stride,
                              Worker& worker) const {
  const PackedMatrix& matrix = *panels.matrix;
  const int begin = panels.begin;
  const int first_row = begin * cpu::kPanelRows;
  const int rows = std::min(matrix.rows, panels.end * cpu::kPanelRows) - first_row;
  if (bias != nullptr) bias += first_row;
  if (!matrix.is_nested()) {
    ops_->matmul({.weight_dtype = matrix.dtype,
                  .weights = matrix.panel(begin),
                  .x = packed,
                  .tokens = tokens,
                  .cols = matrix.cols,
                  .panel_begin = 0,
                  .panel_end = panels.end - begin,
                  .rows = rows,
                  .bias = bias,
                  .y = y,
                  .y_stride = y_stride});
    return;
  }
  cpu::NestedMatmulArgs args = {.format = matrix.nested.format,
                                .level = matrix.nested.level,
                                .planes = matrix.nested.count,
                                .plane = {},
                                .x = packed,
                                .tokens = tokens,
                                .cols = matrix.cols,
                                .panel_begin = 0,
                                .panel_end = panels.end - begin,
                                .next = {},
                                .rows = rows,
                                .bias = bias,
                                .y = y,
                                .y_stride = y_stride,
                                .scratch = worker.nested};
  const bool same_panels = next.matrix != nullptr && next.matrix->cols == matrix.cols &&
                           next.matrix->nested.count == matrix.nested.count &&
                           next.matrix->nested.format == matrix.nested.format;
  for (int i = 0; i < matrix.nested.count; ++i) {
    const size_t bytes = NestedPanelBytes(matrix.nested.format, matrix.cols, i);
    args.plane[i] = matrix.nested.planes[i] + bytes * static_cast<size_t>(begin);
    if (same_panels) {
      args.next[i] = next.matrix->nested.planes[i] + bytes * static_cast<size_t>(next.begin);
    }
  }
  if (terms_ == 1) {
    ops_->nested_matmul(args);
    return;
  }
  float* products =
      worker.terms + static_cast<size_t>(terms_) * kTileTokens *
                         static_cast<size_t>(std::max(limits_.max_cols, limits_.max_mlp_width));
  args.tokens = terms_ * tokens;
  args.bias = nullptr;
  args.y = products;
  args.y_stride = rows;
  ops_->nested_matmul(args);
  for (int t = 0; t < tokens; ++t) {
    const float* value = products + static_cast<ptrdiff_t>(t) * rows;
    for (int r = 0; r < rows; ++r) {
      float sum = 0;  // the smallest first
      for (ptrdiff_t term = terms_ - 1; term >= 0; --term) {
        sum += value[term * tokens * rows + r];
      }
      y[t * y_stride + r] = sum + (bias != nullptr ? bias[r] : 0.0f);
    }
  }
}

void CpuBackend::Pack(DType dtype, const void* src, int rows, int cols, void* packed) {
  const int panels = cpu::PanelCount(rows);
  const auto panel_bytes = static_cast<int64_t>(cpu::PanelBytes(dtype, cols));
  const int64_t grain = std::max<int64_t>(1, (256 << 10) / std::max<int64_t>(1, panel_bytes));
  pool_.ParallelFor(panels, grain, [&](int64_t begin, int64_t end) {
    ops_->pack_matrix(dtype, src, rows, cols, static_cast<int>(begin), static_cast<int>(end),
                      packed);
  });
}

void CpuBackend::ToF32(DType dtype, const void* src, int64_t n, float* out) {
  ops_->to_f32(dtype, src, n, out);
}

void CpuBackend::Embed(const EmbeddingTable& table, std::span<const int32_t> ids, float* out) {
  const auto count = static_cast<int64_t>(ids.size());
  if (table.rows) {
    const int cols = table.rows.cols;
    const size_t row_bytes = static_cast<size_t>(cols) * DTypeBytes(table.rows.dtype);
    ForEach(count, count * cols <= kSmallFloats, [&](Worker&, int64_t i) {
      const auto* src = static_cast<const std::byte*>(table.rows.data) + ids[i] * row_bytes;
      ops_->to_f32(table.rows.dtype, src, cols, out + i * cols);
    });
    return;
  }
  if (table.packed.is_nested()) {
    const PackedMatrix& matrix = table.packed;
    ForEach(count, count * matrix.cols <= kSmallFloats, [&](Worker&, int64_t i) {
      DequantizeNested(matrix.nested.format, matrix.cols, matrix.nested.planes.data(),
                       matrix.nested.count, matrix.nested.level, ids[i], 1, out + i * matrix.cols);
    });
    return;
  }
  // A row of a packed matrix is strided through its panel, in groups of one value (F32, F16) or two
  // (BF16): gather the raw values, then convert them together.
  const PackedMatrix& matrix = table.packed;
  const int cols = matrix.cols;
  ForEach(count, count * cols <= kSmallFloats, [&](Worker& worker, int64_t i) {
    const int row = ids[i] % cpu::kPanelRows;
    const std::byte* panel = matrix.panel(ids[i] / cpu::kPanelRows);
    if (matrix.dtype == DType::kF16) {
      const auto* src = reinterpret_cast<const uint16_t*>(panel) + row;
      auto* raw = reinterpret_cast<uint16_t*>(worker.row);
      for (int k = 0; k < cols; ++k) raw[k] = src[static_cast<size_t>(k) * cpu::kPanelRows];
    } else {
      const auto* src = reinterpret_cast<const uint32_t*>(panel) + row;
      auto* raw = reinterpret_cast<uint32_t*>(worker.row);
      const int words = matrix.dtype == DType::kBF16 ? (cols + 1) / 2 : cols;
      for (int k = 0; k < words; ++k) raw[k] = src[static_cast<size_t>(k) * cpu::kPanelRows];
    }
    ops_->to_f32(matrix.dtype, worker.row, cols, out + i * cols);
  });
}

int64_t CpuBackend::PanelCost(size_t panel_bytes, int tokens) {
  // About eight tokens take as long in arithmetic as one pass over the weights takes in memory.
  return static_cast<int64_t>(panel_bytes) * std::max(1, (tokens + 4) / 8);
}

int64_t CpuBackend::ChunkTarget(int64_t total_cost) const {
  return std::max(kMinChunkCost, total_cost / (threads() * 6));
}

void CpuBackend::AddChunks(int index, int panels, size_t panel_bytes, int tokens, int64_t target) {
  const int64_t cost = PanelCost(panel_bytes, tokens);
  const int64_t max_bytes = tokens > kTileTokens ? kMaxReusedBytes : kMaxChunkBytes;
  const int64_t most =
      std::clamp<int64_t>(max_bytes / static_cast<int64_t>(panel_bytes), 1, kChunkPanels);
  int64_t step = std::clamp<int64_t>((target + cost / 2) / cost, 1, most);
  if (step > kKernelPanels) step -= step % kKernelPanels;
  for (int begin = 0; begin < panels; begin += static_cast<int>(step)) {
    chunks_.push_back({index, begin, std::min(panels, begin + static_cast<int>(step))});
  }
}

void CpuBackend::MatmulChunk(const LinearArgs& args, int64_t index, int64_t next_index,
                             Worker& worker) {
  const Chunk& chunk = chunks_[index];
  const LinearOutput& output = args.outputs[chunk.index];
  const PackedMatrix& weight = output.weight;
  const int form = static_cast<int>(weight.activation_form());
  const auto* packed = packed_[form].as<std::byte>();
  const int first_row = chunk.begin * cpu::kPanelRows;
  const int chunk_rows = std::min(weight.rows, chunk.end * cpu::kPanelRows) - first_row;
  Panels next;
  if (next_index >= 0) {
    const Chunk& after = chunks_[next_index];
    next = {&args.outputs[after.index].weight, after.begin, after.end};
  }
  for (int begin = 0, tile = 0; begin < args.tokens; begin += kTileTokens, ++tile) {
    const int count = std::min(kTileTokens, args.tokens - begin);
    const ptrdiff_t stride = output.add ? chunk_rows : output.y_stride;
    float* rows = output.y + begin * output.y_stride + first_row;
    MatmulPanels({&weight, chunk.begin, chunk.end}, next, packed + tile * tile_bytes_[form], count,
                 output.bias, output.add ? worker.gate : rows, stride, worker);
    if (!output.add) continue;
    for (int t = 0; t < count; ++t) {
      ops_->add_scaled(worker.gate + t * stride, 1.0f, chunk_rows, rows + t * output.y_stride);
    }
  }
}

void CpuBackend::Linear(const LinearArgs& args) {
  SLUICE_CHECK(args.tokens >= 1 && args.tokens <= limits_.max_tokens);
  SLUICE_CHECK(args.cols <= limits_.max_cols);
  bool wanted[kActivationForms] = {};
  int64_t total_cost = 0;
  for (const LinearOutput& output : args.outputs) {
    SLUICE_CHECK(output.weight.cols == args.cols);
    wanted[static_cast<int>(output.weight.activation_form())] = true;
    total_cost += output.weight.panels() * PanelCost(output.weight.panel_bytes(), args.tokens);
  }
  for (int i = 0; i < kActivationForms; ++i) {
    tile_bytes_[i] =
        AlignLine(ActivationBytes(static_cast<ActivationForm>(i), kTileTokens, args.cols));
  }

  const int tiles = (args.tokens + kTileTokens - 1) / kTileTokens;
  ForEach(tiles, false, [&](Worker& worker, int64_t tile) {
    const int begin = static_cast<int>(tile) * kTileTokens;
    const int count = std::min(kTileTokens, args.tokens - begin);
    const float* x = args.x + begin * args.x_stride;
    ptrdiff_t stride = args.x_stride;
    if (args.norm_weight != nullptr) {
      float* normed = args.normed != nullptr
                          ? args.normed + static_cast<ptrdiff_t>(begin) * args.cols
                          : worker.normed;
      for (int t = 0; t < count; ++t) {
        ops_->rms_norm(x + t * stride, args.norm_weight, args.cols, args.norm_eps,
                       normed + static_cast<ptrdiff_t>(t) * args.cols);
      }
      x = normed;
      stride = args.cols;
    }
    for (int i = 0; i < kActivationForms; ++i) {
      if (!wanted[i]) continue;
      PackActivations(static_cast<ActivationForm>(i), x, stride, nullptr, count, args.cols,
                      packed_[i].as<std::byte>() + tile * tile_bytes_[i], worker);
    }
  });

  chunks_.clear();
  const int64_t target = ChunkTarget(total_cost);
  for (size_t i = 0; i < args.outputs.size(); ++i) {
    const PackedMatrix& weight = args.outputs[i].weight;
    AddChunks(static_cast<int>(i), weight.panels(), weight.panel_bytes(), args.tokens, target);
  }
  ForEach(static_cast<int64_t>(chunks_.size()), total_cost < 2 * kMinChunkCost,
          [&](Worker& worker, int64_t i, int64_t next) { MatmulChunk(args, i, next, worker); });
}

void CpuBackend::TopKToken(const TopKArgs& args, int token) {
  float* p = args.logits + token * args.stride;
  ops_->softmax(p, args.n);
  int32_t* ids = args.ids + token * args.ids_stride;
  float* weights = args.weights + token * args.weights_stride;
  if (args.gate != nullptr) {
    weights[args.k] = 1.0f / (1.0f + std::exp(-args.gate[token * args.gate_stride]));
  }
  // Insertion into a short sorted list. A later expert must be greater to pass an earlier one, so
  // ties go to the lower index; not-a-number passes nobody, so broken weights still select valid
  // experts.
  int count = 0;
  for (int e = 0; e < args.n; ++e) {
    if (count == args.k && !(p[e] > weights[count - 1])) continue;
    int place = count < args.k ? count++ : count - 1;
    for (; place > 0 && p[e] > weights[place - 1]; --place) {
      weights[place] = weights[place - 1];
      ids[place] = ids[place - 1];
    }
    weights[place] = p[e];
    ids[place] = e;
  }
  if (!args.renormalize) return;
  float sum = 0;
  for (int slot = 0; slot < args.k; ++slot) sum += weights[slot];
  for (int slot = 0; slot < args.k; ++slot) weights[slot] /= sum;
}

void CpuBackend::TopK(const TopKArgs& args) {
  SLUICE_CHECK(args.k >= 1 && args.k <= args.n);
  constexpr int kRows = 16;
  ForEach((args.tokens + kRows - 1) / kRows, args.tokens <= kRows, [&](Worker&, int64_t piece) {
    const int begin = static_cast<int>(piece) * kRows;
    const int end = std::min(args.tokens, begin + kRows);
    for (int t = begin; t < end; ++t) TopKToken(args, t);
  });
}

}  // namespace sluice
