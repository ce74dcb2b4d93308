// Writes a pack with weights of every form, and what they dequantize to, for test_read_pack.py.
//   pack_example DIRECTORY
// DIRECTORY gets example.sluice, one N.f32 file per weight and precision, and expected.json:
// [{"tensor": NAME} or {"expert": [LAYER, INDEX, PROJECTION]}, each with "bits", "rows", "cols",
// "file"].
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/formats/pack.h"
#include "kernels/common/half.h"
#include "kernels/cpu/ops.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using Planes = std::vector<std::vector<std::byte>>;

std::vector<std::span<const std::byte>> Spans(const Planes& planes) {
  return {planes.begin(), planes.end()};
}

class Example {
 public:
  explicit Example(fs::path directory)
      : directory_(std::move(directory)),
        writer_(Created(PackWriter::Create(directory_ / "example.sluice", 2, 1, 512))) {}

  void Run() {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const WeightForm form : {WeightForm::kRowMajor, WeightForm::kPanels}) {
        AddFloats(form, dtype, 33, 45);
      }
    }
    for (int scales = 0; scales < kScaleKinds; ++scales) {
      for (const int group : {16, 32}) {
        for (const int bits : {2, 3, 4, 5, 6, 8}) {
          const NestedFormat format{static_cast<ScaleKind>(scales), static_cast<uint8_t>(group),
                                    static_cast<uint8_t>(bits)};
          if (ValidNestedFormat(format)) AddNested(Layout(format, 21, 270));
        }
      }
    }
    AddExpert();
    PackMetadata metadata;
    metadata.files["config.json"] = "{}";
    metadata.provenance = {{"source", "tests/integration/pack_example.cc"}};
    SLUICE_CHECK(writer_.Finish(metadata).has_value());
    std::ofstream(directory_ / "expected.json") << expected_.dump(1);
  }

 private:
  static PackWriter Created(Result<PackWriter> writer) {
    if (!writer) CheckFailed(__FILE__, __LINE__, "PackWriter::Create", writer.error().message);
    return std::move(*writer);
  }

  // Every other format gets fitted levels.
  WeightLayout Layout(NestedFormat format, int rows, int cols) {
    WeightLayout layout;
    layout.form = WeightForm::kNested;
    layout.nested = format;
    layout.rows = rows;
    layout.cols = cols;
    if (format.bits % 2 == 0) {
      for (int planes = 1; planes <= layout.planes(); ++planes) {
        NestedLevel level = DefaultNestedLevel(format, planes);
        level.mul *= 0.97f;
        level.add += 0.1f;
        layout.levels.push_back(level);
      }
    }
    return layout;
  }

  uint16_t RandomHalf() { return F32ToF16(std::normal_distribution<float>(0, 0.1f)(random_)); }

  Planes RandomPlanes(const WeightLayout& layout) {
    Planes planes;
    std::vector<std::byte*> starts;
    for (int i = 0; i < layout.planes(); ++i) planes.emplace_back(layout.plane_bytes(i));
    for (auto& plane : planes) starts.push_back(plane.data());
    const bool halves = layout.nested.scales == ScaleKind::kF16 ||
                        layout.nested.scales == ScaleKind::kF16Min ||
                        layout.nested.scales == ScaleKind::kIq4F16;
    // The largest exponents make infinities.
    const unsigned bytes = layout.nested.scales == ScaleKind::kE2m1E8m0 ? 240 : 256;
    NestedPanel panel;
    for (int p = 0; p < (layout.rows + 15) / 16; ++p) {
      panel.Resize(layout.nested, layout.cols);
      for (uint8_t& code : panel.codes) code = random_() % (1u << layout.nested.bits);
      for (uint16_t& d : panel.super_scale) d = RandomHalf();
      for (uint16_t& d : panel.super_min) d = RandomHalf();
      for (uint16_t& s : panel.scale) s = halves ? RandomHalf() : random_() % bytes;
      for (uint16_t& m : panel.min) m = halves ? RandomHalf() : random_() % 256;
      EncodeNestedPanel(layout.nested, layout.cols, panel, p, starts.data());
    }
    return planes;
  }

  void Expect(nlohmann::ordered_json entry, int bits, int rows, int cols,
              const std::vector<float>& values) {
    const std::string name = std::to_string(expected_.size()) + ".f32";
    std::ofstream(directory_ / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    entry["bits"] = bits;
    entry["rows"] = rows;
    entry["cols"] = cols;
    entry["file"] = name;
    expected_.push_back(std::move(entry));
  }

  void ExpectNested(const nlohmann::ordered_json& entry, const WeightLayout& layout,
                    const Planes& planes) {
    std::vector<const std::byte*> starts;
    for (const auto& plane : planes) starts.push_back(plane.data());
    for (int count = 1; count <= layout.planes(); ++count) {
      std::vector<float> values(static_cast<size_t>(layout.rows) * layout.cols);
      DequantizeNested(layout.nested, layout.cols, starts.data(), count, layout.level(count), 0,
                       layout.rows, values.data());
      Expect(entry, NestedPrecision(layout.nested.bits, count), layout.rows, layout.cols, values);
    }
  }

  void AddFloats(WeightForm form, DType dtype, int rows, int cols) {
    const size_t count = static_cast<size_t>(rows) * cols;
    std::vector<std::byte> stored(count * DTypeBytes(dtype));
    for (size_t i = 0; i < count; ++i) {
      const float value = std::normal_distribution<float>()(random_);
      const uint16_t half = dtype == DType::kF16 ? F32ToF16(value) : F32ToBf16(value);
      if (dtype == DType::kF32) std::memcpy(&stored[4 * i], &value, 4);
      if (dtype != DType::kF32) std::memcpy(&stored[2 * i], &half, 2);
    }
    const cpu::Ops* ops = cpu::SelectOps(cpu::Isa::kScalar);
    std::vector<float> values(count);
    ops->to_f32(dtype, stored.data(), static_cast<int64_t>(count), values.data());
    WeightLayout layout;
    layout.form = form;
    layout.dtype = dtype;
    layout.rows = rows;
    layout.cols = cols;
    Planes planes = {std::move(stored)};
    if (form == WeightForm::kPanels) {
      std::vector<std::byte> packed(layout.bytes());
      ops->pack_matrix(dtype, planes[0].data(), rows, cols, 0, cpu::PanelCount(rows),
                       packed.data());
      planes[0] = std::move(packed);
    }
    const std::string name =
        std::string(DTypeName(dtype)) + (form == WeightForm::kPanels ? "p" : "");
    SLUICE_CHECK(writer_.AddTensor(name, layout, Spans(planes)).has_value());
    Expect({{"tensor", name}}, 8, rows, cols, values);
  }

  void AddNested(const WeightLayout& layout) {
    const Planes planes = RandomPlanes(layout);
    const std::string name = "nested " + std::to_string(expected_.size());
    SLUICE_CHECK(writer_.AddTensor(name, layout, Spans(planes)).has_value());
    ExpectNested({{"tensor", name}}, layout, planes);
  }

  // Its projections have different numbers of planes. The first layer has no experts.
  void AddExpert() {
    const WeightLayout layouts[3] = {Layout({ScaleKind::kU8Min, 32, 8}, 40, 72),
                                     Layout({ScaleKind::kF16, 32, 3}, 40, 72),
                                     Layout({ScaleKind::kI8, 16, 6}, 72, 40)};
    const Planes planes[3] = {RandomPlanes(layouts[0]), RandomPlanes(layouts[1]),
                              RandomPlanes(layouts[2])};
    SLUICE_CHECK(
        writer_.AddExpert(1, 0, layouts, {Spans(planes[0]), Spans(planes[1]), Spans(planes[2])})
            .has_value());
    const char* const names[3] = {"gate", "up", "down"};
    for (int i = 0; i < 3; ++i) {
      ExpectNested({{"expert", {1, 0, names[i]}}}, layouts[i], planes[i]);
    }
  }

  fs::path directory_;
  PackWriter writer_;
  std::mt19937 random_{1};
  nlohmann::ordered_json expected_ = nlohmann::ordered_json::array();
};

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: pack_example DIRECTORY\n");
    return 2;
  }
  sluice::Example(argv[1]).Run();
}
