#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/check.h"
#include "engine/formats/pack.h"
#include "engine/formats/pack_wire.h"

namespace sluice {
namespace {

constexpr uint64_t kVerifyBytes = uint64_t{1} << 20;

namespace fs = std::filesystem;
using nlohmann::json;

std::string ExpertName(int layer, int index) {
  return "expert " + std::to_string(index) + " of layer " + std::to_string(layer);
}

// Everything below speaks of the file without its name; Open puts that in front.
class IndexParser {
 public:
  IndexParser(uint64_t file_bytes, size_t align) : file_bytes_(file_bytes), align_(align) {}

  Result<> Parse(const json& index);
  // Sorts what Parse found and checks that, with `documents`, it covers the file without overlaps,
  // and without holes that alignment does not explain.
  Result<> CheckRanges(std::span<const pack_wire::Document> documents);

  std::vector<PackTensor> tensors;
  int layers = 0;
  int experts_per_layer = 0;
  std::vector<PackExpert> experts;

 private:
  Result<> ParseLayouts(const json& index);
  Result<> ParseTensors(const json& index);
  Result<PackTensor> ParseTensor(const json& entry) const;
  Result<> ParseExperts(const json& index);
  Result<PackExpert> ParseExpert(const json& entry) const;
  Result<WeightLayout> LayoutNumber(const json& number) const;
  // The offset of a range of `bytes` bytes that lies between the header and the end.
  Result<uint64_t> Offset(const json& entry, uint64_t bytes, uint64_t alignment) const;

  uint64_t file_bytes_;
  size_t align_;
  std::vector<WeightLayout> layouts_;
};

const json* ArrayMember(const json& object, const char* key) {
  const auto member = object.find(key);
  return member == object.end() || !member->is_array() ? nullptr : &*member;
}

Result<uint64_t> ChecksumOf(const json& text) {
  uint64_t checksum = 0;
  if (!text.is_string() ||
      !pack_wire::ParseChecksum(text.get_ref<const std::string&>(), &checksum)) {
    return Corrupt("has a checksum that is not 16 hexadecimal digits");
  }
  return checksum;
}

Result<WeightLayout> IndexParser::LayoutNumber(const json& number) const {
  if (!number.is_number_unsigned() || number.get<uint64_t>() >= layouts_.size()) {
    return Corrupt("names a layout that the index does not have");
  }
  return layouts_[number.get<size_t>()];
}

Result<uint64_t> IndexParser::Offset(const json& entry, uint64_t bytes, uint64_t alignment) const {
  const auto member = entry.find("offset");
  if (member == entry.end() || !member->is_number_unsigned()) return Corrupt("has no offset");
  const uint64_t offset = member->get<uint64_t>();
  if (offset < pack_wire::kHeaderBytes || offset % alignment != 0) {
    return Corrupt("begins at byte " + std::to_string(offset) + ", which is no multiple of " +
                   std::to_string(alignment) + " behind the header");
  }
  if (offset > file_bytes_ || bytes > file_bytes_ - offset) {
    return Corrupt("takes " + std::to_string(bytes) + " bytes from byte " + std::to_string(offset) +
                   ", past the end of the file at " + std::to_string(file_bytes_));
  }
  return offset;
}

Result<> IndexParser::ParseLayouts(const json& index) {
  const json* list = ArrayMember(index, "layouts");
  if (list == nullptr) return Corrupt("its index has no array \"layouts\"");
  for (const json& entry : *list) {
    Result<WeightLayout> layout = pack_wire::LayoutFromJson(entry);
    if (!layout) {
      return Corrupt("layout " + std::to_string(layouts_.size()) + " of its index " +
                     layout.error().message);
    }
    layouts_.push_back(std::move(*layout));
  }
  return {};
}

Result<PackTensor> IndexParser::ParseTensor(const json& entry) const {
  PackTensor tensor;
  const auto layout_number = entry.find("layout");
  if (layout_number == entry.end()) return Corrupt("has no layout");
  Result<WeightLayout> layout = LayoutNumber(*layout_number);
  if (!layout) return layout.error();
  tensor.layout = std::move(*layout);
  if (const auto levels = entry.find("levels"); levels != entry.end()) {
    Result<std::vector<NestedLevel>> parsed = pack_wire::LevelsFromJson(*levels, tensor.layout);
    if (!parsed) return parsed.error();
    tensor.layout.levels = std::move(*parsed);
  }
  tensor.bytes = pack_wire::TensorBytes(tensor.layout);
  const Result<uint64_t> offset = Offset(entry, tensor.bytes, pack_wire::kTensorAlign);
  if (!offset) return offset.error();
  tensor.offset = *offset;
  const auto text = entry.find("checksum");
  if (text == entry.end()) return Corrupt("has no checksum");
  const Result<uint64_t> checksum = ChecksumOf(*text);
  if (!checksum) return checksum.error();
  tensor.checksum = *checksum;
  return tensor;
}

Result<> IndexParser::ParseTensors(const json& index) {
  const json* list = ArrayMember(index, "tensors");
  if (list == nullptr) return Corrupt("its index has no array \"tensors\"");
  tensors.reserve(list->size());
  for (const json& entry : *list) {
    if (!entry.is_object()) return Corrupt("its index describes a tensor by something else");
    const auto name = entry.find("name");
    if (name == entry.end() || !name->is_string()) {
      return Corrupt("tensor " + std::to_string(tensors.size()) + " of its index has no name");
    }
    const auto& text = name->get_ref<const std::string&>();
    if (text.empty() || text.size() > pack_wire::kMaxNameBytes) {
      return Corrupt("tensor " + std::to_string(tensors.size()) + " of its index has a name of " +
                     std::to_string(text.size()) + " bytes");
    }
    Result<PackTensor> tensor = ParseTensor(entry);
    if (!tensor) {
      return Corrupt("tensor " + pack_wire::Quoted(text) + " " + tensor.error().message);
    }
    tensor->name = text;
    tensors.push_back(std::move(*tensor));
  }
  return {};
}

Result<PackExpert> IndexParser::ParseExpert(const json& entry) const {
  if (!entry.is_object()) return Corrupt("is described by something not an object");
  PackExpert expert;
  WeightLayout* const projections[3] = {&expert.gate, &expert.up, &expert.down};
  const json* numbers = ArrayMember(entry, "layouts");
  if (numbers == nullptr || numbers->size() != 3) return Corrupt("has no three layouts");
  const auto levels = entry.find("levels");
  if (levels != entry.end() && (!levels->is_array() || levels->size() != 3)) {
    return Corrupt("has levels that are not three arrays");
  }
  for (size_t i = 0; i < 3; ++i) {
    Result<WeightLayout> layout = LayoutNumber((*numbers)[i]);
    if (!layout) return layout.error();
    *projections[i] = std::move(*layout);
    if (levels == entry.end()) continue;
    Result<std::vector<NestedLevel>> parsed =
        pack_wire::LevelsFromJson((*levels)[i], *projections[i]);
    if (!parsed) return parsed.error();
    projections[i]->levels = std::move(*parsed);
  }
  if (expert.gate.rows != expert.up.rows || expert.gate.cols != expert.up.cols ||
      expert.down.rows != expert.gate.cols || expert.down.cols != expert.gate.rows) {
    return Corrupt(
        "has projections that do not fit together: gate and up must be alike, and down "
        "must have their shape turned round");
  }

  const int sets = pack_wire::PlaneSetCount(expert);
  const json* checksums = ArrayMember(entry, "checksums");
  if (checksums == nullptr || checksums->size() != static_cast<size_t>(sets)) {
    return Corrupt("needs " + std::to_string(sets) + " checksums, one per plane set");
  }
  for (int set = 0; set < sets; ++set) {
    const Result<uint64_t> checksum = ChecksumOf((*checksums)[static_cast<size_t>(set)]);
    if (!checksum) return checksum.error();
    expert.sets.push_back({pack_wire::PlaneSetBytes(expert, set, align_), *checksum});
  }
  const Result<uint64_t> offset = Offset(entry, expert.bytes(expert.sets.size()), align_);
  if (!offset) return offset.error();
  expert.offset = *offset;
  return expert;
}

Result<> IndexParser::ParseExperts(const json& index) {
  const auto count = index.find("experts_per_layer");
  if (count == index.end() || !count->is_number_unsigned() ||
      count->get<uint64_t>() > pack_wire::kMaxExpertsPerLayer) {
    return Corrupt("its index has no count \"experts_per_layer\" of at most " +
                   std::to_string(pack_wire::kMaxExpertsPerLayer));
  }
  experts_per_layer = count->get<int>();
  const json* list = ArrayMember(index, "experts");
  if (list == nullptr || list->size() > pack_wire::kMaxLayers) {
    return Corrupt("its index has no array \"experts\" of at most " +
                   std::to_string(pack_wire::kMaxLayers) + " layers");
  }
  layers = static_cast<int>(list->size());
  const auto per_layer = static_cast<size_t>(experts_per_layer);
  if (list->size() * per_layer > pack_wire::kMaxExperts) {
    return Corrupt("its index has " + std::to_string(list->size()) + " layers of " +
                   std::to_string(per_layer) + " experts; at most " +
                   std::to_string(pack_wire::kMaxExperts) + " experts are accepted");
  }
  const auto sparse = static_cast<size_t>(
      std::count_if(list->begin(), list->end(), [](const json& e) { return !e.is_null(); }));
  for (int layer = 0; layer < layers; ++layer) {
    const json& entries = (*list)[static_cast<size_t>(layer)];
    if (entries.is_null()) continue;
    if (!entries.is_array() || entries.size() != per_layer || per_layer == 0) {
      return Corrupt("layer " + std::to_string(layer) + " of its index does not have " +
                     std::to_string(per_layer) + " experts");
    }
  }
  if (sparse == 0) {
    experts_per_layer = 0;
    return {};
  }
  experts.resize(list->size() * per_layer);
  for (int layer = 0; layer < layers; ++layer) {
    const json& entries = (*list)[static_cast<size_t>(layer)];
    if (entries.is_null()) continue;
    for (size_t i = 0; i < per_layer; ++i) {
      Result<PackExpert> expert = ParseExpert(entries[i]);
      if (!expert) {
        return Corrupt(ExpertName(layer, static_cast<int>(i)) + " " + expert.error().message);
      }
      experts[static_cast<size_t>(layer) * per_layer + i] = std::move(*expert);
    }
  }
  return {};
}

Result<> IndexParser::Parse(const json& index) {
  if (!index.is_object()) return Corrupt("its index is not a JSON object");
  if (Result<> parsed = ParseLayouts(index); !parsed) return parsed;
  if (Result<> parsed = ParseTensors(index); !parsed) return parsed;
  return ParseExperts(index);
}

Result<> IndexParser::CheckRanges(std::span<const pack_wire::Document> documents) {
  std::sort(tensors.begin(), tensors.end(),
            [](const PackTensor& a, const PackTensor& b) { return a.offset < b.offset; });
  struct Range {
    uint64_t begin, end;
    size_t number;  // documents, then tensors, then experts
  };
  std::vector<Range> ranges;
  ranges.reserve(documents.size() + tensors.size() + experts.size());
  for (const pack_wire::Document& d : documents) {
    ranges.push_back({d.offset, d.offset + d.bytes, ranges.size()});
  }
  for (const PackTensor& t : tensors) {
    ranges.push_back({t.offset, t.offset + t.bytes, ranges.size()});
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    const PackExpert& e = experts[i];
    if (e.sets.empty()) continue;
    ranges.push_back(
        {e.offset, e.offset + e.bytes(e.sets.size()), documents.size() + tensors.size() + i});
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const auto name = [&](size_t number) {
    if (number < documents.size()) return std::string("a JSON document");
    number -= documents.size();
    if (number < tensors.size()) return "tensor " + pack_wire::Quoted(tensors[number].name);
    number -= tensors.size();
    const auto per_layer = static_cast<size_t>(experts_per_layer);
    return ExpertName(static_cast<int>(number / per_layer), static_cast<int>(number % per_layer));
  };
  uint64_t covered = pack_wire::kHeaderBytes;
  for (const Range& range : ranges) {
    if (range.begin < covered) {
      return Corrupt(name(range.number) + " overlaps what lies before it");
    }
    if (range.begin - covered >= pack_wire::kSectionAlign) {
      return Corrupt(std::to_string(range.begin - covered) + " bytes belong to nothing before " +
                     name(range.number));
    }
    covered = range.end;
  }
  if (covered != file_bytes_) {
    return Corrupt(std::to_string(file_bytes_ - covered) + " bytes at its end belong to nothing");
  }
  return {};
}

Error InFile(const fs::path& path, const Error& error) {
  // Errors of File name the path already.
  if (error.message.find(path.string()) != std::string::npos) return error;
  return {error.code, path.string() + " " + error.message};
}

Error Says(const fs::path& path, const Error& error) {
  if (error.message.find(path.string()) != std::string::npos) return error;
  return WithContext(path.string(), error);
}

Result<pack_wire::Header> ReadHeader(const File& file) {
  if (file.size_bytes() < pack_wire::kHeaderBytes) {
    return Corrupt("has " + std::to_string(file.size_bytes()) +
                   " bytes, too few for a Sluice pack; it is truncated, or another kind of file");
  }
  std::array<std::byte, pack_wire::kHeaderBytes> bytes;
  if (Result<> read = file.ReadAt(0, bytes); !read) return read.error();
  Result<pack_wire::Header> header = pack_wire::DecodeHeader(bytes);
  if (!header) return header;
  if (header->file_bytes != file.size_bytes()) {
    return Corrupt("should have " + std::to_string(header->file_bytes) + " bytes but has " +
                   std::to_string(file.size_bytes()) + "; " +
                   (header->file_bytes > file.size_bytes() ? "it is truncated: copy it again"
                                                           : "something was added to it"));
  }
  return header;
}

Result<std::string> ReadDocument(const File& file, const pack_wire::Document& document,
                                 uint64_t limit, const char* name) {
  const uint64_t file_bytes = file.size_bytes();
  if (document.offset < pack_wire::kHeaderBytes ||
      document.offset % pack_wire::kSectionAlign != 0 || document.offset > file_bytes ||
      document.bytes > file_bytes - document.offset) {
    return Corrupt("has its " + std::string(name) + " outside the file or out of alignment");
  }
  if (document.bytes > limit) {
    return Corrupt("has " + std::to_string(document.bytes) + " bytes of " + name + "; at most " +
                   std::to_string(limit) + " are accepted");
  }
  std::string text(static_cast<size_t>(document.bytes), '\0');
  const auto bytes = std::as_writable_bytes(std::span(text));
  if (Result<> read = file.ReadAt(document.offset, bytes); !read) return read.error();
  if (pack_wire::Checksum(bytes) != document.checksum) {
    return Corrupt("is damaged: its " + std::string(name) +
                   " does not have its checksum; copy it again or pack the model again");
  }
  return text;
}

Result<PackMetadata> ParseMetadata(const std::string& text) {
  Result<json> parsed = ParseJson(text, "its metadata", pack_wire::kMetadataLimits);
  if (!parsed) return parsed.error();
  if (!parsed->is_object()) return Corrupt("its metadata is not a JSON object");
  PackMetadata metadata;
  const auto files = parsed->find("files");
  if (files == parsed->end() || !files->is_object()) {
    return Corrupt("its metadata has no object \"files\"");
  }
  for (const auto& [name, content] : files->items()) {
    if (!pack_wire::PlainFileName(name) || !content.is_string()) {
      return Corrupt("its metadata has the file " + pack_wire::Quoted(name) +
                     ", which is not a text with a plain name");
    }
    metadata.files.emplace(name, content.get<std::string>());
  }
  // The order of members means something to people, and a bounded parse has just accepted the text.
  if (parsed->contains("provenance")) {
    auto ordered = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!ordered.is_discarded()) metadata.provenance = std::move(ordered["provenance"]);
  }
  return metadata;
}

}  // namespace

bool PackReader::LooksLikePack(const fs::path& path) {
  const Result<File> file = File::Open(path);
  std::array<char, pack_wire::kMagic.size()> start;
  return file && file->size_bytes() >= start.size() &&
         file->ReadAt(0, std::as_writable_bytes(std::span(start))) && start == pack_wire::kMagic;
}

Result<PackReader> PackReader::Open(const fs::path& path) {
  Result<File> file = File::Open(path);
  if (!file) return file.error();
  const Result<pack_wire::Header> header = ReadHeader(*file);
  if (!header) return InFile(path, header.error());
  const auto metadata_text =
      ReadDocument(*file, header->metadata, pack_wire::kMaxMetadataBytes, "metadata");
  if (!metadata_text) return InFile(path, metadata_text.error());
  const auto index_text = ReadDocument(*file, header->index, pack_wire::kMaxIndexBytes, "index");
  if (!index_text) return InFile(path, index_text.error());

  Result<PackMetadata> metadata = ParseMetadata(*metadata_text);
  if (!metadata) return Says(path, metadata.error());
  const Result<json> index = ParseJson(*index_text, "its index", pack_wire::kIndexLimits);
  if (!index) return Says(path, index.error());
  IndexParser parser(file->size_bytes(), header->align);
  if (Result<> parsed = parser.Parse(*index); !parsed) return Says(path, parsed.error());
  const std::array documents = {header->metadata, header->index};
  if (Result<> checked = parser.CheckRanges(documents); !checked) {
    return Says(path, checked.error());
  }

  PackReader reader(std::move(*file));
  reader.by_name_.reserve(parser.tensors.size());
  for (size_t i = 0; i < parser.tensors.size(); ++i) {
    if (!reader.by_name_.emplace(parser.tensors[i].name, i).second) {
      return Corrupt(path.string() + ": tensor " + pack_wire::Quoted(parser.tensors[i].name) +
                     " is there twice");
    }
  }
  reader.file_bytes_ = header->file_bytes;
  reader.version_ = header->version;
  reader.align_ = header->align;
  reader.metadata_ = std::move(*metadata);
  reader.layers_ = parser.layers;
  reader.experts_per_layer_ = parser.experts_per_layer;
  reader.tensors_ = std::move(parser.tensors);
  reader.experts_ = std::move(parser.experts);
  return reader;
}

const PackTensor* PackReader::FindTensor(std::string_view name) const {
  const auto position = by_name_.find(std::string(name));
  return position == by_name_.end() ? nullptr : &tensors_[position->second];
}

const PackExpert* PackReader::FindExpert(int layer, int index) const {
  if (layer < 0 || layer >= layers_ || index < 0 || index >= experts_per_layer_) return nullptr;
  const PackExpert& expert =
      experts_[static_cast<size_t>(layer) * static_cast<size_t>(experts_per_layer_) +
               static_cast<size_t>(index)];
  return expert.sets.empty() ? nullptr : &expert;
}

Result<> PackReader::ReadTensor(const PackTensor& tensor, std::span<std::byte> destination) const {
  SLUICE_CHECK(destination.size() == tensor.bytes);
  if (Result<> read = file_.ReadAt(tensor.offset, destination); !read) return read;
  return CheckTensor(tensor, pack_wire::Checksum(destination));
}

Result<> PackReader::VerifyTensor(const PackTensor& tensor) const {
  std::vector<std::byte> buffer(std::min<uint64_t>(tensor.bytes, kVerifyBytes));
  pack_wire::RunningChecksum checksum;
  for (uint64_t done = 0; done < tensor.bytes; done += buffer.size()) {
    const auto bytes = static_cast<size_t>(std::min<uint64_t>(buffer.size(), tensor.bytes - done));
    const std::span part(buffer.data(), bytes);
    if (Result<> read = file_.ReadAt(tensor.offset + done, part); !read) return read;
    checksum.Add(part);
  }
  return CheckTensor(tensor, checksum.value());
}

Result<> PackReader::CheckTensor(const PackTensor& tensor, uint64_t checksum) const {
  if (checksum == tensor.checksum) return {};
  return Corrupt(path().string() + " is damaged: tensor " + pack_wire::Quoted(tensor.name) +
                 " does not have its checksum; copy it again or pack the model again");
}

Result<> PackReader::ReadPlaneSets(int layer, int index, size_t first, size_t end,
                                   std::span<std::byte> destination) const {
  const PackExpert* expert = FindExpert(layer, index);
  SLUICE_CHECK(expert != nullptr && first <= end && end <= expert->sets.size());
  const uint64_t begin = expert->bytes(first);
  SLUICE_CHECK(destination.size() == expert->bytes(end) - begin);
  if (Result<> read = file_.ReadAt(expert->offset + begin, destination); !read) return read;
  for (size_t set = first; set < end; ++set) {
    const auto bytes = static_cast<size_t>(expert->sets[set].bytes);
    if (pack_wire::Checksum(destination.first(bytes)) != expert->sets[set].checksum) {
      return Corrupt(path().string() + " is damaged: plane set " + std::to_string(set) + " of " +
                     ExpertName(layer, index) +
                     " does not have its checksum; copy it again or pack the model again");
    }
    destination = destination.subspan(bytes);
  }
  return {};
}

}  // namespace sluice
