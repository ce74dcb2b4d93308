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
  // Second moments of [window_begin, window_end); null while the survey has them.
  std::unique_ptr<Calibrator> window;
  int window_begin = 0;
  int window_end = 0;

  // Makes [first, ...) the window and says so in options for a Calibrator.
  CalibrationOptions OpenWindow(int first) {
    const ModelConfig& config = model->config();
    CalibrationOptions calibration;
    calibration.expert_moments = MomentBytes(config, true) <= options.moment_bytes;
    const size_t layers =
        options.moment_bytes / std::max<size_t>(1, MomentBytes(config, calibration.expert_moments));
    window_begin = first;
    window_end = static_cast<int>(
        std::min<size_t>(static_cast<size_t>(config.num_layers()),
                         static_cast<size_t>(first) + std::max<size_t>(1, layers)));
    calibration.moments_first_layer = window_begin;
    calibration.moments_end_layer = window_end;
    return calibration;
  }

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

  state->survey = std::make_unique<Calibrator>(state->model->config(), state->OpenWindow(0));
  state->RunText(state->survey.get(), "calibrating");
  return std::unique_ptr<LayerCalibrator>(new LayerCalibrator(std::move(state)));
}

const CalibrationStatistics& LayerCalibrator::survey() const {
  return state_->survey->statistics();
}

const LayerStatistics& LayerCalibrator::Layer(int layer) {
  State& s = *state_;
  if (layer < s.window_begin || layer >= s.window_end) {
    // Before the next moments take their memory.
    s.window.reset();
    s.survey->DropMoments();
    CalibrationOptions options = s.OpenWindow(layer);
    options.samples_per_expert = 0;
    s.window = std::make_unique<Calibrator>(s.model->config(), options);
    s.RunText(s.window.get(), "measuring layers " + std::to_string(s.window_begin) + " to " +
                                  std::to_string(s.window_end - 1));
  }
  const Calibrator& holder = s.window != nullptr ? *s.window : *s.survey;
  return holder.statistics().layers[static_cast<size_t>(layer)];
}

}  // namespace sluice
