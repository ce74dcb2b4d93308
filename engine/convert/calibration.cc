#include "engine/convert/calibration.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "kernels/cpu/convert_ops.h"

namespace sluice {
namespace {

constexpr int kBlockRows = 64;  // inputs whose outer products are added together

}  // namespace

std::vector<float> InputMoments::MeanSquare() const {
  std::vector<float> mean(squares_.size());
  for (size_t k = 0; k < mean.size(); ++k) {
    mean[k] = static_cast<float>(squares_[k] / std::max(weight_, 1e-30));
  }
  return mean;
}

void InputMoments::Add(const float* const* rows, const float* weights, int count, int cols,
                       bool products) {
  if (squares_.empty()) {
    cols_ = cols;
    padded_ = (cols + 15) / 16 * 16;
    squares_.assign(static_cast<size_t>(cols), 0.0);
    if (products) {
      products_.assign(static_cast<size_t>(padded_) * static_cast<size_t>(padded_), 0.0f);
      scaled_.assign(static_cast<size_t>(padded_) * kBlockRows, 0.0f);
    }
  }
  SLUICE_CHECK(cols == cols_ && products == has_products());
  for (int begin = 0; begin < count; begin += kBlockRows) {
    const int block = std::min(kBlockRows, count - begin);
    for (int i = 0; i < block; ++i) {
      const float* row = rows[begin + i];
      const float weight = weights != nullptr ? weights[begin + i] : 1.0f;
      weight_ += weight;
      for (int k = 0; k < cols; ++k) squares_[k] += double{weight} * row[k] * row[k];
      if (!products) continue;
      const float root = std::sqrt(weight);
      float* to = scaled_.data() + static_cast<ptrdiff_t>(i) * padded_;
      for (int k = 0; k < cols; ++k) to[k] = row[k] * root;
    }
    if (products) {
      cpu::SelectConvertOps(cpu::Isa::kAuto)
          ->add_outer_products(scaled_.data(), block, padded_, products_.data());
    }
  }
}

void InputMoments::Merge(const InputMoments& other) {
  if (other.squares_.empty()) return;
  if (squares_.empty()) {
    *this = other;
    return;
  }
  SLUICE_CHECK(cols_ == other.cols_);
  weight_ += other.weight_;
  for (size_t k = 0; k < squares_.size(); ++k) squares_[k] += other.squares_[k];
  if (!other.has_products()) products_.clear();
  for (size_t i = 0; i < products_.size(); ++i) products_[i] += other.products_[i];
}

void InputMoments::DropProducts() {
  products_ = {};
  scaled_ = {};
}

// With R upper triangular and H = R R^T, U = R^-1: U^T U = R^-T R^-1 = H^-1. R is Cholesky's factor
// taken from the last column to the first. Both steps walk rows of contiguous columns, in Ops'
// add_scaled.
std::vector<float> InputMoments::Compensation(double damping, const InputMoments* prior,
                                              double prior_weight) const {
  if (!has_products()) return {};
  const auto n = static_cast<size_t>(cols_);
  const bool blend = prior != nullptr && prior->has_products() && prior->weight_ > 0;
  SLUICE_CHECK(!blend || prior->cols_ == cols_);
  const double total = weight_ + (blend ? prior_weight : 0.0);
  const double own = total > 0 ? 1.0 / total : 0.0;
  const double from_prior = blend && total > 0 ? prior_weight / total / prior->weight_ : 0.0;
  // Row j of `r` holds column j of R above its diagonal: entries [0, j].
  std::vector<float> r(n * n, 0.0f);
  double diagonal = 0;
  for (size_t j = 0; j < n; ++j) {
    for (size_t i = 0; i <= j; ++i) {
      const size_t at = i * static_cast<size_t>(padded_) + j;
      double h = products_[at] * own;
      if (blend) h += prior->products_[at] * from_prior;
      r[j * n + i] = static_cast<float>(h);
    }
    diagonal += r[j * n + j];
  }
  const double mean = diagonal / static_cast<double>(n);
  const auto floor = static_cast<float>(mean > 0 ? damping * mean : 1.0);
  for (size_t j = 0; j < n; ++j) r[j * n + j] += floor;

  const cpu::Ops* ops = cpu::SelectOps(cpu::Isa::kAuto);
  for (size_t j = n; j-- > 0;) {
    float* column = r.data() + j * n;
    // Rounding can eat a pivot no further than the damping that it started with.
    const float pivot = std::sqrt(std::max(column[j], floor * 0.5f));
    for (size_t i = 0; i < j; ++i) column[i] /= pivot;
    column[j] = pivot;
    for (size_t k = 0; k < j; ++k) {
      ops->add_scaled(column, -column[k], static_cast<int>(k) + 1, r.data() + k * n);
    }
  }
  // U = R^-1 row by row from the last: U[j, :] = (e_j - sum over k > j of R[j, k] U[k, :]) / R[j,
  // j].
  std::vector<float> u(n * n, 0.0f);
  for (size_t j = n; j-- > 0;) {
    float* row = u.data() + j * n;
    row[j] = 1;
    for (size_t k = j + 1; k < n; ++k) {
      ops->add_scaled(u.data() + k * n + k, -r[k * n + j], static_cast<int>(n - k), row + k);
    }
    const float inverse = 1.0f / r[j * n + j];
    for (size_t k = j; k < n; ++k) row[k] *= inverse;
  }
  return u;
}

InputMoments LayerStatistics::MergedInputs() const {
  if (expert_inputs.has_products()) return expert_inputs;
  InputMoments merged;
  for (const ExpertStatistics& expert : experts) merged.Merge(expert.inputs);
  return merged;
}

Calibrator::Calibrator(const ModelConfig& config, const CalibrationOptions& options)
    : options_(options) {
  statistics_.layers.resize(config.layers.size());
  for (size_t i = 0; i < config.layers.size(); ++i) {
    if (!config.layers[i].sparse) continue;
    statistics_.layers[i].experts.resize(static_cast<size_t>(config.router.num_experts));
  }
}

void Calibrator::DropMoments() {
  for (LayerStatistics& layer : statistics_.layers) {
    for (InputMoments* moments :
         {&layer.attention_inputs, &layer.attention_outputs, &layer.shared.inputs,
          &layer.shared.down_inputs, &layer.expert_inputs}) {
      moments->DropProducts();
    }
    for (ExpertStatistics& expert : layer.experts) {
      expert.inputs.DropProducts();
      expert.down_inputs.DropProducts();
    }
  }
}

void Calibrator::AddAll(const ActivationRows& x, bool products, InputMoments* moments) {
  rows_.clear();
  for (int i = 0; i < x.rows; ++i) rows_.push_back(x.x + static_cast<ptrdiff_t>(i) * x.cols);
  moments->Add(rows_.data(), nullptr, x.rows, x.cols, products);
}

void Calibrator::OnAttentionInputs(int layer, const ActivationRows& x) {
  if (layer == 0) statistics_.tokens += x.rows;
  AddAll(x, Products(layer), &statistics_.layers[layer].attention_inputs);
}

void Calibrator::OnAttentionOutputs(int layer, const ActivationRows& x) {
  AddAll(x, Products(layer), &statistics_.layers[layer].attention_outputs);
}

void Calibrator::OnHeadInputs(const ActivationRows& x) {
  AddAll(x, options_.head_moments, &statistics_.head);
}

void Calibrator::Sample(const ExpertActivations& seen, ExpertStatistics* expert) {
  const auto limit = static_cast<size_t>(2 * options_.samples_per_expert);
  if (limit == 0) return;
  const auto hidden = static_cast<ptrdiff_t>(seen.hidden);
  for (int i = 0; i < seen.count; ++i) {
    if ((expert->count + i) % expert->sample_stride != 0) continue;
    if (expert->sample_weights.size() == limit) {
      // Full: every other one goes, and the next come half as often.
      const size_t kept = limit / 2;
      for (size_t s = 1; s < kept; ++s) {
        expert->sample_weights[s] = expert->sample_weights[2 * s];
        std::copy_n(expert->samples.begin() + static_cast<ptrdiff_t>(2 * s) * hidden, hidden,
                    expert->samples.begin() + static_cast<ptrdiff_t>(s) * hidden);
      }
      expert->sample_weights.resize(kept);
      expert->samples.resize(kept * static_cast<size_t>(hidden));
      expert->sample_stride *= 2;
      if ((expert->count + i) % expert->sample_stride != 0) continue;
    }
    expert->samples.insert(expert->samples.end(), seen.input(i), seen.input(i) + hidden);
    expert->sample_weights.push_back(seen.weights[i]);
  }
}

void Calibrator::OnExpert(const ExpertActivations& seen) {
  LayerStatistics& layer = statistics_.layers[seen.layer];
  const bool routed = seen.expert >= 0;
  ExpertStatistics& expert = routed ? layer.experts[seen.expert] : layer.shared;
  rows_.clear();
  squared_weights_.clear();
  for (int i = 0; i < seen.count; ++i) {
    rows_.push_back(seen.input(i));
    squared_weights_.push_back(seen.weights[i] * seen.weights[i]);
    expert.weight += seen.weights[i];
  }
  const bool products = Products(seen.layer);
  const bool own = products && (options_.expert_moments || !routed);
  expert.inputs.Add(rows_.data(), squared_weights_.data(), seen.count, seen.hidden, own);
  if (routed) {
    layer.expert_inputs.Add(rows_.data(), squared_weights_.data(), seen.count, seen.hidden,
                            products && !own);
  }
  for (int i = 0; i < seen.count; ++i) {
    rows_[i] = seen.down_inputs + static_cast<ptrdiff_t>(i) * seen.intermediate;
  }
  expert.down_inputs.Add(rows_.data(), squared_weights_.data(), seen.count, seen.intermediate, own);
  const int64_t outputs = int64_t{seen.count} * seen.hidden;
  for (int64_t i = 0; i < outputs; ++i) {
    expert.peak = std::max(expert.peak, std::fabs(seen.outputs[i]));
  }
  Sample(seen, &expert);
  expert.count += seen.count;
}

void RunCalibration(Model* model, std::span<const std::vector<int32_t>> sequences,
                    const std::function<void(double)>& progress) {
  const ModelOptions& options = model->options();
  const int chunk_tokens = options.max_batch_tokens;
  const int longest = std::min(options.max_context, options.kv_blocks * kKvBlockTokens);
  std::vector<int32_t> blocks(static_cast<size_t>(options.kv_blocks));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto tokens =
        std::span(sequences[s]).first(std::min(sequences[s].size(), static_cast<size_t>(longest)));
    for (size_t done = 0; done < tokens.size(); done += static_cast<size_t>(chunk_tokens)) {
      const size_t count = std::min(static_cast<size_t>(chunk_tokens), tokens.size() - done);
      const SequenceChunk chunk = {tokens.subspan(done, count), static_cast<int>(done), blocks,
                                   LogitRows::kAll};
      model->Forward({&chunk, 1});
    }
    if (progress) progress(static_cast<double>(s + 1) / static_cast<double>(sequences.size()));
  }
}

std::vector<std::vector<int32_t>> CutSequences(std::span<const int32_t> tokens, int length) {
  std::vector<std::vector<int32_t>> sequences;
  const auto step = static_cast<size_t>(length);
  for (size_t begin = 0; begin < tokens.size(); begin += step) {
    const auto piece = tokens.subspan(begin, std::min(step, tokens.size() - begin));
    if (piece.size() < step && !sequences.empty()) break;
    sequences.emplace_back(piece.begin(), piece.end());
  }
  return sequences;
}

}  // namespace sluice
