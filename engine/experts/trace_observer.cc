#include "engine/experts/trace_observer.h"

#include <utility>

#include "engine/base/check.h"

namespace sluice {

void TraceObserver::BeginStep(std::vector<int64_t> streams, std::vector<int64_t> logit_streams) {
  streams_ = std::move(streams);
  logit_streams_ = std::move(logit_streams);
  recording_ = writer_ != nullptr;
  layer_ = -1;
}

void TraceObserver::EndStep() {
  if (!recording_) return;
  WriteLayer();
  writer_->EndStep();
  recording_ = false;
}

void TraceObserver::OnExpert(const ExpertActivations& activations) {
  if (!recording_ || activations.expert < 0) return;
  if (activations.layer != layer_) {
    WriteLayer();
    layer_ = activations.layer;
  }
  const auto k = static_cast<size_t>(experts_per_token_);
  for (int i = 0; i < activations.count; ++i) {
    const auto row = static_cast<size_t>(activations.rows != nullptr ? activations.rows[i] : i);
    if (row >= chosen_.size()) {
      chosen_.resize(row + 1, 0);
      ids_.resize((row + 1) * k, 0);
      weights_.resize((row + 1) * k, 0);
    }
    SLUICE_CHECK(chosen_[row] < experts_per_token_);
    const size_t at = row * k + static_cast<size_t>(chosen_[row]++);
    ids_[at] = activations.expert;
    weights_[at] = activations.weights[i];
  }
}

void TraceObserver::WriteLayer() {
  if (layer_ < 0) return;
  const bool all = chosen_.size() == streams_.size();
  SLUICE_CHECK(all || chosen_.size() == logit_streams_.size());
  for (const int count : chosen_) SLUICE_CHECK(count == experts_per_token_);
  writer_->OnLayer(layer_,
                   {static_cast<int>(chosen_.size()), experts_per_token_, ids_.data(),
                    all ? streams_.data() : logit_streams_.data()},
                   weights_.data());
  chosen_.clear();
  ids_.clear();
  weights_.clear();
  layer_ = -1;
}

}  // namespace sluice
