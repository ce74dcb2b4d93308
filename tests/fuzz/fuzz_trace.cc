// Any bytes as a routing trace: reading it must not crash, hang or allocate without bound, and what
// comes out must be what the header says, and can be replayed and laid side by side for several
// users. The first byte chooses: even: the rest is the whole file; odd: the next bytes are the
// model's layers, experts, experts per token and sizes, and the rest is the payload of a sound
// frame behind a sound header (most interesting faults are there).
#include <algorithm>
#include <cstdint>
#include <string>

#include "engine/base/check.h"
#include "engine/experts/replay.h"
#include "engine/experts/trace_wire.h"
#include "engine/runtime/expert_forecast.h"

namespace {

constexpr size_t kShapeBytes = 5;

sluice::TraceModel ModelOf(const uint8_t* data) {
  sluice::TraceModel model;
  model.space = {1 + data[1] % 16, 1 + data[2] + (data[0] >= 128 ? 256 * data[2] : 0)};
  model.experts_per_token = 1 + data[3] % std::min(model.space.experts_per_layer, 64);
  model.expert_bytes = {1 + uint64_t{data[4]}};
  if (data[4] % 2 == 0) return model;
  model.expert_bytes.assign(static_cast<size_t>(model.space.size()), 0);
  for (size_t i = 0; i < model.expert_bytes.size(); ++i)
    model.expert_bytes[i] = 1 + i * data[4] % 7;
  return model;
}

// With one policy, budget and horizon: all of them would take too long for one input.
void Replay(const sluice::Trace& trace, uint8_t choice) {
  if (trace.model.space.size() > 1024 || trace.visits.size() > 64) return;
  constexpr const char* kPolicies[] = {"optimal", "auto", "lru", "arc"};
  sluice::ReplayOptions options;
  options.policy = kPolicies[choice % 4];
  options.budget = (choice / 4 % 8) / 7.0;
  options.horizon = choice / 32 % 3;
  const auto result = sluice::Replay(trace, options);
  SLUICE_CHECK(result.has_value(), result ? "" : result.error().message);
  SLUICE_CHECK(result->hits >= 0 && result->hits <= result->wanted);
  SLUICE_CHECK(result->prompt_hits <= result->hits && result->bytes_read >= 0);
  SLUICE_CHECK(result->stall_seconds >= 0 && result->seconds >= result->stall_seconds);
  const sluice::Trace retimed = sluice::RetimeTrace(trace, 1 + choice % 4);
  SLUICE_CHECK(retimed.steps >= 0 && retimed.visits.size() <= trace.streams.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1 + kShapeBytes) return 0;
  std::string file(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 1) {
    file.erase(0, kShapeBytes);
    file = sluice::trace_wire::EncodeHeader(ModelOf(data)) + sluice::trace_wire::EncodeFrame(file);
  }
  const sluice::Result<sluice::Trace> trace = sluice::ParseTrace(std::as_bytes(std::span(file)));
  if (!trace) {
    SLUICE_CHECK(!trace.error().message.empty());
    return 0;
  }
  const size_t k = static_cast<size_t>(trace->model.experts_per_token);
  SLUICE_CHECK(trace->ids.size() == trace->weights.size());
  SLUICE_CHECK(trace->ids.size() == trace->streams.size() * k);
  int layer = -1;
  for (const sluice::Trace::Event& event : trace->events) {
    if (event.kind == sluice::Trace::Kind::kStepEnd) layer = -1;
    if (event.kind != sluice::Trace::Kind::kVisit) continue;
    const sluice::Trace::Visit& visit = trace->visits[static_cast<size_t>(event.value)];
    SLUICE_CHECK(visit.layer > layer && visit.layer < trace->model.space.layers);
    SLUICE_CHECK(visit.tokens >= 1);
    SLUICE_CHECK(visit.first_token + static_cast<size_t>(visit.tokens) <= trace->streams.size());
    layer = visit.layer;
  }
  for (const int32_t id : trace->ids) {
    SLUICE_CHECK(id >= 0 && id < trace->model.space.experts_per_layer);
  }
  for (const sluice::Trace::Prediction& prediction : trace->predictions) {
    SLUICE_CHECK(prediction.first + static_cast<size_t>(prediction.count) <=
                 trace->predicted.size());
  }
  Replay(*trace, data[5]);
  return 0;
}
