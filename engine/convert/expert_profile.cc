#include "engine/convert/expert_profile.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "engine/convert/expert_error.h"

namespace sluice {
namespace {

constexpr TensorRole kRoles[] = {TensorRole::kExpertGate, TensorRole::kExpertUp,
                                 TensorRole::kExpertDown};

Result<> ReadMatrix(const Checkpoint& source, TensorRole role, int layer, int index,
                    std::vector<float>* values) {
  const auto weight = source.Find(role, layer, index);
  if (!weight) return weight.error();
  values->resize(static_cast<size_t>(weight->rows) * weight->cols);
  return source.ReadF32(*weight, 0, weight->rows, *values);
}

}  // namespace

NestedFormat ExpertFormat(int bits) { return {ScaleKind::kU8Min, 32, static_cast<uint8_t>(bits)}; }

Result<std::vector<ExpertProfile>> ProfileExperts(const Checkpoint& source, int layer,
                                                  const CalibrationStatistics& statistics,
                                                  std::span<const int> ladder,
                                                  const ExpertStatisticsSource& inputs_of,
                                                  cpu::ThreadPool* pool,
                                                  const std::function<void(double)>& progress) {
  struct Work {
    std::vector<float> matrices[3];
    MatrixStatistics inputs, down_inputs;
    ExpertProfile profile;
  };
  const ModelConfig& config = source.config();
  const LayerStatistics& layer_statistics = statistics.layers[static_cast<size_t>(layer)];
  std::vector<NestedFormat> formats;
  for (const int bits : ladder) formats.push_back(ExpertFormat(bits));
  std::vector<Work> batch(static_cast<size_t>(pool->threads()));
  std::vector<ExpertProfile> profiles;
  const int experts = config.router.num_experts;
  for (int first = 0; first < experts; first += pool->threads()) {
    const int count = std::min(pool->threads(), experts - first);
    for (int i = 0; i < count; ++i) {
      Work& work = batch[static_cast<size_t>(i)];
      for (int m = 0; m < 3; ++m) {
        auto ok = ReadMatrix(source, kRoles[m], layer, first + i, &work.matrices[m]);
        if (!ok) return ok.error();
      }
    }
    pool->Run([&](int worker) {
      if (worker >= count) return;
      Work& work = batch[static_cast<size_t>(worker)];
      const ExpertStatistics& expert =
          layer_statistics.experts[static_cast<size_t>(first + worker)];
      std::tie(work.inputs, work.down_inputs) = inputs_of(first + worker);
      const ExpertFloats floats = {config.hidden, config.expert_intermediate, work.matrices[0],
                                   work.matrices[1], work.matrices[2]};
      work.profile =
          ProfileOf(expert, statistics.tokens,
                    ExpertOutputErrors(floats, work.inputs.view(), work.down_inputs.view(),
                                       expert.samples, formats));
    });
    for (int i = 0; i < count; ++i) {
      profiles.push_back(std::move(batch[static_cast<size_t>(i)].profile));
    }
    if (progress) progress(static_cast<double>(first + count) / experts);
  }
  return profiles;
}

}  // namespace sluice
