// Records what a serving engine routes, for traces of real traffic.
#pragma once

#include <memory>
#include <vector>

#include "engine/experts/routing_tap.h"
#include "engine/experts/trace.h"

namespace sluice {

// Every step, with what was predicted. Costs the engine thread the encoding, some microseconds per
// layer and token. Threads: as RoutingTap.
class TraceTap final : public RoutingTap {
 public:
  explicit TraceTap(std::unique_ptr<TraceWriter> writer) : writer_(std::move(writer)) {}

  // REQUIRES: routed.weights.
  void OnLayer(int layer, const RoutedTokens& routed, std::span<const ExpertUse> uses) override;
  void OnPredicted(int layer, std::span<const float> probability) override {
    writer_->OnPredicted(layer, probability);
  }
  void OnStreamEnd(int64_t stream) override { writer_->OnStreamEnd(stream); }
  void EndStep() override { writer_->EndStep(); }

  // Any thread.
  TraceWriter::Status status() const { return writer_->status(); }

 private:
  std::unique_ptr<TraceWriter> writer_;
  std::vector<float> weights_;  // scratch: without the gaps between rows
};

}  // namespace sluice
