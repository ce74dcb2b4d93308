#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/reference/reference.h"
#include "tests/support/catch.h"
#include "tests/unit/kernels/kernel_fixture.h"

namespace sluice::cpu {
namespace {

std::vector<int> Lengths() {
  std::vector<int> lengths;
  for (int n = 1; n <= 70; ++n) lengths.push_back(n);
  for (const int n : {127, 128, 255, 1000, 2048}) lengths.push_back(n);
  return lengths;
}

// Largest |a - b| / (|b| + floor).
double WorstRelative(const float* a, const std::vector<float>& b, double floor) {
  double worst = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double error = std::fabs(static_cast<double>(a[i]) - b[i]) /
                         (std::fabs(static_cast<double>(b[i])) + floor);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  }
  return worst;
}

TEST_CASE("Pointwise ops agree with the reference at every length and alignment",
          "[kernels][pointwise]") {
  Numbers numbers(31);
  for (const Ops* ops : AvailableOps()) {
    for (const int n : Lengths()) {
      INFO(ops->name << " length " << n);
      const size_t misalign = n % 4 * 4;
      const std::vector<float> a = numbers.Vector(n, 3.0f);
      const std::vector<float> b = numbers.Vector(n, 2.0f);
      Guarded<float> x(n, misalign), w(n, 4), out(n, misalign);
      x.Assign(a);
      w.Assign(b);
      std::vector<float> expected(n);

      reference::RmsNorm(a.data(), b.data(), n, 1e-6f, expected.data());
      ops->rms_norm(x.data(), w.data(), n, 1e-6f, out.data());
      CHECK(WorstRelative(out.data(), expected, 1e-6) < 1e-6);
      CHECK(out.Intact());
      ops->rms_norm(x.data(), w.data(), n, 1e-6f, x.data());
      CHECK(std::memcmp(x.data(), out.data(), n * sizeof(float)) == 0);
      x.Assign(a);

      reference::SiluMul(a.data(), b.data(), n, expected.data());
      ops->silu_mul(x.data(), w.data(), n, out.data());
      CHECK(WorstRelative(out.data(), expected, 1e-6) < 1e-6);
      CHECK(out.Intact());

      expected = b;
      reference::AddScaled(a.data(), 0.37f, n, expected.data());
      out.Assign(b);
      ops->add_scaled(x.data(), 0.37f, n, out.data());
      CHECK(WorstRelative(out.data(), expected, 1.0) < 2e-7);
      CHECK(out.Intact());

      expected = a;
      reference::Softmax(expected.data(), n);
      ops->softmax(x.data(), n);
      CHECK(WorstRelative(x.data(), expected, 1e-9) < 2e-6);
      CHECK(x.Intact());
    }
  }
}

TEST_CASE("Rotary embedding agrees with the reference for every size", "[kernels][pointwise]") {
  Numbers numbers(32);
  for (const Ops* ops : AvailableOps()) {
    for (int dim = 2; dim <= 140; dim += 2) {
      INFO(ops->name << " rotary_dim " << dim);
      std::vector<float> cos, sin;
      for (int i = 0; i < dim / 2; ++i) {
        cos.push_back(std::cos(0.3f * static_cast<float>(i)));
        sin.push_back(std::sin(0.3f * static_cast<float>(i)));
      }
      const std::vector<float> values = numbers.Vector(dim);
      std::vector<float> expected = values;
      reference::Rope(expected.data(), cos.data(), sin.data(), dim);
      Guarded<float> x(dim, 4);
      x.Assign(values);
      ops->rope(x.data(), cos.data(), sin.data(), dim);
      CHECK(WorstRelative(x.data(), expected, 1.0) < 3e-7);
      CHECK(x.Intact());
    }
  }
}

TEST_CASE("The exponential is accurate over its whole range", "[kernels][pointwise]") {
  for (const Ops* ops : AvailableOps()) {
    INFO(ops->name);
    // Unnormalised through a two-value softmax: p = e^-d / (1 + e^-d).
    double worst = 0;
    for (int i = 0; i <= 8600; ++i) {
      float x[2] = {0.0f, static_cast<float>(-i) * 0.01f};
      const double e = std::exp(static_cast<double>(x[1]));
      ops->softmax(x, 2);
      worst = std::max(worst, std::fabs(x[1] * (1 + e) / e - 1));
    }
    CHECK(worst < 4e-7);
    float far[3] = {100.0f, -1e30f, -std::numeric_limits<float>::infinity()};
    ops->softmax(far, 3);
    CHECK(far[0] == 1.0f);
    CHECK(far[1] == 0.0f);
    CHECK(far[2] == 0.0f);
    float broken[20] = {};
    broken[17] = std::numeric_limits<float>::quiet_NaN();
    ops->softmax(broken, 20);
    CHECK(std::isnan(broken[17]));
  }
}

TEST_CASE("SiLU is right at the ends of the range", "[kernels][pointwise]") {
  for (const Ops* ops : AvailableOps()) {
    INFO(ops->name);
    const float gate[5] = {-1000.0f, -90.0f, 0.0f, 90.0f, 1000.0f};
    const float up[5] = {1, 1, 1, 1, 1};
    float out[5];
    ops->silu_mul(gate, up, 5, out);
    CHECK(std::fabs(out[0]) < 1e-30f);
    CHECK(std::fabs(out[1]) < 1e-30f);
    CHECK(out[2] == 0.0f);
    CHECK(out[3] == 90.0f);
    CHECK(out[4] == 1000.0f);
  }
}

TEST_CASE("Conversion to F32 takes any length and alignment", "[kernels][pointwise]") {
  Numbers numbers(34);
  for (const Ops* ops : AvailableOps()) {
    for (const DType dtype : kAllDTypes) {
      for (const int n : Lengths()) {
        INFO(Case(*ops, dtype, "length", n));
        const std::vector<uint8_t> encoded = Encoded(dtype, numbers.Vector(n));
        Guarded<uint8_t> source(encoded.size(), 1);
        source.Assign(encoded);
        Guarded<float> out(n, 4);
        ops->to_f32(dtype, source.data(), n, out.data());
        CHECK(out.Intact());
        int wrong = 0;
        for (int i = 0; i < n; ++i) {
          wrong += out.data()[i] != reference::Element(dtype, encoded.data(), i);
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("The read-bandwidth probe reads every byte once", "[kernels][pointwise]") {
  for (const Ops* ops : AvailableOps()) {
    for (const size_t bytes : {size_t{4096}, size_t{12288}, size_t{65536}}) {
      INFO(ops->name << " bytes " << bytes);
      std::vector<uint64_t> words(bytes / 8);
      uint64_t sum = 0;
      for (size_t i = 0; i < words.size(); ++i) sum += words[i] = i * 0x9e3779b97f4a7c15u;
      CHECK(ops->read_stream(words.data(), bytes) == sum);
    }
  }
}

TEST_CASE("Names select instruction sets", "[kernels]") {
  Isa isa = Isa::kAuto;
  for (const char* name : {"auto", "scalar", "avx2", "avx512", "avx512bf16", "neon"}) {
    INFO(name);
    REQUIRE(ParseIsa(name, &isa));
    const Ops* ops = SelectOps(isa);
    if (isa != Isa::kAuto && ops != nullptr) CHECK(std::strcmp(ops->name, name) == 0);
  }
  CHECK_FALSE(ParseIsa("", &isa));
  CHECK_FALSE(ParseIsa("AVX2", &isa));
  CHECK_FALSE(ParseIsa("avx5", &isa));
  REQUIRE(SelectOps(Isa::kScalar) != nullptr);
  REQUIRE(SelectOps(Isa::kAuto) != nullptr);
  CHECK(SelectOps(Isa::kAuto) == AvailableOps().back());
}

}  // namespace
}  // namespace sluice::cpu
