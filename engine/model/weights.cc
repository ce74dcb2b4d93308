#include "engine/model/weights.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "engine/arch/tensor_names.h"
#include "engine/base/check.h"
#include "engine/tensor/arena.h"

namespace sluice {
namespace {

constexpr size_t kReadBytes = size_t{8} << 20;

enum class Form {
  kPacked,     // panels in the tensor's own dtype
  kPackedF32,  // panels in F32, converted
  kVectorF32,  // a flat F32 array, converted
  kRowMajor,   // as in the file
};

// One weight to read: from rows of a tensor to `destination`.
struct Job {
  const TensorInfo* tensor = nullptr;
  TensorSlice slice;
  Form form = Form::kPacked;
  bool routed = false;  // part of a routed expert
  // Exactly one of these three receives the address, chosen by the form.
  PackedMatrix* matrix = nullptr;
  const float** vector = nullptr;
  TensorView* view = nullptr;
  const void* destination = nullptr;

  DType stored_dtype() const {
    return form == Form::kPackedF32 || form == Form::kVectorF32 ? DType::kF32 : tensor->dtype;
  }
  size_t stored_bytes() const {
    const auto rows = static_cast<int>(slice.rows);
    const auto cols = static_cast<int>(slice.columns);
    if (form == Form::kPacked || form == Form::kPackedF32) {
      return cpu::PackedMatrixBytes(stored_dtype(), rows, cols);
    }
    return static_cast<size_t>(slice.elements()) * DTypeBytes(stored_dtype());
  }
};

// Where a role's weight belongs, and in which form.
Job Target(const ModelConfig& config, const ExpectedTensor& expected, ModelWeights* weights) {
  Job job;
  const auto packed = [&](PackedMatrix* matrix, Form form = Form::kPacked) {
    job.form = form;
    job.matrix = matrix;
    return job;
  };
  const auto vector = [&](const float** target) {
    job.form = Form::kVectorF32;
    job.vector = target;
    return job;
  };
  switch (expected.role) {
    case TensorRole::kEmbedding:
      if (config.tied_embeddings) return packed(&weights->head);
      job.form = Form::kRowMajor;
      job.view = &weights->embedding.rows;
      return job;
    case TensorRole::kFinalNorm:
      return vector(&weights->final_norm);
    case TensorRole::kLmHead:
      return packed(&weights->head);
    default:
      break;
  }
  LayerWeights& layer = weights->layers[expected.layer];
  const auto expert = [&]() -> ExpertWeights& {
    return weights->experts.Entry({expected.layer, expected.expert});
  };
  switch (expected.role) {
    case TensorRole::kAttentionNorm:
      return vector(&layer.attention_norm);
    case TensorRole::kQ:
      return packed(&layer.q);
    case TensorRole::kK:
      return packed(&layer.k);
    case TensorRole::kV:
      return packed(&layer.v);
    case TensorRole::kO:
      return packed(&layer.o);
    case TensorRole::kQBias:
      return vector(&layer.q_bias);
    case TensorRole::kKBias:
      return vector(&layer.k_bias);
    case TensorRole::kVBias:
      return vector(&layer.v_bias);
    case TensorRole::kOBias:
      return vector(&layer.o_bias);
    case TensorRole::kQNorm:
      return vector(&layer.q_norm);
    case TensorRole::kKNorm:
      return vector(&layer.k_norm);
    case TensorRole::kMoeNorm:
      return vector(&layer.moe.norm);
    case TensorRole::kRouter:
      return packed(&layer.moe.router, Form::kPackedF32);
    case TensorRole::kExpertGate:
      return packed(&expert().gate);
    case TensorRole::kExpertUp:
      return packed(&expert().up);
    case TensorRole::kExpertDown:
      return packed(&expert().down);
    case TensorRole::kSharedGate:
      return packed(&layer.moe.shared.gate);
    case TensorRole::kSharedUp:
      return packed(&layer.moe.shared.up);
    case TensorRole::kSharedDown:
      return packed(&layer.moe.shared.down);
    case TensorRole::kSharedGateWeight:
      return packed(&layer.moe.shared_gate, Form::kPackedF32);
    case TensorRole::kDenseGate:
      return packed(&layer.moe.dense.gate);
    case TensorRole::kDenseUp:
      return packed(&layer.moe.dense.up);
    case TensorRole::kDenseDown:
      return packed(&layer.moe.dense.down);
    default:
      break;
  }
  SLUICE_CHECK(false, "a tensor role without a place");
}

Result<std::vector<Job>> PlanJobs(const SafetensorsReader& reader, const ModelConfig& config,
                                  ModelWeights* weights) {
  const TensorLookup lookup = [&](std::string_view name) -> const std::vector<int64_t>* {
    const TensorInfo* info = reader.Find(name);
    return info == nullptr ? nullptr : &info->shape;
  };
  std::vector<Job> jobs;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    Result<TensorSlice> slice =
        FindTensor(config, lookup, expected.role, expected.layer, expected.expert);
    if (!slice) return slice.error();
    Job job = Target(config, expected, weights);
    job.tensor = reader.Find(slice->name);
    job.slice = std::move(*slice);
    job.routed = expected.expert >= 0;
    if (!job.tensor->readable) {
      return Unsupported("tensor " + job.slice.name + " has type " + job.tensor->dtype_name +
                         "; only F32, F16 and BF16 checkpoints can be loaded");
    }
    if (job.slice.rows > INT32_MAX / 2 || job.slice.columns > INT32_MAX / 2) {
      return Unsupported("tensor " + job.slice.name + " is too large");
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

// The two halves of a SwiGLU network read one packed input.
Result<> CheckPairs(const ModelConfig& config, const ModelWeights& weights) {
  const auto check = [](const ExpertWeights& expert, const std::string& where) -> Result<> {
    if (!expert || expert.gate.dtype == expert.up.dtype) return {};
    return Unsupported("the gate and up projections of " + where + " have different types (" +
                       DTypeName(expert.gate.dtype) + " and " + DTypeName(expert.up.dtype) + ")");
  };
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const std::string where = "layer " + std::to_string(layer);
    const MoeWeights& moe = weights.layers[layer].moe;
    if (auto ok = check(moe.dense, where); !ok) return ok;
    if (auto ok = check(moe.shared, where + "'s shared expert"); !ok) return ok;
    if (!config.layers[layer].sparse) continue;
    for (int expert = 0; expert < config.router.num_experts; ++expert) {
      auto ok = check(weights.experts.Lookup({layer, expert}),
                      where + ", expert " + std::to_string(expert));
      if (!ok) return ok;
    }
  }
  return {};
}

// Reads a job's rows in pieces that fit the buffer; pieces of matrices are whole panels.
class JobReader {
 public:
  JobReader(const SafetensorsReader& reader, Backend* backend)
      : reader_(reader), backend_(backend) {}

  Result<> Run(const Job& job) {
    const int64_t columns = job.slice.columns;
    const size_t row_bytes = static_cast<size_t>(columns) * DTypeBytes(job.tensor->dtype);
    const bool packed = job.form == Form::kPacked || job.form == Form::kPackedF32;
    const int64_t unit = packed ? cpu::kPanelRows : 1;
    const int64_t step =
        std::max<int64_t>(
            1, static_cast<int64_t>(kReadBytes / std::max<size_t>(1, row_bytes)) / unit) *
        unit;
    auto* destination = static_cast<std::byte*>(const_cast<void*>(job.destination));
    for (int64_t row = 0; row < job.slice.rows; row += step) {
      const int64_t rows = std::min(step, job.slice.rows - row);
      raw_.resize(static_cast<size_t>(rows) * row_bytes);
      const uint64_t offset = static_cast<uint64_t>(job.slice.first_row + row) * row_bytes;
      if (auto ok = reader_.Read(*job.tensor, offset, raw_); !ok) return ok;
      Store(job, static_cast<int>(rows), static_cast<int>(columns),
            destination + StoredOffset(job, row));
    }
    return {};
  }

 private:
  static size_t StoredOffset(const Job& job, int64_t row) {
    if (job.matrix != nullptr) {
      return static_cast<size_t>(row / cpu::kPanelRows) *
             cpu::PanelBytes(job.stored_dtype(), static_cast<int>(job.slice.columns));
    }
    return static_cast<size_t>(row * job.slice.columns) * DTypeBytes(job.stored_dtype());
  }

  void Store(const Job& job, int rows, int columns, std::byte* destination) {
    const int64_t count = int64_t{rows} * columns;
    switch (job.form) {
      case Form::kPacked:
        backend_->Pack(job.tensor->dtype, raw_.data(), rows, columns, destination);
        return;
      case Form::kPackedF32:
        converted_.resize(static_cast<size_t>(count));
        backend_->ToF32(job.tensor->dtype, raw_.data(), count, converted_.data());
        backend_->Pack(DType::kF32, converted_.data(), rows, columns, destination);
        return;
      case Form::kVectorF32:
        backend_->ToF32(job.tensor->dtype, raw_.data(), count,
                        reinterpret_cast<float*>(destination));
        return;
      case Form::kRowMajor:
        std::copy(raw_.begin(), raw_.end(), destination);
        return;
    }
  }

  const SafetensorsReader& reader_;
  Backend* backend_;
  std::vector<std::byte> raw_;
  std::vector<float> converted_;
};

void Publish(const Job& job) {
  const auto rows = static_cast<int>(job.slice.rows);
  const auto cols = static_cast<int>(job.slice.columns);
  if (job.matrix != nullptr) *job.matrix = {job.stored_dtype(), job.destination, rows, cols};
  if (job.vector != nullptr) *job.vector = static_cast<const float*>(job.destination);
  if (job.view != nullptr) *job.view = {job.stored_dtype(), job.destination, rows, cols};
}

}  // namespace

Result<ModelWeights> LoadWeights(const SafetensorsReader& reader, const ModelConfig& config,
                                 Backend* backend, const std::function<void(double)>& progress) {
  ModelWeights weights;
  weights.layers.resize(config.layers.size());
  weights.experts = ResidentExperts(config.num_layers(), std::max(1, config.router.num_experts));
  Result<std::vector<Job>> jobs = PlanJobs(reader, config, &weights);
  if (!jobs) return jobs.error();

  // An expert's three matrices are neighbours: jobs are still in the order of use here.
  ArenaLayout dense;
  ArenaLayout experts;
  uint64_t total_bytes = 0;
  for (Job& job : *jobs) {
    ArenaLayout& layout = job.routed ? experts : dense;
    layout.AddConst(&job.destination, job.stored_bytes());
    total_bytes += static_cast<uint64_t>(job.slice.elements()) * DTypeBytes(job.tensor->dtype);
  }
  auto dense_memory = dense.Allocate(backend, "weights");
  if (!dense_memory) return dense_memory.error();
  auto expert_memory = experts.Allocate(backend, "expert weights");
  if (!expert_memory) return expert_memory.error();
  weights.dense_memory = std::move(*dense_memory);
  weights.expert_memory = std::move(*expert_memory);
  weights.dense_bytes = dense.bytes();
  weights.expert_bytes = experts.bytes();

  for (const Job& job : *jobs) Publish(job);
  if (config.tied_embeddings) weights.embedding.packed = weights.head;
  if (!weights.layers.empty()) weights.dtype = weights.layers[0].q.dtype;
  if (auto ok = CheckPairs(config, weights); !ok) return ok.error();

  std::sort(jobs->begin(), jobs->end(), [](const Job& a, const Job& b) {
    return std::tuple(a.tensor->shard, a.tensor->offset, a.slice.first_row) <
           std::tuple(b.tensor->shard, b.tensor->offset, b.slice.first_row);
  });
  JobReader job_reader(reader, backend);
  uint64_t done_bytes = 0;
  for (const Job& job : *jobs) {
    if (auto ok = job_reader.Run(job); !ok) return ok.error();
    done_bytes += static_cast<uint64_t>(job.slice.elements()) * DTypeBytes(job.tensor->dtype);
    if (progress) progress(static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  }
  return weights;
}

}  // namespace sluice
