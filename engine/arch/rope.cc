#include "engine/arch/rope.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "engine/base/check.h"

namespace sluice {
namespace {

// base ^ (2 i / dim), with base and exponent rounded to float32 first, as the reference's tensors.
float PositionPeriod(float base, int i, int dim) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
  return static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
}

std::vector<float> PlainFrequencies(double theta, int dim) {
  std::vector<float> frequencies(static_cast<size_t>(dim / 2));
  for (int i = 0; i < dim / 2; ++i) {
    frequencies[static_cast<size_t>(i)] = 1.0f / PositionPeriod(static_cast<float>(theta), i, dim);
  }
  return frequencies;
}

// YaRN (arXiv 2309.00071): high frequencies are kept, low ones are divided by the factor, and those
// between are blended along a ramp over the dimensions.
std::vector<float> YarnFrequencies(const RopeScaling& scaling, double theta, int dim) {
  const auto correction_dim = [&](double rotations) {
    return dim * std::log(scaling.original_max_position / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(theta));
  };
  double low = correction_dim(scaling.beta_fast);
  double high = correction_dim(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;  // the reference's guard against a ramp of no width

  std::vector<float> frequencies(static_cast<size_t>(dim / 2));
  for (int i = 0; i < dim / 2; ++i) {
    const float period = PositionPeriod(static_cast<float>(theta), i, dim);
    const float extrapolated = 1.0f / period;
    const float interpolated = 1.0f / (static_cast<float>(scaling.factor) * period);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    frequencies[static_cast<size_t>(i)] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return frequencies;
}

double YarnAttentionFactor(const RopeScaling& scaling) {
  if (scaling.attention_factor > 0.0) return scaling.attention_factor;
  const auto scale = [&](double mscale) {
    return scaling.factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scaling.factor) + 1.0;
  };
  if (scaling.mscale != 0.0 && scaling.mscale_all_dim != 0.0) {
    return scale(scaling.mscale) / scale(scaling.mscale_all_dim);
  }
  return scale(1.0);
}

// Llama 3.1: wavelengths beyond the trained context are stretched by the factor, short ones are
// kept, and those between are blended.
void ScaleLlama3(const RopeScaling& scaling, std::vector<float>& frequencies) {
  const double context = scaling.original_max_position;
  const auto low_wavelength = static_cast<float>(context / scaling.low_freq_factor);
  const auto high_wavelength = static_cast<float>(context / scaling.high_freq_factor);
  const auto factor = static_cast<float>(scaling.factor);
  const auto low = static_cast<float>(scaling.low_freq_factor);
  const auto width = static_cast<float>(scaling.high_freq_factor - scaling.low_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / frequency;
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      frequency /= factor;
      continue;
    }
    const float smooth = (static_cast<float>(context) / wavelength - low) / width;
    frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
  }
}

}  // namespace

RopeTable::RopeTable(const ModelConfig& config) {
  const int dim = config.rotary_dim;
  SLUICE_CHECK(dim >= 2 && dim % 2 == 0);
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.kind) {
    case RopeScalingKind::kNone:
      inverse_frequencies_ = PlainFrequencies(config.rope_theta, dim);
      break;
    case RopeScalingKind::kLinear:
      inverse_frequencies_ = PlainFrequencies(config.rope_theta, dim);
      for (float& frequency : inverse_frequencies_) {
        frequency /= static_cast<float>(scaling.factor);
      }
      break;
    case RopeScalingKind::kDynamic:
      SLUICE_CHECK(dim >= 4 && scaling.original_max_position > 0);
      inverse_frequencies_ = PlainFrequencies(config.rope_theta, dim);
      trained_length_ = scaling.original_max_position;
      theta_ = config.rope_theta;
      factor_ = scaling.factor;
      break;
    case RopeScalingKind::kYarn:
      inverse_frequencies_ = YarnFrequencies(scaling, config.rope_theta, dim);
      attention_factor_ = static_cast<float>(YarnAttentionFactor(scaling));
      break;
    case RopeScalingKind::kLlama3:
      inverse_frequencies_ = PlainFrequencies(config.rope_theta, dim);
      ScaleLlama3(scaling, inverse_frequencies_);
      break;
  }
}

void RopeTable::DynamicFrequencies(int length, float* frequencies) const {
  // float32 throughout: the reference computes the base from a tensor that holds the length.
  const int dim = 2 * half_dim();
  const float stretch = static_cast<float>(factor_) * static_cast<float>(length) /
                            static_cast<float>(trained_length_) -
                        static_cast<float>(factor_ - 1.0);
  const double exponent = static_cast<double>(dim) / (dim - 2);
  const auto growth = static_cast<float>(
      std::pow(static_cast<double>(stretch), static_cast<double>(static_cast<float>(exponent))));
  const float base = static_cast<float>(theta_) * growth;
  for (int i = 0; i < half_dim(); ++i) frequencies[i] = 1.0f / PositionPeriod(base, i, dim);
}

void RopeTable::CosSin(int position, float* cos, float* sin) const {
  SLUICE_CHECK(position >= 0);
  const float* frequencies = inverse_frequencies_.data();
  if (trained_length_ != 0 && position >= trained_length_) {
    DynamicFrequencies(position + 1, sin);  // each is read before its sine is written
    frequencies = sin;
  }
  for (int i = 0; i < half_dim(); ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    cos[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * attention_factor_;
    sin[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * attention_factor_;
  }
}

RopeCache::RopeCache(const RopeTable& table, int max_positions)
    : half_dim_(table.half_dim()), max_positions_(max_positions) {
  SLUICE_CHECK(max_positions >= 0);
  const auto row = 2 * static_cast<size_t>(half_dim_);
  values_.resize(static_cast<size_t>(max_positions) * row);
  for (int position = 0; position < max_positions; ++position) {
    float* values = values_.data() + static_cast<size_t>(position) * row;
    table.CosSin(position, values, values + half_dim_);
  }
}

}  // namespace sluice
