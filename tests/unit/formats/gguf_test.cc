#include "engine/formats/gguf.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

const fs::path kData = fs::path(SLUICE_TEST_DATA) / "gguf";

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A file in memory, named by its descriptor: thousands of them cost no disk.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& bytes) : descriptor_(memfd_create("gguf_test", 0)) {
    REQUIRE(descriptor_ >= 0);
    REQUIRE(write(descriptor_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  ~ScratchFile() { close(descriptor_); }
  fs::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

std::string OpenError(const std::string& bytes) {
  const ScratchFile file(bytes);
  const Result<GgufReader> reader = GgufReader::Open(file.path());
  return reader ? std::string() : reader.error().message;
}

TEST_CASE("Every tensor type dequantizes to the reference's values, bit for bit", "[gguf]") {
  const Result<GgufReader> reader = GgufReader::Open(kData / "types.gguf");
  REQUIRE(reader);
  CHECK(reader->version() == 3);
  const std::string raw = ReadAll(kData / "types.f32");
  std::vector<float> expected(raw.size() / sizeof(float));
  std::memcpy(expected.data(), raw.data(), raw.size());
  const auto index = nlohmann::json::parse(ReadAll(kData / "types.json"));
  REQUIRE(index.size() == 16);
  for (const auto& entry : index) {
    const GgufTensor* tensor = reader->Find(entry["name"].get<std::string>());
    REQUIRE(tensor != nullptr);
    CHECK(tensor->shape == entry["shape"].get<std::vector<int64_t>>());
    REQUIRE(tensor->type);
    CHECK(tensor->type->name == entry["type"].get<std::string>());
    const auto values = static_cast<size_t>(tensor->values());
    const float* want = expected.data() + entry["first"].get<size_t>();
    std::vector<float> got(values);
    REQUIRE(reader->ReadF32(*tensor, 0, got));
    INFO(tensor->name);
    CHECK(std::memcmp(got.data(), want, values * sizeof(float)) == 0);
    // The second row alone.
    const auto columns = static_cast<size_t>(tensor->columns());
    std::vector<float> row(columns);
    REQUIRE(reader->ReadF32(*tensor, tensor->columns(), row));
    CHECK(std::memcmp(row.data(), want + columns, columns * sizeof(float)) == 0);
  }
}

TEST_CASE("Metadata of every kind is read, and a wrong kind is refused by name", "[gguf]") {
  const Result<GgufReader> reader = GgufReader::Open(kData / "types.gguf");
  REQUIRE(reader);
  CHECK(*reader->GetString("general.architecture") == "olmoe");
  CHECK(*reader->GetInt("test.u8") == 200);
  CHECK(*reader->GetInt("test.i8") == -5);
  CHECK(*reader->GetInt("test.u16") == 65535);
  CHECK(*reader->GetInt("test.i16") == -300);
  CHECK(*reader->GetInt("test.i32") == -70000);
  CHECK(*reader->GetFloat("test.f32") == 1.5);
  CHECK(*reader->GetBool("test.bool"));
  CHECK(*reader->GetInt("test.u64") == int64_t{1} << 40);
  CHECK(*reader->GetInt("test.i64") == -(int64_t{1} << 40));
  CHECK(*reader->GetFloat("test.f64") == 1e-3);
  CHECK(std::get<std::vector<std::string>>(*reader->FindMetadata("test.strings")) ==
        std::vector<std::string>{"a", "", "größe"});
  CHECK(std::get<std::vector<double>>(*reader->FindMetadata("test.floats")) ==
        std::vector<double>{0.5, -2.0});
  CHECK(std::get<std::vector<int64_t>>(*reader->FindMetadata("test.ints")) ==
        std::vector<int64_t>{1, -2, 3});
  const auto wrong = reader->GetInt("general.architecture");
  REQUIRE_FALSE(wrong);
  CHECK(wrong.error().message.find("general.architecture") != std::string::npos);
  const auto absent = reader->GetString("no.such.key");
  REQUIRE_FALSE(absent);
  CHECK(absent.error().code == ErrorCode::kNotFound);
}

TEST_CASE("Version 2 and split files are read", "[gguf]") {
  const Result<GgufReader> old = GgufReader::Open(kData / "version2.gguf");
  REQUIRE(old);
  CHECK(old->version() == 2);
  CHECK(old->Find("tensor.F32") != nullptr);

  const Result<GgufReader> split = GgufReader::Open(kData / "split-00001-of-00002.gguf");
  REQUIRE(split);
  CHECK(split->num_shards() == 2);
  CHECK(split->tensors().size() == 2);
  CHECK(split->total_bytes() == fs::file_size(kData / "split-00001-of-00002.gguf") +
                                    fs::file_size(kData / "split-00002-of-00002.gguf"));
  const GgufTensor* second = split->Find("tensor.Q4_1");
  REQUIRE(second != nullptr);
  CHECK(second->shard == 1);
  std::vector<float> values(static_cast<size_t>(second->values()));
  CHECK(split->ReadF32(*second, 0, values));

  const Result<GgufReader> from_second = GgufReader::Open(kData / "split-00002-of-00002.gguf");
  REQUIRE_FALSE(from_second);
  CHECK(from_second.error().message.find("-00001-of-") != std::string::npos);
}

TEST_CASE("A file cut anywhere in its header or tensors is refused with its name", "[gguf]") {
  const std::string whole = ReadAll(kData / "types.gguf");
  // Every length of the header, then a coarse walk over the tensors.
  for (size_t length = 0; length + 32 < whole.size(); length += length < 3000 ? 1 : 97) {
    const std::string message = OpenError(whole.substr(0, length));
    INFO(length);
    REQUIRE(message.find("/proc/self/fd/") != std::string::npos);
  }
}

TEST_CASE("Damaged counts, lengths and kinds give an error or a file that can be read", "[gguf]") {
  const std::string whole = ReadAll(kData / "types.gguf");
  int refused = 0;
  for (size_t at = 0; at < 2600; ++at) {
    for (const char value : {'\x00', '\x7f', '\xff'}) {
      std::string damaged = whole;
      damaged[at] = value;
      const ScratchFile file(damaged);
      const Result<GgufReader> reader = GgufReader::Open(file.path());
      if (!reader) {
        ++refused;
        REQUIRE_FALSE(reader.error().message.empty());
        continue;
      }
      for (const GgufTensor& tensor : reader->tensors()) {
        if (!tensor.type) continue;
        std::vector<float> values(static_cast<size_t>(tensor.values()));
        CHECK(reader->ReadF32(tensor, 0, values));
      }
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("A type that is not read is named when it is asked for", "[gguf]") {
  std::string bytes = ReadAll(kData / "version2.gguf");
  const size_t name = bytes.find("tensor.F32");
  REQUIRE(name != std::string::npos);
  // name, u32 dimensions, two u64 sizes, then the type.
  const uint32_t unknown = 16;  // IQ2_XXS
  std::memcpy(bytes.data() + name + 10 + 4 + 16, &unknown, sizeof(unknown));
  const ScratchFile file(bytes);
  const Result<GgufReader> reader = GgufReader::Open(file.path());
  REQUIRE(reader);
  float value = 0;
  const Result<void> read = reader->ReadF32(*reader->Find("tensor.F32"), 0, std::span(&value, 1));
  REQUIRE_FALSE(read);
  CHECK(read.error().code == ErrorCode::kUnsupported);
  CHECK(read.error().message.find("tensor.F32") != std::string::npos);
}

}  // namespace
}  // namespace sluice
