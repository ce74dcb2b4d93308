// Records a trace from a model's forward passes, through the observer that calibration uses: slower
// than serving, and without predictions. For `sluice trace record` on texts.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/experts/forward_observer.h"
#include "engine/experts/trace.h"

namespace sluice {

class TraceObserver final : public ForwardObserver {
 public:
  // Both before the first step. The writer outlives the observer.
  void SetWriter(TraceWriter* writer, int experts_per_token) {
    writer_ = writer;
    experts_per_token_ = experts_per_token;
  }
  // Around each Forward: the streams of its tokens, and of those whose logits were asked for (the
  // only ones that the last layer's experts see). Without a call the pass is not recorded.
  void BeginStep(std::vector<int64_t> streams, std::vector<int64_t> logit_streams);
  void EndStep();

  void OnAttentionInputs(int, const ActivationRows&) override {}
  void OnAttentionOutputs(int, const ActivationRows&) override {}
  void OnExpert(const ExpertActivations& activations) override;
  void OnHeadInputs(const ActivationRows&) override {}

 private:
  void WriteLayer();

  TraceWriter* writer_ = nullptr;
  int experts_per_token_ = 0;
  bool recording_ = false;
  std::vector<int64_t> streams_, logit_streams_;
  int layer_ = -1;              // being gathered
  std::vector<int> chosen_;     // [tokens] experts so far
  std::vector<int32_t> ids_;    // [tokens, experts_per_token]
  std::vector<float> weights_;  // the same
};

}  // namespace sluice
