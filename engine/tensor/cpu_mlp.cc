// CpuBackend: SwiGLU networks (experts, shared experts, dense layers) and the weighted sum of their
// outputs.
//
// Four steps, each one region or inline when small: pack the gathered inputs of every group; gate
// and up, chunk by chunk over all groups; pack the activations; down, chunk by chunk. Within a
// chunk the weights are applied to all tiles of the group, so they are read from memory once.
#include <algorithm>
#include <cstring>

#include "engine/base/check.h"
#include "engine/tensor/cpu_backend.h"
#include "engine/tensor/cpu_backend_inl.h"

namespace sluice {
namespace {

constexpr int64_t kSmallFloats = 16 << 10;

}  // namespace

void CpuBackend::PackTiles(const float* x, ptrdiff_t x_stride, int cols, const MlpArgs& args,
                           bool gather) {
  tiles_.clear();
  std::byte* end = mlp_packed_.as<std::byte>();
  int64_t packed_floats = 0;
  for (size_t g = 0; g < args.groups.size(); ++g) {
    const MlpGroup& group = args.groups[g];
    GroupPlace& place = places_[g];
    const ActivationForm form =
        gather ? group.gate.activation_form() : group.down.activation_form();
    const int width = gather ? cols : group.down.cols;
    place.tile = static_cast<int>(tiles_.size());
    place.tile_count = (group.count + kTileTokens - 1) / kTileTokens;
    // Decoding one token sends the same row to every expert: it is packed once.
    if (gather && g > 0 && group.count == 1 && group.rows != nullptr) {
      const MlpGroup& before = args.groups[g - 1];
      if (before.count == 1 && before.rows != nullptr && before.rows[0] == group.rows[0] &&
          before.gate.activation_form() == form) {
        Tile tile = tiles_[places_[g - 1].tile];
        tile.count = 0;
        tiles_.push_back(tile);
        continue;
      }
    }
    for (int begin = 0; begin < group.count; begin += kTileTokens) {
      const int count = std::min(kTileTokens, group.count - begin);
      tiles_.push_back({static_cast<int>(g), begin, count, end});
      end += AlignUp(ActivationBytes(form, count, width), 64);
      packed_floats += static_cast<int64_t>(count) * width;
    }
  }
  SLUICE_CHECK(static_cast<size_t>(end - mlp_packed_.as<std::byte>()) <= mlp_packed_.bytes());
  ForEach(static_cast<int64_t>(tiles_.size()), packed_floats <= kSmallFloats,
          [&](Worker& worker, int64_t i) {
            const Tile& tile = tiles_[i];
            if (tile.count == 0) return;
            const MlpGroup& group = args.groups[tile.group];
            if (gather) {
              const bool mapped = group.rows != nullptr;
              PackActivations(group.gate.activation_form(), mapped ? x : x + tile.begin * x_stride,
                              x_stride, mapped ? group.rows + tile.begin : nullptr, tile.count,
                              cols, tile.packed, worker);
            } else {
              const int width = group.down.cols;
              PackActivations(group.down.activation_form(),
                              mlp_values_.as<float>() + places_[tile.group].value +
                                  static_cast<ptrdiff_t>(tile.begin) * width,
                              width, nullptr, tile.count, width, tile.packed, worker);
            }
          });
}

void CpuBackend::GateUpChunk(const MlpArgs& args, int64_t index, int64_t next, Worker& worker) {
  const Chunk& chunk = chunks_[index];
  const MlpGroup& group = args.groups[chunk.index];
  const GroupPlace& place = places_[chunk.index];
  const int width = group.gate.rows;
  const int first_row = chunk.begin * cpu::kPanelRows;
  const int chunk_rows = std::min(width, chunk.end * cpu::kPanelRows) - first_row;
  float* values = mlp_values_.as<float>() + place.value + first_row;
  for (int i = 0; i < place.tile_count; ++i) {
    const int begin = i * kTileTokens;
    const int count = std::min(kTileTokens, group.count - begin);
    const std::byte* packed = tiles_[place.tile + i].packed;
    const Panels gate = {&group.gate, chunk.begin, chunk.end};
    const Panels up = {&group.up, chunk.begin, chunk.end};
    Panels after = gate;  // of the next tile
    if (i + 1 == place.tile_count) {
      after = {};
      if (next >= 0) {
        after = {&args.groups[chunks_[next].index].gate, chunks_[next].begin, chunks_[next].end};
      }
    }
    MatmulPanels(gate, up, packed, count, nullptr, worker.gate, chunk_rows, worker);
    MatmulPanels(up, after, packed, count, nullptr, worker.up, chunk_rows, worker);
    for (int t = 0; t < count; ++t) {
      ops_->silu_mul(worker.gate + static_cast<ptrdiff_t>(t) * chunk_rows,
                     worker.up + static_cast<ptrdiff_t>(t) * chunk_rows, chunk_rows,
                     values + static_cast<ptrdiff_t>(begin + t) * width);
    }
  }
}

void CpuBackend::DownChunk(const MlpArgs& args, int64_t index, int64_t next, Worker& worker) {
  const Chunk& chunk = chunks_[index];
  Panels after;
  if (next >= 0) {
    after = {&args.groups[chunks_[next].index].down, chunks_[next].begin, chunks_[next].end};
  }
  const MlpGroup& group = args.groups[chunk.index];
  const GroupPlace& place = places_[chunk.index];
  for (int i = 0; i < place.tile_count; ++i) {
    const int begin = i * kTileTokens;
    MatmulPanels({&group.down, chunk.begin, chunk.end}, after, tiles_[place.tile + i].packed,
                 std::min(kTileTokens, group.count - begin), nullptr,
                 args.y + (place.row + begin) * args.hidden + chunk.begin * cpu::kPanelRows,
                 args.hidden, worker);
  }
}

void CpuBackend::Mlp(const MlpArgs& args) {
  SLUICE_CHECK(static_cast<int>(args.groups.size()) <= limits_.max_mlp_groups);
  places_.clear();
  int64_t row = 0;
  int64_t output = 0;
  int64_t value = 0;
  int64_t up_cost = 0;
  int64_t down_cost = 0;
  for (const MlpGroup& group : args.groups) {
    SLUICE_CHECK(group.count >= 1 && group.gate.cols == args.hidden &&
                 group.down.rows == args.hidden &&
                 group.gate.activation_form() == group.up.activation_form() &&
                 group.gate.rows == group.up.rows && group.down.cols == group.gate.rows);
    if (group.first_output >= 0) output = group.first_output;
    places_.push_back({output, value, 0, 0});
    output += group.count;
    row += group.count;
    value += static_cast<int64_t>(group.count) * group.gate.rows;
    up_cost += group.gate.panels() * PanelCost(2 * group.gate.panel_bytes(), group.count);
    down_cost += group.down.panels() * PanelCost(group.down.panel_bytes(), group.count);
  }
  SLUICE_CHECK(row <= limits_.max_mlp_rows && value <= limits_.max_mlp_values);

  PackTiles(args.x, args.x_stride, args.hidden, args, true);
  chunks_.clear();
  int64_t target = ChunkTarget(up_cost);
  for (size_t g = 0; g < args.groups.size(); ++g) {
    const PackedMatrix& gate = args.groups[g].gate;
    AddChunks(static_cast<int>(g), gate.panels(), 2 * gate.panel_bytes(), args.groups[g].count,
              target);
  }
  ForEach(static_cast<int64_t>(chunks_.size()), up_cost < 2 * kMinChunkCost,
          [&](Worker& worker, int64_t i, int64_t next) { GateUpChunk(args, i, next, worker); });

  if (args.down_inputs != nullptr) {
    std::memcpy(args.down_inputs, mlp_values_.data(), static_cast<size_t>(value) * sizeof(float));
  }
  PackTiles(nullptr, 0, 0, args, false);
  chunks_.clear();
  target = ChunkTarget(down_cost);
  for (size_t g = 0; g < args.groups.size(); ++g) {
    const PackedMatrix& down = args.groups[g].down;
    AddChunks(static_cast<int>(g), down.panels(), down.panel_bytes(), args.groups[g].count, target);
  }
  ForEach(static_cast<int64_t>(chunks_.size()), down_cost < 2 * kMinChunkCost,
          [&](Worker& worker, int64_t i, int64_t next) { DownChunk(args, i, next, worker); });
}

void CpuBackend::Combine(const CombineArgs& args) {
  constexpr int kRows = 8;
  const int64_t floats = static_cast<int64_t>(args.tokens) * args.slots * args.hidden;
  ForEach((args.tokens + kRows - 1) / kRows, floats <= kSmallFloats,
          [&](Worker& worker, int64_t piece) {
            const int begin = static_cast<int>(piece) * kRows;
            const int end = std::min(args.tokens, begin + kRows);
            for (int t = begin; t < end; ++t) {
              std::memset(worker.row, 0, static_cast<size_t>(args.hidden) * sizeof(float));
              for (int s = 0; s < args.slots; ++s) {
                const ptrdiff_t i = static_cast<ptrdiff_t>(t) * args.slots + s;
                ops_->add_scaled(args.y + static_cast<ptrdiff_t>(args.index[i]) * args.hidden,
                                 args.weights[i], args.hidden, worker.row);
              }
              ops_->add_scaled(worker.row, 1.0f, args.hidden,
                               args.out + static_cast<ptrdiff_t>(t) * args.hidden);
            }
          });
}

}  // namespace sluice
