#include "engine/formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "engine/base/check.h"

namespace sluice {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxNameBytes = 1 << 16;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr int kMaxShards = 10000;
constexpr size_t kReadAhead = 1 << 20;

// The kinds of metadata values, as numbered in the file.
enum Kind : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// Walks a file front to back through a buffer. After the first failure every call fails with the
// same error.
class Cursor {
 public:
  explicit Cursor(const File& file) : file_(file) {}

  uint64_t position() const { return buffer_start_ + used_; }
  uint64_t left() const { return file_.size_bytes() - position(); }
  const std::optional<Error>& error() const { return error_; }
  bool ok() const { return !error_; }
  void Fail(Error error) {
    if (!error_) error_ = std::move(error);
  }

  bool Bytes(void* out, size_t n) {
    if (!ok()) return false;
    if (n > left()) {
      Fail(Corrupt(file_.path().string() + " is truncated: its header goes on past its end"));
      return false;
    }
    auto* to = static_cast<std::byte*>(out);
    while (n > 0) {
      if (used_ == buffer_.size() && !Refill()) return false;
      const size_t piece = std::min(n, buffer_.size() - used_);
      std::memcpy(to, buffer_.data() + used_, piece);
      used_ += piece;
      to += piece;
      n -= piece;
    }
    return true;
  }

  template <class T>
  T Number() {
    T value{};
    Bytes(&value, sizeof(T));
    return value;
  }

  // A length and as many bytes; empty on failure. No string is longer than the rest of the file.
  std::string String(uint64_t limit) {
    const uint64_t length = Number<uint64_t>();
    if (!ok()) return {};
    if (length > limit || length > left()) {
      Fail(Corrupt(file_.path().string() + " has a string of " + std::to_string(length) +
                   " bytes in its header, more than there can be"));
      return {};
    }
    std::string text(length, '\0');
    Bytes(text.data(), length);
    return text;
  }

 private:
  bool Refill() {
    buffer_start_ += buffer_.size();
    used_ = 0;
    buffer_.resize(std::min<uint64_t>(kReadAhead, file_.size_bytes() - buffer_start_));
    if (Result<void> read = file_.ReadAt(buffer_start_, buffer_); !read) {
      Fail(read.error());
      return false;
    }
    return true;
  }

  const File& file_;
  std::vector<std::byte> buffer_;
  uint64_t buffer_start_ = 0;  // file offset of buffer_[0]
  size_t used_ = 0;
  std::optional<Error> error_;
};

template <class T>
using Widened = std::conditional_t<std::is_floating_point_v<T>, double,
                                   std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class T>
GgufValue Scalar(Cursor& cursor) {
  return static_cast<Widened<T>>(cursor.Number<T>());
}

template <class T>
GgufValue NumberArray(Cursor& cursor, uint64_t count) {
  std::vector<Widened<T>> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count && cursor.ok(); ++i) values.push_back(cursor.Number<T>());
  return values;
}

// Calls f.template operator()<T>() for the number type of `kind`.
template <class F>
std::optional<GgufValue> WithNumberType(uint32_t kind, F f) {
  switch (kind) {
    case kU8:
      return f.template operator()<uint8_t>();
    case kI8:
      return f.template operator()<int8_t>();
    case kU16:
      return f.template operator()<uint16_t>();
    case kI16:
      return f.template operator()<int16_t>();
    case kU32:
      return f.template operator()<uint32_t>();
    case kI32:
      return f.template operator()<int32_t>();
    case kF32:
      return f.template operator()<float>();
    case kU64:
      return f.template operator()<uint64_t>();
    case kI64:
      return f.template operator()<int64_t>();
    case kF64:
      return f.template operator()<double>();
    default:
      return std::nullopt;
  }
}

// Bytes that one element takes at least: bounds a count before anything is allocated.
uint64_t LeastBytes(uint32_t kind) {
  if (kind == kString || kind == kU64 || kind == kI64 || kind == kF64) return 8;
  if (kind == kU32 || kind == kI32 || kind == kF32) return 4;
  if (kind == kU16 || kind == kI16) return 2;
  return 1;
}

GgufValue ReadArray(Cursor& cursor, const std::string& path, const std::string& key) {
  const auto kind = cursor.Number<uint32_t>();
  const auto count = cursor.Number<uint64_t>();
  if (!cursor.ok()) return {};
  if (count > cursor.left() / LeastBytes(kind)) {
    cursor.Fail(Corrupt(path + ": " + key + " claims " + std::to_string(count) +
                        " elements, more than the file can hold"));
    return {};
  }
  if (kind == kString) {
    std::vector<std::string> values;
    for (uint64_t i = 0; i < count && cursor.ok(); ++i) {
      values.push_back(cursor.String(std::numeric_limits<uint64_t>::max()));
    }
    return values;
  }
  if (kind == kBool) {
    std::vector<bool> values;
    for (uint64_t i = 0; i < count && cursor.ok(); ++i) {
      values.push_back(cursor.Number<uint8_t>() != 0);
    }
    return values;
  }
  auto values =
      WithNumberType(kind, [&]<class T>() -> GgufValue { return NumberArray<T>(cursor, count); });
  if (values) return std::move(*values);
  cursor.Fail(Corrupt(path + ": " + key + " is an array of kind " + std::to_string(kind) +
                      ", which is not one of GGUF's or an array of arrays"));
  return {};
}

GgufValue ReadValue(Cursor& cursor, const std::string& path, const std::string& key) {
  const auto kind = cursor.Number<uint32_t>();
  if (!cursor.ok()) return {};
  if (kind == kString) return cursor.String(std::numeric_limits<uint64_t>::max());
  if (kind == kBool) return cursor.Number<uint8_t>() != 0;
  if (kind == kArray) return ReadArray(cursor, path, key);
  auto value = WithNumberType(kind, [&]<class T>() -> GgufValue { return Scalar<T>(cursor); });
  if (value) return std::move(*value);
  cursor.Fail(Corrupt(path + ": " + key + " has kind " + std::to_string(kind) +
                      ", which is not one of GGUF's"));
  return {};
}

// The path of shard `index` (from 0) of a split, or nothing when `first` is not named like one.
std::optional<std::filesystem::path> ShardPath(const std::filesystem::path& first, int index,
                                               int count) {
  const std::string name = first.filename().string();
  char tail[64];
  std::snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", 1, count);
  if (!name.ends_with(tail)) return std::nullopt;
  const std::string stem = name.substr(0, name.size() - std::strlen(tail));
  std::snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", index + 1, count);
  return first.parent_path() / (stem + tail);
}

}  // namespace

int64_t GgufTensor::values() const {
  int64_t product = 1;
  for (int64_t dimension : shape) product *= dimension;
  return product;
}

Error GgufReader::Fault(int shard, std::string what) const {
  return Corrupt(files_[static_cast<size_t>(shard)].path().string() + ": " + std::move(what));
}

Result<GgufReader> GgufReader::Open(const std::filesystem::path& path) {
  GgufReader reader;
  if (Result<void> read = reader.ReadFile(path, 0); !read) return read.error();
  if (reader.FindMetadata("split.count") != nullptr) {
    Result<int64_t> count = reader.GetInt("split.count");
    if (!count) return count.error();
    if (*count < 0 || *count > kMaxShards) return reader.Fault(0, "split.count is out of range");
    for (int i = 1; i < static_cast<int>(*count); ++i) {
      const auto shard = ShardPath(path, i, static_cast<int>(*count));
      if (!shard) {
        return InvalidArgument(path.string() + " is part of a split of " + std::to_string(*count) +
                               " files; name the first, which ends in -00001-of-" +
                               "000NN.gguf, with the others beside it");
      }
      if (Result<void> read = reader.ReadFile(*shard, i); !read) return read.error();
    }
  }
  for (size_t i = 0; i < reader.tensors_.size(); ++i) {
    if (!reader.by_name_.emplace(reader.tensors_[i].name, i).second) {
      return reader.Fault(reader.tensors_[i].shard,
                          "the tensor " + reader.tensors_[i].name + " is listed twice");
    }
  }
  return reader;
}

Result<void> GgufReader::ReadFile(const std::filesystem::path& path, int shard) {
  Result<File> file = File::Open(path);
  if (!file) return file.error();
  files_.push_back(std::move(*file));
  const std::string name = path.string();
  Cursor cursor(files_.back());

  if (cursor.Number<uint32_t>() != kMagic || !cursor.ok()) return Fault(shard, "not a GGUF file");
  const auto version = cursor.Number<uint32_t>();
  if (version != 2 && version != 3) {
    return Unsupported(name + " is GGUF version " + std::to_string(version) +
                       "; versions 2 and 3 (little-endian) are read");
  }
  const auto num_tensors = cursor.Number<uint64_t>();
  const auto num_keys = cursor.Number<uint64_t>();
  if (!cursor.ok()) return *cursor.error();
  if (num_tensors > kMaxTensors || num_keys > kMaxKeys) {
    return Fault(shard, "the header claims " + std::to_string(num_tensors) + " tensors and " +
                            std::to_string(num_keys) + " keys, more than any model has");
  }

  std::map<std::string, GgufValue, std::less<>> metadata;
  for (uint64_t i = 0; i < num_keys; ++i) {
    std::string key = cursor.String(kMaxNameBytes);
    GgufValue value = ReadValue(cursor, name, key);
    if (!cursor.ok()) return *cursor.error();
    if (!metadata.emplace(key, std::move(value)).second) {
      return Fault(shard, "the key " + key + " occurs twice");
    }
  }

  const size_t first_tensor = tensors_.size();
  for (uint64_t i = 0; i < num_tensors; ++i) {
    GgufTensor tensor;
    tensor.name = cursor.String(kMaxNameBytes);
    const auto dimensions = cursor.Number<uint32_t>();
    if (!cursor.ok()) return *cursor.error();
    if (dimensions < 1 || dimensions > 4) {
      return Fault(shard, "the tensor " + tensor.name + " has " + std::to_string(dimensions) +
                              " dimensions, not 1 to 4");
    }
    uint64_t values = 1;
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto size = cursor.Number<uint64_t>();
      if (cursor.ok() && (size == 0 || size > (uint64_t{1} << 48) / values)) {
        return Fault(shard, "the tensor " + tensor.name + " has an impossible shape");
      }
      values *= cursor.ok() ? size : 1;
      tensor.shape.push_back(static_cast<int64_t>(size));
    }
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    tensor.type_number = cursor.Number<uint32_t>();
    tensor.offset = cursor.Number<uint64_t>();
    if (!cursor.ok()) return *cursor.error();
    tensor.shard = shard;
    tensor.type = FindGgufType(tensor.type_number);
    if (tensor.type) {
      if (tensor.columns() % tensor.type->block_values != 0) {
        return Fault(shard, "the tensor " + tensor.name + " has rows of " +
                                std::to_string(tensor.columns()) + " values, not a multiple of " +
                                std::to_string(tensor.type->block_values) + " as its type " +
                                std::string(tensor.type->name) + " needs");
      }
      tensor.bytes = GgufBytes(*tensor.type, values);
    }
    tensors_.push_back(std::move(tensor));
  }

  uint64_t alignment = 32;
  if (const auto it = metadata.find("general.alignment"); it != metadata.end()) {
    const auto* value = std::get_if<uint64_t>(&it->second);
    if (value == nullptr || !std::has_single_bit(*value) || *value > kMaxAlignment) {
      return Fault(shard, "general.alignment is not a power of two");
    }
    alignment = *value;
  }
  const uint64_t size = files_.back().size_bytes();
  const uint64_t start = (cursor.position() + alignment - 1) / alignment * alignment;
  for (size_t i = first_tensor; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    if (tensor.offset % alignment != 0) {
      return Fault(shard, "the tensor " + tensor.name + " is not aligned");
    }
    if (start > size || tensor.offset > size - start ||
        tensor.bytes > size - start - tensor.offset) {
      return Fault(shard, "the tensor " + tensor.name +
                              " lies outside the file: it is truncated or damaged");
    }
    tensor.offset += start;
  }
  if (shard == 0) {
    version_ = version;
    metadata_ = std::move(metadata);
  }
  return {};
}

const GgufValue* GgufReader::FindMetadata(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

const GgufTensor* GgufReader::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

uint64_t GgufReader::total_bytes() const {
  uint64_t total = 0;
  for (const File& file : files_) total += file.size_bytes();
  return total;
}

Result<std::string> GgufReader::GetString(std::string_view key) const {
  const GgufValue* value = FindMetadata(key);
  if (value == nullptr) return NotFound(path().string() + " has no " + std::string(key));
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  return Fault(0, std::string(key) + " is not a string");
}

Result<int64_t> GgufReader::GetInt(std::string_view key) const {
  const GgufValue* value = FindMetadata(key);
  if (value == nullptr) return NotFound(path().string() + " has no " + std::string(key));
  if (const auto* number = std::get_if<int64_t>(value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(value);
      number != nullptr && *number <= INT64_MAX) {
    return static_cast<int64_t>(*number);
  }
  return Fault(0, std::string(key) + " is not a whole number");
}

Result<double> GgufReader::GetFloat(std::string_view key) const {
  const GgufValue* value = FindMetadata(key);
  if (value == nullptr) return NotFound(path().string() + " has no " + std::string(key));
  if (const auto* number = std::get_if<double>(value)) return *number;
  return Fault(0, std::string(key) + " is not a floating-point number");
}

Result<bool> GgufReader::GetBool(std::string_view key) const {
  const GgufValue* value = FindMetadata(key);
  if (value == nullptr) return NotFound(path().string() + " has no " + std::string(key));
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  return Fault(0, std::string(key) + " is not a boolean");
}

Result<void> GgufReader::Read(const GgufTensor& tensor, uint64_t byte_offset,
                              std::span<std::byte> destination) const {
  if (!tensor.type) {
    return Unsupported(
        files_[static_cast<size_t>(tensor.shard)].path().string() + ": the tensor " + tensor.name +
        " has type " + std::to_string(tensor.type_number) +
        ", which Sluice does not read; use a Q2_K to Q8_0, IQ4, MXFP4 or float file");
  }
  SLUICE_CHECK(byte_offset <= tensor.bytes && destination.size() <= tensor.bytes - byte_offset);
  return files_[static_cast<size_t>(tensor.shard)].ReadAt(tensor.offset + byte_offset, destination);
}

Result<void> GgufReader::ReadF32(const GgufTensor& tensor, int64_t first,
                                 std::span<float> out) const {
  if (!tensor.type) return Read(tensor, 0, {});
  const GgufTypeInfo& type = *tensor.type;
  SLUICE_CHECK(first % type.block_values == 0 &&
               out.size() % static_cast<size_t>(type.block_values) == 0);
  // Pieces keep the memory for raw blocks bounded.
  const size_t piece =
      64 * 1024 / static_cast<size_t>(type.block_values) * static_cast<size_t>(type.block_values);
  std::vector<std::byte> blocks(GgufBytes(type, std::min(piece, out.size())));
  for (size_t done = 0; done < out.size();) {
    const std::span<float> part = out.subspan(done, std::min(piece, out.size() - done));
    const std::span<std::byte> raw(blocks.data(), GgufBytes(type, part.size()));
    const uint64_t offset = GgufBytes(type, static_cast<uint64_t>(first) + done);
    if (Result<void> read = Read(tensor, offset, raw); !read) return read;
    DequantizeGguf(type, raw.data(), part);
    done += part.size();
  }
  return {};
}

}  // namespace sluice
