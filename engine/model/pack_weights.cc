#include "engine/model/pack_weights.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "engine/arch/tensor_names.h"
#include "engine/experts/pack_expert.h"
#include "engine/experts/pack_prior.h"
#include "engine/experts/pack_store.h"
#include "engine/model/weight_places.h"

namespace sluice {
namespace {

struct DenseJob {
  const PackTensor* tensor;
  WeightPlace place;
  size_t at;  // in dense memory
};

std::string ShapeText(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

Error WrongShape(const std::string& name, const WeightLayout& layout, const TensorSlice& slice) {
  return Corrupt("tensor " + name + " of the pack has shape " +
                 ShapeText(layout.rows, layout.cols) + ", but its configuration asks for " +
                 ShapeText(slice.rows, slice.columns));
}

ActivationForm FormOf(const WeightLayout& layout) {
  return layout.form == WeightForm::kNested ? ActivationForm::kForNested
                                            : static_cast<ActivationForm>(layout.dtype);
}

// Whether the role can be served from this form.
bool Fits(const WeightPlace& place, const WeightLayout& layout) {
  if (place.vector != nullptr) {
    return layout.form == WeightForm::kRowMajor && layout.dtype == DType::kF32;
  }
  if (place.view != nullptr) return true;
  if (place.f32) return layout.form == WeightForm::kPanels && layout.dtype == DType::kF32;
  return layout.form != WeightForm::kRowMajor;
}

Result<DenseJob> FindDense(const PackReader& pack, const ModelConfig& config,
                           const ExpectedTensor& expected, ModelWeights* weights) {
  const std::string name = PackTensorName(config, expected);
  const PackTensor* tensor = pack.FindTensor(name);
  if (tensor == nullptr) return NotFound("the pack lacks tensor " + name);
  const TensorSlice slice = TensorCandidates(config, expected.role, expected.layer)[0];
  if (tensor->layout.rows != slice.rows || tensor->layout.cols != slice.columns) {
    return WrongShape(name, tensor->layout, slice);
  }
  const WeightPlace place = PlaceOf(config, expected, weights);
  if (!Fits(place, tensor->layout)) {
    return Corrupt("tensor " + name + " of the pack has a form that its role cannot have");
  }
  return DenseJob{tensor, place, 0};
}

bool EmbeddingStaysOnDisk(const PackReader& pack, const TierOptions& tiers) {
  return tiers.disk_embedding.value_or(tiers.memory_budget > 0 &&
                                       pack.file_bytes() > tiers.memory_budget);
}

// Whether the expert is what the configuration calls for.
Result<> CheckExpert(const PackReader& pack, const ModelConfig& config, ExpertId id) {
  const PackExpert* expert = pack.FindExpert(id.layer, id.index);
  const std::string name =
      "expert " + std::to_string(id.index) + " of layer " + std::to_string(id.layer);
  if (expert == nullptr) return NotFound("the pack lacks " + name);
  const std::pair<TensorRole, const WeightLayout*> parts[] = {
      {TensorRole::kExpertGate, &expert->gate},
      {TensorRole::kExpertUp, &expert->up},
      {TensorRole::kExpertDown, &expert->down}};
  for (const auto& [role, layout] : parts) {
    const TensorSlice slice = TensorCandidates(config, role, id.layer, id.index)[0];
    if (layout->rows != slice.rows || layout->cols != slice.columns) {
      return WrongShape(slice.name, *layout, slice);
    }
    if (layout->form == WeightForm::kRowMajor) {
      return Corrupt(name + " of the pack is stored row by row, which kernels cannot read");
    }
  }
  const WeightLayout& gate = expert->gate;
  const WeightLayout& up = expert->up;
  if (gate.form != up.form || (gate.form == WeightForm::kPanels && gate.dtype != up.dtype)) {
    return Unsupported("the gate and up projections of " + name + " have different types");
  }
  return {};
}

// The routed experts behind a cache that has no memory yet.
Result<std::unique_ptr<TieredExperts>> OpenExperts(std::shared_ptr<const PackReader> pack,
                                                   const ModelConfig& config,
                                                   const ModelOptions& options) {
  static const SteadyClock clock;
  const ExpertSpace space = {config.num_layers(), config.router.num_experts};
  std::vector<const PackExpert*> experts(static_cast<size_t>(space.size()));
  for (int layer = 0; layer < space.layers; ++layer) {
    if (!config.layers[layer].sparse) continue;
    for (int index = 0; index < space.experts_per_layer; ++index) {
      if (auto ok = CheckExpert(*pack, config, {layer, index}); !ok) return ok.error();
      experts[space.place({layer, index})] = pack->FindExpert(layer, index);
    }
  }
  const ExpertPrior prior = ReadPackPrior(pack->metadata(), space);
  auto policy = MakeCachePolicy(options.tiers.policy, space, prior);
  if (!policy) return policy.error();
  std::unique_ptr<ExpertPredictor> predictor;
  if (!options.tiers.predictor.empty()) {
    auto made =
        MakeExpertPredictor(options.tiers.predictor, space, config.router.experts_per_token, prior);
    if (!made) return made.error();
    predictor = std::move(*made);
  }
  auto slab = ExpertSlab::Reserve(pack->file_bytes(), pack->align());
  if (!slab) return slab.error();
  auto store = PackStore::Open(pack, {});
  if (!store) return store.error();
  ExpertCache cache(space, std::move(experts), options.expert_bits, std::move(*slab),
                    std::move(*policy));
  return std::make_unique<TieredExperts>(
      std::move(cache), std::move(*store), std::move(predictor),
      TieredOptions{.keep = options.tiers.cache,
                    .read_ahead = !options.tiers.predictor.empty(),
                    .guard = options.tiers.guard_prefetch,
                    .lenient = options.tiers.quality != Quality::kExact,
                    .fill_order = PlacesByFrequency(space, prior)},
      &clock);
}

void Publish(const DenseJob& job, const std::byte* base) {
  const WeightLayout& layout = job.tensor->layout;
  const std::byte* start = base + job.at;
  if (job.place.vector != nullptr) {
    *job.place.vector = reinterpret_cast<const float*>(start);
    return;
  }
  if (layout.form == WeightForm::kRowMajor) {
    *job.place.view = {layout.dtype, start, layout.rows, layout.cols};
    return;
  }
  std::array<const std::byte*, kMaxPlanes> starts{};
  for (int plane = 0; plane < layout.planes(); ++plane) {
    starts[plane] = start;
    start += AlignUp(layout.plane_bytes(plane), 64);
  }
  *job.place.matrix = ViewWeight(layout, layout.planes(), starts.data());
}

}  // namespace

std::string PackTensorName(const ModelConfig& config, const ExpectedTensor& expected) {
  return TensorCandidates(config, expected.role, expected.layer)[0].name;
}

Result<ModelWeights> LoadPackWeights(std::shared_ptr<const PackReader> pack,
                                     const ModelConfig& config, const ModelOptions& options,
                                     Backend* backend) {
  ModelWeights weights;
  weights.layers.resize(config.layers.size());
  PackedMatrix embedding;  // an embedding table that is packed though it is not the head
  std::vector<DenseJob> dense;
  size_t dense_bytes = 0;
  bool experts = false;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    if (expected.expert >= 0) {
      experts = true;
      continue;
    }
    auto job = FindDense(*pack, config, expected, &weights);
    if (!job) return job.error();
    if (job->place.view != nullptr && EmbeddingStaysOnDisk(*pack, options.tiers)) {
      auto table = DiskEmbedding::Open(pack, *job->tensor);
      if (!table) return table.error();
      weights.disk_embedding.emplace(std::move(*table));
      weights.disk_bytes = job->tensor->bytes;
      continue;
    }
    if (job->place.view != nullptr && job->tensor->layout.form != WeightForm::kRowMajor) {
      job->place = {.matrix = &embedding};
    }
    job->at = dense_bytes;
    dense_bytes += AlignUp(job->tensor->bytes, 64);
    dense.push_back(*job);
  }
  if (experts) {
    auto tiered = OpenExperts(pack, config, options);
    if (!tiered) return tiered.error();
    weights.tiered = std::move(*tiered);
    weights.expert_bytes = weights.tiered->cache().all_bytes();
    for (int layer = 0; layer < config.num_layers(); ++layer) {
      for (int index = 0; config.layers[layer].sparse && index < config.router.num_experts;
           ++index) {
        const PackExpert* expert = pack->FindExpert(layer, index);
        weights.expert_forms.Add(FormOf(expert->gate));
        weights.expert_forms.Add(FormOf(expert->down));
      }
    }
  }
  auto memory = backend->Allocate(dense_bytes, "weights");
  if (!memory) return memory.error();
  weights.dense_memory = std::move(*memory);
  weights.dense_bytes = dense_bytes;

  std::sort(dense.begin(), dense.end(), [](const DenseJob& a, const DenseJob& b) {
    return a.tensor->offset < b.tensor->offset;
  });
  size_t done_bytes = 0;
  for (const DenseJob& job : dense) {
    std::byte* start = weights.dense_memory.as<std::byte>() + job.at;
    Publish(job, weights.dense_memory.as<std::byte>());
    if (!options.read_weights) continue;
    if (auto ok = pack->ReadTensor(*job.tensor, {start, job.tensor->bytes}); !ok) return ok.error();
    done_bytes += AlignUp(job.tensor->bytes, 64);
    if (!options.progress) continue;
    options.progress(static_cast<double>(done_bytes) / static_cast<double>(dense_bytes));
  }
  weights.embedding.packed = embedding;
  FinishPlaces(config, &weights);
  if (auto ok = CheckWeightPairs(config, weights); !ok) return ok.error();
  return weights;
}

}  // namespace sluice
