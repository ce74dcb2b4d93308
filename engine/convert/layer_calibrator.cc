#include "engine/convert/layer_calibrator.h"

#include <algorithm>
#include <utility>

#include "engine/model/model.h"
#include "engine/text/tokenizer.h"

namespace sluice {
namespace {

constexpr size_t kLeastTokens = 64;

// Hands a model's activations to whoever watches at the moment.
class ObserverSwitch final : public ForwardObserver {
 public:
  void Watch(ForwardObserver* observer) { observer_ = observer; }

  void OnAttentionInputs(int layer, const ActivationRows& x) override {
    observer_->OnAttentionInputs(layer, x);
  }
  void OnAttentionOutputs(int layer, const ActivationRows& x) override {
    observer_->OnAttentionOutputs(layer, x);
  }
  void OnExpert(const ExpertActivations& activations) override { observer_->OnExpert(activations); }
  void OnHeadInputs(const ActivationRows& x) override { observer_->OnHeadInputs(x); }

 private:
  ForwardObserver* observer_ = nullptr;
};

// Bytes of one layer's second moments (CalibrationOptions).
size_t MomentBytes(const ModelConfig& config, bool expert_moments) {
  const auto square = [](int cols) { return static_cast<size_t>(cols) * cols * sizeof(float); };
  const size_t expert = square(config.hidden) + square(config.expert_intermediate);
  return square(config.hidden) + square(config.heads * config.head_dim) + square(config.hidden) +
         square(config.shared_intermediate) +
         (expert_moments ? expert * static_cast<size_t>(config.router.num_experts)
                         : square(config.hidden));
}

}  // namespace

struct LayerCalibrator::State {
  LayerCalibratorOptions options;
  ObserverSwitch observer;
  std::unique_ptr<Model> model;
  std::vector<std::vector<int32_t>> sequences;
  std::unique_ptr<Calibrator> survey;
  std::unique_ptr<Calibrator> window;  // second moments of [window_begin, window_end)
  int window_begin = 0;
  int window_end = 0;

  void RunText(Calibrator* calibrator, const std::string& what) {
    observer.Watch(calibrator);
    RunCalibration(model.get(), sequences, [&](double fraction) {
      if (options.progress) options.progress(what, fraction);
    });
  }
};

LayerCalibrator::LayerCalibrator(std::unique_ptr<State> state) : state_(std::move(state)) {}
LayerCalibrator::~LayerCalibrator() = default;

Result<std::unique_ptr<LayerCalibrator>> LayerCalibrator::Run(
    const std::filesystem::path& model, const std::string& text,
    const LayerCalibratorOptions& options) {
  auto state = std::make_unique<State>();
  state->options = options;
  const Result<ModelFiles> files = ReadModelFiles(model);
  if (!files) return files.error();
  const auto tokenizer = Tokenizer::Load(*files);
  if (!tokenizer) return tokenizer.error();
  const std::vector<int32_t> tokens = (*tokenizer)->Encode(text);
  if (tokens.size() < kLeastTokens) {
    return InvalidArgument("the calibration text has " + std::to_string(tokens.size()) +
                           " tokens; at least " + std::to_string(kLeastTokens) +
                           " are needed, and tens of thousands serve well");
  }
  state->sequences = CutSequences(tokens, options.sequence_tokens);

  ModelOptions model_options;
  model_options.threads = options.threads;
  model_options.max_sequences = 1;
  model_options.max_batch_tokens = options.sequence_tokens;
  model_options.max_context = options.sequence_tokens;
  model_options.kv_blocks = options.sequence_tokens / kKvBlockTokens + 2;
  model_options.observer = &state->observer;
  auto loaded = Model::Load(model, model_options);
  if (!loaded) return loaded.error();
  state->model = std::move(*loaded);

  CalibrationOptions survey;
  state->survey = std::make_unique<Calibrator>(state->model->config(), survey);
  state->RunText(state->survey.get(), "calibrating");
  return std::unique_ptr<LayerCalibrator>(new LayerCalibrator(std::move(state)));
}

const CalibrationStatistics& LayerCalibrator::survey() const {
  return state_->survey->statistics();
}

const LayerStatistics& LayerCalibrator::Layer(int layer) {
  State& s = *state_;
  if (s.window == nullptr || layer < s.window_begin || layer >= s.window_end) {
    const ModelConfig& config = s.model->config();
    CalibrationOptions options;
    options.expert_moments = MomentBytes(config, true) <= s.options.moment_bytes;
    const size_t layers =
        s.options.moment_bytes / std::max<size_t>(1, MomentBytes(config, options.expert_moments));
    s.window_begin = layer;
    s.window_end = static_cast<int>(
        std::min<size_t>(static_cast<size_t>(config.num_layers()),
                         static_cast<size_t>(layer) + std::max<size_t>(1, layers)));
    options.moments_first_layer = s.window_begin;
    options.moments_end_layer = s.window_end;
    options.samples_per_expert = 0;
    s.window.reset();  // before the next one takes its memory
    s.window = std::make_unique<Calibrator>(config, options);
    s.RunText(s.window.get(), "measuring layers " + std::to_string(s.window_begin) + " to " +
                                  std::to_string(s.window_end - 1));
  }
  return s.window->statistics().layers[static_cast<size_t>(layer)];
}

}  // namespace sluice
