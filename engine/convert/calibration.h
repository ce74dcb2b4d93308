// What a model's activations look like on a text: the importance of every matrix's input columns,
// the use that routing makes of experts, and samples to measure output errors on.
//
//   Calibrator calibrator(config, options);
//   model_options.observer = &calibrator;
//   Result<std::unique_ptr<Model>> model = Model::Load(directory, model_options);
//   RunCalibration(model->get(), sequences);
//   const CalibrationStatistics& statistics = calibrator.statistics();
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/convert/quantizer.h"
#include "engine/experts/forward_observer.h"
#include "engine/model/model.h"

namespace sluice {

struct CalibrationOptions {
  // Layers [first, end) keep second moments, for error compensation: cols^2 floats for each of a
  // layer's dense inputs and, with expert_moments, for each expert's two. Large models are run
  // several times, a few layers each.
  int moments_first_layer = 0;
  int moments_end_layer = 0;
  bool expert_moments = true;  // false: experts share their layer's, inputs of gate and up only
  bool head_moments = false;   // second moments of the output head's inputs, too
  // Inputs kept for each expert, evenly spread over the tokens that chose it.
  int samples_per_expert = 32;
};

// Sums over the inputs of a matrix. An expert's inputs count by the square of the weight that its
// output got: so does an error of its output.
class InputMoments {
 public:
  // [cols]; empty before the first input.
  std::vector<float> MeanSquare() const;
  int cols() const { return cols_; }
  double weight() const { return weight_; }
  bool has_products() const { return !products_.empty(); }

  // The factor U of InputStatistics::compensation: U^T U = (H + damping)^-1. H is the mean of
  // x x^T, blended with `prior` (nullable; of the same cols) as if `prior_weight` inputs more had
  // been seen. damping is relative to the mean of H's diagonal. Empty without products.
  std::vector<float> Compensation(double damping, const InputMoments* prior = nullptr,
                                  double prior_weight = 0) const;

  // Adds inputs with their weights (null: 1). `products`: also their outer products.
  // REQUIRES: the same cols and `products` in every call.
  void Add(const float* const* rows, const float* weights, int count, int cols, bool products);
  // Adds all that `other` has seen; products are kept when both have them or this one is empty.
  void Merge(const InputMoments& other);
  // Frees the outer products; Add must not be called with products after it.
  void DropProducts();

 private:
  int cols_ = 0;
  int padded_ = 0;  // cols to a multiple of 16
  double weight_ = 0;
  std::vector<double> squares_;  // [cols]
  std::vector<float> products_;  // [padded, padded], upper triangle; empty: not kept
  std::vector<float> scaled_;    // scratch
};

struct ExpertStatistics {
  int64_t count = 0;    // tokens that chose it
  double weight = 0;    // sum of their weights for it
  float peak = 0;       // largest magnitude of an output, before its weight
  InputMoments inputs;  // of gate and up
  InputMoments down_inputs;
  std::vector<float> samples;         // [n, hidden] inputs; n up to twice samples_per_expert
  std::vector<float> sample_weights;  // [n]
  int64_t sample_stride = 1;          // every so many tokens give a sample
};

struct LayerStatistics {
  InputMoments attention_inputs;   // of q, k and v
  InputMoments attention_outputs;  // of o
  ExpertStatistics shared;         // the shared expert, or a dense layer's network
  // Of gate and up of all routed experts together; without products when each expert keeps its own.
  InputMoments expert_inputs;
  std::vector<ExpertStatistics> experts;

  // expert_inputs with the products of all experts.
  InputMoments MergedInputs() const;
};

struct CalibrationStatistics {
  int64_t tokens = 0;
  std::vector<LayerStatistics> layers;
  InputMoments head;
};

// Threads: as Forward's. Memory: see CalibrationOptions; otherwise a few vectors for each matrix.
class Calibrator final : public ForwardObserver {
 public:
  Calibrator(const ModelConfig& config, const CalibrationOptions& options);

  const CalibrationStatistics& statistics() const { return statistics_; }
  // Frees the second moments of layers; everything else stays. REQUIRES: no more inputs after it.
  void DropMoments();

  void OnAttentionInputs(int layer, const ActivationRows& x) override;
  void OnAttentionOutputs(int layer, const ActivationRows& x) override;
  void OnExpert(const ExpertActivations& activations) override;
  void OnHeadInputs(const ActivationRows& x) override;

 private:
  bool Products(int layer) const {
    return layer >= options_.moments_first_layer && layer < options_.moments_end_layer;
  }
  void AddAll(const ActivationRows& x, bool products, InputMoments* moments);
  void Sample(const ExpertActivations& activations, ExpertStatistics* expert);

  CalibrationOptions options_;
  CalibrationStatistics statistics_;
  std::vector<const float*> rows_;
  std::vector<float> squared_weights_;
};

// Runs every sequence through the model in chunks of its max_batch_tokens, logits for all tokens so
// that the last layer sees them too. Sequences longer than max_context, or than the KV blocks hold,
// are cut. `progress` (may be empty) gets fractions in (0, 1].
void RunCalibration(Model* model, std::span<const std::vector<int32_t>> sequences,
                    const std::function<void(double)>& progress = {});

// Tokens in equal pieces of at most `length`; a shorter last piece is dropped unless it is the only
// one.
std::vector<std::vector<int32_t>> CutSequences(std::span<const int32_t> tokens, int length);

}  // namespace sluice
