#include "engine/convert/packer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <utility>

#include "engine/convert/quantizer.h"
#include "engine/convert/weight_encoder.h"
#include "engine/formats/pack.h"
#include "engine/model/pack_weights.h"

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;
using Kind = WeightTarget::Kind;

constexpr int kLadder[] = {2, 3, 4, 6, 8};

bool InLadder(int bits) {
  return std::find(std::begin(kLadder), std::end(kLadder), bits) != std::end(kLadder);
}

bool IsFloat(GgufType type) {
  return type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16;
}

WeightTarget Quantized(int bits) {
  WeightTarget target;
  target.kind = Kind::kQuantize;
  target.quantizer.format = {ScaleKind::kU8Min, 32, static_cast<uint8_t>(bits)};
  return target;
}

// A matrix at `bits`, 0 meaning what the source has.
WeightTarget MatrixTarget(const CheckpointWeight& weight, int bits, WeightForm float_form) {
  if (bits != 0) return Quantized(bits);
  if (ExactFormat(weight.type.type)) return {.kind = Kind::kExact};
  if (IsFloat(weight.type.type)) return {.kind = Kind::kFloats, .form = float_form};
  // Values that are not equally spaced (IQ4_NL, IQ4_XS, MXFP4).
  return Quantized(8);
}

class Packer {
 public:
  Packer(const Checkpoint& source, PackWriter writer, const PackOptions& options, int threads)
      : source_(source),
        config_(source.config()),
        options_(options),
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
        if (auto ok = AddExpert(weight.layer, weight.expert); !ok) return ok.error();
      }
      if (options_.progress) {
        options_.progress(static_cast<double>(i + 1) / static_cast<double>(expected.size() + 1));
      }
    }
    PackMetadata metadata;
    metadata.files = source_.files();
    metadata.provenance = Provenance();
    if (auto ok = writer_.Finish(metadata); !ok) return ok.error();
    if (options_.progress) options_.progress(1);
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
    const auto encoded = encoder_.Encode(*weight, DenseTarget(expected, *weight));
    if (!encoded) return encoded.error();
    dense_bytes_ += encoded->layout.bytes();
    dense_values_ += static_cast<uint64_t>(weight->rows) * weight->cols;
    return writer_.AddTensor(PackTensorName(config_, expected), encoded->layout, encoded->spans());
  }

  Result<> AddExpert(int layer, int index) {
    constexpr TensorRole kRoles[] = {TensorRole::kExpertGate, TensorRole::kExpertUp,
                                     TensorRole::kExpertDown};
    const int bits = static_cast<int>(options_.expert_bits);
    EncodedWeight encoded[3];
    for (int i = 0; i < 3; ++i) {
      const auto weight = source_.Find(kRoles[i], layer, index);
      if (!weight) return weight.error();
      auto one = encoder_.Encode(*weight, MatrixTarget(*weight, bits, WeightForm::kPanels));
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
    json["source"] = options_.source;
    json["source_description"] = source_.description();
    json["expert_bits"] = options_.expert_bits;
    json["dense_bits"] = options_.dense_bits;
    json["ladder"] = kLadder;
    return json;
  }

  const Checkpoint& source_;
  const ModelConfig& config_;
  const PackOptions& options_;
  PackWriter writer_;
  WeightEncoder encoder_;
  PackReport report_;
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
  if (!whole && options.calibration == nullptr) {
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
