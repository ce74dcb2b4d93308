// Any bytes as a saved state: reading it must not crash or allocate without bound, and restores all
// of it, as far as there is room, or nothing. Checksums would stop nearly every mutation at the
// door, so one half of the inputs gets them right. The first byte chooses:
//   even: the rest is the whole file
//   odd:  a file of our identity, whose sums are right, around what the rest says: a byte for the
//         experts, a byte for the records that the head claims, a byte for how many bytes are
//         missing at the end, then for each record a byte for its key, one for the record before
//         it (255: none) and one for its tokens
// What was restored is written, read by another scheduler, and must be the same.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/formats/pack_wire.h"
#include "engine/runtime/saved_state.h"
#include "tests/support/fake_model.h"

namespace {

namespace fs = std::filesystem;

constexpr const char* kIdentity = "fuzz";
constexpr int kBlocks = 12;

template <class T>
void Append(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendSum(size_t from, std::string* out) {
  const auto bytes = std::as_bytes(std::span(*out)).subspan(from);
  Append(sluice::pack_wire::Checksum(bytes), out);
}

class Input {
 public:
  Input(const uint8_t* bytes, size_t size) : bytes_(bytes), size_(size) {}
  bool empty() const { return at_ >= size_; }
  uint8_t Take() { return empty() ? 0 : bytes_[at_++]; }

 private:
  const uint8_t* bytes_;
  size_t size_;
  size_t at_ = 0;
};

std::string FileFrom(Input input, size_t block_bytes) {
  const int experts = input.Take(), claimed = input.Take(), missing = input.Take();
  std::string records;
  for (int64_t i = 0; !input.empty() && i < 64; ++i) {
    const size_t begin = records.size();
    Append(uint64_t{input.Take()}, &records);
    const int before = input.Take();
    Append(before == 255 ? int64_t{-1} : int64_t{before}, &records);
    const int token = input.Take();
    for (int t = 0; t < sluice::kKvBlockTokens; ++t) Append(int32_t{token - t}, &records);
    records.append(block_bytes, static_cast<char>(token));
    AppendSum(begin, &records);
  }
  std::string file = "SLUICEKV";
  Append(uint32_t{1}, &file);
  Append(uint32_t{sluice::kKvBlockTokens}, &file);
  Append(uint64_t{block_bytes}, &file);
  Append(static_cast<uint64_t>(claimed), &file);
  const std::string identity = kIdentity;
  Append(static_cast<uint32_t>(identity.size()), &file);
  file += identity;
  AppendSum(0, &file);
  const size_t section = file.size();
  Append(static_cast<uint64_t>(experts), &file);
  for (int i = 0; i < experts; ++i) Append(static_cast<float>(i), &file);
  AppendSum(section, &file);
  file += records;
  file.resize(file.size() - std::min<size_t>(file.size(), static_cast<size_t>(missing)));
  return file;
}

sluice::SchedulerOptions PoolOptions() {
  sluice::SchedulerOptions options;
  options.kv_blocks = kBlocks;
  options.block_tokens = sluice::kKvBlockTokens;
  return options;
}

sluice::FakeModelOptions ModelOptions() {
  sluice::FakeModelOptions options;
  options.kv_blocks = kBlocks;
  return options;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  sluice::FakeModel model(ModelOptions());
  const size_t block_bytes = model.footprint().kv_bytes_per_block;
  const std::string file = data[0] % 2 == 0
                               ? std::string(reinterpret_cast<const char*>(data) + 1, size - 1)
                               : FileFrom(Input(data + 1, size - 1), block_bytes);
  const int descriptor = memfd_create("fuzz_saved_state", 0);
  SLUICE_CHECK(descriptor >= 0);
  SLUICE_CHECK(write(descriptor, file.data(), file.size()) == static_cast<ssize_t>(file.size()));
  sluice::Scheduler scheduler(PoolOptions());
  const sluice::Result<int> restored = sluice::ReadSavedState(
      {.file = "/proc/self/fd/" + std::to_string(descriptor), .identity = kIdentity}, &scheduler,
      &model);
  close(descriptor);
  SLUICE_CHECK(scheduler.CheckInvariants().empty(), scheduler.CheckInvariants());
  SLUICE_CHECK(scheduler.pool().used() == 0);
  if (!restored) {
    SLUICE_CHECK(!restored.error().message.empty());
    SLUICE_CHECK(scheduler.pool().idle_kept() == 0);
    return 0;
  }
  SLUICE_CHECK(*restored == scheduler.pool().idle_kept() && *restored <= kBlocks);

  static const fs::path kWritten =
      fs::path("/dev/shm") / ("fuzz_saved_state." + std::to_string(getpid()));
  const sluice::SavedStateOptions again = {.file = kWritten, .identity = kIdentity};
  const auto written = sluice::WriteSavedState(again, scheduler, model);
  SLUICE_CHECK(written.has_value());
  sluice::FakeModel other_model(ModelOptions());
  sluice::Scheduler other(PoolOptions());
  const auto taken = sluice::ReadSavedState(again, &other, &other_model);
  unlink(kWritten.c_str());
  SLUICE_CHECK(taken.has_value(), taken ? "" : taken.error().message);
  SLUICE_CHECK(*taken == *written && other.CheckInvariants().empty());
  return 0;
}
