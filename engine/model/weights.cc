#include "engine/model/weights.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "engine/arch/tensor_names.h"
#include "engine/model/weight_places.h"
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
  // Exactly one of these three receives the address (WeightPlace).
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

Job Target(const ModelConfig& config, const ExpectedTensor& expected, ModelWeights* weights) {
  const WeightPlace place = PlaceOf(config, expected, weights);
  Job job;
  job.matrix = place.matrix;
  job.vector = place.vector;
  job.view = place.view;
  job.form = place.vector != nullptr ? Form::kVectorF32
             : place.view != nullptr ? Form::kRowMajor
             : place.f32             ? Form::kPackedF32
                                     : Form::kPacked;
  return job;
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
  if (job.matrix != nullptr) {
    *job.matrix = {
        .dtype = job.stored_dtype(), .data = job.destination, .rows = rows, .cols = cols};
  }
  if (job.vector != nullptr) *job.vector = static_cast<const float*>(job.destination);
  if (job.view != nullptr) *job.view = {job.stored_dtype(), job.destination, rows, cols};
}

}  // namespace

Result<ModelWeights> LoadWeights(const SafetensorsReader& reader, const ModelConfig& config,
                                 Backend* backend, const std::function<void(double)>& progress) {
  ModelWeights weights;
  weights.layers.resize(config.layers.size());
  weights.experts = ResidentExperts({config.num_layers(), std::max(1, config.router.num_experts)});
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
  FinishPlaces(config, &weights);
  if (auto ok = CheckWeightPairs(config, weights); !ok) return ok.error();

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
