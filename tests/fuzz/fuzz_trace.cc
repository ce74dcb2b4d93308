// Any bytes as a routing trace: reading it must not crash, hang or allocate without bound, and what
// comes out must be what the header says. The first byte chooses: odd: the rest is the payload of a
// sound frame behind a sound header (most interesting faults are there); even: the whole file.
#include <cstdint>
#include <string>

#include "engine/base/check.h"
#include "engine/experts/trace_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  std::string file(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 1) {
    sluice::TraceModel model;
    model.space = {4, data[0]};
    model.experts_per_token = 1 + data[0] / 128;
    model.expert_bytes = {1};
    file = sluice::trace_wire::EncodeHeader(model) + sluice::trace_wire::EncodeFrame(file);
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
  return 0;
}
