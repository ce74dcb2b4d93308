// An EngineCore with a fake model and a manual clock, and sinks that remember.
#pragma once

#include <bit>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/runtime/engine_core.h"
#include "tests/support/fake_model.h"
#include "tests/support/manual_clock.h"

namespace sluice {

struct RecordingSink final : OutputSink {
  void OnPrompt(std::vector<TokenOutput> p) override {
    if (!tokens.empty() || prompt_calls > 0 || finish_calls > 0) out_of_order = true;
    ++prompt_calls;
    prompt = std::move(p);
  }
  void OnToken(TokenOutput token) override {
    if (finish_calls > 0) out_of_order = true;
    tokens.push_back(std::move(token));
  }
  void OnFinish(Finish f) override {
    ++finish_calls;
    finish = std::move(f);
  }

  bool finished() const { return finish_calls == 1; }
  std::vector<int32_t> ids() const {
    std::vector<int32_t> out;
    for (const TokenOutput& t : tokens) out.push_back(t.token);
    return out;
  }

  std::vector<TokenOutput> prompt, tokens;
  Finish finish;
  int prompt_calls = 0, finish_calls = 0;
  bool out_of_order = false;
};

inline void AppendBytes(const std::vector<TokenOutput>& outputs, std::string* out) {
  for (const TokenOutput& t : outputs) {
    *out += std::to_string(t.token) + ':' + std::to_string(std::bit_cast<uint32_t>(t.logprob));
    for (const TokenLogprob& top : t.top) {
      *out += ',' + std::to_string(top.token) + ':' +
              std::to_string(std::bit_cast<uint32_t>(top.logprob));
    }
    *out += ';';
  }
}

// All that a client can see of a request except its timing, exact to the bit.
inline std::string Bytes(const RecordingSink& sink) {
  std::string out;
  AppendBytes(sink.prompt, &out);
  out += '|';
  AppendBytes(sink.tokens, &out);
  return out + '|' + std::to_string(static_cast<int>(sink.finish.reason)) + ' ' +
         std::to_string(sink.finish.stop_token) + ' ' +
         std::to_string(sink.finish.usage.prompt_tokens) + ' ' +
         std::to_string(sink.finish.usage.completion_tokens);
}

struct CoreHarness {
  explicit CoreHarness(const FakeModelOptions& fake = {}, const EngineOptions& options = {})
      : model(fake), core(&model, options, &clock) {}

  // Null when refused.
  std::shared_ptr<RecordingSink> Submit(const GenerationRequest& request) {
    if (!core.Validate(request) || !core.Reserve(static_cast<int64_t>(request.prompt.size())))
      return nullptr;
    auto sink = std::make_shared<RecordingSink>();
    core.Add(next_id++, request, sink, clock.Now());
    return sink;
  }

  bool Step() {
    const bool ran = core.Step();
    if (wrong.empty()) wrong = core.CheckInvariants();
    if (wrong.empty()) wrong = model.violation();
    clock.Advance(0.001);
    return ran;
  }

  // Steps until nothing is left; false when that takes more than `most` steps.
  bool RunAll(int most = 100000) {
    for (int i = 0; i < most; ++i) {
      if (!Step()) return true;
    }
    return false;
  }

  FakeModel model;
  ManualClock clock;
  EngineCore core;
  RequestId next_id = 1;
  std::string wrong;  // the first broken invariant
};

// What the request gives when it has a roomy engine to itself.
inline std::string BytesAlone(const GenerationRequest& request, FakeModelOptions fake) {
  fake.kv_blocks = 512;
  CoreHarness alone(fake);
  const auto sink = alone.Submit(request);
  if (sink == nullptr || !alone.RunAll() || !alone.wrong.empty()) return "failed: " + alone.wrong;
  return Bytes(*sink);
}

inline GenerationRequest SimpleRequest(std::vector<int32_t> prompt, int max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  return request;
}

inline std::vector<int32_t> CountingPrompt(int size, int first = 3) {
  std::vector<int32_t> prompt(static_cast<size_t>(size));
  for (int i = 0; i < size; ++i) prompt[static_cast<size_t>(i)] = 3 + (first + 7 * i) % 80;
  return prompt;
}

}  // namespace sluice
