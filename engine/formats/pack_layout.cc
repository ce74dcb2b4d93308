// Sizes that follow from layouts, and the spelling of header and index.
#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#define XXH_INLINE_ALL  // header only: no library to find at run time
#include <xxhash.h>

#include "engine/base/check.h"
#include "engine/formats/pack.h"
#include "engine/formats/pack_wire.h"

namespace sluice {

static_assert(std::endian::native == std::endian::little, "packs are little-endian");

size_t WeightLayout::plane_bytes(int plane) const {
  SLUICE_CHECK(plane >= 0);
  if (plane >= planes()) return 0;
  const auto width = static_cast<size_t>(cols);
  switch (form) {
    case WeightForm::kRowMajor:
      return static_cast<size_t>(rows) * width * DTypeBytes(dtype);
    case WeightForm::kPanels: {
      // As PackedMatrixBytes of kernels/cpu/ops.h, which is no dependency of this module.
      const size_t panels = (static_cast<size_t>(rows) + 15) / 16;
      const size_t stored = dtype == DType::kBF16 ? (width + 1) / 2 * 2 : width;
      return panels * 16 * stored * DTypeBytes(dtype);
    }
    case WeightForm::kNested:
      return NestedPlaneBytes(nested, rows, cols, plane);
  }
  SLUICE_CHECK(false, "not a WeightForm");
}

size_t WeightLayout::bytes() const {
  size_t total = 0;
  for (int plane = 0; plane < planes(); ++plane) total += plane_bytes(plane);
  return total;
}

NestedLevel WeightLayout::level(int plane_count) const {
  SLUICE_CHECK(form == WeightForm::kNested && plane_count >= 1 && plane_count <= planes());
  if (levels.empty()) return DefaultNestedLevel(nested, plane_count);
  return levels[static_cast<size_t>(plane_count) - 1];
}

uint64_t PackExpert::bytes(size_t set_count) const {
  SLUICE_CHECK(set_count <= sets.size());
  uint64_t total = 0;
  for (size_t i = 0; i < set_count; ++i) total += sets[i].bytes;
  return total;
}

uint64_t PackExpert::PlaneOffset(int projection, int plane) const {
  SLUICE_CHECK(projection >= 0 && projection < 3);
  uint64_t offset = 0;
  if (projection > 0) offset += NestedAlign(gate.plane_bytes(plane));
  if (projection > 1) offset += NestedAlign(up.plane_bytes(plane));
  return offset;
}

namespace pack_wire {
namespace {

constexpr std::array kForms = {"row_major", "panels", "nested"};
constexpr std::array kDTypes = {DType::kF32, DType::kF16, DType::kBF16};
constexpr std::array kScaleNames = {"f16",     "f16_min", "u8_min",   "i8",
                                    "iq4_f16", "iq4_i8",  "e2m1_e8m0"};
static_assert(kScaleNames.size() == kScaleKinds);

template <class T>
void Store(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

template <class T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

void StoreDocument(const Document& document, std::byte* at) {
  Store(at, document.offset);
  Store(at + 8, document.bytes);
  Store(at + 16, document.checksum);
}

Document LoadDocument(const std::byte* at) {
  return {Load<uint64_t>(at), Load<uint64_t>(at + 8), Load<uint64_t>(at + 16)};
}

// A whole number in [low, high], or nothing.
bool WholeNumber(const nlohmann::json& object, const char* key, uint64_t low, uint64_t high,
                 uint64_t* value) {
  const auto member = object.find(key);
  if (member == object.end() || !member->is_number_unsigned()) return false;
  *value = member->get<uint64_t>();
  return *value >= low && *value <= high;
}

template <size_t n>
bool OneOf(const nlohmann::json& object, const char* key, const std::array<const char*, n>& names,
           size_t* index) {
  const auto member = object.find(key);
  if (member == object.end() || !member->is_string()) return false;
  const auto& text = member->get_ref<const std::string&>();
  const auto found = std::find(names.begin(), names.end(), text);
  *index = static_cast<size_t>(found - names.begin());
  return found != names.end();
}

}  // namespace

uint64_t Checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

struct RunningChecksum::State {
  XXH3_state_t xxh3;
};

RunningChecksum::RunningChecksum() : state_(std::make_unique<State>()) { Restart(); }
RunningChecksum::RunningChecksum(RunningChecksum&&) noexcept = default;
RunningChecksum& RunningChecksum::operator=(RunningChecksum&&) noexcept = default;
RunningChecksum::~RunningChecksum() = default;

void RunningChecksum::Restart() { XXH3_64bits_reset(&state_->xxh3); }

void RunningChecksum::Add(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_64bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

uint64_t RunningChecksum::value() const { return XXH3_64bits_digest(&state_->xxh3); }

std::string ChecksumText(uint64_t checksum) {
  std::array<char, 17> text;
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(checksum));
  return text.data();
}

bool ParseChecksum(std::string_view text, uint64_t* checksum) {
  if (text.size() != 16) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + 16, *checksum, 16);
  return error == std::errc() && end == text.data() + 16;
}

void EncodeHeader(const Header& header, std::span<std::byte, kHeaderBytes> out) {
  std::fill(out.begin(), out.end(), std::byte{0});
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  Store(out.data() + 8, header.version);
  Store(out.data() + 12, header.align);
  Store(out.data() + 16, header.file_bytes);
  StoreDocument(header.metadata, out.data() + 24);
  StoreDocument(header.index, out.data() + 48);
  Store(out.data() + kHeaderChecksumOffset, Checksum(out.first(kHeaderChecksumOffset)));
}

Result<Header> DecodeHeader(std::span<const std::byte, kHeaderBytes> bytes) {
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return Corrupt("is not a Sluice pack: it does not start with \"SLUICEPK\"");
  }
  if (Load<uint64_t>(bytes.data() + kHeaderChecksumOffset) !=
      Checksum(bytes.first(kHeaderChecksumOffset))) {
    return Corrupt("is damaged: its header does not have its checksum; pack the model again");
  }
  Header header;
  header.version = Load<uint32_t>(bytes.data() + 8);
  header.align = Load<uint32_t>(bytes.data() + 12);
  header.file_bytes = Load<uint64_t>(bytes.data() + 16);
  header.metadata = LoadDocument(bytes.data() + 24);
  header.index = LoadDocument(bytes.data() + 48);
  if (header.version > kPackVersion) {
    return Unsupported("is a pack of version " + std::to_string(header.version) +
                       "; this sluice reads up to version " + std::to_string(kPackVersion) +
                       ": update it, or pack the model again with it");
  }
  if (header.version == 0) return Corrupt("claims pack version 0, which never was");
  if (header.align != 512 && header.align != 4096) {
    return Corrupt("claims an alignment of " + std::to_string(header.align) +
                   " bytes; only 512 and 4096 exist");
  }
  return header;
}

std::string LayoutFault(const WeightLayout& layout) {
  if (layout.rows < 1 || layout.rows > kMaxDimension || layout.cols < 1 ||
      layout.cols > kMaxDimension || int64_t{layout.rows} * layout.cols > kMaxWeights) {
    return "has the shape [" + std::to_string(layout.rows) + ", " + std::to_string(layout.cols) +
           "], which no pack may hold";
  }
  if (layout.form != WeightForm::kNested) {
    return layout.levels.empty() ? "" : "has levels, but is not bit-nested";
  }
  if (!ValidNestedFormat(layout.nested)) {
    return "has a bit-nested format that does not exist (" + std::to_string(layout.nested.bits) +
           " bits, groups of " + std::to_string(layout.nested.group) + ")";
  }
  if (!layout.levels.empty() && layout.levels.size() != static_cast<size_t>(layout.planes())) {
    return "has " + std::to_string(layout.levels.size()) + " levels for " +
           std::to_string(layout.planes()) + " planes";
  }
  for (const NestedLevel& level : layout.levels) {
    if (!std::isfinite(level.mul) || !std::isfinite(level.add)) {
      return "has a level that is not a number";
    }
  }
  return "";
}

nlohmann::ordered_json LayoutToJson(const WeightLayout& layout) {
  nlohmann::ordered_json json = {{"form", kForms[static_cast<size_t>(layout.form)]}};
  if (layout.form == WeightForm::kNested) {
    json["scales"] = kScaleNames[static_cast<size_t>(layout.nested.scales)];
    json["group"] = layout.nested.group;
    json["bits"] = layout.nested.bits;
  } else {
    json["dtype"] = DTypeName(layout.dtype);
  }
  json["rows"] = layout.rows;
  json["cols"] = layout.cols;
  return json;
}

Result<WeightLayout> LayoutFromJson(const nlohmann::json& json) {
  if (!json.is_object()) return Corrupt("is not an object");
  WeightLayout layout;
  size_t choice = 0;
  uint64_t number = 0;
  if (!OneOf(json, "form", kForms, &choice)) {
    return Corrupt("has no form among row_major, panels and nested");
  }
  layout.form = static_cast<WeightForm>(choice);
  if (layout.form == WeightForm::kNested) {
    if (!OneOf(json, "scales", kScaleNames, &choice)) {
      return Corrupt("has no scales among f16, f16_min, u8_min, i8, iq4_f16, iq4_i8 and e2m1_e8m0");
    }
    layout.nested.scales = static_cast<ScaleKind>(choice);
    if (!WholeNumber(json, "group", 1, 255, &number)) return Corrupt("has no group size");
    layout.nested.group = static_cast<uint8_t>(number);
    if (!WholeNumber(json, "bits", 1, 255, &number)) return Corrupt("has no number of bits");
    layout.nested.bits = static_cast<uint8_t>(number);
  } else {
    constexpr std::array kNames = {"F32", "F16", "BF16"};
    if (!OneOf(json, "dtype", kNames, &choice)) {
      return Corrupt("has no dtype among F32, F16 and BF16");
    }
    layout.dtype = kDTypes[choice];
  }
  if (!WholeNumber(json, "rows", 1, kMaxDimension, &number)) {
    return Corrupt("has no number of rows between 1 and " + std::to_string(kMaxDimension));
  }
  layout.rows = static_cast<int>(number);
  if (!WholeNumber(json, "cols", 1, kMaxDimension, &number)) {
    return Corrupt("has no number of columns between 1 and " + std::to_string(kMaxDimension));
  }
  layout.cols = static_cast<int>(number);
  if (std::string fault = LayoutFault(layout); !fault.empty()) return Corrupt(std::move(fault));
  return layout;
}

nlohmann::ordered_json LevelsToJson(const std::vector<NestedLevel>& levels) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const NestedLevel& level : levels) {
    json.push_back(level.mul);
    json.push_back(level.add);
  }
  return json;
}

Result<std::vector<NestedLevel>> LevelsFromJson(const nlohmann::json& json,
                                                const WeightLayout& layout) {
  if (!json.is_array()) return Corrupt("has levels that are not an array");
  std::vector<NestedLevel> levels;
  if (json.empty()) return levels;
  if (layout.form != WeightForm::kNested) return Corrupt("has levels, but is not bit-nested");
  if (json.size() != 2 * static_cast<size_t>(layout.planes())) {
    return Corrupt("has " + std::to_string(json.size()) + " numbers as levels of " +
                   std::to_string(layout.planes()) + " planes");
  }
  for (size_t i = 0; i < json.size(); i += 2) {
    float pair[2];
    for (size_t j = 0; j < 2; ++j) {
      constexpr double kLargest = std::numeric_limits<float>::max();
      if (!json[i + j].is_number() || std::abs(json[i + j].get<double>()) > kLargest) {
        return Corrupt("has a level that is not a number");
      }
      pair[j] = static_cast<float>(json[i + j].get<double>());
    }
    levels.push_back({pair[0], pair[1]});
  }
  return levels;
}

std::string Quoted(std::string_view name) {
  std::string text = "\"";
  for (const char c : name.substr(0, 160)) text += c >= 0x20 && c < 0x7f ? c : '?';
  return text + (name.size() > 160 ? "...\"" : "\"");
}

bool PlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

uint64_t TensorBytes(const WeightLayout& layout) {
  uint64_t total = 0;
  for (int plane = 0; plane < layout.planes(); ++plane) {
    total += AlignUp(layout.plane_bytes(plane), kTensorAlign);
  }
  return total;
}

uint64_t PlaneSetBytes(const PackExpert& expert, int set, size_t align) {
  return AlignUp(expert.PlaneOffset(2, set) + AlignUp(expert.down.plane_bytes(set), kTensorAlign),
                 align);
}

int PlaneSetCount(const PackExpert& expert) {
  return std::max({expert.gate.planes(), expert.up.planes(), expert.down.planes()});
}

}  // namespace pack_wire
}  // namespace sluice
