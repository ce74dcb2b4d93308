#include "engine/model/pack_weights.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "engine/arch/tensor_names.h"
#include "engine/experts/pack_expert.h"
#include "engine/model/weight_places.h"

namespace sluice {
namespace {

struct DenseJob {
  const PackTensor* tensor;
  WeightPlace place;
  size_t at;  // in dense memory
};

struct ExpertJob {
  ExpertId id;
  const PackExpert* expert;
  size_t sets;
  size_t at;  // in expert memory
};

std::string ShapeText(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

Error WrongShape(const std::string& name, const WeightLayout& layout, const TensorSlice& slice) {
  return Corrupt("tensor " + name + " of the pack has shape " +
                 ShapeText(layout.rows, layout.cols) + ", but its configuration asks for " +
                 ShapeText(slice.rows, slice.columns));
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

Result<ExpertJob> FindExpert(const PackReader& pack, const ModelConfig& config, ExpertId id,
                             int expert_bits) {
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
  return ExpertJob{id, expert, PlaneSetsFor(*expert, expert_bits), 0};
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

Result<ModelWeights> LoadPackWeights(const PackReader& pack, const ModelConfig& config,
                                     int expert_bits, Backend* backend,
                                     const std::function<void(double)>& progress) {
  ModelWeights weights;
  weights.layers.resize(config.layers.size());
  weights.experts = ResidentExperts(config.num_layers(), std::max(1, config.router.num_experts));
  PackedMatrix embedding;  // an embedding table that is packed though it is not the head
  std::vector<DenseJob> dense;
  std::vector<ExpertJob> experts;
  size_t dense_bytes = 0;
  size_t expert_bytes = 0;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    if (expected.expert >= 0) {
      if (expected.role != TensorRole::kExpertGate) continue;  // one job for all three
      auto job = FindExpert(pack, config, {expected.layer, expected.expert}, expert_bits);
      if (!job) return job.error();
      job->at = expert_bytes;
      expert_bytes += AlignUp(job->expert->bytes(job->sets), 64);
      experts.push_back(*job);
      continue;
    }
    auto job = FindDense(pack, config, expected, &weights);
    if (!job) return job.error();
    if (job->place.view != nullptr && job->tensor->layout.form != WeightForm::kRowMajor) {
      job->place = {.matrix = &embedding};
    }
    job->at = dense_bytes;
    dense_bytes += AlignUp(job->tensor->bytes, 64);
    dense.push_back(*job);
  }
  auto dense_memory = backend->Allocate(dense_bytes, "weights");
  if (!dense_memory) return dense_memory.error();
  auto expert_memory = backend->Allocate(expert_bytes, "expert weights");
  if (!expert_memory) return expert_memory.error();
  weights.dense_memory = std::move(*dense_memory);
  weights.expert_memory = std::move(*expert_memory);
  weights.dense_bytes = dense_bytes;
  weights.expert_bytes = expert_bytes;

  std::sort(dense.begin(), dense.end(), [](const DenseJob& a, const DenseJob& b) {
    return a.tensor->offset < b.tensor->offset;
  });
  std::sort(experts.begin(), experts.end(), [](const ExpertJob& a, const ExpertJob& b) {
    return a.expert->offset < b.expert->offset;
  });
  size_t done_bytes = 0;
  const auto advance = [&](size_t bytes) {
    done_bytes += bytes;
    if (!progress) return;
    progress(static_cast<double>(done_bytes) / static_cast<double>(dense_bytes + expert_bytes));
  };
  for (const DenseJob& job : dense) {
    std::byte* start = weights.dense_memory.as<std::byte>() + job.at;
    if (auto ok = pack.ReadTensor(*job.tensor, {start, job.tensor->bytes}); !ok) return ok.error();
    Publish(job, weights.dense_memory.as<std::byte>());
    advance(AlignUp(job.tensor->bytes, 64));
  }
  for (const ExpertJob& job : experts) {
    const size_t bytes = job.expert->bytes(job.sets);
    std::byte* start = weights.expert_memory.as<std::byte>() + job.at;
    auto ok = pack.ReadPlaneSets(job.id.layer, job.id.index, 0, job.sets, {start, bytes});
    if (!ok) return ok.error();
    weights.experts.Entry(job.id) = ViewExpert(*job.expert, job.sets, start);
    advance(AlignUp(bytes, 64));
  }
  weights.embedding.packed = embedding;
  FinishPlaces(config, &weights);
  if (auto ok = CheckWeightPairs(config, weights); !ok) return ok.error();
  return weights;
}

}  // namespace sluice
