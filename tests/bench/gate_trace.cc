#include "tests/bench/gate_trace.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "engine/model/transformer.h"
#include "engine/tensor/cpu_backend.h"
#include "tests/support/forwarding_backend.h"

namespace sluice {
namespace {

constexpr int kMaxTokens = 256;

double Cosine(const float* a, const float* b, int n) {
  double ab = 0, aa = 0, bb = 0;
  for (int i = 0; i < n; ++i) {
    ab += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

// Knows a router's product by the rows of its matrix and by asking for the normed input.
class GateWatcher final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  // From here on steps are recorded to `trace`, which is sized; before, routers are learned.
  void Record(GateTrace* trace) { trace_ = trace; }
  void SetExperts(int experts) { experts_ = experts; }
  void BeginStep(int first_token) {
    first_token_ = first_token;
    layer_ = 0;
  }
  int layers() const { return static_cast<int>(routers_.size()); }

  void Linear(const LinearArgs& args) override {
    backend_->Linear(args);
    if (args.normed == nullptr || args.outputs.empty() || args.outputs[0].weight.rows != experts_) {
      return;
    }
    if (trace_ == nullptr) {
      routers_.push_back({args.norm_weight, args.outputs[0].weight});
      return;
    }
    Ahead(args);
    Compare(args);
  }
  void TopK(const TopKArgs& args) override {
    backend_->TopK(args);
    if (trace_ == nullptr) return;
    for (int t = 0; t < args.tokens; ++t) {
      std::copy_n(args.ids + t * args.ids_stride, args.k,
                  const_cast<int32_t*>(trace_->chosen(first_token_ + t, layer_)));
    }
    ++layer_;
  }

 private:
  struct Router {
    const float* norm_weight;
    PackedMatrix weight;
  };

  // The gates of this layer and those ahead, on this layer's input.
  void Ahead(const LinearArgs& args) {
    std::vector<float> logits(static_cast<size_t>(args.tokens) * experts_);
    for (int d = 0; d <= GateTrace::kMaxDistance && layer_ + d < layers(); ++d) {
      const Router& router = routers_[layer_ + d];
      for (int input = 0; input < kEarlyInputs; ++input) {
        const bool own = static_cast<EarlyInput>(input) == EarlyInput::kOwnNorm;
        const LinearOutput output = {
            .weight = router.weight, .y = logits.data(), .y_stride = experts_};
        backend_->Linear({.x = own ? args.x : args.normed,
                          .x_stride = own ? args.x_stride : args.cols,
                          .tokens = args.tokens,
                          .cols = args.cols,
                          .norm_weight = own ? router.norm_weight : nullptr,
                          .norm_eps = args.norm_eps,
                          .normed = nullptr,
                          .outputs = {&output, 1}});
        for (int t = 0; t < args.tokens; ++t) {
          auto* out = const_cast<float*>(
              trace_->gate(static_cast<EarlyInput>(input), d, first_token_ + t, layer_ + d));
          Softmax(&logits[static_cast<size_t>(t) * experts_], out);
        }
      }
    }
  }

  void Softmax(const float* logits, float* out) const {
    const float largest = *std::max_element(logits, logits + experts_);
    float sum = 0;
    for (int e = 0; e < experts_; ++e) sum += out[e] = std::exp(logits[e] - largest);
    for (int e = 0; e < experts_; ++e) out[e] /= sum;
  }

  // Adds the cosines with the layer before.
  void Compare(const LinearArgs& args) {
    const size_t size = static_cast<size_t>(args.tokens) * args.cols;
    for (int t = 0; t < args.tokens && layer_ > 0; ++t) {
      const size_t row = static_cast<size_t>(t) * args.cols;
      trace_->input_cosine[layer_ - 1] +=
          Cosine(&last_input_[row], args.normed + row, args.cols) / trace_->tokens;
      trace_->residual_cosine[layer_ - 1] +=
          Cosine(&last_residual_[row], args.x + t * args.x_stride, args.cols) / trace_->tokens;
    }
    last_input_.assign(args.normed, args.normed + size);
    last_residual_.assign(args.x, args.x + size);
  }

  GateTrace* trace_ = nullptr;
  int experts_ = -1;
  int first_token_ = 0;
  int layer_ = 0;
  std::vector<Router> routers_;
  std::vector<float> last_input_, last_residual_;
};

}  // namespace

Result<GateTrace> RecordGates(const std::filesystem::path& path,
                              std::span<const std::vector<int32_t>> streams) {
  auto backend = std::make_unique<GateWatcher>(
      std::make_unique<CpuBackend>(cpu::SelectOps(cpu::Isa::kAuto), 2, /*pin_threads=*/false));
  GateWatcher* watcher = backend.get();
  ModelOptions options;
  options.max_batch_tokens = kMaxTokens;
  options.max_sequences = 1;
  options.kv_blocks = kMaxTokens / kKvBlockTokens;
  auto model = LoadTransformer(path, options, std::move(backend));
  if (!model) return model.error();
  const RouterConfig& router = (*model)->config().router;
  watcher->SetExperts(router.num_experts);

  std::vector<int32_t> blocks(static_cast<size_t>(options.kv_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  const auto forward = [&](std::span<const int32_t> tokens) {
    const SequenceChunk chunk = {tokens, 0, blocks, LogitRows::kAll};
    (*model)->Forward({&chunk, 1});
  };
  forward(std::span(streams.front()).first(1));

  GateTrace trace;
  trace.space = {watcher->layers(), router.num_experts};
  trace.experts_per_token = router.experts_per_token;
  for (size_t s = 0; s < streams.size(); ++s) {
    const size_t count = std::min(streams[s].size(), size_t{kMaxTokens});
    trace.streams.insert(trace.streams.end(), count, static_cast<int64_t>(s));
  }
  trace.tokens = static_cast<int>(trace.streams.size());
  const size_t rows = static_cast<size_t>(trace.tokens) * trace.space.layers;
  trace.ids.resize(rows * trace.experts_per_token);
  for (auto& input : trace.scores) {
    for (auto& scores : input) scores.resize(rows * trace.space.experts_per_layer);
  }
  trace.input_cosine.resize(static_cast<size_t>(trace.space.layers) - 1);
  trace.residual_cosine.resize(static_cast<size_t>(trace.space.layers) - 1);
  watcher->Record(&trace);
  int first = 0;
  for (const std::vector<int32_t>& stream : streams) {
    watcher->BeginStep(first);
    const size_t count = std::min(stream.size(), size_t{kMaxTokens});
    forward(std::span(stream).first(count));
    first += static_cast<int>(count);
  }
  return trace;
}

}  // namespace sluice
