#include "engine/formats/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/json.h"

namespace sluice {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors bytes are read as they are");

// The format's own limit on the header; a published 128-expert, 94-layer model needs 5 MB.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxShards = 512;  // each holds a file descriptor
constexpr JsonLimits kHeaderLimits{
    .max_bytes = kMaxHeaderBytes, .max_values = size_t{4} << 20, .max_depth = 4};

struct DTypeRow {
  std::string_view name;
  int bits;
};

// Every dtype of the format whose size is fixed; a name that is not here is listed without a check
// of its size, and refused like these when it is asked for.
constexpr std::array kDTypes = {
    DTypeRow{"BOOL", 8},    DTypeRow{"F4", 4},   DTypeRow{"F6_E2M3", 6}, DTypeRow{"F6_E3M2", 6},
    DTypeRow{"U8", 8},      DTypeRow{"I8", 8},   DTypeRow{"F8_E5M2", 8}, DTypeRow{"F8_E4M3", 8},
    DTypeRow{"F8_E8M0", 8}, DTypeRow{"I16", 16}, DTypeRow{"U16", 16},    DTypeRow{"F16", 16},
    DTypeRow{"BF16", 16},   DTypeRow{"I32", 32}, DTypeRow{"U32", 32},    DTypeRow{"F32", 32},
    DTypeRow{"C64", 64},    DTypeRow{"F64", 64}, DTypeRow{"I64", 64},    DTypeRow{"U64", 64},
};

std::optional<DType> ReadableDType(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

// A name from a file, made fit for an error message.
std::string Quoted(std::string_view name) {
  std::string text = "\"";
  for (const char c : name.substr(0, 160)) text += c >= 0x20 && c < 0x7f ? c : '?';
  return text + (name.size() > 160 ? "...\"" : "\"");
}

// One tensor's header entry. `data_bytes` is the length of the file's data section; offsets in the
// result are relative to that section.
Result<TensorInfo> ParseEntry(const std::string& name, const nlohmann::json& entry,
                              uint64_t data_bytes) {
  const std::string subject = "tensor " + Quoted(name);
  if (!entry.is_object()) return Corrupt(subject + " is described by something not an object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return Corrupt(subject + " has no dtype");
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) return Corrupt(subject + " has no shape");
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return Corrupt(subject + " has no pair of data_offsets");
  }

  TensorInfo info;
  info.name = name;
  info.dtype_name = dtype->get_ref<const std::string&>();
  if (info.dtype_name.size() > 32) return Corrupt(subject + " has a dtype name of absurd length");
  if (const std::optional<DType> readable = ReadableDType(info.dtype_name)) {
    info.readable = true;
    info.dtype = *readable;
  }
  if (shape->size() > kMaxRank) {
    return Corrupt(subject + " has " + std::to_string(shape->size()) +
                   " dimensions; at most 8 are accepted");
  }
  uint64_t elements = 1;
  for (const nlohmann::json& dimension : *shape) {
    if (!dimension.is_number_unsigned()) {
      return Corrupt(subject + " has a dimension that is not a whole number");
    }
    const uint64_t size = dimension.get<uint64_t>();
    // 2^56 elements exceed any file, and leave room for the multiplication by bits below.
    if (size > (uint64_t{1} << 56) || (size != 0 && elements > (uint64_t{1} << 56) / size)) {
      return Corrupt(subject + " has a shape whose product is absurdly large");
    }
    elements *= size;
    info.shape.push_back(static_cast<int64_t>(size));
  }

  const uint64_t begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  if (begin > end) return Corrupt(subject + " ends before it begins");
  if (end > data_bytes) {
    return Corrupt(subject + " ends at data byte " + std::to_string(end) +
                   ", but the file holds only " + std::to_string(data_bytes) +
                   " bytes of data; it is truncated or damaged");
  }
  info.offset = begin;
  info.bytes = end - begin;
  const auto known = std::find_if(kDTypes.begin(), kDTypes.end(),
                                  [&](const DTypeRow& row) { return row.name == info.dtype_name; });
  if (known != kDTypes.end()) {
    const uint64_t bits = elements * static_cast<uint64_t>(known->bits);
    if (bits % 8 != 0 || bits / 8 != info.bytes) {
      return Corrupt(subject + " takes " + std::to_string(info.bytes) +
                     " bytes, but its shape and dtype " + info.dtype_name + " need " +
                     std::to_string((bits + 7) / 8));
    }
  }
  return info;
}

// Lists a file's tensors with absolute offsets, in file order. Messages lack the file's name.
Result<std::vector<TensorInfo>> ListTensors(const File& file) {
  if (file.size_bytes() < 8) {
    return Corrupt("has " + std::to_string(file.size_bytes()) +
                   " bytes, too few for a safetensors file; it is truncated");
  }
  std::array<std::byte, 8> length_bytes;
  if (Result<void> read = file.ReadAt(0, length_bytes); !read) return read.error();
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, length_bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes) {
    return Corrupt("claims a header of " + std::to_string(header_bytes) +
                   " bytes; at most 100000000 are allowed, so this is not a safetensors file");
  }
  if (header_bytes > file.size_bytes() - 8) {
    return Corrupt("claims a header of " + std::to_string(header_bytes) + " bytes, but has only " +
                   std::to_string(file.size_bytes()) + " bytes; it is truncated");
  }
  std::string header(static_cast<size_t>(header_bytes), '\0');
  if (Result<void> read = file.ReadAt(8, std::as_writable_bytes(std::span(header))); !read) {
    return read.error();
  }
  if (header.empty() || header[0] != '{') {
    return Corrupt("has a header that does not start with '{'; this is not a safetensors file");
  }
  Result<nlohmann::json> json = ParseJson(header, "its header", kHeaderLimits);
  if (!json) return json.error();

  const uint64_t data_begin = 8 + header_bytes;
  const uint64_t data_bytes = file.size_bytes() - data_begin;
  std::vector<TensorInfo> tensors;
  tensors.reserve(json->size());
  for (const auto& [name, entry] : json->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return Corrupt("has a __metadata__ that is not an object");
      continue;
    }
    Result<TensorInfo> info = ParseEntry(name, entry, data_bytes);
    if (!info) return info.error();
    tensors.push_back(std::move(*info));
  }

  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.offset + a.bytes) < std::pair(b.offset, b.offset + b.bytes);
  });
  uint64_t covered = 0;
  for (TensorInfo& info : tensors) {
    if (info.offset < covered) {
      return Corrupt("tensor " + Quoted(info.name) + " overlaps the tensor before it");
    }
    if (info.offset > covered) {
      return Corrupt("has " + std::to_string(info.offset - covered) +
                     " bytes that belong to no tensor before tensor " + Quoted(info.name));
    }
    covered += info.bytes;
    info.offset += data_begin;
  }
  if (covered != data_bytes) {
    return Corrupt("has " + std::to_string(data_bytes - covered) +
                   " bytes that belong to no tensor at its end");
  }
  return tensors;
}

Error InFile(const std::filesystem::path& path, const Error& error) {
  // Errors of File name the path already.
  if (error.message.find(path.string()) != std::string::npos) return error;
  return {error.code, path.string() + ": " + error.message};
}

// The index's weight_map as shard -> tensor names, both in order. Checks that shard names cannot
// leave the directory.
Result<std::map<std::string, std::vector<std::string>>> ParseIndex(
    const std::filesystem::path& path) {
  Result<std::string> text = ReadTextFile(path, kMaxIndexBytes);
  if (!text) return text.error();
  Result<nlohmann::json> json =
      ParseJson(*text, path.string(),
                {.max_bytes = kMaxIndexBytes, .max_values = size_t{4} << 20, .max_depth = 8});
  if (!json) return json.error();
  if (!json->is_object()) return Corrupt(path.string() + ": is not a JSON object");
  const auto weight_map = json->find("weight_map");
  if (weight_map == json->end() || !weight_map->is_object()) {
    return Corrupt(path.string() + ": has no weight_map from tensors to shards");
  }
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string()) {
      return Corrupt(path.string() + ": the shard of tensor " + Quoted(tensor) + " is not a name");
    }
    const std::string& name = shard.get_ref<const std::string&>();
    if (name.empty() || name == "." || name == ".." || name.size() > 255 ||
        name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return Corrupt(path.string() + ": the shard " + Quoted(name) + " of tensor " +
                     Quoted(tensor) + " is not a plain file name");
    }
    shards[name].push_back(tensor);
    if (shards.size() > kMaxShards) {
      return Unsupported(path.string() + ": names more than 512 shards");
    }
  }
  return shards;
}

}  // namespace

Result<SafetensorsReader> SafetensorsReader::OpenFile(const std::filesystem::path& path) {
  Result<File> file = File::Open(path);
  if (!file) return file.error();
  Result<std::vector<TensorInfo>> tensors = ListTensors(*file);
  if (!tensors) return InFile(path, tensors.error());
  SafetensorsReader reader;
  reader.files_.push_back(std::move(*file));
  reader.tensors_ = std::move(*tensors);
  if (Result<void> built = reader.BuildIndex(); !built) return built.error();
  return reader;
}

Result<SafetensorsReader> SafetensorsReader::Open(const std::filesystem::path& directory) {
  std::error_code status;
  const std::filesystem::path single = directory / "model.safetensors";
  if (std::filesystem::exists(single, status)) return OpenFile(single);
  const std::filesystem::path index = directory / "model.safetensors.index.json";
  if (!std::filesystem::exists(index, status)) {
    return NotFound(directory.string() +
                    " holds neither model.safetensors nor model.safetensors.index.json; point to "
                    "a Hugging Face model directory with safetensors weights");
  }
  Result<std::map<std::string, std::vector<std::string>>> shards = ParseIndex(index);
  if (!shards) return shards.error();

  SafetensorsReader reader;
  for (const auto& [name, wanted] : *shards) {
    const std::filesystem::path path = directory / name;
    Result<File> file = File::Open(path);
    if (!file) {
      return Error{file.error().code, index.string() + " names the shard " + Quoted(name) +
                                          ", but: " + file.error().message};
    }
    Result<std::vector<TensorInfo>> tensors = ListTensors(*file);
    if (!tensors) return InFile(path, tensors.error());
    std::unordered_set<std::string_view> missing(wanted.begin(), wanted.end());
    for (TensorInfo& info : *tensors) {
      if (missing.erase(info.name) == 0) continue;
      info.shard = reader.num_shards();
      reader.tensors_.push_back(std::move(info));
    }
    if (!missing.empty()) {
      return Corrupt(index.string() + " places tensor " + Quoted(*missing.begin()) + " in " +
                     Quoted(name) + ", which does not hold it");
    }
    reader.files_.push_back(std::move(*file));
  }
  if (Result<void> built = reader.BuildIndex(); !built) return built.error();
  return reader;
}

Result<void> SafetensorsReader::BuildIndex() {
  by_name_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!by_name_.emplace(tensors_[i].name, i).second) {
      return Corrupt("tensor " + Quoted(tensors_[i].name) + " is in two places");
    }
  }
  return {};
}

const TensorInfo* SafetensorsReader::Find(std::string_view name) const {
  const auto position = by_name_.find(name);
  return position == by_name_.end() ? nullptr : &tensors_[position->second];
}

Result<void> SafetensorsReader::Read(const TensorInfo& tensor, uint64_t byte_offset,
                                     std::span<std::byte> destination) const {
  SLUICE_CHECK(tensor.shard >= 0 && tensor.shard < num_shards());
  SLUICE_CHECK(byte_offset <= tensor.bytes && destination.size() <= tensor.bytes - byte_offset);
  const File& file = files_[static_cast<size_t>(tensor.shard)];
  if (!tensor.readable) {
    return Unsupported(file.path().string() + ": tensor " + Quoted(tensor.name) + " is " +
                       Quoted(tensor.dtype_name) + "; only F32, F16 and BF16 weights are served");
  }
  return file.ReadAt(tensor.offset + byte_offset, destination);
}

}  // namespace sluice
