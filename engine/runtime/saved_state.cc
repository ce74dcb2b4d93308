#include "engine/runtime/saved_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/formats/pack_wire.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

using pack_wire::Checksum;

constexpr char kMagic[8] = {'S', 'L', 'U', 'I', 'C', 'E', 'K', 'V'};
constexpr uint32_t kVersion = 1;
constexpr size_t kChecksumBytes = 8;
constexpr uint64_t kMostExperts = 1 << 24;
constexpr size_t kMostIdentityBytes = 8192;

// Numbers of the host: like packs, the file is for little-endian machines.
template <class T>
void Append(std::vector<std::byte>* out, T value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out->insert(out->end(), bytes, bytes + sizeof(value));
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
  T Take() {
    T value;
    std::memcpy(&value, bytes_.data(), sizeof(value));
    bytes_ = bytes_.subspan(sizeof(value));
    return value;
  }
  std::span<const std::byte> rest() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

std::vector<std::byte> Head(const std::string& identity, int block_tokens, size_t block_bytes,
                            uint64_t records) {
  std::vector<std::byte> head;
  for (const char c : kMagic) head.push_back(static_cast<std::byte>(c));
  Append(&head, kVersion);
  Append(&head, static_cast<uint32_t>(block_tokens));
  Append(&head, static_cast<uint64_t>(block_bytes));
  Append(&head, records);
  Append(&head, static_cast<uint32_t>(identity.size()));
  for (const char c : identity) head.push_back(static_cast<std::byte>(c));
  Append(&head, Checksum(head));
  return head;
}

std::vector<std::byte> HeatSection(const Model& model) {
  const auto stats = model.expert_stats();
  const size_t count = stats == nullptr ? 0 : stats->heat.size();
  std::vector<std::byte> section;
  Append(&section, static_cast<uint64_t>(count));
  for (size_t i = 0; i < count; ++i) Append(&section, stats->heat[i]);
  Append(&section, Checksum(section));
  return section;
}

size_t HeadBytes(const std::string& identity) { return Head(identity, 0, 0, 0).size(); }

size_t RecordBytes(int block_tokens, size_t block_bytes) {
  return 16 + 4 * static_cast<size_t>(block_tokens) + block_bytes + kChecksumBytes;
}

// A file under another name that takes its own by Finish, or goes.
class NewFile {
 public:
  explicit NewFile(const fs::path& path) : path_(path), temporary_(path.string() + ".new") {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }

  bool Write(std::span<const std::byte> bytes) {
    while (descriptor_ >= 0 && !bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
    return descriptor_ >= 0;
  }
  bool Finish() {
    if (::fsync(descriptor_) != 0) return false;
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) return false;
    ::close(descriptor_);
    descriptor_ = -1;
    // So that the name survives too.
    const int directory = ::open(path_.parent_path().c_str(), O_RDONLY | O_CLOEXEC);
    if (directory < 0) return true;
    ::fsync(directory);
    ::close(directory);
    return true;
  }
  Error error() const {
    const int code = errno;
    const ErrorCode kind = code == ENOENT   ? ErrorCode::kNotFound
                           : code == ENOSPC ? ErrorCode::kResourceExhausted
                                            : ErrorCode::kIo;
    return {kind, temporary_.string() + ": " + std::strerror(code)};
  }

 private:
  const fs::path path_, temporary_;
  int descriptor_ = -1;
};

Error Corrupt(const fs::path& file, const char* what) {
  return {ErrorCode::kCorrupt, file.string() + ": " + what};
}

}  // namespace

Result<> CheckSavedStateFile(const fs::path& file) {
  std::error_code ignored;
  const fs::file_status status = fs::status(file, ignored);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    return InvalidArgument(file.string() + " is not a regular file; move it away");
  }
  // A name of our own: another server that shares the directory may be writing its state.
  const fs::path probe = file.string() + ".probe-" + std::to_string(::getpid());
  const int descriptor = ::open(probe.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (descriptor < 0) {
    return InvalidArgument("no file can be made in " + file.parent_path().string() + ": " +
                           std::strerror(errno) + "; name a directory that this user may write to");
  }
  ::close(descriptor);
  ::unlink(probe.c_str());
  return {};
}

Result<int> WriteSavedState(const SavedStateOptions& options, const Scheduler& scheduler,
                            const Model& model) {
  const PrefixIndex& index = scheduler.prefix_index();
  const size_t block_bytes = model.footprint().kv_bytes_per_block;
  std::vector<int32_t> blocks = scheduler.pool().KeptByRecency();
  // Other keys stand for settings of this run.
  std::erase_if(blocks, [&](int32_t block) { return index.key(block) != 0; });
  if (block_bytes > 0) {
    blocks.resize(std::min<size_t>(blocks.size(), options.most_bytes / block_bytes));
  }
  NewFile file(options.file);
  if (!file.Write(Head(options.identity, kKvBlockTokens, block_bytes, blocks.size()))) {
    return file.error();
  }
  if (!file.Write(HeatSection(model))) return file.error();
  std::vector<int64_t> record_of(static_cast<size_t>(scheduler.pool().total()), -1);
  std::vector<std::byte> record;
  std::vector<std::byte> values(block_bytes);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int32_t block = blocks[i], parent = index.parent(block);
    record.clear();
    Append(&record, index.key(block));
    Append(&record, parent < 0 ? int64_t{-1} : record_of[static_cast<size_t>(parent)]);
    SLUICE_CHECK(parent < 0 || record_of[static_cast<size_t>(parent)] >= 0,
                 "a block was used more lately than the one before it");
    for (const int32_t token : index.tokens(block)) Append(&record, token);
    model.ReadKvBlock(block, values);
    record.insert(record.end(), values.begin(), values.end());
    Append(&record, Checksum(record));
    if (!file.Write(record)) return file.error();
    if (options.progress) options.progress();
    record_of[static_cast<size_t>(block)] = static_cast<int64_t>(i);
  }
  if (!file.Finish()) return file.error();
  return static_cast<int>(blocks.size());
}

Result<int> ReadSavedState(const SavedStateOptions& options, Scheduler* scheduler, Model* model) {
  const Result<File> file = File::Open(options.file);
  if (!file) return file.error();
  const size_t block_bytes = model->footprint().kv_bytes_per_block;
  const size_t head_bytes = HeadBytes(options.identity);
  SLUICE_CHECK(options.identity.size() <= kMostIdentityBytes);
  const Error other = {ErrorCode::kUnsupported,
                       options.file.string() + " was written for another pack, setting or version"};
  if (file->size_bytes() < head_bytes) return other;
  std::vector<std::byte> head(head_bytes);
  if (auto read = file->ReadAt(0, head); !read) return read.error();
  // The count of records is the one thing that is not known.
  uint64_t records = 0;
  std::memcpy(&records, head.data() + 24, sizeof(records));
  if (head != Head(options.identity, kKvBlockTokens, block_bytes, records)) return other;
  const Error cut = Corrupt(options.file, "it is shorter or longer than it says");
  uint64_t experts = 0;
  const uint64_t left = file->size_bytes() - head_bytes;
  if (left < sizeof(experts) + kChecksumBytes) return cut;
  if (auto read = file->ReadAt(head_bytes, std::as_writable_bytes(std::span(&experts, 1))); !read) {
    return read.error();
  }
  if (experts > kMostExperts || 8 + 4 * experts + kChecksumBytes > left) return cut;
  std::vector<std::byte> section(8 + 4 * static_cast<size_t>(experts) + kChecksumBytes);
  if (auto read = file->ReadAt(head_bytes, section); !read) return read.error();
  const auto counted = std::span(section).first(section.size() - kChecksumBytes);
  if (Reader(std::span(section).last(kChecksumBytes)).Take<uint64_t>() != Checksum(counted)) {
    return Corrupt(options.file, "the experts' heat is damaged");
  }
  const size_t records_at = head_bytes + section.size();
  const size_t record_bytes = RecordBytes(kKvBlockTokens, block_bytes);
  if (records > (file->size_bytes() - records_at) / record_bytes ||
      records * record_bytes + records_at != file->size_bytes()) {
    return cut;
  }
  std::vector<std::byte> record(record_bytes);
  const auto read_record = [&](uint64_t i) -> Result<> {
    if (options.progress) options.progress();
    if (auto read = file->ReadAt(records_at + i * record_bytes, record); !read) return read.error();
    const auto content = std::span(record).first(record_bytes - kChecksumBytes);
    uint64_t checksum = 0;
    std::memcpy(&checksum, record.data() + content.size(), sizeof(checksum));
    if (checksum != Checksum(content)) return Corrupt(options.file, "a block is damaged");
    const int64_t before = Reader(content.subspan(8)).Take<int64_t>();
    if (before < -1 || before >= static_cast<int64_t>(i)) {
      return Corrupt(options.file, "a block comes before the one that it follows");
    }
    return {};
  };
  // All of it is checked before any of it is used.
  for (uint64_t i = 0; i < records; ++i) {
    if (auto good = read_record(i); !good) return good.error();
  }
  std::vector<float> heat(static_cast<size_t>(experts));
  Reader heats(counted.subspan(8));
  for (float& each : heat) {
    each = heats.Take<float>();
    // Experts are sorted by it.
    if (!(each >= 0)) return Corrupt(options.file, "an expert's heat is no number from 0 up");
  }
  model->WarmExperts(heat);
  std::vector<int32_t> block_of;
  std::vector<int32_t> tokens(static_cast<size_t>(kKvBlockTokens));
  for (uint64_t i = 0; i < records; ++i) {
    if (!read_record(i)) break;  // it changed under us: what is restored is good
    Reader reader(record);
    const auto key = reader.Take<uint64_t>();
    const auto before = reader.Take<int64_t>();
    for (int32_t& token : tokens) token = reader.Take<int32_t>();
    const int32_t parent = before < 0 ? -1 : block_of[static_cast<size_t>(before)];
    const int32_t block = scheduler->RestoreBlock(key, parent, tokens);
    if (block < 0) break;
    model->WriteKvBlock(block, reader.rest().first(block_bytes));
    block_of.push_back(block);
  }
  scheduler->EndRestore();
  return static_cast<int>(block_of.size());
}

}  // namespace sluice
