#include "engine/experts/trace_wire.h"

#include <algorithm>
#include <cmath>

#include "engine/formats/pack_wire.h"

namespace sluice::trace_wire {
namespace {

void PutFixed(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t ChecksumOf(std::string_view text) {
  return pack_wire::Checksum(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace

void PutU16(std::string& out, uint16_t value) { PutFixed(out, value, 2); }
void PutU32(std::string& out, uint32_t value) { PutFixed(out, value, 4); }
void PutU64(std::string& out, uint64_t value) { PutFixed(out, value, 8); }

void PutVarint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void PutSigned(std::string& out, int64_t value) {
  PutVarint(out, (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63));
}

void PutFraction(std::string& out, float value) {
  const float bounded = value > 0 ? std::min(value, 1.0F) : 0;  // NaN is 0
  PutU16(out, static_cast<uint16_t>(std::lround(bounded * kFixedOne)));
}

std::string EncodeHeader(const TraceModel& model) {
  std::string out(kMagic);
  const size_t bytes =
      kMagic.size() + size_t{7} * 4 + model.name.size() + model.expert_bytes.size() * 8 + 8;
  PutU32(out, static_cast<uint32_t>(bytes));
  PutU32(out, kVersion);
  PutU32(out, static_cast<uint32_t>(model.space.layers));
  PutU32(out, static_cast<uint32_t>(model.space.experts_per_layer));
  PutU32(out, static_cast<uint32_t>(model.experts_per_token));
  PutU32(out, static_cast<uint32_t>(model.name.size()));
  out += model.name;
  PutU32(out, static_cast<uint32_t>(model.expert_bytes.size()));
  for (const uint64_t size : model.expert_bytes) PutU64(out, size);
  PutU64(out, ChecksumOf(out));
  return out;
}

std::string EncodeFrame(std::string_view payload) {
  std::string out;
  out.reserve(kFrameHeaderBytes + payload.size());
  PutU32(out, static_cast<uint32_t>(payload.size()));
  PutU32(out, 0);
  PutU64(out, ChecksumOf(payload));
  out += payload;
  return out;
}

uint64_t Cursor::GetFixed(int bytes) {
  if (!ok_ || left() < static_cast<size_t>(bytes)) {
    ok_ = false;
    return 0;
  }
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) {
    value |= static_cast<uint64_t>(bytes_[at_ + static_cast<size_t>(i)]) << (8 * i);
  }
  at_ += static_cast<size_t>(bytes);
  return value;
}

uint64_t Cursor::GetVarint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const uint8_t byte = GetU8();
    if (!ok_) return 0;
    const uint64_t bits = byte & 0x7F;
    if (shift == 63 && bits > 1) break;
    value |= bits << shift;
    if ((byte & 0x80) == 0) return value;
  }
  ok_ = false;
  return 0;
}

int64_t Cursor::GetSigned() {
  const uint64_t value = GetVarint();
  return static_cast<int64_t>((value >> 1) ^ (~(value & 1) + 1));
}

std::span<const std::byte> Cursor::GetBytes(size_t count) {
  if (!ok_ || left() < count) {
    ok_ = false;
    return {};
  }
  const std::span<const std::byte> result = bytes_.subspan(at_, count);
  at_ += count;
  return result;
}

}  // namespace sluice::trace_wire
