// What the bit-nested quantizer loses and how fast it is.
//
//   bench_quantizer error [MODEL_DIRECTORY]   mean squared error relative to the weights with
//                                             keep_gain 0, by number of bits: Gaussian,
//                                             heavy-tailed (t5), a model's own
//   bench_quantizer speed                     weights per second of one core
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/convert/quantizer.h"
#include "engine/formats/safetensors.h"
#include "kernels/common/half.h"
#include "kernels/common/nested.h"

namespace sluice {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Matrix {
  int rows = 0;
  int cols = 0;
  std::vector<float> values;
};
using Matrices = std::vector<Matrix>;

Matrices Random(bool heavy) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> student(5);
  Matrix m = {256, 2048, {}};
  m.values.resize(static_cast<size_t>(m.rows) * m.cols);
  for (float& v : m.values) v = 0.02f * (heavy ? student(random) : normal(random));
  return {m};
}

// Expert and attention projections of a model, every `stride`-th.
Matrices FromModel(const std::string& directory, const char* part) {
  const auto reader = SafetensorsReader::Open(directory);
  if (!reader) {
    std::fprintf(stderr, "%s\n", reader.error().message.c_str());
    std::exit(1);
  }
  Matrices matrices;
  for (const TensorInfo& tensor : reader->tensors()) {
    if (tensor.name.find(part) == std::string::npos || tensor.shape.size() != 2 ||
        tensor.dtype != DType::kBF16) {
      continue;
    }
    Matrix m = {static_cast<int>(tensor.shape[0]), static_cast<int>(tensor.shape[1]), {}};
    std::vector<uint16_t> halves(static_cast<size_t>(m.rows) * m.cols);
    if (!reader->Read(tensor, 0, std::as_writable_bytes(std::span(halves)))) std::exit(1);
    m.values.resize(halves.size());
    for (size_t i = 0; i < halves.size(); ++i) m.values[i] = Bf16ToF32(halves[i]);
    matrices.push_back(std::move(m));
  }
  return matrices;
}

// Relative squared error at each number of planes.
std::vector<double> Errors(const QuantizerOptions& options, const Matrices& matrices) {
  const NestedFormat format = options.format;
  const int planes = NestedPlanes(format.bits);
  std::vector<double> lost(static_cast<size_t>(planes));
  double total = 0;
  for (const Matrix& m : matrices) {
    std::vector<std::vector<std::byte>> bytes(static_cast<size_t>(planes));
    std::byte* starts[kMaxPlanes] = {};
    for (int i = 0; i < planes; ++i) {
      bytes[i].resize(NestedPlaneBytes(format, m.rows, m.cols, i));
      starts[i] = bytes[i].data();
    }
    NestedPanel panel;
    for (int first = 0; first < m.rows; first += kNestedRows) {
      QuantizePanel({format, options.level_weights, 0.0}, {},
                    m.values.data() + static_cast<ptrdiff_t>(first) * m.cols,
                    std::min(kNestedRows, m.rows - first), m.cols, &panel);
      EncodeNestedPanel(format, m.cols, panel, first / kNestedRows, starts);
    }
    std::vector<float> values(m.values.size());
    for (int p = 1; p <= planes; ++p) {
      DequantizeNested(format, m.cols, starts, p, DefaultNestedLevel(format, p), 0, m.rows,
                       values.data());
      for (size_t i = 0; i < values.size(); ++i) {
        lost[p - 1] += std::pow(double{m.values[i]} - values[i], 2);
      }
    }
    for (const float v : m.values) total += double{v} * v;
  }
  for (double& l : lost) l /= total;
  return lost;
}

void PrintErrors(const char* what, const QuantizerOptions& options, const Matrices& matrices) {
  const std::vector<double> errors = Errors(options, matrices);
  std::map<int, double> by_bits;
  for (size_t p = 0; p < errors.size(); ++p) {
    by_bits[NestedPrecision(options.format.bits, static_cast<int>(p) + 1)] = errors[p];
  }
  std::printf("%-34s", what);
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    if (by_bits.count(bits) != 0) {
      std::printf(" %10.3g", by_bits[bits]);
    } else {
      std::printf(" %10s", "");
    }
  }
  std::printf("\n");
}

void CompareErrors(const char* directory) {
  std::vector<std::pair<std::string, Matrices>> sources = {{"gaussian", Random(false)},
                                                           {"t5", Random(true)}};
  if (directory != nullptr) {
    sources.emplace_back("experts of the model", FromModel(directory, ".experts.1"));
    sources.emplace_back("attention of the model", FromModel(directory, "self_attn"));
  }
  for (const auto& [name, matrices] : sources) {
    std::printf("%s\n%-34s", name.c_str(), "  bits");
    for (const int bits : {2, 3, 4, 5, 6, 8}) std::printf(" %10d", bits);
    std::printf("\n");
    // One quantization for each width, for that width alone.
    for (const int bits : {2, 3, 4, 6, 8}) {
      QuantizerOptions options = {{ScaleKind::kU8Min, 32, static_cast<uint8_t>(bits)}, {}};
      options.level_weights.assign(static_cast<size_t>(NestedPlanes(bits)), 0.0);
      options.level_weights.back() = 1;
      PrintErrors(("  u8min 32, " + std::to_string(bits) + " alone").c_str(), options, matrices);
    }
    const auto show = [&](const char* what, NestedFormat format, std::vector<double> weights) {
      PrintErrors(what, {format, std::move(weights)}, matrices);
    };
    const NestedFormat four = {ScaleKind::kU8Min, 32, 4}, eight = {ScaleKind::kU8Min, 32, 8};
    for (const double w : {0.01, 0.03, 0.1, 0.3}) {
      char text[64];
      std::snprintf(text, sizeof text, "  4 bits, 2 at %g", w);
      show(text, four, {w, 0, 1});
    }
    show("  4 bits, default weights", four, {});
    show("  4 bits, 3 at .1, 2 at .03", four, {0.03, 0.1, 1});
    show("  8 bits for 8 and 4 at .001", eight, {0, 0, 0.001, 0, 1});
    show("  8 bits for 4", eight, {0, 0, 1, 0, 0});
    show("  8 bits for 4, 6 at 1", eight, {0, 0, 1, 1, 0});
    show("  8 bits for 4, 8 at 1", eight, {0, 0, 1, 0, 1});
    show("  8 bits for 4, 2 at .1", eight, {0.1, 0, 1, 0, 0});
    show("  8 bits, .1 1 4 20 200", eight, {0.1, 0.3, 1, 10, 100});
    show("  8 bits, default weights", eight, {});
    show("  f16 4 bits, default", {ScaleKind::kF16, 32, 4}, {});
    show("  i8 16 6 bits, default", {ScaleKind::kI8, 16, 6}, {});
    show("  i8 16 4 bits, default", {ScaleKind::kI8, 16, 4}, {});
    show("  i8 32 4 bits, default", {ScaleKind::kI8, 32, 4}, {});
    show("  i8 32 8 bits, default", {ScaleKind::kI8, 32, 8}, {});
    show("  f16min 4 bits, default", {ScaleKind::kF16Min, 32, 4}, {});
  }
}

template <class F>
double BestSeconds(F&& f) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const double start = Now();
    f();
    best = std::min(best, Now() - start);
  }
  return best;
}

void MeasureSpeed() {
  const Matrix m = Random(false)[0];
  const auto weights = static_cast<double>(m.values.size());
  NestedPanel panel;
  for (const NestedFormat format : {NestedFormat{ScaleKind::kU8Min, 32, 4},
                                    {ScaleKind::kU8Min, 32, 8},
                                    {ScaleKind::kF16, 32, 4},
                                    {ScaleKind::kF16, 32, 8},
                                    {ScaleKind::kI8, 16, 6}}) {
    std::vector<std::vector<std::byte>> bytes(static_cast<size_t>(NestedPlanes(format.bits)));
    std::byte* starts[kMaxPlanes] = {};
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i].resize(NestedPlaneBytes(format, m.rows, m.cols, static_cast<int>(i)));
      starts[i] = bytes[i].data();
    }
    const double quantize = BestSeconds([&] {
      for (int first = 0; first < m.rows; first += kNestedRows) {
        QuantizePanel({format, {}}, {}, m.values.data() + static_cast<ptrdiff_t>(first) * m.cols,
                      kNestedRows, m.cols, &panel);
      }
    });
    const double encode = BestSeconds([&] {
      for (int i = 0; i < m.rows / kNestedRows; ++i) {
        EncodeNestedPanel(format, m.cols, panel, i, starts);
      }
    });
    std::printf(
        "kind %d group %2d bits %d: quantize %6.1f M weights/s, encode %6.0f, BF16 source %4.0f "
        "MB/s\n",
        static_cast<int>(format.scales), format.group, format.bits, weights / quantize / 1e6,
        weights / encode / 1e6, 2 * weights / (quantize + encode) / 1e6);
  }
  // Error compensation: its time does not depend on what the factor says.
  std::vector<float> factor(static_cast<size_t>(m.cols) * m.cols, 1e-4f);
  for (int k = 0; k < m.cols; ++k) factor[static_cast<size_t>(k) * (m.cols + 1)] = 1;
  const double compensated = BestSeconds([&] {
    QuantizePanel({{ScaleKind::kU8Min, 32, 4}, {}}, {{}, factor}, m.values.data(), kNestedRows,
                  m.cols, &panel);
  });
  std::printf("4 bits with compensation, %d columns: %.1f M weights/s\n", m.cols,
              kNestedRows * m.cols / compensated / 1e6);
  for (const GgufType type :
       {GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0, GgufType::kQ5_1, GgufType::kQ8_0,
        GgufType::kQ2_K, GgufType::kQ3_K, GgufType::kQ4_K, GgufType::kQ5_K, GgufType::kQ6_K}) {
    const GgufTypeInfo info = *FindGgufType(static_cast<uint32_t>(type));
    const std::vector<std::byte> blocks(GgufBytes(info, m.values.size()), std::byte{0x3c});
    const auto panel_bytes = blocks.size() * kNestedRows / static_cast<size_t>(m.rows);
    const NestedFormat format = *ExactFormat(type);
    std::vector<std::vector<std::byte>> bytes(static_cast<size_t>(NestedPlanes(format.bits)));
    std::byte* starts[kMaxPlanes] = {};
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i].resize(NestedPlaneBytes(format, m.rows, m.cols, static_cast<int>(i)));
      starts[i] = bytes[i].data();
    }
    const double import = BestSeconds([&] {
      for (int i = 0; i < m.rows / kNestedRows; ++i) {
        ImportPanel(info, blocks.data() + static_cast<size_t>(i) * panel_bytes, kNestedRows, m.cols,
                    &panel);
      }
    });
    const double encode = BestSeconds([&] {
      for (int i = 0; i < m.rows / kNestedRows; ++i) {
        EncodeNestedPanel(format, m.cols, panel, i, starts);
      }
    });
    const auto source = static_cast<double>(blocks.size()) / 1e6;
    std::printf("%s: import %5.0f MB/s of source, encode %5.0f, both %5.0f\n", info.name.data(),
                source / import, source / encode, source / (import + encode));
  }
}

int Main(int argc, char** argv) {
  if (argc >= 2 && std::strcmp(argv[1], "error") == 0) {
    CompareErrors(argc > 2 ? argv[2] : nullptr);
    return 0;
  }
  if (argc == 2 && std::strcmp(argv[1], "speed") == 0) {
    MeasureSpeed();
    return 0;
  }
  std::fprintf(stderr, "usage: bench_quantizer error [MODEL_DIRECTORY] | speed\n");
  return 2;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
