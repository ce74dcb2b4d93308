#include "engine/formats/pack.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/formats/pack_wire.h"
#include "kernels/cpu/ops.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Bytes = std::vector<std::byte>;
using Planes = std::vector<std::span<const std::byte>>;

// An empty directory that goes with the test.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (fs::temp_directory_path() / "pack_test-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~ScratchDirectory() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }
  size_t entries() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(path_), fs::directory_iterator{}));
  }

 private:
  fs::path path_;
};

// A file in memory, named by its descriptor, that tests damage in place.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& bytes) : descriptor_(memfd_create("pack_test", 0)) {
    REQUIRE(descriptor_ >= 0);
    REQUIRE(write(descriptor_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  ~MemoryFile() { close(descriptor_); }
  fs::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  void Put(size_t offset, char byte) {
    REQUIRE(pwrite(descriptor_, &byte, 1, static_cast<off_t>(offset)) == 1);
  }
  void Resize(size_t bytes) { REQUIRE(ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0); }

 private:
  int descriptor_;
};

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return std::string(std::istreambuf_iterator<char>(file), {});
}

bool Says(const std::string& text, std::string_view words) {
  if (text.find(words) != std::string::npos) return true;
  UNSCOPED_INFO("expected \"" << words << "\" in: " << text);
  return false;
}

WeightLayout Floats(WeightForm form, DType dtype, int rows, int cols) {
  WeightLayout layout;
  layout.form = form;
  layout.dtype = dtype;
  layout.rows = rows;
  layout.cols = cols;
  return layout;
}

WeightLayout Nested(NestedFormat format, int rows, int cols) {
  WeightLayout layout;
  layout.form = WeightForm::kNested;
  layout.nested = format;
  layout.rows = rows;
  layout.cols = cols;
  return layout;
}

// The bytes of a weight's planes: random, and the same for the same seed.
class Weight {
 public:
  Weight(const WeightLayout& layout, uint32_t seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < layout.planes(); ++i) {
      bytes_.emplace_back(layout.plane_bytes(i));
      for (std::byte& b : bytes_.back()) b = static_cast<std::byte>(random());
    }
  }
  Planes planes() const { return {bytes_.begin(), bytes_.end()}; }
  const std::vector<Bytes>& bytes() const { return bytes_; }

 private:
  std::vector<Bytes> bytes_;
};

void Add(PackWriter& writer, const std::string& name, const WeightLayout& layout, uint32_t seed) {
  const Weight weight(layout, seed);
  REQUIRE(writer.AddTensor(name, layout, weight.planes()));
}

struct ExpertWeights {
  WeightLayout layouts[3];
  std::vector<Weight> weights;

  ExpertWeights(NestedFormat gate_up, NestedFormat down, int intermediate, int hidden,
                uint32_t seed)
      : layouts{Nested(gate_up, intermediate, hidden), Nested(gate_up, intermediate, hidden),
                Nested(down, hidden, intermediate)} {
    for (uint32_t i = 0; i < 3; ++i) weights.emplace_back(layouts[i], seed * 3 + i);
  }
  Result<> AddTo(PackWriter& writer, int layer, int index) const {
    const Planes planes[3] = {weights[0].planes(), weights[1].planes(), weights[2].planes()};
    return writer.AddExpert(layer, index, layouts, planes);
  }
};

constexpr NestedFormat kSmall{ScaleKind::kU8Min, 32, 3};
constexpr NestedFormat kTiny{ScaleKind::kI8, 32, 2};

PackMetadata SmallMetadata() {
  PackMetadata metadata;
  metadata.files["config.json"] = "{\"model_type\": \"olmoe\"}";
  metadata.files["tokenizer.json"] = "{\"text\": \"h\u00e9llo \\u0000\"}";
  metadata.provenance = {{"source", "a test"}, {"arguments", {3, 1, 2}}};
  return metadata;
}

// Two tensors, one dense layer, one sparse layer of two experts: the smallest pack with everything.
void WriteSmallPack(const fs::path& path) {
  Result<PackWriter> writer = PackWriter::Create(path, 2, 2, 512);
  REQUIRE(writer);
  Add(*writer, "norm", Floats(WeightForm::kRowMajor, DType::kF32, 1, 5), 1);
  WeightLayout nested = Nested(kSmall, 16, 32);
  nested.levels = {{2.5f, 0.1f}, {1, 0}};
  Add(*writer, "layers.0.q", nested, 2);
  for (int i = 0; i < 2; ++i) {
    REQUIRE(ExpertWeights(kSmall, kTiny, 16, 32, static_cast<uint32_t>(i)).AddTo(*writer, 1, i));
  }
  REQUIRE(writer->Finish(SmallMetadata()));
}

std::string SmallPack() {
  const ScratchDirectory directory;
  WriteSmallPack(directory.path() / "small.sluice");
  return ReadAll(directory.path() / "small.sluice");
}

// Everything that a pack says and holds, or the first error.
Result<std::string> Contents(const fs::path& path) {
  const Result<PackReader> pack = PackReader::Open(path);
  if (!pack) return pack.error();
  std::string all = std::to_string(pack->version()) + " " + std::to_string(pack->align()) + " " +
                    json(pack->metadata().files).dump() + pack->metadata().provenance.dump();
  const auto describe = [&](const WeightLayout& layout) {
    all += pack_wire::LayoutToJson(layout).dump() + pack_wire::LevelsToJson(layout.levels).dump();
  };
  for (const PackTensor& tensor : pack->tensors()) {
    all += tensor.name;
    describe(tensor.layout);
    Bytes bytes(tensor.bytes);
    if (Result<> read = pack->ReadTensor(tensor, bytes); !read) return read.error();
    all.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  for (int layer = 0; layer < pack->layers(); ++layer) {
    for (int i = 0; i < pack->experts_per_layer(); ++i) {
      const PackExpert* expert = pack->FindExpert(layer, i);
      if (expert == nullptr) continue;
      for (const WeightLayout* layout : {&expert->gate, &expert->up, &expert->down}) {
        describe(*layout);
      }
      Bytes bytes(expert->bytes(expert->sets.size()));
      if (Result<> read = pack->ReadPlaneSets(layer, i, 0, expert->sets.size(), bytes); !read) {
        return read.error();
      }
      all.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
  return all;
}

std::string OpenError(const fs::path& path) {
  const Result<PackReader> pack = PackReader::Open(path);
  return pack ? std::string() : pack.error().message;
}

// The pack with a changed header and changed documents (both ends of the file), checksums mended.
std::string Rewritten(const std::string& pack, const std::function<void(json&)>& edit_index,
                      const std::function<void(json&)>& edit_metadata = {},
                      const std::function<void(pack_wire::Header&)>& edit_header = {}) {
  using pack_wire::kHeaderBytes;
  const auto as_bytes = [](const std::string& text) { return std::as_bytes(std::span(text)); };
  pack_wire::Header header = *pack_wire::DecodeHeader(as_bytes(pack).subspan<0, kHeaderBytes>());
  json metadata = json::parse(pack.substr(header.metadata.offset, header.metadata.bytes));
  json index = json::parse(pack.substr(header.index.offset, header.index.bytes));
  if (edit_metadata) edit_metadata(metadata);
  if (edit_index) edit_index(index);
  std::string result = pack.substr(0, header.metadata.offset);
  const auto append = [&](const json& document) {
    result.resize(pack_wire::AlignUp(result.size(), pack_wire::kSectionAlign));
    const std::string text = document.dump();
    result += text;
    return pack_wire::Document{result.size() - text.size(), text.size(),
                               pack_wire::Checksum(as_bytes(text))};
  };
  header.metadata = append(metadata);
  header.index = append(index);
  header.file_bytes = result.size();
  if (edit_header) edit_header(header);
  std::array<std::byte, kHeaderBytes> encoded;
  pack_wire::EncodeHeader(header, encoded);
  std::memcpy(result.data(), encoded.data(), encoded.size());
  return result;
}

std::string ErrorOf(const std::string& bytes) { return OpenError(MemoryFile(bytes).path()); }

TEST_CASE("Weights of every form come back from a pack as they went in", "[pack]") {
  const ScratchDirectory directory;
  const fs::path path = directory.path() / "forms.sluice";
  struct Case {
    std::string name;
    WeightLayout layout;
  };
  std::vector<Case> cases;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& [rows, cols] : {std::pair(1, 7), std::pair(33, 65), std::pair(16, 32)}) {
      for (const WeightForm form : {WeightForm::kRowMajor, WeightForm::kPanels}) {
        cases.push_back({"float " + std::to_string(cases.size()), Floats(form, dtype, rows, cols)});
      }
    }
  }
  for (int scales = 0; scales < kScaleKinds; ++scales) {
    for (const int group : {16, 32}) {
      for (int bits = 2; bits <= 8; ++bits) {
        const NestedFormat format{static_cast<ScaleKind>(scales), static_cast<uint8_t>(group),
                                  static_cast<uint8_t>(bits)};
        if (!ValidNestedFormat(format)) continue;
        WeightLayout layout = Nested(format, 17, 270);
        if (bits % 2 == 0) {
          for (int i = 1; i <= layout.planes(); ++i) {
            layout.levels.push_back({0.1f + static_cast<float>(i), -1.0f / 3});
          }
        }
        cases.push_back({"nested " + std::to_string(cases.size()), layout});
      }
    }
  }
  Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
  REQUIRE(writer);
  for (size_t i = 0; i < cases.size(); ++i) {
    Add(*writer, cases[i].name, cases[i].layout, static_cast<uint32_t>(i));
  }
  REQUIRE(writer->Finish(SmallMetadata()));

  Result<PackReader> opened = PackReader::Open(path);
  REQUIRE(opened);
  const PackReader pack = std::move(*opened);
  CHECK(pack.layers() == 0);
  CHECK(pack.FindExpert(0, 0) == nullptr);
  CHECK(pack.FindTensor("no such tensor") == nullptr);
  CHECK(pack.file_bytes() == fs::file_size(path));
  CHECK(pack.metadata().files == SmallMetadata().files);
  CHECK(pack.metadata().provenance == SmallMetadata().provenance);
  REQUIRE(pack.tensors().size() == cases.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    INFO(cases[i].name);
    const PackTensor* tensor = pack.FindTensor(cases[i].name);
    REQUIRE(tensor != nullptr);
    const WeightLayout& layout = tensor->layout;
    CHECK(layout.form == cases[i].layout.form);
    CHECK(layout.rows == cases[i].layout.rows);
    CHECK(layout.cols == cases[i].layout.cols);
    CHECK(layout.levels == cases[i].layout.levels);
    if (layout.form == WeightForm::kNested) {
      CHECK(layout.nested == cases[i].layout.nested);
      const NestedLevel want =
          layout.levels.empty() ? DefaultNestedLevel(layout.nested, 1) : cases[i].layout.levels[0];
      CHECK(layout.level(1) == want);
    } else {
      CHECK(layout.dtype == cases[i].layout.dtype);
    }
    CHECK(tensor->offset % 64 == 0);
    Bytes bytes(tensor->bytes);
    REQUIRE(pack.ReadTensor(*tensor, bytes));
    const Weight weight(layout, static_cast<uint32_t>(i));
    size_t at = 0;
    for (const Bytes& plane : weight.bytes()) {
      REQUIRE(std::memcmp(bytes.data() + at, plane.data(), plane.size()) == 0);
      at += NestedAlign(plane.size());
    }
    CHECK(at == bytes.size());
  }
}

TEST_CASE("A prefix of an expert's bytes is that expert at a lower precision", "[pack]") {
  const ScratchDirectory directory;
  const fs::path path = directory.path() / "experts.sluice";
  const size_t align = GENERATE(size_t{512}, size_t{4096});
  // Gate and up have five planes, down three: later sets lack it.
  const NestedFormat wide{ScaleKind::kU8Min, 32, 8}, narrow{ScaleKind::kF16, 32, 4};
  Result<PackWriter> writer = PackWriter::Create(path, 3, 2, align);
  REQUIRE(writer);
  const int order[4][2] = {{2, 1}, {2, 0}, {0, 0}, {0, 1}};
  for (const auto& [layer, index] : order) {
    const auto seed = static_cast<uint32_t>(layer * 2 + index);
    REQUIRE(ExpertWeights(wide, narrow, 48, 80, seed).AddTo(*writer, layer, index));
  }
  Add(*writer, "late", Floats(WeightForm::kPanels, DType::kBF16, 3, 3), 9);
  REQUIRE(writer->Finish({}));

  const Result<PackReader> pack = PackReader::Open(path);
  REQUIRE(pack);
  CHECK(pack->align() == align);
  CHECK(pack->layers() == 3);
  CHECK(pack->experts_per_layer() == 2);
  CHECK(pack->FindExpert(1, 0) == nullptr);
  CHECK(pack->FindTensor("late")->offset % 4096 == 0);
  for (const auto& [layer, index] : order) {
    const ExpertWeights want(wide, narrow, 48, 80, static_cast<uint32_t>(layer * 2 + index));
    const PackExpert* expert = pack->FindExpert(layer, index);
    REQUIRE(expert != nullptr);
    REQUIRE(expert->sets.size() == 5);
    CHECK(expert->offset % align == 0);
    Bytes whole(expert->bytes(5));
    REQUIRE(pack->ReadPlaneSets(layer, index, 0, 5, whole));
    for (size_t first = 0; first < 5; ++first) {
      for (size_t end = first; end <= 5; ++end) {
        Bytes part(expert->bytes(end) - expert->bytes(first));
        REQUIRE(pack->ReadPlaneSets(layer, index, first, end, part));
        CHECK(std::equal(part.begin(), part.end(),
                         whole.begin() + static_cast<ptrdiff_t>(expert->bytes(first))));
      }
    }
    for (int set = 0; set < 5; ++set) {
      CHECK(expert->sets[static_cast<size_t>(set)].bytes % align == 0);
      for (int projection = 0; projection < 3; ++projection) {
        const auto& planes = want.weights[static_cast<size_t>(projection)].bytes();
        if (static_cast<size_t>(set) >= planes.size()) continue;
        const Bytes& plane = planes[static_cast<size_t>(set)];
        const uint64_t at =
            expert->bytes(static_cast<size_t>(set)) + expert->PlaneOffset(projection, set);
        CHECK(at % 64 == 0);
        CHECK(std::memcmp(whole.data() + at, plane.data(), plane.size()) == 0);
      }
    }
  }
}

TEST_CASE("Panels take the bytes that the kernels say", "[pack]") {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int rows : {1, 15, 16, 17, 100}) {
      for (const int cols : {1, 2, 63, 64}) {
        CHECK(Floats(WeightForm::kPanels, dtype, rows, cols).bytes() ==
              cpu::PackedMatrixBytes(dtype, rows, cols));
      }
    }
  }
}

TEST_CASE("The worked example of the layout's page holds", "[pack]") {
  const NestedFormat format{ScaleKind::kU8Min, 32, 4};
  NestedPanel panel;
  panel.Resize(format, 32);
  panel.codes[3 * 32 + 22] = 13;
  panel.super_scale[3] = panel.super_min[3] = 0x2400;  // 1/64
  panel.scale[3] = 32;
  panel.min[3] = 16;
  const Weight zeros(Nested(format, 16, 32), 0);
  std::vector<Bytes> planes = zeros.bytes();
  std::byte* const starts[3] = {planes[0].data(), planes[1].data(), planes[2].data()};
  EncodeNestedPanel(format, 32, panel, 0, starts);
  CHECK(planes[0].size() == 128 + 128);
  CHECK(planes[0][128 + 78] == std::byte{0x30});
  CHECK(planes[1][14] == std::byte{0x00});
  CHECK(planes[2][14] == std::byte{0x40});
  const std::pair<int, float> values[] = {{3, 6.25f}, {2, 6.0f}, {1, 6.5f}};
  for (const auto& [count, want] : values) {
    float row[32];
    DequantizeNested(format, 32, starts, count, DefaultNestedLevel(format, count), 3, 1, row);
    CHECK(row[22] == want);
  }
}

TEST_CASE("An unfinished writer leaves nothing, and what was there before stays", "[pack]") {
  const ScratchDirectory directory;
  const fs::path path = directory.path() / "model.sluice";
  const auto begin = [&] {
    Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
    REQUIRE(writer);
    Add(*writer, "big", Floats(WeightForm::kRowMajor, DType::kF32, 3000, 1000), 1);
    return std::move(*writer);
  };
  { const PackWriter abandoned = begin(); }
  CHECK(directory.entries() == 0);
  WriteSmallPack(path);
  const std::string before = ReadAll(path);
  {
    PackWriter abandoned = begin();
    PackWriter moved = std::move(abandoned);
  }
  CHECK(directory.entries() == 1);
  CHECK(ReadAll(path) == before);
  // Finishing replaces it.
  PackWriter writer = begin();
  REQUIRE(writer.Finish({}));
  CHECK(writer.bytes_written() == fs::file_size(path));
  CHECK(directory.entries() == 1);
  const Result<PackReader> pack = PackReader::Open(path);
  REQUIRE(pack);
  CHECK(pack->FindTensor("big") != nullptr);
}

// Runs `work` in a child and returns its wait status.
int InChild(const std::function<int()>& work) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(work());
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

TEST_CASE("A killed process leaves nothing that loads", "[pack]") {
  const ScratchDirectory directory;
  const fs::path path = directory.path() / "model.sluice";
  const WeightLayout layout = Floats(WeightForm::kRowMajor, DType::kF32, 3000, 1000);
  const Weight weight(layout, 1);
  const int status = InChild([&] {
    Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
    if (!writer || !writer->AddTensor("big", layout, weight.planes())) return 1;
    kill(getpid(), SIGKILL);
    return 2;
  });
  REQUIRE(WIFSIGNALED(status));
  CHECK_FALSE(fs::exists(path));
  for (const auto& entry : fs::directory_iterator(directory.path())) {
    INFO(entry.path());
    CHECK_FALSE(PackReader::LooksLikePack(entry.path()));
    CHECK(OpenError(entry.path()) != "");
  }
}

TEST_CASE("Where files without names cannot be had, a hidden file serves", "[pack]") {
  const ScratchDirectory directory;
  const fs::path path = directory.path() / "model.sluice";
  const WeightLayout layout = Floats(WeightForm::kRowMajor, DType::kF32, 3000, 1000);
  const Weight weight(layout, 1);
  constexpr int kNoNamespaces = 99;
  // Without /proc a file cannot be given a name later.
  const int status = InChild([&] {
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
      return kNoNamespaces;
    }
    if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("none", "/proc", "tmpfs", 0, nullptr) != 0) {
      return kNoNamespaces;
    }
    {
      Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
      if (!writer || !writer->AddTensor("big", layout, weight.planes())) return 1;
      if (directory.entries() != 1) return 2;
      const fs::path hidden = fs::directory_iterator(directory.path())->path();
      if (hidden.extension() != ".partial" || fs::file_size(hidden) < 4096) return 3;
      if (PackReader::LooksLikePack(hidden) || PackReader::Open(hidden)) return 4;
    }
    if (directory.entries() != 0) return 5;
    Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
    if (!writer || !writer->AddTensor("big", layout, weight.planes())) return 6;
    if (!writer->Finish({}) || directory.entries() != 1) return 7;
    return PackReader::Open(path) ? 0 : 8;
  });
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoNamespaces) {
    WARN("this system has no mount namespaces for us; not tested");
  } else {
    CHECK(WEXITSTATUS(status) == 0);
  }
}

TEST_CASE("A full disk is a sentence, and every later call repeats it", "[pack]") {
  const ScratchDirectory directory;
  const fs::path path = directory.path() / "model.sluice";
  const WeightLayout layout = Floats(WeightForm::kRowMajor, DType::kF32, 3000, 1000);
  const Weight weight(layout, 1);
  // A limit on the size of files fails writes just as a full disk does.
  const int status = InChild([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit { 1 << 20, 1 << 20 };
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
    if (!writer) return 2;
    const Result<> added = writer->AddTensor("big", layout, weight.planes());
    if (added || added.error().code != ErrorCode::kResourceExhausted) return 3;
    if (added.error().message.find(path.string()) == std::string::npos) return 4;
    const Result<> again = writer->AddTensor("more", layout, weight.planes());
    if (again || again.error().message != added.error().message) return 5;
    const Result<> finished = writer->Finish({});
    return finished || finished.error().message != added.error().message ? 6 : 0;
  });
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(directory.entries() == 0);
}

TEST_CASE("A place that cannot be written to is refused at once", "[pack]") {
  const ScratchDirectory directory;
  const auto error = [](const fs::path& path) {
    const Result<PackWriter> writer = PackWriter::Create(path, 0, 0);
    return writer ? std::string() : writer.error().message;
  };
  CHECK(Says(error(directory.path() / "none" / "x.sluice"), "does not exist"));
  CHECK(Says(error(directory.path()), "it is a directory"));
  CHECK(Says(error("/proc/x.sluice"), "/proc/x.sluice"));
}

TEST_CASE("Models beyond what a pack may hold are refused while writing", "[pack]") {
  const ScratchDirectory directory;
  const Result<PackWriter> many = PackWriter::Create(directory.path() / "x", 4096, 65536);
  REQUIRE_FALSE(many);
  CHECK(many.error().code == ErrorCode::kUnsupported);
  Result<PackWriter> writer = PackWriter::Create(directory.path() / "x", 0, 0);
  REQUIRE(writer);
  const Result<> added =
      writer->AddTensor("wide", Floats(WeightForm::kRowMajor, DType::kF32, 1, 1 << 27), {});
  REQUIRE_FALSE(added);
  CHECK(Says(added.error().message, "\"wide\" has the shape"));
  PackMetadata metadata;
  metadata.files["config.json"] = "\xff";
  const Result<> finished = writer->Finish(metadata);
  REQUIRE_FALSE(finished);
  CHECK(Says(finished.error().message, "\"config.json\" is not UTF-8"));
  CHECK(directory.entries() == 0);
}

TEST_CASE("A flipped byte anywhere is found, or lies in padding that nobody reads", "[pack]") {
  const std::string good = SmallPack();
  MemoryFile file(good);
  const Result<std::string> contents = Contents(file.path());
  REQUIRE(contents);
  size_t harmless = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (const unsigned flip : {0x01u, 0x80u, 0xffu}) {
      file.Put(i, static_cast<char>(static_cast<unsigned char>(good[i]) ^ flip));
      const Result<std::string> now = Contents(file.path());
      if (now) {
        INFO("byte " << i);
        REQUIRE(*now == *contents);
        REQUIRE(good[i] == 0);
        ++harmless;
      } else {
        INFO("byte " << i << ": " << now.error().message);
        REQUIRE(now.error().message.find(file.path().string()) == 0);
      }
    }
    file.Put(i, good[i]);
  }
  // Padding between sections alone.
  CHECK(harmless < 3 * 4 * pack_wire::kSectionAlign);
  CHECK(Contents(file.path()).value() == *contents);
}

TEST_CASE("A pack cut off at any length is refused", "[pack]") {
  const std::string good = SmallPack();
  MemoryFile file(good + "x");
  CHECK(Says(OpenError(file.path()), "something was added"));
  for (size_t bytes = good.size(); bytes-- > 0;) {
    file.Resize(bytes);
    const std::string error = OpenError(file.path());
    REQUIRE(error.find("truncated") != std::string::npos);
  }
}

TEST_CASE("A pack truncated after it was opened is an error of the read", "[pack]") {
  const std::string good = SmallPack();
  MemoryFile file(good);
  const Result<PackReader> pack = PackReader::Open(file.path());
  REQUIRE(pack);
  file.Resize(4100);
  const PackTensor& tensor = pack->tensors()[0];
  Bytes bytes(tensor.bytes);
  const Result<> read = pack->ReadTensor(tensor, bytes);
  REQUIRE_FALSE(read);
  CHECK(read.error().code == ErrorCode::kCorrupt);
  const PackExpert* expert = pack->FindExpert(1, 0);
  Bytes sets(expert->bytes(1));
  CHECK_FALSE(pack->ReadPlaneSets(1, 0, 0, 1, sets));
}

TEST_CASE("Damage is named by its tensor, or by its expert and plane set", "[pack]") {
  const std::string good = SmallPack();
  MemoryFile file(good);
  const Result<PackReader> pack = PackReader::Open(file.path());
  REQUIRE(pack);
  const PackTensor* tensor = pack->FindTensor("layers.0.q");
  file.Put(tensor->offset + 3, static_cast<char>(good[tensor->offset + 3] ^ 1));
  Bytes bytes(tensor->bytes);
  const Result<> read = pack->ReadTensor(*tensor, bytes);
  REQUIRE_FALSE(read);
  CHECK(Says(read.error().message, "tensor \"layers.0.q\""));

  const PackExpert* expert = pack->FindExpert(1, 1);
  const uint64_t at = expert->offset + expert->bytes(1);  // plane set 1
  file.Put(at, static_cast<char>(good[at] ^ 1));
  Bytes first(expert->bytes(1)), both(expert->bytes(2));
  CHECK(pack->ReadPlaneSets(1, 1, 0, 1, first));
  const Result<> damaged = pack->ReadPlaneSets(1, 1, 0, 2, both);
  REQUIRE_FALSE(damaged);
  CHECK(Says(damaged.error().message, "plane set 1 of expert 1 of layer 1"));
}

TEST_CASE("What is no pack, or a pack of the future, is told apart", "[pack]") {
  const std::string good = SmallPack();
  CHECK(ErrorOf(Rewritten(good, {})) == "");
  CHECK(Says(ErrorOf("GGUF"), "too few for a Sluice pack"));
  CHECK(Says(ErrorOf(std::string(8192, 'x')), "is not a Sluice pack"));
  CHECK(Says(OpenError("/nowhere/x.sluice"), "/nowhere/x.sluice"));
  const std::string newer = Rewritten(good, {}, {}, [](auto& h) { h.version = 7; });
  CHECK(Says(ErrorOf(newer), "version 7; this sluice reads up to version 1: update"));
  CHECK(Says(ErrorOf(Rewritten(good, {}, {}, [](auto& h) { h.version = 0; })), "version 0"));
  CHECK(PackReader::LooksLikePack(MemoryFile(newer).path()));
  CHECK_FALSE(PackReader::LooksLikePack(MemoryFile("SLUICEP").path()));
  CHECK_FALSE(PackReader::LooksLikePack(MemoryFile(std::string(5000, 'x')).path()));
  CHECK_FALSE(PackReader::LooksLikePack("/nowhere"));
}

TEST_CASE("A hostile header is refused", "[pack]") {
  const std::string good = SmallPack();
  const auto error = [&](const std::function<void(pack_wire::Header&)>& edit) {
    return ErrorOf(Rewritten(good, {}, {}, edit));
  };
  CHECK(Says(error([](auto& h) { h.align = 64; }), "alignment of 64"));
  for (const uint64_t offset : {uint64_t{0}, uint64_t{4097}, uint64_t{1} << 40, ~uint64_t{4095}}) {
    CHECK(Says(error([&](auto& h) { h.index.offset = offset; }), "outside"));
    CHECK(Says(error([&](auto& h) { h.metadata.offset = offset; }), "outside"));
  }
  CHECK(Says(error([](auto& h) { h.index.bytes = ~uint64_t{0}; }), "outside"));
  CHECK(Says(error([](auto& h) { h.metadata.bytes -= 1; }), "checksum"));
  CHECK(Says(error([](auto& h) { h.metadata = h.index; }), "metadata"));
  // A file of holes can claim documents of any size.
  const std::string plain = Rewritten(good, {});
  MemoryFile sparse(plain);
  const uint64_t huge = uint64_t{1} << 36;
  sparse.Resize(huge);
  const std::string header = Rewritten(good, {}, {}, [&](auto& h) {
    h.file_bytes = huge;
    h.index.bytes = huge - h.index.offset;
  });
  for (size_t i = 0; i < pack_wire::kHeaderBytes; ++i) sparse.Put(i, header[i]);
  CHECK(Says(OpenError(sparse.path()), "at most"));
}

TEST_CASE("A hostile index is refused with what is wrong in it", "[pack]") {
  const std::string good = SmallPack();
  struct Case {
    const char* words;
    std::function<void(json&)> edit;
  };
  const uint64_t big = ~uint64_t{0};
  const std::vector<Case> cases = {
      {"not a JSON object", [](json& j) { j = json::array(); }},
      {"\"layouts\"", [](json& j) { j.erase("layouts"); }},
      {"layout 0 of its index", [](json& j) { j["layouts"][0] = 3; }},
      {"no form", [](json& j) { j["layouts"][0]["form"] = "sparse"; }},
      {"no form", [](json& j) { j["layouts"][0]["form"] = 1; }},
      {"no dtype", [](json& j) { j["layouts"][0]["dtype"] = "I8"; }},
      {"rows", [](json& j) { j["layouts"][0]["rows"] = 0; }},
      {"rows", [](json& j) { j["layouts"][0]["rows"] = -1; }},
      {"rows", [](json& j) { j["layouts"][0]["rows"] = 1.5; }},
      {"columns", [&](json& j) { j["layouts"][0]["cols"] = big; }},
      {"has the shape",
       [](json& j) {
         j["layouts"][0]["rows"] = 1 << 26;
         j["layouts"][0]["cols"] = 1 << 26;
       }},
      {"past the end", [](json& j) { j["layouts"][0]["cols"] = 1 << 20; }},
      {"no scales", [](json& j) { j["layouts"][1]["scales"] = "u4"; }},
      {"does not exist", [](json& j) { j["layouts"][1]["bits"] = 7; }},
      {"number of bits", [](json& j) { j["layouts"][1]["bits"] = 256 + 3; }},
      {"does not exist", [](json& j) { j["layouts"][1]["group"] = 64; }},
      {"\"tensors\"", [](json& j) { j["tensors"] = json::object(); }},
      {"a tensor by something else", [](json& j) { j["tensors"][0] = "norm"; }},
      {"no name", [](json& j) { j["tensors"][0].erase("name"); }},
      {"a name of 0 bytes", [](json& j) { j["tensors"][0]["name"] = ""; }},
      {"a name of 2000 bytes", [](json& j) { j["tensors"][0]["name"] = std::string(2000, 'x'); }},
      {"is there twice", [](json& j) { j["tensors"][0]["name"] = j["tensors"][1]["name"]; }},
      {"\"norm\" has no layout", [](json& j) { j["tensors"][0].erase("layout"); }},
      {"names a layout", [](json& j) { j["tensors"][0]["layout"] = 1000; }},
      {"names a layout", [](json& j) { j["tensors"][0]["layout"] = -1; }},
      {"no offset", [](json& j) { j["tensors"][0]["offset"] = "4096"; }},
      {"begins at byte 0", [](json& j) { j["tensors"][0]["offset"] = 0; }},
      {"begins at byte 4097", [](json& j) { j["tensors"][0]["offset"] = 4097; }},
      {"past the end", [](json& j) { j["tensors"][0]["offset"] = 1 << 20; }},
      {"past the end", [&](json& j) { j["tensors"][0]["offset"] = big - 63; }},
      {"overlaps", [](json& j) { j["tensors"][0]["offset"] = j["tensors"][1]["offset"]; }},
      {"overlaps", [](json& j) { j["tensors"][0]["offset"] = j["experts"][1][0]["offset"]; }},
      {"16 hexadecimal digits", [](json& j) { j["tensors"][0]["checksum"] = "12"; }},
      {"16 hexadecimal digits", [](json& j) { j["tensors"][0]["checksum"] = "000000000000000g"; }},
      {"levels",
       [](json& j) {
         j["tensors"][0]["levels"] = {1, 2};
       }},
      {"levels",
       [](json& j) {
         j["tensors"][1]["levels"] = {1, 2, 3};
       }},
      {"not a number",
       [](json& j) {
         j["tensors"][1]["levels"] = {1, 2, 3, "4"};
       }},
      {"not a number",
       [](json& j) {
         j["tensors"][1]["levels"] = {1, 2, 3, 1e300};
       }},
      {"belong to nothing", [](json& j) { j["experts"][1] = nullptr; }},
      {"\"experts_per_layer\"", [](json& j) { j.erase("experts_per_layer"); }},
      {"\"experts_per_layer\"", [&](json& j) { j["experts_per_layer"] = big; }},
      {"does not have 3 experts", [](json& j) { j["experts_per_layer"] = 3; }},
      {"does not have 0 experts", [](json& j) { j["experts_per_layer"] = 0; }},
      {"at most 262144 experts",
       [](json& j) {
         j["experts_per_layer"] = 65536;
         for (int i = 0; i < 4000; ++i) j["experts"].push_back(nullptr);
         j["experts"][1] = std::vector<int>(65536, 0);
       }},
      {"\"experts\"", [](json& j) { j["experts"] = std::vector<json>(5000); }},
      {"expert 0 of layer 1 is described", [](json& j) { j["experts"][1][0] = nullptr; }},
      {"three layouts",
       [](json& j) {
         j["experts"][1][1]["layouts"] = {0, 1};
       }},
      {"do not fit together",
       [](json& j) { j["experts"][1][1]["layouts"][2] = j["experts"][1][1]["layouts"][0]; }},
      {"2 checksums", [](json& j) { j["experts"][1][0]["checksums"].erase(0); }},
      {"levels",
       [](json& j) {
         j["experts"][1][0]["levels"] = {1, 2};
       }},
      {"begins at byte", [](json& j) { j["experts"][1][0]["offset"] = 8192 + 64; }},
      {"overlaps", [](json& j) { j["experts"][1][1]["offset"] = j["experts"][1][0]["offset"]; }},
  };
  for (const Case& c : cases) {
    const std::string error = ErrorOf(Rewritten(good, c.edit));
    INFO("expected: " << c.words << "\ngot: " << error);
    CHECK(error.find(c.words) != std::string::npos);
  }
}

TEST_CASE("Hostile metadata is refused", "[pack]") {
  const std::string good = SmallPack();
  const auto error = [&](const std::function<void(json&)>& edit) {
    return ErrorOf(Rewritten(good, {}, edit));
  };
  CHECK(Says(error([](json& j) { j = 1; }), "not a JSON object"));
  CHECK(Says(error([](json& j) { j["files"] = {1}; }), "\"files\""));
  for (const char* name : {"", "..", "../x", "a/b", "a\\b"}) {
    CHECK(Says(error([&](json& j) { j["files"][name] = ""; }), "plain name"));
  }
  CHECK(Says(error([](json& j) { j["files"]["x"] = 1; }), "plain name"));
  CHECK(Says(error([](json& j) {
               for (int i = 0; i < 100; ++i) j["provenance"] = json::array({j["provenance"]});
             }),
             "nested deeper"));
  // Provenance is free and may be missing.
  CHECK(error([](json& j) { j.erase("provenance"); }) == "");
  CHECK(error([](json& j) { j["provenance"] = 5; }) == "");
}

}  // namespace
}  // namespace sluice
