// How a trace is spelled in bytes (trace.h): shared by reader, writer and tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/experts/trace.h"

namespace sluice::trace_wire {

inline constexpr std::string_view kMagic = "SLTRACE1";
inline constexpr uint32_t kVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 16;
// Limits of what is read and written.
inline constexpr uint32_t kMaxHeaderBytes = 16U << 20;
inline constexpr uint32_t kMaxFrameBytes = 64U << 20;
inline constexpr int kMaxLayers = 4096;
inline constexpr int kMaxExpertsPerLayer = 65536;
inline constexpr int kMaxExperts = 1 << 20;  // of all layers: replays keep some fifty bytes of each
inline constexpr size_t kMaxNameBytes = 4096;

enum Record : uint8_t {
  kVisit = 1,
  kPrediction = 2,
  kStepEnd = 3,
  kStreamEnd = 4,
  kLost = 5,
};

inline constexpr float kFixedOne = 65535;

void PutU16(std::string& out, uint16_t value);
void PutU32(std::string& out, uint32_t value);
void PutU64(std::string& out, uint64_t value);
void PutVarint(std::string& out, uint64_t value);
void PutSigned(std::string& out, int64_t value);
void PutFraction(std::string& out, float value);  // clamped to [0, 1]

std::string EncodeHeader(const TraceModel& model);
// A frame around records of whole steps.
std::string EncodeFrame(std::string_view payload);

// Reads forward; every Get fails (and then all that follow) instead of leaving the bytes.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }
  uint8_t GetU8() { return static_cast<uint8_t>(GetFixed(1)); }
  uint16_t GetU16() { return static_cast<uint16_t>(GetFixed(2)); }
  uint32_t GetU32() { return static_cast<uint32_t>(GetFixed(4)); }
  uint64_t GetU64() { return GetFixed(8); }
  uint64_t GetVarint();
  int64_t GetSigned();
  float GetFraction() { return static_cast<float>(GetU16()) / kFixedOne; }
  std::span<const std::byte> GetBytes(size_t count);

 private:
  uint64_t GetFixed(int bytes);

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace sluice::trace_wire
