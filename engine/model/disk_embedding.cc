#include "engine/model/disk_embedding.h"

#include <fcntl.h>

#include <array>
#include <utility>

#include "engine/base/check.h"
#include "engine/experts/pack_expert.h"

namespace sluice {

DiskEmbedding::DiskEmbedding(std::shared_ptr<const PackReader> pack, const PackTensor& tensor)
    : pack_(std::move(pack)), layout_(tensor.layout) {
  if (layout_.form != WeightForm::kRowMajor) unit_rows_ = cpu::kPanelRows;
  const auto units = static_cast<size_t>((layout_.rows + unit_rows_ - 1) / unit_rows_);
  uint64_t offset = tensor.offset;
  for (int plane = 0; plane < layout_.planes(); ++plane) {
    const size_t bytes = layout_.plane_bytes(plane);
    SLUICE_CHECK(bytes % units == 0);
    planes_.push_back({offset, bytes / units, 0});
    offset += AlignUp(bytes, 64);
  }
}

Result<DiskEmbedding> DiskEmbedding::Open(std::shared_ptr<const PackReader> pack,
                                          const PackTensor& tensor) {
  if (auto ok = pack->VerifyTensor(tensor); !ok) return ok.error();
  return DiskEmbedding(std::move(pack), tensor);
}

Result<> DiskEmbedding::Allocate(Backend* backend, int max_tokens) {
  max_tokens_ = static_cast<size_t>(max_tokens);
  size_t bytes = 0;
  for (Plane& plane : planes_) {
    plane.place = bytes;
    bytes += AlignUp(plane.unit_bytes * max_tokens_, 64);
  }
  memory_ = {};
  auto memory = backend->Allocate(bytes, "token rows");
  if (!memory) return memory.error();
  memory_ = std::move(*memory);
  local_ids_.reserve(max_tokens_);
  WeightLayout layout = layout_;
  layout.rows = max_tokens * unit_rows_;
  if (layout.form == WeightForm::kRowMajor) {
    table_.rows = {layout.dtype, memory_.data(), layout.rows, layout.cols};
    return {};
  }
  std::array<const std::byte*, kMaxPlanes> starts{};
  for (size_t i = 0; i < planes_.size(); ++i) {
    starts[i] = memory_.as<std::byte>() + planes_[i].place;
  }
  table_.packed = ViewWeight(layout, layout.planes(), starts.data());
  return {};
}

Result<> DiskEmbedding::Read(std::span<const int32_t> ids, std::span<uint8_t> failed) {
  SLUICE_CHECK(ids.size() <= max_tokens_ && failed.size() == ids.size());
  const File& file = pack_->file();
  const auto offset_of = [&](const Plane& plane, int32_t id) {
    return plane.offset + static_cast<uint64_t>(id / unit_rows_) * plane.unit_bytes;
  };
  // All are announced before the first is waited for, so that the disk works on several.
  for (const int32_t id : ids) {
    for (const Plane& plane : planes_) {
      ::posix_fadvise(file.descriptor(), static_cast<off_t>(offset_of(plane, id)),
                      static_cast<off_t>(plane.unit_bytes), POSIX_FADV_WILLNEED);
    }
  }
  local_ids_.clear();
  Result<> result;
  for (size_t i = 0; i < ids.size(); ++i) {
    local_ids_.push_back(static_cast<int32_t>(i) * unit_rows_ + ids[i] % unit_rows_);
    for (const Plane& plane : planes_) {
      std::byte* const to = memory_.as<std::byte>() + plane.place + i * plane.unit_bytes;
      Result<> read = file.ReadAt(offset_of(plane, ids[i]), {to, plane.unit_bytes});
      if (read) continue;
      failed[i] = 1;
      if (result) result = std::move(read);
    }
  }
  return result;
}

}  // namespace sluice
