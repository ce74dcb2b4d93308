// The pack: one `.sluice` file that the daemon serves from (README.md in this folder has the layout
// for writers of other readers).
//
// Weights lie as the kernels read them: panels of floats (kernels/cpu/ops.h), or bit-nested planes
// (kernels/common/nested.h). All projections of an expert at a precision are one contiguous range,
// and more precision is the range that follows it.
//
//   Result<PackReader> pack = PackReader::Open("olmoe.sluice");
//   const PackTensor* q = pack->FindTensor("model.layers.0.self_attn.q_proj.weight");
//   pack->ReadTensor(*q, buffer);                                   // checksum verified
//   const PackExpert* e = pack->FindExpert(layer, index);
//   pack->ReadPlaneSets(layer, index, 0, e->sets.size(), slot);   // one read, verified
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/result.h"
#include "kernels/common/dtype.h"
#include "kernels/common/nested.h"

namespace sluice {

inline constexpr uint32_t kPackVersion = 1;
inline constexpr size_t kPackAlign = 4096;  // of sections; of plane sets unless `align` says 512

enum class WeightForm : uint8_t {
  kRowMajor,  // dtype values, rows contiguous: vectors (rows = 1), embedding tables
  kPanels,    // panels of 16 rows of dtype
  kNested,    // bit-nested planes
};

// How one weight lies. Sizes follow from it, so they are never stored.
struct WeightLayout {
  WeightForm form = WeightForm::kRowMajor;
  DType dtype = DType::kF32;  // kRowMajor and kPanels
  NestedFormat nested;        // kNested
  int rows = 0;
  int cols = 0;
  // kNested: fitted levels, one per number of planes; empty: DefaultNestedLevel for all.
  std::vector<NestedLevel> levels;

  int planes() const { return form == WeightForm::kNested ? NestedPlanes(nested.bits) : 1; }
  size_t plane_bytes(int plane) const;  // 0 at and past planes()
  size_t bytes() const;                 // all planes
  NestedLevel level(int planes) const;  // REQUIRES kNested, planes in [1, planes()]
};

// A weight outside the routed experts. Its planes follow each other, each starting at a multiple of
// 64 bytes from `offset`, which is a multiple of 64.
struct PackTensor {
  std::string name;
  WeightLayout layout;
  uint64_t offset = 0;    // in the file
  uint64_t bytes = 0;     // all planes with their padding
  uint64_t checksum = 0;  // XXH3-64 of these bytes
};

// Plane i of gate, up and down, in this order, each starting at a multiple of 64 bytes; a matrix
// with fewer planes has nothing in later sets. `bytes` is padded to the pack's alignment.
struct PlaneSet {
  uint64_t bytes = 0;
  uint64_t checksum = 0;  // XXH3-64 of these bytes, padding (zeros) included
};

// Sets follow each other in the file from `offset`, which is a multiple of the pack's alignment.
struct PackExpert {
  WeightLayout gate;  // [intermediate, hidden]
  WeightLayout up;    // [intermediate, hidden]
  WeightLayout down;  // [hidden, intermediate]
  uint64_t offset = 0;
  std::vector<PlaneSet> sets;

  uint64_t bytes(size_t set_count) const;  // of the first set_count sets
  // Where plane `plane` of a projection (0 gate, 1 up, 2 down) starts, from the start of its set.
  uint64_t PlaneOffset(int projection, int plane) const;
};

// What a pack says besides weights.
struct PackMetadata {
  // The files of a Hugging Face directory by name, as text: "config.json", "tokenizer.json",
  // "tokenizer_config.json", "generation_config.json", "chat_template.jinja".
  std::map<std::string, std::string> files;
  // Free-form, for people and tools: source, tool version, settings, calibration statistics, bit
  // allocation, precision ladder.
  nlohmann::ordered_json provenance;
};

// Writes to a temporary file beside `path`, renamed by Finish: an interrupted pack leaves nothing
// that loads, and a writer that is destroyed unfinished removes its file (where the file system has
// files without names, so does a process that is killed). Memory: 4 MiB and the index. Weights lie
// in the order of the calls, and every change between tensors and experts begins a 4 KiB-aligned
// section: all tensors, then all experts, reads best. Errors: kIo, kNotFound (no such directory)
// and kResourceExhausted (disk full), naming the file; after one, every call fails with it.
// Threads: one at a time.
class PackWriter {
 public:
  // expert_layers: model layers, dense ones included; experts_per_layer: 0 for dense models.
  // align: of plane sets, 512 or 4096; small experts lose less to 512.
  static Result<PackWriter> Create(const std::filesystem::path& path, int expert_layers,
                                   int experts_per_layer, size_t align = kPackAlign);
  PackWriter(PackWriter&&) noexcept;
  PackWriter& operator=(PackWriter&&) noexcept;
  ~PackWriter();

  // planes[i]: the bytes of plane i, layout.plane_bytes(i) of them. Errors: also kUnsupported for
  // shapes that no pack may hold. REQUIRES: a name that was not used before.
  Result<> AddTensor(std::string name, const WeightLayout& layout,
                     std::span<const std::span<const std::byte>> planes);
  // planes[projection][i]. Experts may come in any order, each once; those of one layer together
  // read best.
  Result<> AddExpert(int layer, int index, const WeightLayout (&layouts)[3],
                     const std::vector<std::span<const std::byte>> (&planes)[3]);
  uint64_t bytes_written() const;  // so far; after Finish: of the whole file
  // Writes index and header, syncs, renames. The writer is finished afterwards, also on errors.
  // REQUIRES: every layer has all of its experts or none.
  Result<> Finish(const PackMetadata& metadata);

 private:
  struct State;
  explicit PackWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Untrusted input: Open checks the header's checksum and every offset, size, shape and name against
// the file before anything is read or allocated by them; each fault is one sentence with the file's
// name. Threads: const members from any number of threads. Movable, not copyable; pointers stay
// valid while the reader (or what it was moved to) lives.
class PackReader {
 public:
  static Result<PackReader> Open(const std::filesystem::path& path);
  // Whether a file starts as a pack does (any version).
  static bool LooksLikePack(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const File& file() const { return file_; }  // for readers with their own I/O
  uint32_t version() const { return version_; }
  uint64_t file_bytes() const { return file_bytes_; }
  size_t align() const { return align_; }
  const PackMetadata& metadata() const { return metadata_; }

  const std::vector<PackTensor>& tensors() const { return tensors_; }  // in file order
  const PackTensor* FindTensor(std::string_view name) const;           // null when absent
  int layers() const { return layers_; }
  int experts_per_layer() const { return experts_per_layer_; }
  // Null for dense layers.
  const PackExpert* FindExpert(int layer, int index) const;

  // Reads and verifies. Errors: kCorrupt naming the tensor or the expert and its plane set (bytes
  // that do not have their checksum, a file truncated since Open), kIo.
  // REQUIRES: destination.size() == tensor.bytes.
  Result<> ReadTensor(const PackTensor& tensor, std::span<std::byte> destination) const;
  // The same check without keeping the bytes, in little memory.
  Result<> VerifyTensor(const PackTensor& tensor) const;
  // Plane sets [first, end) in one read. REQUIRES: destination holds exactly their bytes.
  Result<> ReadPlaneSets(int layer, int index, size_t first, size_t end,
                         std::span<std::byte> destination) const;

 private:
  explicit PackReader(File file) : file_(std::move(file)) {}
  Result<> CheckTensor(const PackTensor& tensor, uint64_t checksum) const;

  File file_;
  uint32_t version_ = 0;
  uint64_t file_bytes_ = 0;
  size_t align_ = kPackAlign;
  PackMetadata metadata_;
  int layers_ = 0;
  int experts_per_layer_ = 0;
  std::vector<PackTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
  std::vector<PackExpert> experts_;  // [layers * experts_per_layer]; empty sets: absent
};

}  // namespace sluice
