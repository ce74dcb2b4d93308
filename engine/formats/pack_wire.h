// How a pack is spelled in bytes: its header, the JSON of its index, the checksum and the limits.
// Shared by the writer, the reader and their tests; everyone else uses pack.h. README.md in this
// folder is the same for readers in other languages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/result.h"
#include "engine/formats/pack.h"

namespace sluice::pack_wire {

inline constexpr size_t kHeaderBytes = 4096;
inline constexpr size_t kHeaderChecksumOffset = kHeaderBytes - sizeof(uint64_t);
inline constexpr size_t kSectionAlign = 4096;
inline constexpr size_t kTensorAlign = 64;
inline constexpr std::array<char, 8> kMagic = {'S', 'L', 'U', 'I', 'C', 'E', 'P', 'K'};

// Bounds on what a file may ask us to hold. The index of a model of 94 layers with 128 experts each
// takes 6 MB; files in the metadata are dominated by tokenizer.json (at most 35 MB as published).
inline constexpr uint64_t kMaxMetadataBytes = uint64_t{256} << 20;
inline constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
inline constexpr JsonLimits kMetadataLimits{
    .max_bytes = kMaxMetadataBytes, .max_values = size_t{4} << 20, .max_depth = 64};
inline constexpr JsonLimits kIndexLimits{
    .max_bytes = kMaxIndexBytes, .max_values = size_t{4} << 20, .max_depth = 8};
// With these no size below overflows: int for columns, uint64_t for bytes.
inline constexpr int kMaxDimension = 1 << 26;
inline constexpr int64_t kMaxWeights = int64_t{1} << 38;
inline constexpr size_t kMaxLayers = 4096;
inline constexpr size_t kMaxExpertsPerLayer = 65536;
inline constexpr size_t kMaxExperts = size_t{1} << 18;  // of all layers
inline constexpr size_t kMaxNameBytes = 1024;

// A JSON document at the end of the file.
struct Document {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t checksum = 0;
};

struct Header {
  uint32_t version = kPackVersion;
  uint32_t align = kPackAlign;
  uint64_t file_bytes = 0;
  Document metadata;
  Document index;
};

// XXH3-64 with seed 0, of everything that a pack verifies.
uint64_t Checksum(std::span<const std::byte> bytes);
// The same of bytes that come in pieces.
class RunningChecksum {
 public:
  RunningChecksum();
  RunningChecksum(RunningChecksum&&) noexcept;
  RunningChecksum& operator=(RunningChecksum&&) noexcept;
  ~RunningChecksum();

  void Restart();
  void Add(std::span<const std::byte> bytes);
  uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string ChecksumText(uint64_t checksum);  // 16 hexadecimal digits, as in the index
bool ParseChecksum(std::string_view text, uint64_t* checksum);

void EncodeHeader(const Header& header, std::span<std::byte, kHeaderBytes> out);
// Checks magic, checksum, version and alignment, and nothing that needs the file. Errors are
// predicates of the file ("is not ..."), without its name.
Result<Header> DecodeHeader(std::span<const std::byte, kHeaderBytes> bytes);

// Empty when the layout is one that a pack may hold; otherwise what is wrong with it.
std::string LayoutFault(const WeightLayout& layout);

// Without levels, which belong to one weight and are not shared.
nlohmann::ordered_json LayoutToJson(const WeightLayout& layout);
Result<WeightLayout> LayoutFromJson(const nlohmann::json& json);
// Flat: mul and add for 1 plane, for 2 planes, ...
nlohmann::ordered_json LevelsToJson(const std::vector<NestedLevel>& levels);
Result<std::vector<NestedLevel>> LevelsFromJson(const nlohmann::json& json,
                                                const WeightLayout& layout);

// A name from a file, made fit for a message: quoted, ASCII, bounded.
std::string Quoted(std::string_view name);
// What a file of the metadata may be called: a plain file name.
bool PlainFileName(std::string_view name);

constexpr uint64_t AlignUp(uint64_t value, uint64_t align) {
  return (value + align - 1) / align * align;
}
// Of a tensor: all planes, each padded to 64 bytes.
uint64_t TensorBytes(const WeightLayout& layout);
// Of plane set `set` of an expert, padded to `align`; 0 when it has no such set.
uint64_t PlaneSetBytes(const PackExpert& expert, int set, size_t align);
// How many sets its projections need: the most planes of any.
int PlaneSetCount(const PackExpert& expert);

}  // namespace sluice::pack_wire
