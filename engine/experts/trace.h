// Routing traces: what the layers of a model chose, step after step, in a file. Written by a
// running engine (`sluice trace record`), replayed with any cache policy (replay.h).
//
// The file, all little-endian:
//
//   header   "SLTRACE1"
//            u32 bytes of the header, its checksum included
//            u32 version (1), u32 layers, u32 experts per layer, u32 experts per token
//            u32 length of the model's name, the name (UTF-8)
//            u32 sizes: 1, or layers * experts per layer; so many u64: bytes of every expert alike,
//            or of each, by layer and then by index (0: a dense layer has none)
//            u64 XXH3-64 of all of the above
//   frames   u32 bytes of the payload, u32 zero, u64 XXH3-64 of the payload, the payload:
//            records of whole steps. A file that was cut short ends with a part of a frame.
//   records  a kind (one byte), then varints (LEB128, 64 bits at most; "signed" ones in zigzag):
//     1 visit       layer; tokens n; same: 1 when the streams are those of the step's visit before
//                   (which then had n tokens, too), else 0 and n signed differences from the stream
//                   before (from 0 at first); then for each token k times the expert and a u16, its
//                   gate weight in 65535ths
//     2 prediction  layer; u16 probability, in 65535ths, of all experts not named; count; count
//                   times the expert, as the distance from the one before (from -1 at first), and a
//                   u16 probability. It was made at this point of the step, for the next visit.
//     3 step end
//     4 stream end  signed stream: the sequence is over
//     5 lost        steps that were not recorded here because the disk was too slow
//
// Visits of a step have ascending layers; a layer may be missing (dense, or no token asked).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/experts/expert_id.h"
#include "engine/experts/expert_predictor.h"

namespace sluice {

struct TraceModel {
  std::string name;  // for people
  ExpertSpace space;
  int experts_per_token = 0;
  std::vector<uint64_t> expert_bytes;  // one for all, or [place]

  uint64_t bytes(int place) const {
    return expert_bytes.size() == 1 ? expert_bytes[0] : expert_bytes[place];
  }
};

// A whole trace in memory: about as large as its file (at most sixteen times: a record of one byte
// becomes an event).
struct Trace {
  struct Visit {
    int layer = 0;
    int tokens = 0;
    size_t first_token = 0;  // row of ids, weights and streams
  };
  struct Prediction {
    int layer = 0;
    float rest = 0;    // probability of experts not named
    size_t first = 0;  // of predicted_ids and predicted
    int count = 0;
  };
  enum class Kind : uint8_t { kVisit, kPrediction, kStepEnd, kStreamEnd };
  struct Event {
    Kind kind = Kind::kStepEnd;
    int64_t value = 0;  // index of the visit or prediction; the stream; at a step's end 0
  };

  TraceModel model;
  std::vector<Event> events;
  std::vector<Visit> visits;
  std::vector<Prediction> predictions;
  std::vector<int32_t> ids;      // [token rows, experts_per_token]
  std::vector<float> weights;    // [token rows, experts_per_token]
  std::vector<int64_t> streams;  // [token rows]
  std::vector<int32_t> predicted_ids;
  std::vector<float> predicted;  // probability
  int64_t steps = 0;
  int64_t lost_steps = 0;  // that the writer had to drop
  bool truncated = false;  // the file ends within a frame: the steps before it are here

  RoutedTokens routed(const Visit& visit) const {
    const size_t k = static_cast<size_t>(model.experts_per_token);
    return {visit.tokens, model.experts_per_token, ids.data() + visit.first_token * k,
            streams.data() + visit.first_token};
  }
};

// Untrusted input: everything is checked. Errors: kCorrupt, naming the place; kUnsupported for
// another version; kResourceExhausted for a file above kMaxTraceBytes. A file that was cut short is
// no error (Trace::truncated). Of a file a frame is in memory at a time, so that one that only
// claims to be a large trace takes none.
inline constexpr uint64_t kMaxTraceBytes = uint64_t{8} << 30;
Result<Trace> ReadTrace(const std::filesystem::path& path);
Result<Trace> ParseTrace(std::span<const std::byte> file);

struct TraceWriterOptions {
  size_t pending_bytes = size_t{8} << 20;  // most that wait for the disk
  double flush_seconds = 0;  // what is pending is written this often; 0: when there is enough
  uint64_t limit_bytes = 0;  // of the file: what comes later is left out; 0: none
};

// Writes a trace as it happens. A thread of its own does the I/O; what waits for it is bounded:
// when the disk does not keep up whole steps are left out and counted in the file.
//
// Threads: one owner thread. Calls copy, encode and now and then take a lock that is never held
// over I/O.
class TraceWriter {
 public:
  // Errors: kIo, naming the file; kInvalidArgument for a model that the file cannot describe.
  static Result<std::unique_ptr<TraceWriter>> Create(const std::filesystem::path& path,
                                                     const TraceModel& model,
                                                     const TraceWriterOptions& options = {});
  ~TraceWriter();  // as Close, without the error

  // A layer was reached, after all lower ones of the step. weights: [tokens, experts_per_token] of
  // the gate, in [0, 1] (others are clamped).
  void OnLayer(int layer, const RoutedTokens& routed, const float* weights);
  // Probabilities for the next visit of `layer`: [experts_per_layer]. Those below 1/256 are kept as
  // their mean only.
  void OnPredicted(int layer, std::span<const float> probability);
  void OnStreamEnd(int64_t stream);
  void EndStep();

  // Writes what is pending, with the step that is open. Errors: the first that the file had.
  Result<void> Close();

  int64_t lost_steps() const { return lost_steps_.load(std::memory_order_relaxed); }
  struct Status {
    int64_t steps = 0;       // recorded
    int64_t lost_steps = 0;  // left out
    uint64_t bytes = 0;      // of the file
    bool full = false;       // the file has reached its limit
    int error = 0;           // errno of the first write that failed: nothing is written since
  };
  // Any thread.
  Status status() const;

 private:
  class Output;
  TraceWriter(TraceModel model, std::unique_ptr<Output> output);

  TraceModel model_;
  std::unique_ptr<Output> output_;
  std::string step_;              // records of the open step
  std::vector<int64_t> streams_;  // of the step's visit before
  int last_layer_ = -1;
  std::atomic<int64_t> recorded_steps_ = 0, lost_steps_ = 0;
  int64_t unreported_lost_ = 0;
};

}  // namespace sluice
