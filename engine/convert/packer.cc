#include "engine/convert/packer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/convert/expert_error.h"
#include "engine/convert/expert_profile.h"
#include "engine/convert/layer_calibrator.h"
#include "engine/convert/quantizer.h"
#include "engine/convert/weight_encoder.h"
#include "engine/formats/pack.h"
#include "engine/model/pack_weights.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;
using Kind = WeightTarget::Kind;

bool InLadder(int bits) {
  const std::vector<int> ladder = PrecisionLadder();
  return std::find(ladder.begin(), ladder.end(), bits) != ladder.end();
}

WeightTarget Quantized(NestedFormat format) {
  WeightTarget target;
  target.kind = Kind::kQuantize;
  target.quantizer.format = format;
  target.fit_levels = true;
  return target;
}

// A matrix at `bits`, 0 meaning what the source has.
WeightTarget MatrixTarget(const CheckpointWeight& weight, int bits, WeightForm float_form) {
  if (bits != 0) return Quantized(ExpertFormat(bits));
  if (ExactFormat(weight.type.type)) return {.kind = Kind::kExact};
  SLUICE_CHECK(IsGgufFloat(weight.type.type));
  return {.kind = Kind::kFloats, .form = float_form};
}

// Relative to the mean of the second moments' diagonal, as GPTQ has it.
constexpr double kDamping = 0.01;

MatrixStatistics ImportanceOf(const InputMoments& moments, bool compensate,
                              const InputMoments* prior = nullptr) {
  // An expert that few tokens chose leans on what its layer's experts see together.
  const double prior_weight = prior == nullptr || prior->weight() <= 0 ? 0 : 0.1 * moments.cols();
  MatrixStatistics importance;
  importance.mean_square = moments.MeanSquare();
  if (compensate) importance.compensation = moments.Compensation(kDamping, prior, prior_weight);
  return importance;
}

class Packer {
 public:
  Packer(const Checkpoint& source, PackWriter writer, const PackOptions& options, int threads)
      : source_(source),
        config_(source.config()),
        options_(options),
        threads_(threads),
        writer_(std::move(writer)),
        encoder_(source, threads) {}

  Result<PackReport> Run() {
    const auto start = Clock::now();
    std::vector<ExpectedTensor> expected = ExpectedTensors(config_);
    for (size_t i = 0; i < expected.size(); ++i) {
      const ExpectedTensor& weight = expected[i];
      if (weight.expert < 0) {
        if (auto ok = AddDense(weight); !ok) return ok.error();
      } else if (weight.role == TensorRole::kExpertGate) {
        if (allocates() && weight.layer != allocated_layer_) {
          if (auto ok = AllocateExperts(weight.layer); !ok) return ok.error();
          allocated_layer_ = weight.layer;
        }
        if (auto ok = AddExpert(weight.layer, weight.expert); !ok) return ok.error();
      }
      Progress("packing", static_cast<double>(i + 1) / static_cast<double>(expected.size() + 1));
    }
    PackMetadata metadata;
    metadata.files = source_.files();
    metadata.provenance = Provenance();
    if (auto ok = writer_.Finish(metadata); !ok) return ok.error();
    Progress("packing", 1);
    report_.source_bytes = source_.weight_bytes();
    report_.pack_bytes = writer_.bytes_written();
    report_.expert_bits = Bits(expert_bytes_, expert_values_);
    report_.dense_bits = Bits(dense_bytes_, dense_values_);
    report_.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return report_;
  }

 private:
  static double Bits(uint64_t bytes, uint64_t values) {
    return values == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(values);
  }
  void Progress(const char* what, double fraction) const {
    if (options_.progress) options_.progress(what, fraction);
  }

  bool allocates() const {
    return options_.calibration != nullptr && options_.expert_bits != kKeepBits &&
           !options_.uniform;
  }

  // Bits of the routed experts of `layer` and those before it. Layer by layer, so that the second
  // moments that profiling needs are the ones that packing the layer needs next: for large models
  // every layer's cost a run over the text.
  Result<> AllocateExperts(int layer) {
    AllocationOptions allocation = options_.allocation;
    allocation.average_bits = options_.expert_bits;
    allocation.ladder = PrecisionLadder();
    if (profiles_.empty()) PreviewProfiles();
    // A budget for all layers together must know them all.
    const int first = allocation.across_layers ? 0 : layer;
    const int end = allocation.across_layers ? config_.num_layers() : layer + 1;
    if (allocation.across_layers && !report_.allocation.bits.empty()) return {};
    cpu::ThreadPool pool(threads_);
    for (int l = first; l < end; ++l) {
      if (!config_.layers[static_cast<size_t>(l)].sparse) continue;
      FetchLayer(l);
      auto measured =
          ProfileExperts(source_, l, options_.calibration->survey(), allocation.ladder,
                         [this](int index) { return ExpertImportance(index); }, &pool, {});
      if (!measured) return measured.error();
      profiles_[static_cast<size_t>(l)] = std::move(*measured);
    }
    auto solved = AllocateBits(profiles_, allocation);
    if (!solved) return solved.error();
    report_.allocation = std::move(*solved);
    return {};
  }

  // What is known without measuring errors; Super Experts are found among all layers' experts.
  void PreviewProfiles() {
    const CalibrationStatistics& survey = options_.calibration->survey();
    profiles_.resize(static_cast<size_t>(config_.num_layers()));
    for (size_t l = 0; l < profiles_.size(); ++l) {
      if (!config_.layers[l].sparse) continue;
      for (const ExpertStatistics& expert : survey.layers[l].experts) {
        profiles_[l].push_back(
            ProfileOf(expert, survey.tokens, std::vector<double>(PrecisionLadder().size(), 0.0)));
      }
    }
  }

  // Statistics of a layer's matrices, for the layer that is being packed.
  const LayerStatistics* StatisticsOf(int layer) {
    return options_.calibration == nullptr ? nullptr : &options_.calibration->Layer(layer);
  }

  MatrixStatistics DenseImportance(const ExpectedTensor& expected) {
    if (options_.calibration == nullptr) return {};
    const bool compensate = options_.compensate;
    const auto of = [&](const InputMoments& moments) { return ImportanceOf(moments, compensate); };
    switch (expected.role) {
      case TensorRole::kLmHead:
        return ImportanceOf(options_.calibration->survey().head, false);
      case TensorRole::kEmbedding:
        // A tied table is the output head, too.
        if (!config_.tied_embeddings) return {};
        return ImportanceOf(options_.calibration->survey().head, false);
      case TensorRole::kQ:
      case TensorRole::kK:
      case TensorRole::kV:
        return of(StatisticsOf(expected.layer)->attention_inputs);
      case TensorRole::kO:
        return of(StatisticsOf(expected.layer)->attention_outputs);
      case TensorRole::kSharedGate:
      case TensorRole::kSharedUp:
      case TensorRole::kDenseGate:
      case TensorRole::kDenseUp:
        return of(StatisticsOf(expected.layer)->shared.inputs);
      case TensorRole::kSharedDown:
      case TensorRole::kDenseDown:
        return of(StatisticsOf(expected.layer)->shared.down_inputs);
      default:
        return {};
    }
  }

  WeightTarget DenseTarget(const ExpectedTensor& expected, const CheckpointWeight& weight) const {
    switch (expected.role) {
      case TensorRole::kRouter:
      case TensorRole::kSharedGateWeight:
        return {.kind = Kind::kF32, .form = WeightForm::kPanels};
      case TensorRole::kEmbedding:
        return MatrixTarget(weight, options_.dense_bits,
                            config_.tied_embeddings ? WeightForm::kPanels : WeightForm::kRowMajor);
      default:
        break;
    }
    if (weight.rows == 1) return {.kind = Kind::kF32, .form = WeightForm::kRowMajor};
    return MatrixTarget(weight, options_.dense_bits, WeightForm::kPanels);
  }

  Result<> AddDense(const ExpectedTensor& expected) {
    const auto weight = source_.Find(expected.role, expected.layer, -1);
    if (!weight) return weight.error();
    WeightTarget target = DenseTarget(expected, *weight);
    MatrixStatistics importance;
    if (target.kind == Kind::kQuantize) importance = DenseImportance(expected);
    target.statistics = importance.view();
    const auto encoded = encoder_.Encode(*weight, target);
    if (!encoded) return encoded.error();
    dense_bytes_ += encoded->layout.bytes();
    dense_values_ += static_cast<uint64_t>(weight->rows) * weight->cols;
    return writer_.AddTensor(PackTensorName(config_, expected), encoded->layout, encoded->spans());
  }

  int ExpertBits(int layer, int index) const {
    if (!allocates()) return static_cast<int>(options_.expert_bits);
    return report_.allocation.bits[static_cast<size_t>(layer)][static_cast<size_t>(index)];
  }

  // Second moments of a layer's experts, for ExpertImportance.
  void FetchLayer(int layer) {
    layer_statistics_ = StatisticsOf(layer);
    if (layer_statistics_ == nullptr || merged_layer_ == layer) return;
    merged_inputs_ = layer_statistics_->MergedInputs();
    merged_layer_ = layer;
  }

  // Of gate and up, and of down, of an expert of the layer that was fetched last.
  std::pair<MatrixStatistics, MatrixStatistics> ExpertImportance(int index) const {
    if (layer_statistics_ == nullptr) return {};
    const ExpertStatistics& expert = layer_statistics_->experts[static_cast<size_t>(index)];
    const bool seen = expert.inputs.weight() > 0;
    const InputMoments& inputs =
        seen && expert.inputs.has_products() ? expert.inputs : merged_inputs_;
    MatrixStatistics importance = ImportanceOf(inputs, options_.compensate, &merged_inputs_);
    if (seen) importance.mean_square = expert.inputs.MeanSquare();
    MatrixStatistics down;
    if (seen) down = ImportanceOf(expert.down_inputs, options_.compensate);
    return {std::move(importance), std::move(down)};
  }

  Result<> AddExpert(int layer, int index) {
    constexpr TensorRole kRoles[] = {TensorRole::kExpertGate, TensorRole::kExpertUp,
                                     TensorRole::kExpertDown};
    std::pair<MatrixStatistics, MatrixStatistics> importance;
    if (options_.expert_bits != kKeepBits) {
      FetchLayer(layer);
      importance = ExpertImportance(index);
    }
    EncodedWeight encoded[3];
    for (int i = 0; i < 3; ++i) {
      const auto weight = source_.Find(kRoles[i], layer, index);
      if (!weight) return weight.error();
      WeightTarget target = MatrixTarget(*weight, ExpertBits(layer, index), WeightForm::kPanels);
      target.statistics = (i == 2 ? importance.second : importance.first).view();
      auto one = encoder_.Encode(*weight, target);
      if (!one) return one.error();
      encoded[i] = std::move(*one);
      expert_bytes_ += encoded[i].layout.bytes();
      expert_values_ += static_cast<uint64_t>(weight->rows) * weight->cols;
    }
    return writer_.AddExpert(layer, index,
                             {encoded[0].layout, encoded[1].layout, encoded[2].layout},
                             {encoded[0].spans(), encoded[1].spans(), encoded[2].spans()});
  }

  nlohmann::ordered_json Provenance() const {
    nlohmann::ordered_json json;
    json["tool"] = options_.tool;
    json["source"] = options_.source_name;
    json["source_description"] = source_.description();
    json["expert_bits"] = options_.expert_bits;
    json["dense_bits"] = options_.dense_bits;
    json["ladder"] = PrecisionLadder();
    if (options_.calibration == nullptr) return json;
    const CalibrationStatistics& survey = options_.calibration->survey();
    json["calibration"] = {{"text", options_.calibration_name},
                           {"tokens", survey.tokens},
                           {"error_compensation", options_.compensate}};
    // For prefetch and caches: the share of tokens that chose each expert.
    nlohmann::ordered_json frequencies = nlohmann::ordered_json::array();
    for (const LayerStatistics& layer : survey.layers) {
      nlohmann::ordered_json row = nlohmann::ordered_json::array();
      for (const ExpertStatistics& expert : layer.experts) {
        const double share = static_cast<double>(expert.count) /
                             static_cast<double>(std::max<int64_t>(1, survey.tokens));
        row.push_back(std::round(share * 1e5) / 1e5);
      }
      frequencies.push_back(std::move(row));
    }
    json["calibration"]["expert_frequency"] = std::move(frequencies);
    if (!allocates()) return json;
    const Allocation& allocation = report_.allocation;
    json["allocation"] = {{"average_bits", allocation.average_bits}, {"bits", allocation.bits}};
    nlohmann::ordered_json super = nlohmann::ordered_json::array();
    for (const ExpertId id : allocation.super_experts) super.push_back({id.layer, id.index});
    json["allocation"]["super_experts"] = std::move(super);
    return json;
  }

  const Checkpoint& source_;
  const ModelConfig& config_;
  const PackOptions& options_;
  const int threads_;
  PackWriter writer_;
  WeightEncoder encoder_;
  PackReport report_;
  std::vector<std::vector<ExpertProfile>> profiles_;  // [layer][expert]; errors up to this layer's
  int allocated_layer_ = -1;
  const LayerStatistics* layer_statistics_ = nullptr;
  InputMoments merged_inputs_;  // of merged_layer_'s experts
  int merged_layer_ = -1;
  uint64_t expert_bytes_ = 0, expert_values_ = 0;
  uint64_t dense_bytes_ = 0, dense_values_ = 0;
};

Result<> CheckOptions(const PackOptions& options) {
  if (options.dense_bits != 0 && !InLadder(options.dense_bits)) {
    return InvalidArgument("dense bits must be 2, 3, 4, 6 or 8, not " +
                           std::to_string(options.dense_bits));
  }
  const double bits = options.expert_bits;
  if (bits == kKeepBits) return {};
  if (!(bits >= 2 && bits <= 8)) {
    return InvalidArgument("expert bits must lie between 2 and 8");
  }
  const bool whole = bits == std::floor(bits) && InLadder(static_cast<int>(bits));
  if (!whole && (options.calibration == nullptr || options.uniform)) {
    return InvalidArgument(
        "an average between the precisions 2, 3, 4, 6 and 8 needs a calibration to say which "
        "experts deserve more");
  }
  return {};
}

// Plane sets of small experts lose less to an alignment of 512.
size_t Alignment(const ModelConfig& config) {
  constexpr int64_t kSmallExpertValues = 1 << 20;
  const int64_t values = int64_t{3} * config.hidden * config.expert_intermediate;
  return values < kSmallExpertValues ? 512 : kPackAlign;
}

}  // namespace

Result<PackReport> PackModel(const Checkpoint& source, const std::filesystem::path& path,
                             const PackOptions& options) {
  if (auto ok = CheckOptions(options); !ok) return ok.error();
  const ModelConfig& config = source.config();
  auto writer =
      PackWriter::Create(path, config.num_layers(), config.router.num_experts, Alignment(config));
  if (!writer) return writer.error();
  const int threads = options.threads > 0 ? options.threads : cpu::UsableCores();
  return Packer(source, std::move(*writer), options, threads).Run();
}

}  // namespace sluice
