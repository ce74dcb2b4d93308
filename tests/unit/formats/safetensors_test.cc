#include "engine/formats/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

// A directory that lives as long as the test.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "sluice_formats_XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Scratch() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }
  fs::path Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return path_ / name;
  }

 private:
  fs::path path_;
};

std::string FileBytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  bytes += header;
  for (size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i * 7 + 1);
  return bytes;
}

const char kTwoTensors[] = R"({"__metadata__":{"format":"pt"},)"
                           R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                           R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Opens a file of this header and data size; the error's message must contain `expected` and the
// file's name.
void Refuses(const std::string& header, size_t data_bytes, const std::string& expected) {
  Scratch scratch;
  const fs::path path = scratch.Write("model.safetensors", FileBytes(header, data_bytes));
  const Result<SafetensorsReader> reader = SafetensorsReader::Open(scratch.path());
  INFO(header);
  REQUIRE(!reader);
  INFO(reader.error().message);
  CHECK(reader.error().code == ErrorCode::kCorrupt);
  CHECK(Contains(reader.error().message, expected));
  CHECK(Contains(reader.error().message, path.string()));
}

std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
  return R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

}  // namespace

TEST_CASE("A safetensors file lists its tensors and gives their bytes", "[formats]") {
  Scratch scratch;
  const std::string bytes = FileBytes(kTwoTensors, 32);
  scratch.Write("model.safetensors", bytes);
  Result<SafetensorsReader> opened = SafetensorsReader::Open(scratch.path());
  REQUIRE(opened);
  const SafetensorsReader reader = std::move(*opened);  // lookups survive a move
  REQUIRE(reader.tensors().size() == 2);
  CHECK(reader.Find("c") == nullptr);
  const TensorInfo* a = reader.Find("a");
  REQUIRE(a != nullptr);
  CHECK(a == &reader.tensors()[0]);
  CHECK(a->dtype == DType::kF32);
  CHECK(a->shape == std::vector<int64_t>{2, 3});
  CHECK(a->bytes == 24);
  const TensorInfo* b = reader.Find("b");
  REQUIRE(b != nullptr);
  CHECK(b->dtype == DType::kBF16);
  CHECK(b->dtype_name == "BF16");

  std::vector<std::byte> part(5);
  REQUIRE(reader.Read(*b, 3, part));
  CHECK(std::memcmp(part.data(), bytes.data() + b->offset + 3, 5) == 0);
  REQUIRE(reader.Read(*b, 8, std::span<std::byte>()));
}

TEST_CASE("Tensors of size zero and scalars are tensors", "[formats]") {
  Scratch scratch;
  scratch.Write("model.safetensors",
                FileBytes(R"({"empty":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
                          R"("scalar":{"dtype":"F16","shape":[],"data_offsets":[0,2]}})",
                          2));
  const Result<SafetensorsReader> reader = SafetensorsReader::Open(scratch.path());
  REQUIRE(reader);
  CHECK(reader->Find("empty")->bytes == 0);
  CHECK(reader->Find("scalar")->bytes == 2);
}

TEST_CASE("A dtype that is not served is listed, and refused when it is asked for", "[formats]") {
  Scratch scratch;
  scratch.Write("model.safetensors",
                FileBytes(R"({"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                          R"("odd":{"dtype":"Q3_X","shape":[9],"data_offsets":[8,11]}})",
                          11));
  const Result<SafetensorsReader> reader = SafetensorsReader::Open(scratch.path());
  REQUIRE(reader);
  for (const char* name : {"ids", "odd"}) {
    const TensorInfo* info = reader->Find(name);
    REQUIRE(info != nullptr);
    CHECK(!info->readable);
    std::vector<std::byte> bytes(info->bytes);
    const Result<void> read = reader->Read(*info, 0, bytes);
    REQUIRE(!read);
    CHECK(read.error().code == ErrorCode::kUnsupported);
    CHECK(Contains(read.error().message, name));
    CHECK(Contains(read.error().message, info->dtype_name));
  }
}

TEST_CASE("Hostile headers are refused, each with its own sentence", "[formats]") {
  Refuses("", 0, "does not start with '{'");
  Refuses("[1,2]", 0, "does not start with '{'");
  Refuses("{\"t\":", 0, "not valid JSON");
  Refuses(std::string("{\"\xff\":1}"), 0, "not valid JSON");
  Refuses(R"({"t":[]})", 0, "not an object");
  Refuses(R"({"__metadata__":3})", 0, "__metadata__");
  Refuses(R"({"t":{"shape":[],"data_offsets":[0,0]}})", 0, "no dtype");
  Refuses(R"({"t":{"dtype":7,"shape":[],"data_offsets":[0,0]}})", 0, "no dtype");
  Refuses(R"({"t":{"dtype":"F32","data_offsets":[0,0]}})", 0, "no shape");
  Refuses(R"({"t":{"dtype":"F32","shape":[1]}})", 0, "no pair of data_offsets");
  Refuses(OneTensor("F32", "[1]", "[0]"), 4, "no pair of data_offsets");
  Refuses(OneTensor("F32", "[1]", "[-4,0]"), 4, "no pair of data_offsets");
  Refuses(OneTensor("F32", "[1]", "[0,4.0]"), 4, "no pair of data_offsets");
  Refuses(OneTensor("F32", "[-1]", "[0,4]"), 4, "not a whole number");
  Refuses(OneTensor("F32", "[1.5]", "[0,4]"), 4, "not a whole number");
  Refuses(OneTensor("F32", "[\"1\"]", "[0,4]"), 4, "not a whole number");
  Refuses(OneTensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "dimensions");
  Refuses(OneTensor("F32", "[18446744073709551615]", "[0,4]"), 4, "absurdly large");
  Refuses(OneTensor("F32", "[4294967296,4294967296]", "[0,4]"), 4, "absurdly large");
  Refuses(OneTensor("F32", "[4611686018427387905,4]", "[0,4]"), 4, "absurdly large");
  Refuses(OneTensor("F32", "[2]", "[4,0]"), 8, "ends before it begins");
  Refuses(OneTensor("F32", "[2]", "[0,8]"), 4, "truncated or damaged");
  Refuses(OneTensor("F32", "[2]", "[0,18446744073709551615]"), 8, "truncated or damaged");
  Refuses(OneTensor("F32", "[2]", "[18446744073709551608,18446744073709551615]"), 8, "truncated");
  Refuses(OneTensor("F32", "[3]", "[0,8]"), 8,
          "takes 8 bytes, but its shape and dtype F32 need 12");
  Refuses(OneTensor("F4", "[3]", "[0,2]"), 2, "takes 2 bytes");
  Refuses(OneTensor(std::string(40, 'F'), "[3]", "[0,2]"), 2, "dtype name");
  Refuses(OneTensor("F32", "[1]", "[0,4]"), 5, "1 bytes that belong to no tensor at its end");
  Refuses(OneTensor("F32", "[1]", "[4,8]"), 8, "4 bytes that belong to no tensor before");
  Refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
          R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
          12, "overlaps");
  Refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
          R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
          16, "\"a\" appears twice");
  Refuses(R"({"t":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}})", 8, "twice");
  Refuses(R"({"t":{"x":[[[[1]]]]}})", 0, "nested deeper");
  Refuses("{\"t\":" + std::string(100000, '['), 0, "nested deeper");
  Refuses("{\"t\":" + std::string(3, '{'), 0, "not valid JSON");
}

TEST_CASE("A header length beyond the file or the format's limit is refused", "[formats]") {
  Scratch scratch;
  for (const uint64_t length : {uint64_t{400}, uint64_t{99'999'999}, uint64_t{100'000'001},
                                uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string bytes = FileBytes(kTwoTensors, 32);
    std::memcpy(bytes.data(), &length, 8);
    const fs::path path = scratch.Write("model.safetensors", bytes);
    const Result<SafetensorsReader> reader = SafetensorsReader::OpenFile(path);
    REQUIRE(!reader);
    CHECK(Contains(reader.error().message, "claims a header of " + std::to_string(length)));
    CHECK(Contains(reader.error().message, path.string()));
  }
}

TEST_CASE("A file truncated at any length is refused with its name", "[formats]") {
  Scratch scratch;
  const std::string whole = FileBytes(kTwoTensors, 32);
  for (size_t length = 0; length < whole.size(); ++length) {
    const fs::path path = scratch.Write("model.safetensors", whole.substr(0, length));
    const Result<SafetensorsReader> reader = SafetensorsReader::OpenFile(path);
    INFO(length);
    REQUIRE(!reader);
    CHECK(reader.error().code == ErrorCode::kCorrupt);
    CHECK(Contains(reader.error().message, path.string()));
  }
}

TEST_CASE("A flipped bit of the header never leads outside the file", "[formats]") {
  Scratch scratch;
  const std::string whole = FileBytes(kTwoTensors, 32);
  int survived = 0;
  for (size_t bit = 0; bit < (whole.size() - 32) * 8; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    const Result<SafetensorsReader> reader =
        SafetensorsReader::OpenFile(scratch.Write("model.safetensors", bytes));
    if (!reader) continue;
    ++survived;  // a changed name, for instance
    for (const TensorInfo& info : reader->tensors()) {
      CHECK(info.offset + info.bytes <= bytes.size());
      std::vector<std::byte> read(info.bytes);
      CHECK(reader->Read(info, 0, read).has_value() == info.readable);
    }
  }
  CHECK(survived > 0);
}

TEST_CASE("A file truncated after it was opened is an error, not a signal", "[formats]") {
  Scratch scratch;
  const fs::path path = scratch.Write("model.safetensors", FileBytes(kTwoTensors, 32));
  const Result<SafetensorsReader> reader = SafetensorsReader::OpenFile(path);
  REQUIRE(reader);
  fs::resize_file(path, fs::file_size(path) - 4);
  std::vector<std::byte> bytes(8);
  const Result<void> read = reader->Read(*reader->Find("b"), 0, bytes);
  REQUIRE(!read);
  CHECK(read.error().code == ErrorCode::kCorrupt);
  CHECK(Contains(read.error().message, path.string()));
}

TEST_CASE("What is not a regular file is refused without waiting on it", "[formats]") {
  Scratch scratch;
  CHECK(SafetensorsReader::Open(scratch.path()).error().code == ErrorCode::kNotFound);
  CHECK(Contains(SafetensorsReader::Open(scratch.path()).error().message, "index.json"));
  CHECK(SafetensorsReader::OpenFile(scratch.path() / "absent").error().code ==
        ErrorCode::kNotFound);
  CHECK(!SafetensorsReader::OpenFile(scratch.path()));
  const std::string pipe = (scratch.path() / "pipe").string();
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(SafetensorsReader::OpenFile(pipe).error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("Shards are read through their index", "[formats]") {
  Scratch scratch;
  const std::string first = FileBytes(OneTensor("F32", "[2]", "[0,8]"), 8);
  const std::string second = FileBytes(R"({"u":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
                                       R"("t":{"dtype":"F16","shape":[2],"data_offsets":[2,6]}})",
                                       6);
  scratch.Write("one.safetensors", first);
  scratch.Write("two.safetensors", second);
  const auto open = [&](const std::string& index) {
    scratch.Write("model.safetensors.index.json", index);
    return SafetensorsReader::Open(scratch.path());
  };
  const auto message = [&](const std::string& index) {
    const Result<SafetensorsReader> reader = open(index);
    REQUIRE(!reader);
    return reader.error().message;
  };

  SECTION("only what the index maps is listed, from the shard that it names") {
    const Result<SafetensorsReader> reader =
        open(R"({"metadata":{},"weight_map":{"t":"one.safetensors","u":"two.safetensors"}})");
    REQUIRE(reader);
    REQUIRE(reader->tensors().size() == 2);
    CHECK(reader->num_shards() == 2);
    CHECK(reader->Find("t")->dtype == DType::kF32);
    const TensorInfo* u = reader->Find("u");
    CHECK(reader->shard_path(u->shard).filename() == "two.safetensors");
    std::vector<std::byte> bytes(2);
    REQUIRE(reader->Read(*u, 0, bytes));
    CHECK(std::memcmp(bytes.data(), second.data() + second.size() - 6, 2) == 0);
  }
  SECTION("a shard or a tensor that is missing is named") {
    const std::string shard = message(R"({"weight_map":{"t":"three.safetensors"}})");
    CHECK(Contains(shard, "three.safetensors"));
    const std::string tensor = message(R"({"weight_map":{"v":"one.safetensors"}})");
    CHECK(Contains(tensor, "\"v\""));
    CHECK(Contains(tensor, "one.safetensors"));
  }
  SECTION("a shard outside the directory is refused") {
    for (const char* name : {"../one.safetensors", "/etc/passwd", "..", "", "a\\\\b", "a\\u0000"}) {
      CHECK(Contains(message(std::string(R"({"weight_map":{"t":")") + name + "\"}}"),
                     "plain file name"));
    }
  }
  SECTION("an index of another form is refused") {
    CHECK(Contains(message("[]"), "not a JSON object"));
    CHECK(Contains(message("{}"), "weight_map"));
    CHECK(Contains(message(R"({"weight_map":{"t":1}})"), "not a name"));
    CHECK(Contains(message("{"), "not valid JSON"));
  }
  SECTION("a damaged shard is named") {
    scratch.Write("two.safetensors", second.substr(0, second.size() - 1));
    CHECK(Contains(message(R"({"weight_map":{"u":"two.safetensors"}})"), "two.safetensors"));
  }
  SECTION("a single file goes before the index") {
    scratch.Write("model.safetensors", FileBytes(kTwoTensors, 32));
    const Result<SafetensorsReader> reader = open("{}");
    REQUIRE(reader);
    CHECK(reader->Find("a") != nullptr);
  }
}

TEST_CASE("Many threads may read at once", "[formats]") {
  Scratch scratch;
  const std::string bytes = FileBytes(OneTensor("F32", "[4096]", "[0,16384]"), 16384);
  scratch.Write("model.safetensors", bytes);
  const Result<SafetensorsReader> reader = SafetensorsReader::Open(scratch.path());
  REQUIRE(reader);
  const TensorInfo& info = reader->tensors()[0];
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::byte> part(97 + t);
      for (size_t at = t; at + part.size() <= info.bytes; at += 61) {
        if (!reader->Read(info, at, part) ||
            std::memcmp(part.data(), bytes.data() + info.offset + at, part.size()) != 0) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace sluice
