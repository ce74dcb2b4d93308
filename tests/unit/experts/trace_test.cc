#include "engine/experts/trace.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "engine/experts/trace_tap.h"
#include "engine/experts/trace_wire.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"

namespace sluice {
namespace {

namespace wire = trace_wire;

struct TemporaryFile {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("sluice_trace_test_" + std::to_string(getpid()));
  ~TemporaryFile() { std::filesystem::remove(path); }
};

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<Trace> Parse(const std::string& file) { return ParseTrace(std::as_bytes(std::span(file))); }

TraceModel SmallModel() {
  TraceModel model;
  model.name = "small";
  model.space = {3, 300};
  model.experts_per_token = 2;
  model.expert_bytes = {4096};
  return model;
}

// Two steps: a chunk of three tokens of two streams, and one token.
std::string SmallFile(const std::filesystem::path& path) {
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create(path, SmallModel());
  REQUIRE(writer);
  const std::vector<int32_t> ids = {0, 299, 128, 127, 5, 4};
  const std::vector<float> weights = {0.5F, 0.25F, 1.0F, 0.0F, 2.0F, -1.0F};
  const std::vector<int64_t> streams = {7, 7, -9000000000};
  (*writer)->OnLayer(0, {3, 2, ids.data(), streams.data()}, weights.data());
  std::vector<float> probability(300, 0.001F);
  probability[0] = 0.75F;
  probability[299] = 0.5F;
  (*writer)->OnPredicted(2, probability);
  (*writer)->OnLayer(2, {3, 2, ids.data(), streams.data()}, weights.data());
  (*writer)->OnStreamEnd(7);
  (*writer)->EndStep();
  (*writer)->OnLayer(1, {1, 2, ids.data(), streams.data()}, weights.data());
  (*writer)->EndStep();
  REQUIRE((*writer)->Close());
  return ReadFile(path);
}

std::string WithPayload(const std::string& payload) {
  return wire::EncodeHeader(SmallModel()) + wire::EncodeFrame(payload);
}

std::string Records(std::initializer_list<int> bytes) {
  std::string out;
  for (const int b : bytes) out.push_back(static_cast<char>(b));
  return out;
}

}  // namespace

TEST_CASE("What is written to a trace is read back", "[trace]") {
  TemporaryFile file;
  SmallFile(file.path);
  const Result<Trace> trace = ReadTrace(file.path);
  REQUIRE(trace);
  CHECK(trace->model.name == "small");
  CHECK(trace->model.space == ExpertSpace{3, 300});
  CHECK(trace->model.experts_per_token == 2);
  CHECK(trace->model.bytes(899) == 4096);
  CHECK(trace->steps == 2);
  CHECK(trace->lost_steps == 0);
  CHECK_FALSE(trace->truncated);

  REQUIRE(trace->visits.size() == 3);
  CHECK(trace->visits[0].layer == 0);
  CHECK(trace->visits[1].layer == 2);
  CHECK(trace->visits[2].layer == 1);
  for (int v : {0, 1}) {
    const RoutedTokens routed = trace->routed(trace->visits[v]);
    CHECK(routed.tokens == 3);
    CHECK(std::vector<int32_t>(routed.ids, routed.ids + 6) ==
          std::vector<int32_t>{0, 299, 128, 127, 5, 4});
    CHECK(std::vector<int64_t>(routed.streams, routed.streams + 3) ==
          std::vector<int64_t>{7, 7, -9000000000});
  }
  const float expected[] = {0.5F, 0.25F, 1, 0, 1, 0};  // clamped
  for (int i = 0; i < 6; ++i) CHECK(std::abs(trace->weights[i] - expected[i]) < 1e-5F);

  REQUIRE(trace->predictions.size() == 1);
  const Trace::Prediction& prediction = trace->predictions[0];
  CHECK(prediction.layer == 2);
  CHECK(std::abs(prediction.rest - 0.001F) < 1e-5F);
  REQUIRE(prediction.count == 2);
  CHECK(trace->predicted_ids[prediction.first] == 0);
  CHECK(trace->predicted_ids[prediction.first + 1] == 299);
  CHECK(std::abs(trace->predicted[prediction.first] - 0.75F) < 1e-5F);

  std::vector<Trace::Kind> kinds;
  for (const Trace::Event& event : trace->events) kinds.push_back(event.kind);
  using Kind = Trace::Kind;
  CHECK(kinds == std::vector<Kind>{Kind::kVisit, Kind::kPrediction, Kind::kVisit, Kind::kStreamEnd,
                                   Kind::kStepEnd, Kind::kVisit, Kind::kStepEnd});
  CHECK(trace->events[3].value == 7);
}

TEST_CASE("Every changed byte of a trace is noticed", "[trace]") {
  TemporaryFile file;
  const std::string whole = SmallFile(file.path);
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int bit : {0, 3, 7}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      const Result<Trace> trace = Parse(damaged);
      // A frame's length that points past the end reads as a file that was cut short.
      if (trace) {
        CHECK(trace->truncated);
      } else {
        CHECK_FALSE(trace.error().message.empty());
      }
    }
  }
}

TEST_CASE("A trace that was cut short holds the frames before the cut", "[trace]") {
  TemporaryFile file;
  const std::string whole = SmallFile(file.path);
  const std::string longer = whole + whole.substr(wire::EncodeHeader(SmallModel()).size());
  const size_t header = wire::EncodeHeader(SmallModel()).size();
  for (size_t size = 0; size < longer.size(); ++size) {
    const Result<Trace> trace = Parse(longer.substr(0, size));
    if (size < header) {
      CHECK_FALSE(trace);
      continue;
    }
    REQUIRE(trace);
    CHECK(trace->steps == (size < whole.size() ? 0 : 2));
    CHECK(trace->truncated == (size != header && size != whole.size()));
  }
  CHECK(Parse(longer)->steps == 4);
}

TEST_CASE("Records that contradict the model or themselves are refused", "[trace]") {
  const std::string end = Records({3});
  const std::string sound = Records({1, 0, 1, 0, 2, 5, 0, 0, 6, 0, 0}) + end;
  REQUIRE(Parse(WithPayload(sound)));
  const std::pair<const char*, std::string> faults[] = {
      {"unknown kind", Records({9}) + end},
      {"does not exist", Records({1, 3, 1, 0, 2, 5, 0, 0, 6, 0, 0}) + end},
      {"impossible tokens", Records({1, 0, 0, 0}) + end},
      {"impossible tokens", Records({1, 0, 0x7F, 0, 2, 5, 0, 0, 6, 0, 0}) + end},
      {"unknown flag", Records({1, 0, 1, 2, 2, 5, 0, 0, 6, 0, 0}) + end},
      {"other tokens", Records({1, 0, 1, 1, 5, 0, 0, 6, 0, 0}) + end},
      {"chose twice", Records({1, 0, 1, 0, 2, 5, 0, 0, 5, 0, 0}) + end},
      {"expert that does not exist", Records({1, 0, 1, 0, 2, 0xAC, 2, 0, 0, 5, 0, 0}) + end},
      {"out of order",
       Records({1, 1, 1, 0, 2, 5, 0, 0, 6, 0, 0, 1, 1, 1, 1, 5, 0, 0, 6, 0, 0}) + end},
      {"without an end", Records({1, 0, 1, 0, 2, 5, 0, 0, 6, 0, 0})},
      {"cuts short", Records({1, 0, 1, 0, 2, 5, 0, 0, 6, 0})},
      {"layer that does not exist", Records({2, 3, 0, 0, 0}) + end},
      {"too many predictions", Records({2, 0, 0, 0, 0xAD, 2}) + end},
      {"expert that does not exist", Records({2, 0, 0, 0, 1, 0, 0, 0}) + end},
      {"expert that does not exist", Records({2, 0, 0, 0, 1, 0xAD, 2, 0, 0}) + end},
      {"lost steps", Records({5, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}) + end},
      {"cuts short",
       Records({4, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}) + end},
  };
  for (const auto& [what, payload] : faults) {
    INFO(what);
    const Result<Trace> trace = Parse(WithPayload(payload));
    REQUIRE(!trace);
    CHECK(trace.error().code == ErrorCode::kCorrupt);
    CHECK(trace.error().message.find(what) != std::string::npos);
  }
}

TEST_CASE("Headers of impossible models are refused", "[trace]") {
  const auto refused = [](const TraceModel& model) { return !Parse(wire::EncodeHeader(model)); };
  TraceModel model = SmallModel();
  CHECK_FALSE(refused(model));
  model.experts_per_token = 301;
  CHECK(refused(model));
  model = SmallModel();
  model.space.layers = 0;
  CHECK(refused(model));
  model = SmallModel();
  model.expert_bytes = {1, 2};
  CHECK(refused(model));
  model = SmallModel();
  model.expert_bytes = {uint64_t{1} << 50};
  CHECK(refused(model));
  // Nothing could be kept, or nothing would fit: a replay divides by the sum.
  for (const std::vector<uint64_t>& sizes :
       {std::vector<uint64_t>{0}, std::vector<uint64_t>(900, 0)}) {
    model.expert_bytes = sizes;
    CHECK(refused(model));
  }
  model.expert_bytes.back() = 1;
  CHECK_FALSE(refused(model));
  // A header of a hundred bytes must not make a replay take gigabytes.
  model = SmallModel();
  model.space = {4096, 65536};
  CHECK(refused(model));
  CHECK(TraceWriter::Create("/dev/null", model).error().code == ErrorCode::kInvalidArgument);
  CHECK(TraceWriter::Create("/nonexistent/trace", SmallModel()).error().code == ErrorCode::kIo);
  model = SmallModel();
  model.experts_per_token = 0;
  CHECK(TraceWriter::Create("/dev/null", model).error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("Steps that do not fit what may be pending are left out and counted", "[trace]") {
  TemporaryFile file;
  Result<std::unique_ptr<TraceWriter>> writer =
      TraceWriter::Create(file.path, SmallModel(), {.pending_bytes = 100});
  REQUIRE(writer);
  std::vector<int32_t> distinct;
  for (int i = 0; i < 200; ++i) distinct.push_back(i);
  const std::vector<float> weights(200, 0.5F);
  const std::vector<int64_t> streams(100, 0);
  (*writer)->OnLayer(0, {100, 2, distinct.data(), streams.data()}, weights.data());
  (*writer)->EndStep();
  (*writer)->OnLayer(0, {1, 2, distinct.data(), streams.data()}, weights.data());
  (*writer)->EndStep();
  CHECK((*writer)->lost_steps() == 1);
  REQUIRE((*writer)->Close());
  const Result<Trace> trace = ReadTrace(file.path);
  REQUIRE(trace);
  CHECK(trace->steps == 1);
  CHECK(trace->lost_steps == 1);
}

TEST_CASE("A trace ends at its limit, without gaps", "[trace]") {
  TemporaryFile file;
  const uint64_t limit = 4000;
  Result<std::unique_ptr<TraceWriter>> writer =
      TraceWriter::Create(file.path, SmallModel(), {.limit_bytes = limit});
  REQUIRE(writer);
  const int32_t ids[] = {1, 2};
  const float weights[] = {1, 1};
  const int64_t stream = 0;
  for (int step = 0; step < 1000; ++step) {
    (*writer)->OnLayer(0, {1, 2, ids, &stream}, weights);
    (*writer)->EndStep();
  }
  const TraceWriter::Status status = (*writer)->status();
  CHECK(status.full);
  CHECK(status.steps + status.lost_steps == 1000);
  REQUIRE((*writer)->Close());
  CHECK(std::filesystem::file_size(file.path) <= limit);
  CHECK(std::filesystem::file_size(file.path) > limit / 2);
  const Result<Trace> trace = ReadTrace(file.path);
  REQUIRE(trace);
  CHECK(trace->steps == status.steps);
  CHECK(!trace->truncated);
}

TEST_CASE("With a flush interval steps reach the file while it is being written", "[trace]") {
  TemporaryFile file;
  Result<std::unique_ptr<TraceWriter>> writer =
      TraceWriter::Create(file.path, SmallModel(), {.flush_seconds = 0.001});
  REQUIRE(writer);
  const uint64_t header = std::filesystem::file_size(file.path);
  const int32_t ids[] = {1, 2};
  const float weights[] = {1, 1};
  const int64_t stream = 0;
  (*writer)->OnLayer(0, {1, 2, ids, &stream}, weights);
  (*writer)->EndStep();
  // Bounded by the test's own time limit only.
  Result<Trace> trace = ReadTrace(file.path);
  while (!trace || trace->steps == 0) {
    std::this_thread::yield();
    trace = ReadTrace(file.path);
  }
  CHECK(trace->steps == 1);
  CHECK(std::filesystem::file_size(file.path) > header);
}

TEST_CASE("Taps record layers with gaps between their rows of weights", "[trace]") {
  TemporaryFile file;
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create(file.path, SmallModel());
  REQUIRE(writer);
  {
    TraceTap tap(std::move(*writer));
    const int32_t ids[] = {1, 2, 3, 4};
    const float weights[] = {0.5F, 0.25F, -1, 0.125F, 0, -1};
    const int64_t streams[] = {5, 6};
    tap.OnLayer(0, {2, 2, ids, streams, weights, 3}, {});
    tap.EndStep();
    tap.OnStreamEnd(5);
    CHECK(tap.status().steps == 1);
  }
  const Result<Trace> trace = ReadTrace(file.path);
  REQUIRE(trace);
  REQUIRE(trace->weights.size() == 4);
  CHECK(trace->weights[1] == Approx(0.25).epsilon(0.001));
  CHECK(trace->weights[2] == Approx(0.125).epsilon(0.001));
  CHECK(trace->weights[3] == 0);
  REQUIRE(!trace->events.empty());
  CHECK(trace->events.back().kind == Trace::Kind::kStepEnd);
}

TEST_CASE("A full disk is an error of Close, not of the steps", "[trace]") {
  if (!std::filesystem::exists("/dev/full")) return;
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create("/dev/full", SmallModel());
  REQUIRE(writer);
  const int32_t ids[] = {1, 2};
  const float weights[] = {1, 1};
  const int64_t stream = 0;
  for (int step = 0; step < 100000; ++step) {
    (*writer)->OnLayer(0, {1, 2, ids, &stream}, weights);
    (*writer)->EndStep();
  }
  const Result<void> closed = (*writer)->Close();
  REQUIRE(!closed);
  CHECK(closed.error().code == ErrorCode::kIo);
  CHECK(closed.error().message.find("/dev/full") != std::string::npos);
}

TEST_CASE("Long traces of random steps survive the file", "[trace]") {
  TemporaryFile file;
  TraceModel model = SmallModel();
  model.expert_bytes.assign(900, 1);
  model.expert_bytes[17] = 5;
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create(file.path, model);
  REQUIRE(writer);
  std::mt19937 random(3);
  std::vector<int32_t> all_ids;
  for (int step = 0; step < 3000; ++step) {
    const int tokens = 1 + static_cast<int>(random() % 70);
    for (int l = 0; l < 3; ++l) {
      std::vector<int32_t> ids;
      std::vector<int64_t> streams;
      for (int t = 0; t < tokens; ++t) {
        ids.push_back(static_cast<int32_t>(random() % 150));
        ids.push_back(static_cast<int32_t>(150 + random() % 150));
        streams.push_back(static_cast<int64_t>(random() % 5) - 2);
      }
      const std::vector<float> weights(ids.size(), 0.5F);
      (*writer)->OnLayer(l, {tokens, 2, ids.data(), streams.data()}, weights.data());
      all_ids.insert(all_ids.end(), ids.begin(), ids.end());
    }
    (*writer)->EndStep();
  }
  REQUIRE((*writer)->Close());
  CHECK((*writer)->lost_steps() == 0);
  const Result<Trace> trace = ReadTrace(file.path);
  REQUIRE(trace);
  CHECK(trace->steps == 3000);
  CHECK(trace->ids == all_ids);
  CHECK(trace->model.bytes(17) == 5);
}

TEST_CASE("A file that is too large for a trace is not read", "[trace]") {
  TemporaryFile file;
  SmallFile(file.path);
  std::filesystem::resize_file(file.path, kMaxTraceBytes + 1);  // a hole: it takes no room
  const Result<Trace> trace = ReadTrace(file.path);
  REQUIRE_FALSE(trace);
  CHECK(trace.error().code == ErrorCode::kResourceExhausted);
  CHECK(trace.error().message.find(file.path.string()) != std::string::npos);
}

TEST_CASE("What a file and the same bytes in memory say is the same at every length", "[trace]") {
  TemporaryFile file;
  const std::string whole = SmallFile(file.path) + std::string(40, '\0');
  for (size_t size = 0; size <= whole.size(); ++size) {
    std::ofstream(file.path, std::ios::binary) << whole.substr(0, size);
    const Result<Trace> parsed = Parse(whole.substr(0, size)), read = ReadTrace(file.path);
    REQUIRE(static_cast<bool>(parsed) == static_cast<bool>(read));
    if (!read) {
      CHECK(read.error().message.find(parsed.error().message) != std::string::npos);
      continue;
    }
    CHECK(read->truncated == parsed->truncated);
    CHECK(read->steps == parsed->steps);
    CHECK(read->ids == parsed->ids);
  }
}

}  // namespace sluice
