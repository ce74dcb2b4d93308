#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "engine/formats/pack.h"
#include "engine/formats/pack_wire.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using pack_wire::AlignUp;

constexpr size_t kBufferBytes = size_t{4} << 20;  // of one write

Error SystemError(const fs::path& path, const char* action, int number) {
  const std::string name = path.string();
  const std::string reason = std::strerror(number);
  switch (number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ResourceExhausted("cannot " + std::string(action) + " " + name + ": " + reason +
                               "; nothing was left behind, free some space or name a place "
                               "with more of it");
    case EACCES:
    case EPERM:
    case EROFS:
      return IoError("cannot " + std::string(action) + " " + name + ": " + reason +
                     "; name a place that this user may write to");
    case ENOENT:
      return NotFound("cannot " + std::string(action) + " " + name +
                      ": its directory does not exist");
    default:
      return IoError("cannot " + std::string(action) + " " + name + ": " + reason);
  }
}

// The file while it is written. It has no name where the file system can do that (O_TMPFILE), so
// that even a killed process leaves nothing; elsewhere it is a hidden file beside the target, whose
// header stays zero until everything else is in it.
class TemporaryFile {
 public:
  static Result<TemporaryFile> Create(const fs::path& target) {
    TemporaryFile file(target);
    std::error_code ignored;
    if (target.filename().empty() || fs::is_directory(target, ignored)) {
      return InvalidArgument("cannot write the pack " + target.string() +
                             ": it is a directory; name a file");
    }
    const fs::path directory = file.directory();
    if (::access("/proc/self/fd", X_OK) == 0) {
      file.descriptor_ = ::open(directory.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
    }
    if (file.descriptor_ < 0) {
      const int descriptor = file.WithFreshName([](const char* name) {
        return ::open(name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
      });
      if (descriptor < 0) return SystemError(target, "write", errno);
      file.descriptor_ = descriptor;
    }
    return file;
  }

  TemporaryFile(TemporaryFile&& other) noexcept
      : target_(std::move(other.target_)),
        name_(std::exchange(other.name_, {})),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  TemporaryFile& operator=(TemporaryFile&&) = delete;

  ~TemporaryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!name_.empty()) ::unlink(name_.c_str());
  }

  const fs::path& target() const { return target_; }

  Result<> Write(uint64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t done =
          ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return SystemError(target_, "write", errno);
      bytes = bytes.subspan(static_cast<size_t>(done));
      offset += static_cast<uint64_t>(done);
    }
    return {};
  }

  // Makes it durable, then gives it its name in one step.
  Result<> Publish() {
    if (::fsync(descriptor_) != 0) return SystemError(target_, "write", errno);
    if (name_.empty()) {
      const std::string self = "/proc/self/fd/" + std::to_string(descriptor_);
      const int linked = WithFreshName([&](const char* name) {
        return ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name, AT_SYMLINK_FOLLOW);
      });
      if (linked != 0) return SystemError(target_, "name", errno);
    }
    if (::rename(name_.c_str(), target_.c_str()) != 0) return SystemError(target_, "name", errno);
    name_.clear();
    const int directory = ::open(this->directory().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = directory >= 0 && ::fsync(directory) == 0;
    const int number = errno;
    if (directory >= 0) ::close(directory);
    // Some network file systems cannot sync directories; the pack is whole there all the same.
    if (!synced && number != EINVAL && number != ENOTSUP) {
      return SystemError(target_, "sync the directory of", number);
    }
    return {};
  }

 private:
  explicit TemporaryFile(fs::path target) : target_(std::move(target)) {}

  fs::path directory() const { return target_.has_parent_path() ? target_.parent_path() : "."; }

  // Calls `make` with names that no other writer uses until one is free; its name becomes ours.
  template <class Make>
  int WithFreshName(Make make) {
    for (int attempt = 0; attempt < 100; ++attempt) {
      struct timespec now {};
      ::clock_gettime(CLOCK_REALTIME, &now);
      const fs::path name = directory() / ("." + target_.filename().string().substr(0, 200) + "." +
                                           std::to_string(::getpid()) + "-" +
                                           std::to_string(now.tv_nsec) + ".partial");
      const int result = make(name.c_str());
      if (result >= 0) {
        name_ = name;
        return result;
      }
      if (errno != EEXIST) return result;
    }
    return -1;
  }

  fs::path target_;
  fs::path name_;  // of the temporary file; empty while it has none
  int descriptor_ = -1;
};

}  // namespace

struct PackWriter::State {
  enum class Section { kNone, kTensors, kExperts, kDocuments };

  State(TemporaryFile temporary, int expert_layers, int experts_per_layer, size_t alignment)
      : file(std::move(temporary)),
        layers(expert_layers),
        experts_per_layer(experts_per_layer),
        align(alignment),
        experts(static_cast<size_t>(expert_layers) * static_cast<size_t>(experts_per_layer)) {
    buffer.reserve(kBufferBytes);
  }

  uint64_t position() const { return flushed + buffer.size(); }

  Result<> Flush() {
    if (buffer.empty()) return {};
    Result<> written = file->Write(flushed, buffer);
    if (!written) return written;
    flushed += buffer.size();
    buffer.clear();
    return {};
  }

  Result<> Append(std::span<const std::byte> bytes) {
    checksum.Add(bytes);
    while (!bytes.empty()) {
      const size_t taken = std::min(bytes.size(), kBufferBytes - buffer.size());
      buffer.insert(buffer.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(taken));
      bytes = bytes.subspan(taken);
      if (buffer.size() == kBufferBytes) {
        Result<> flush = Flush();
        if (!flush) return flush;
      }
    }
    return {};
  }

  Result<> PadTo(uint64_t alignment) {
    static constexpr std::array<std::byte, pack_wire::kSectionAlign> kZeros{};
    return Append(
        std::span(kZeros).first(static_cast<size_t>(AlignUp(position(), alignment) - position())));
  }

  Result<> Enter(Section next) {
    if (section == next) return {};
    section = next;
    return PadTo(pack_wire::kSectionAlign);
  }

  Result<> WriteTensor(PackTensor tensor, std::span<const std::span<const std::byte>> planes);
  Result<> WriteExpert(PackExpert expert,
                       const std::vector<std::span<const std::byte>> (&planes)[3],
                       PackExpert* slot);
  Result<pack_wire::Document> WriteDocument(const std::string& text, uint64_t limit,
                                            const char* what);
  nlohmann::ordered_json IndexJson() const;
  Result<> Finish(const PackMetadata& metadata);

  std::optional<TemporaryFile> file;  // until Finish
  int layers;
  int experts_per_layer;
  size_t align;
  std::vector<std::byte> buffer;  // bytes that follow `flushed`
  uint64_t flushed = 0;
  Section section = Section::kNone;
  pack_wire::RunningChecksum checksum;
  std::vector<PackTensor> tensors;
  std::unordered_set<std::string> names;
  std::vector<PackExpert> experts;  // empty sets: not written
  std::optional<Error> failure;     // the first one; everything after it answers the same
};

Result<> PackWriter::State::WriteTensor(PackTensor tensor,
                                        std::span<const std::span<const std::byte>> planes) {
  if (Result<> entered = Enter(Section::kTensors); !entered) return entered;
  tensor.offset = position();
  checksum.Restart();
  for (const std::span<const std::byte> plane : planes) {
    if (Result<> appended = Append(plane); !appended) return appended;
    if (Result<> padded = PadTo(pack_wire::kTensorAlign); !padded) return padded;
  }
  tensor.bytes = position() - tensor.offset;
  tensor.checksum = checksum.value();
  SLUICE_CHECK(tensor.bytes == pack_wire::TensorBytes(tensor.layout));
  tensors.push_back(std::move(tensor));
  return {};
}

Result<> PackWriter::State::WriteExpert(PackExpert expert,
                                        const std::vector<std::span<const std::byte>> (&planes)[3],
                                        PackExpert* slot) {
  if (Result<> entered = Enter(Section::kExperts); !entered) return entered;
  expert.offset = position();
  const int sets = pack_wire::PlaneSetCount(expert);
  for (int set = 0; set < sets; ++set) {
    const uint64_t begin = position();
    checksum.Restart();
    for (const auto& projection : planes) {
      if (static_cast<size_t>(set) >= projection.size()) continue;
      if (Result<> done = Append(projection[static_cast<size_t>(set)]); !done) return done;
      if (Result<> done = PadTo(pack_wire::kTensorAlign); !done) return done;
    }
    if (Result<> done = PadTo(align); !done) return done;
    SLUICE_CHECK(position() - begin == pack_wire::PlaneSetBytes(expert, set, align));
    expert.sets.push_back({position() - begin, checksum.value()});
  }
  *slot = std::move(expert);
  return {};
}

Result<pack_wire::Document> PackWriter::State::WriteDocument(const std::string& text,
                                                             uint64_t limit, const char* what) {
  if (text.size() > limit) {
    return ResourceExhausted("cannot write " + file->target().string() + ": its " + what +
                             " takes " + std::to_string(text.size()) + " bytes; at most " +
                             std::to_string(limit) + " are read back");
  }
  section = Section::kDocuments;
  if (Result<> padded = PadTo(pack_wire::kSectionAlign); !padded) return padded.error();
  const pack_wire::Document document{position(), text.size(),
                                     pack_wire::Checksum(std::as_bytes(std::span(text)))};
  if (Result<> done = Append(std::as_bytes(std::span(text))); !done) return done.error();
  return document;
}

nlohmann::ordered_json PackWriter::State::IndexJson() const {
  using Json = nlohmann::ordered_json;
  Json layouts = Json::array();
  std::unordered_map<std::string, size_t> numbers;
  const auto number_of = [&](const WeightLayout& layout) {
    Json json = pack_wire::LayoutToJson(layout);
    const auto [position, added] = numbers.emplace(json.dump(), layouts.size());
    if (added) layouts.push_back(std::move(json));
    return position->second;
  };

  Json tensor_list = Json::array();
  for (const PackTensor& tensor : tensors) {
    Json entry = {{"name", tensor.name},
                  {"layout", number_of(tensor.layout)},
                  {"offset", tensor.offset},
                  {"checksum", pack_wire::ChecksumText(tensor.checksum)}};
    if (!tensor.layout.levels.empty()) {
      entry["levels"] = pack_wire::LevelsToJson(tensor.layout.levels);
    }
    tensor_list.push_back(std::move(entry));
  }

  Json layer_list = Json::array();
  for (int layer = 0; layer < layers; ++layer) {
    const auto first = experts.begin() + ptrdiff_t{layer} * experts_per_layer;
    const auto last = first + experts_per_layer;
    const auto written =
        std::count_if(first, last, [](const PackExpert& e) { return !e.sets.empty(); });
    SLUICE_CHECK(written == 0 || written == experts_per_layer, "a layer lacks some of its experts");
    if (written == 0) {
      layer_list.push_back(nullptr);
      continue;
    }
    Json list = Json::array();
    for (auto expert = first; expert != last; ++expert) {
      Json sums = Json::array();
      for (const PlaneSet& set : expert->sets) {
        sums.push_back(pack_wire::ChecksumText(set.checksum));
      }
      Json entry = {
          {"layouts", {number_of(expert->gate), number_of(expert->up), number_of(expert->down)}},
          {"offset", expert->offset},
          {"checksums", std::move(sums)}};
      if (!expert->gate.levels.empty() || !expert->up.levels.empty() ||
          !expert->down.levels.empty()) {
        entry["levels"] = {pack_wire::LevelsToJson(expert->gate.levels),
                           pack_wire::LevelsToJson(expert->up.levels),
                           pack_wire::LevelsToJson(expert->down.levels)};
      }
      list.push_back(std::move(entry));
    }
    layer_list.push_back(std::move(list));
  }
  return {{"layouts", std::move(layouts)},
          {"tensors", std::move(tensor_list)},
          {"experts_per_layer", experts_per_layer},
          {"experts", std::move(layer_list)}};
}

PackWriter::PackWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
PackWriter::PackWriter(PackWriter&&) noexcept = default;
PackWriter& PackWriter::operator=(PackWriter&&) noexcept = default;
PackWriter::~PackWriter() = default;

Result<PackWriter> PackWriter::Create(const fs::path& path, int expert_layers,
                                      int experts_per_layer, size_t align) {
  SLUICE_CHECK(align == 512 || align == 4096);
  SLUICE_CHECK(expert_layers >= 0 && experts_per_layer >= 0);
  if (static_cast<size_t>(expert_layers) > pack_wire::kMaxLayers ||
      static_cast<size_t>(experts_per_layer) > pack_wire::kMaxExpertsPerLayer ||
      static_cast<size_t>(expert_layers) * static_cast<size_t>(experts_per_layer) >
          pack_wire::kMaxExperts) {
    return Unsupported("a pack holds at most " + std::to_string(pack_wire::kMaxLayers) +
                       " layers and " + std::to_string(pack_wire::kMaxExperts) + " experts");
  }
  Result<TemporaryFile> file = TemporaryFile::Create(path);
  if (!file) return file.error();
  auto state = std::make_unique<State>(std::move(*file), expert_layers, experts_per_layer, align);
  // The header's place; it is written last, so that no prefix of the work is a pack.
  const std::vector<std::byte> header(pack_wire::kHeaderBytes);
  if (Result<> reserved = state->Append(header); !reserved) return reserved.error();
  return PackWriter(std::move(state));
}

Result<> PackWriter::AddTensor(std::string name, const WeightLayout& layout,
                               std::span<const std::span<const std::byte>> planes) {
  SLUICE_CHECK(state_ != nullptr && state_->file.has_value(), "this writer is finished");
  if (state_->failure) return *state_->failure;
  SLUICE_CHECK(!name.empty() && name.size() <= pack_wire::kMaxNameBytes);
  if (const std::string fault = pack_wire::LayoutFault(layout); !fault.empty()) {
    return Unsupported("tensor " + pack_wire::Quoted(name) + " " + fault);
  }
  SLUICE_CHECK(planes.size() == static_cast<size_t>(layout.planes()));
  for (size_t i = 0; i < planes.size(); ++i) {
    SLUICE_CHECK(planes[i].size() == layout.plane_bytes(static_cast<int>(i)));
  }
  SLUICE_CHECK(state_->names.insert(name).second, "a tensor's name is used twice");
  PackTensor tensor;
  tensor.name = std::move(name);
  tensor.layout = layout;
  Result<> written = state_->WriteTensor(std::move(tensor), planes);
  if (!written) state_->failure = written.error();
  return written;
}

Result<> PackWriter::AddExpert(int layer, int index, const WeightLayout (&layouts)[3],
                               const std::vector<std::span<const std::byte>> (&planes)[3]) {
  SLUICE_CHECK(state_ != nullptr && state_->file.has_value(), "this writer is finished");
  if (state_->failure) return *state_->failure;
  SLUICE_CHECK(layer >= 0 && layer < state_->layers);
  SLUICE_CHECK(index >= 0 && index < state_->experts_per_layer);
  for (int i = 0; i < 3; ++i) {
    if (const std::string fault = pack_wire::LayoutFault(layouts[i]); !fault.empty()) {
      return Unsupported("expert " + std::to_string(index) + " of layer " + std::to_string(layer) +
                         " " + fault);
    }
    SLUICE_CHECK(planes[i].size() == static_cast<size_t>(layouts[i].planes()));
    for (size_t p = 0; p < planes[i].size(); ++p) {
      SLUICE_CHECK(planes[i][p].size() == layouts[i].plane_bytes(static_cast<int>(p)));
    }
  }
  SLUICE_CHECK(layouts[0].rows == layouts[1].rows && layouts[0].cols == layouts[1].cols &&
               layouts[2].rows == layouts[0].cols && layouts[2].cols == layouts[0].rows);
  PackExpert& slot =
      state_->experts[static_cast<size_t>(layer) * static_cast<size_t>(state_->experts_per_layer) +
                      static_cast<size_t>(index)];
  SLUICE_CHECK(slot.sets.empty(), "an expert is written twice");
  PackExpert expert;
  expert.gate = layouts[0];
  expert.up = layouts[1];
  expert.down = layouts[2];
  Result<> written = state_->WriteExpert(std::move(expert), planes, &slot);
  if (!written) state_->failure = written.error();
  return written;
}

uint64_t PackWriter::bytes_written() const { return state_->position(); }

Result<> PackWriter::Finish(const PackMetadata& metadata) {
  SLUICE_CHECK(state_ != nullptr && state_->file.has_value(), "this writer is finished");
  const Result<> finished = state_->failure ? Result<>(*state_->failure) : state_->Finish(metadata);
  state_->file.reset();  // which removes it, unless it was published
  return finished;
}

Result<> PackWriter::State::Finish(const PackMetadata& metadata) {
  const std::string target = file->target().string();

  nlohmann::ordered_json json = {{"files", nlohmann::ordered_json::object()}};
  for (const auto& [name, text] : metadata.files) {
    SLUICE_CHECK(pack_wire::PlainFileName(name));
    if (!IsValidUtf8(text)) {
      return Unsupported("cannot write " + target + ": the model's " + pack_wire::Quoted(name) +
                         " is not UTF-8 text");
    }
    json["files"][name] = text;
  }
  json["provenance"] = metadata.provenance;
  // Provenance may quote names from foreign files: bytes that are not UTF-8 are replaced.
  const auto text_of = [](const nlohmann::ordered_json& document) {
    return document.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  };
  pack_wire::Header header;
  header.align = static_cast<uint32_t>(align);
  const auto metadata_at = WriteDocument(text_of(json), pack_wire::kMaxMetadataBytes, "metadata");
  if (!metadata_at) return metadata_at.error();
  const auto index_at = WriteDocument(text_of(IndexJson()), pack_wire::kMaxIndexBytes, "index");
  if (!index_at) return index_at.error();
  header.metadata = *metadata_at;
  header.index = *index_at;
  header.file_bytes = position();
  if (Result<> flushed = Flush(); !flushed) return flushed;
  std::array<std::byte, pack_wire::kHeaderBytes> bytes;
  pack_wire::EncodeHeader(header, bytes);
  if (Result<> written = file->Write(0, bytes); !written) return written;
  return file->Publish();
}

}  // namespace sluice
