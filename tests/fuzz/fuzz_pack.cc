// Any bytes as a pack: opening it and reading all of it must not crash, hang, allocate without
// bound or leave the file. Checksums would stop nearly every mutation at the door, so they are
// mended first: a hostile writer can compute them too. The first byte chooses what the rest is:
//   even: a whole file, whose documents' and header's checksums are set right
//   odd:  the index's JSON, behind which a file is built that is as large as the input's next two
//         bytes say and whose metadata is sound; most of the interesting faults are here
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/formats/pack.h"
#include "engine/formats/pack_wire.h"

namespace {

namespace wire = sluice::pack_wire;

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

void PutHeader(const wire::Header& header, std::string& file) {
  std::array<std::byte, wire::kHeaderBytes> encoded;
  wire::EncodeHeader(header, encoded);
  std::memcpy(file.data(), encoded.data(), encoded.size());
}

// Version, alignment and documents as the bytes say; sums as they should be.
std::string MendedFile(std::string file) {
  if (file.size() < wire::kHeaderBytes) return file;
  wire::Header header;
  std::memcpy(&header.version, file.data() + 8, 4);
  std::memcpy(&header.align, file.data() + 12, 4);
  header.file_bytes = file.size();
  size_t at = 24;
  for (wire::Document* document : {&header.metadata, &header.index}) {
    std::memcpy(&document->offset, file.data() + at, 8);
    std::memcpy(&document->bytes, file.data() + at + 8, 8);
    at += 24;
    if (document->offset > file.size()) continue;
    const uint64_t bytes = std::min<uint64_t>(document->bytes, file.size() - document->offset);
    document->checksum = wire::Checksum(AsBytes(file).subspan(document->offset, bytes));
  }
  PutHeader(header, file);
  return file;
}

std::string FileAround(std::string index, size_t body_bytes, bool small_align) {
  std::string file(wire::kHeaderBytes + body_bytes, '\0');
  wire::Header header;
  header.align = small_align ? 512 : 4096;
  const std::string metadata = R"({"files":{"config.json":"{}"},"provenance":{}})";
  const auto append = [&](const std::string& text) {
    file.resize(wire::AlignUp(file.size(), wire::kSectionAlign));
    file += text;
    return wire::Document{file.size() - text.size(), text.size(), wire::Checksum(AsBytes(text))};
  };
  header.metadata = append(metadata);
  header.index = append(index);
  header.file_bytes = file.size();
  PutHeader(header, file);
  return file;
}

void ReadEverything(const sluice::PackReader& pack) {
  uint64_t sum = 0;
  const auto check_range = [&](uint64_t offset, uint64_t bytes) {
    SLUICE_CHECK(offset >= wire::kHeaderBytes && offset <= pack.file_bytes());
    SLUICE_CHECK(bytes <= pack.file_bytes() - offset);
    sum += bytes;
  };
  for (const sluice::PackTensor& tensor : pack.tensors()) {
    SLUICE_CHECK(pack.FindTensor(tensor.name) == &tensor);
    check_range(tensor.offset, tensor.bytes);
    SLUICE_CHECK(tensor.bytes >= tensor.layout.bytes());
    std::vector<std::byte> bytes(tensor.bytes);
    (void)pack.ReadTensor(tensor, bytes);
  }
  for (int layer = 0; layer < pack.layers(); ++layer) {
    for (int i = 0; i < pack.experts_per_layer(); ++i) {
      const sluice::PackExpert* expert = pack.FindExpert(layer, i);
      if (expert == nullptr) continue;
      SLUICE_CHECK(expert->gate.rows == expert->down.cols);
      SLUICE_CHECK(expert->gate.cols == expert->down.rows);
      check_range(expert->offset, expert->bytes(expert->sets.size()));
      for (size_t set = 0; set < expert->sets.size(); ++set) {
        const int plane = static_cast<int>(set);
        SLUICE_CHECK(expert->PlaneOffset(2, plane) + expert->down.plane_bytes(plane) <=
                     expert->sets[set].bytes);
        std::vector<std::byte> bytes(expert->sets[set].bytes);
        (void)pack.ReadPlaneSets(layer, i, set, set + 1, bytes);
      }
    }
  }
  // Nothing overlaps.
  SLUICE_CHECK(sum <= pack.file_bytes());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  std::string rest(reinterpret_cast<const char*>(data) + 3, size - 3);
  const size_t body_bytes = data[1] + size_t{256} * data[2];
  const std::string file = data[0] % 2 == 0
                               ? MendedFile(std::move(rest))
                               : FileAround(std::move(rest), body_bytes, data[0] % 4 == 1);
  const int descriptor = memfd_create("fuzz_pack", 0);
  SLUICE_CHECK(descriptor >= 0);
  SLUICE_CHECK(write(descriptor, file.data(), file.size()) == static_cast<ssize_t>(file.size()));
  const sluice::Result<sluice::PackReader> pack =
      sluice::PackReader::Open("/proc/self/fd/" + std::to_string(descriptor));
  if (pack) {
    ReadEverything(*pack);
  } else {
    SLUICE_CHECK(!pack.error().message.empty());
  }
  close(descriptor);
  return 0;
}
