#include "engine/base/direct_reader.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include "engine/base/disk_speed.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"
#include "tests/support/scratch_directory.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFileBytes = 300 * 1024 + 100;

std::string RandomText(size_t bytes) {
  std::mt19937 random(7);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Pages to read to, filled with 'x'.
class Pages {
 public:
  explicit Pages(size_t bytes)
      : bytes_(bytes), memory_(static_cast<char*>(std::aligned_alloc(4096, bytes))) {
    std::memset(memory_.get(), 'x', bytes);
  }
  char* at(size_t offset) { return memory_.get() + offset; }
  std::string text() const { return {memory_.get(), bytes_}; }

 private:
  size_t bytes_;
  std::unique_ptr<char, Free> memory_;
};

struct Method {
  bool io_uring;
  bool direct;
};

class Fixture {
 public:
  Fixture() : content_(RandomText(kFileBytes)) {
    std::ofstream(path(), std::ios::binary) << content_;
    Result<File> file = File::Open(path());
    REQUIRE(file);
    file_ = std::make_unique<File>(std::move(*file));
  }
  fs::path path() const { return directory_.path() / "file"; }
  const File& file() const { return *file_; }
  const std::string& content() const { return content_; }
  std::unique_ptr<DirectReader> Open(Method method, int depth = 4) const {
    auto reader = DirectReader::Open(
        *file_, {.depth = depth, .io_uring = method.io_uring, .direct = method.direct});
    REQUIRE(reader);
    return std::move(*reader);
  }

 private:
  ScratchDirectory directory_;
  std::string content_;
  std::unique_ptr<File> file_;
};

Method AnyMethod() {
  return GENERATE(Method{true, true}, Method{true, false}, Method{false, true},
                  Method{false, false});
}

std::vector<LandedPiece> CollectAll(DirectReader* reader) {
  std::vector<LandedPiece> landed;
  while (reader->in_flight() > 0) reader->Collect(true, &landed);
  return landed;
}

TEST_CASE("Every way of reading gives the file's bytes, scattered as asked", "[direct_reader]") {
  const Fixture fixture;
  const auto reader = fixture.Open(AnyMethod());
  Pages pages(64 * 1024);
  PieceRead piece{.token = 5, .offset_bytes = 8192, .parts = {}, .part_count = 3};
  piece.parts[0] = {pages.at(32768), 4096};
  piece.parts[1] = {pages.at(4096), 8192};
  piece.parts[2] = {pages.at(49152), 4096};
  reader->Submit(piece);
  CHECK(reader->in_flight() == 1);
  const std::vector<LandedPiece> landed = CollectAll(reader.get());
  REQUIRE(landed.size() == 1);
  CHECK(landed[0].token == 5);
  CHECK(landed[0].result == 16384);
  std::string want(64 * 1024, 'x');
  want.replace(32768, 4096, fixture.content(), 8192, 4096);
  want.replace(4096, 8192, fixture.content(), 12288, 8192);
  want.replace(49152, 4096, fixture.content(), 20480, 4096);
  CHECK(pages.text() == want);
}

TEST_CASE("What no device could read directly is read all the same", "[direct_reader]") {
  const Fixture fixture;
  const auto reader = fixture.Open(AnyMethod());
  Pages pages(8192);
  PieceRead piece{.token = 1, .offset_bytes = 1001, .parts = {}, .part_count = 2};
  piece.parts[0] = {pages.at(3), 77};
  piece.parts[1] = {pages.at(100), 3001};
  reader->Submit(piece);
  CHECK(CollectAll(reader.get()).at(0).result == 3078);
  std::string want(8192, 'x');
  want.replace(3, 77, fixture.content(), 1001, 77);
  want.replace(100, 3001, fixture.content(), 1078, 3001);
  CHECK(pages.text() == want);
}

TEST_CASE("As many pieces as the depth are read at once, each to its own place",
          "[direct_reader]") {
  const Fixture fixture;
  const auto reader = fixture.Open(AnyMethod(), 8);
  Pages pages(8 * 4096);
  for (int round = 0; round < 20; ++round) {
    for (uint64_t i = 0; i < 8; ++i) {
      PieceRead piece{.token = i, .offset_bytes = (i * 7 % 8) * 4096, .parts = {}, .part_count = 1};
      piece.parts[0] = {pages.at(i * 4096), 4096};
      reader->Submit(piece);
    }
    uint64_t tokens = 0;
    for (const LandedPiece& landed : CollectAll(reader.get())) {
      CHECK(landed.result == 4096);
      tokens |= uint64_t{1} << landed.token;
    }
    REQUIRE(tokens == 0xFF);
    for (size_t i = 0; i < 8; ++i) {
      REQUIRE(std::memcmp(pages.at(i * 4096), fixture.content().data() + (i * 7 % 8) * 4096,
                          4096) == 0);
    }
  }
}

TEST_CASE("A file that was truncated gives short results", "[direct_reader]") {
  const Fixture fixture;
  const auto reader = fixture.Open(AnyMethod());
  fs::resize_file(fixture.path(), 12288);
  Pages pages(16384);
  for (uint64_t i = 0; i < 3; ++i) {
    PieceRead piece{.token = i, .offset_bytes = 4096 + i * 4096, .parts = {}, .part_count = 1};
    piece.parts[0] = {pages.at(0), 8192};
    reader->Submit(piece);
    CHECK(CollectAll(reader.get()).at(0).result == static_cast<int64_t>(8192 - i * 4096));
  }
}

TEST_CASE("Another file under the same name is not read", "[direct_reader]") {
  const Fixture fixture;
  std::ofstream(fixture.path().string() + ".new") << std::string(kFileBytes, '!');
  fs::rename(fixture.path().string() + ".new", fixture.path());
  const auto reader = fixture.Open(AnyMethod());
  Pages pages(4096);
  PieceRead piece{.token = 1, .offset_bytes = 0, .parts = {}, .part_count = 1};
  piece.parts[0] = {pages.at(0), 4096};
  reader->Submit(piece);
  CHECK(CollectAll(reader.get()).at(0).result == 4096);
  CHECK(pages.text() == fixture.content().substr(0, 4096));
}

TEST_CASE("Wake ends a wait for which nothing lands, also when it came before", "[direct_reader]") {
  const Fixture fixture;
  const auto reader = fixture.Open(AnyMethod());
  std::vector<LandedPiece> landed;
  reader->Wake();
  reader->Collect(true, &landed);
  std::thread waker([&] { reader->Wake(); });
  reader->Collect(true, &landed);
  waker.join();
  CHECK(landed.empty());
  // And the reader still reads.
  Pages pages(4096);
  PieceRead piece{.token = 1, .offset_bytes = 0, .parts = {}, .part_count = 1};
  piece.parts[0] = {pages.at(0), 4096};
  reader->Submit(piece);
  CHECK(CollectAll(reader.get()).size() == 1);
}

TEST_CASE("Files in memory are read, and the reader says how", "[direct_reader]") {
  const std::string content = RandomText(20000);
  const int descriptor = memfd_create("direct_reader_test", MFD_CLOEXEC);
  REQUIRE(write(descriptor, content.data(), content.size()) == 20000);
  const Result<File> file = File::Open("/proc/self/fd/" + std::to_string(descriptor));
  close(descriptor);
  REQUIRE(file);
  const Method method = AnyMethod();
  auto reader =
      DirectReader::Open(*file, {.depth = 2, .io_uring = method.io_uring, .direct = method.direct});
  REQUIRE(reader);
  if (!method.direct) CHECK((*reader)->direct_align() == 0);
  if (!method.io_uring) CHECK((*reader)->method() == "threads");
  Pages pages(20480);
  PieceRead piece{.token = 1, .offset_bytes = 0, .parts = {}, .part_count = 1};
  piece.parts[0] = {pages.at(0), 20480};
  (*reader)->Submit(piece);
  CHECK(CollectAll(reader->get()).at(0).result == 20000);
  CHECK(pages.text().substr(0, 20000) == content);
}

TEST_CASE("A reader that goes away lets its reads end first", "[direct_reader]") {
  const Fixture fixture;
  auto reader = fixture.Open(AnyMethod());
  Pages pages(4 * 65536);
  for (uint64_t i = 0; i < 4; ++i) {
    PieceRead piece{.token = i, .offset_bytes = i * 65536, .parts = {}, .part_count = 1};
    piece.parts[0] = {pages.at(i * 65536), 65536};
    reader->Submit(piece);
  }
  reader.reset();
  CHECK(pages.text() == fixture.content().substr(0, 4 * 65536));
}

TEST_CASE("A disk is measured with a file that is read at most once", "[disk_speed]") {
  const Fixture fixture;
  DiskSpeedOptions options;
  options.piece_bytes = 8192;
  options.seconds = 60;  // ends with the file
  options.reader.io_uring = GENERATE(true, false);
  const Result<DiskSpeed> speed = MeasureDisk(fixture.path(), options);
  REQUIRE(speed);
  CHECK(speed->bytes_per_second > 0);
  CHECK(speed->small_read_seconds > 0);
  CHECK(speed->bytes > 0);
  CHECK(speed->bytes <= kFileBytes);
  // A machine so busy that the time is over before the first read: it is made all the same.
  options.seconds = 1e-12;
  const Result<DiskSpeed> late = MeasureDisk(fixture.path(), options);
  REQUIRE(late);
  CHECK(late->small_read_seconds > 0);
  CHECK(late->bytes_per_second > 0);
  options.piece_bytes = size_t{1} << 20;
  const Result<DiskSpeed> too_short = MeasureDisk(fixture.path(), options);
  REQUIRE_FALSE(too_short);
  CHECK(too_short.error().code == ErrorCode::kInvalidArgument);
  CHECK(MeasureDisk(fixture.path().string() + ".none").error().code == ErrorCode::kNotFound);
}

}  // namespace
}  // namespace sluice
