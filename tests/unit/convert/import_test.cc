#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/convert/quantizer.h"
#include "engine/formats/gguf.h"
#include "kernels/common/half.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"
#include "tests/unit/convert/nested_matrix.h"

namespace sluice {
namespace {

constexpr GgufType kTypes[] = {GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0,  GgufType::kQ5_1,
                               GgufType::kQ8_0, GgufType::kQ2_K, GgufType::kQ3_K,  GgufType::kQ4_K,
                               GgufType::kQ5_K, GgufType::kQ6_K, GgufType::kIq4Nl, GgufType::kIq4Xs,
                               GgufType::kMxfp4};

GgufTypeInfo Info(GgufType type) { return *FindGgufType(static_cast<uint32_t>(type)); }

std::vector<float> Imported(const GgufTypeInfo& type, const std::byte* blocks, int rows, int cols) {
  const NestedFormat format = *ExactFormat(type.type);
  REQUIRE(ValidNestedFormat(format));
  testing::NestedMatrix matrix(format, rows, cols);
  NestedPanel panel;
  for (int first = 0; first < rows; first += kNestedRows) {
    ImportPanel(type, blocks + GgufBytes(type, static_cast<uint64_t>(first) * cols),
                std::min(kNestedRows, rows - first), cols, &panel);
    matrix.Encode(panel, first / kNestedRows);
  }
  return matrix.Values(matrix.planes());
}

// Equal bits, or two zeros.
bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && (a[i] != 0 || b[i] != 0)) return false;
  }
  return true;
}

TEST_CASE("Imported blocks dequantize to the source's values, bit for bit", "[convert]") {
  const auto reader = GgufReader::Open(std::string(SLUICE_TEST_DATA) + "/gguf/types.gguf");
  REQUIRE(reader);
  for (const GgufType type : kTypes) {
    const GgufTypeInfo info = Info(type);
    INFO(info.name);
    const GgufTensor* tensor = reader->Find("tensor." + std::string(info.name));
    REQUIRE(tensor != nullptr);
    std::vector<float> expected(static_cast<size_t>(tensor->values()));
    REQUIRE(reader->ReadF32(*tensor, 0, expected));
    std::vector<std::byte> blocks(GgufBytes(info, expected.size()));
    REQUIRE(reader->Read(*tensor, 0, blocks));
    const int cols = static_cast<int>(tensor->columns());
    CHECK(Same(Imported(info, blocks.data(), static_cast<int>(expected.size()) / cols, cols),
               expected));
  }
}

TEST_CASE("Blocks of any bytes are imported exactly, in panels of any height", "[convert]") {
  uint32_t seed = 1;
  for (const GgufType type : kTypes) {
    const GgufTypeInfo info = Info(type);
    INFO(info.name);
    for (const int rows : {1, 16, 19, 48}) {
      const int cols = info.block_values * 3;
      const size_t values = static_cast<size_t>(rows) * cols;
      std::vector<std::byte> blocks(GgufBytes(info, values));
      for (std::byte& byte : blocks) {
        seed = seed * 1664525u + 1013904223u;
        byte = static_cast<std::byte>(seed >> 24);
      }
      // Only finite scales: the halves of a block are its first or last bytes.
      for (size_t at = 0; at < blocks.size(); at += static_cast<size_t>(info.block_bytes)) {
        const size_t last = at + static_cast<size_t>(info.block_bytes);
        for (const size_t high : {at + 1, at + 3, last - 3, last - 1}) {
          blocks[high] &= std::byte{0xbf};
        }
      }
      std::vector<float> expected(values);
      DequantizeGguf(info, blocks.data(), expected);
      CHECK(Same(Imported(info, blocks.data(), rows, cols), expected));
    }
  }
}

TEST_CASE("Blocks of 4-bit tables take at most 5% more in a pack, and floats have no exact format",
          "[convert]") {
  for (const GgufType type : {GgufType::kIq4Nl, GgufType::kIq4Xs, GgufType::kMxfp4}) {
    const NestedFormat format = *ExactFormat(type);
    const auto source = static_cast<double>(GgufBytes(Info(type), 1024 * 2048));
    CHECK(static_cast<double>(NestedBytes(format, 1024, 2048, 3)) < 1.05 * source);
  }
  for (const GgufType type : {GgufType::kF32, GgufType::kF16, GgufType::kBF16}) {
    CHECK_FALSE(ExactFormat(type).has_value());
  }
}

}  // namespace
}  // namespace sluice
