#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>

#include "engine/base/check.h"
#include "engine/experts/trace_wire.h"

namespace sluice {
namespace {

constexpr float kLeastNamed = 1.0F / 256;
// Steps are gathered into frames of about this size.
constexpr size_t kFrameBytes = size_t{256} << 10;

}  // namespace

// The file and the thread that writes it.
class TraceWriter::Output {
 public:
  Output(std::filesystem::path path, std::FILE* file, uint64_t header_bytes,
         const TraceWriterOptions& options)
      : path_(std::move(path)),
        file_(file),
        options_(options),
        bytes_(header_bytes),
        thread_([this] { Run(); }) {}
  ~Output() { (void)Close(); }

  // False: there is no room for it now.
  bool Append(std::string_view records) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (full_ || pending_.size() + records.size() > options_.pending_bytes) return false;
    if (options_.limit_bytes > 0 &&
        bytes_ + pending_.size() + records.size() + trace_wire::kFrameHeaderBytes >
            options_.limit_bytes) {
      full_ = true;  // also for smaller steps: a file without gaps
      return false;
    }
    pending_ += records;
    if (pending_.size() >= kFrameBytes) wake_.notify_one();
    return true;
  }

  Result<void> Close() {
    if (!thread_.joinable()) return result_;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
      wake_.notify_one();
    }
    thread_.join();
    if (std::fclose(file_) != 0) Fail();
    if (error_ != 0) {
      result_ = IoError("cannot write the trace " + path_.string() + ": " + std::strerror(error_));
    }
    return result_;
  }

  void AddTo(Status* status) {
    std::lock_guard<std::mutex> lock(mutex_);
    status->bytes = bytes_;
    status->full = full_;
    status->error = error_;
  }

 private:
  void Run() {
    std::string taken;
    for (bool last = false; !last;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto ready = [this] { return closing_ || pending_.size() >= kFrameBytes; };
        if (options_.flush_seconds > 0) {
          wake_.wait_for(lock, std::chrono::duration<double>(options_.flush_seconds), ready);
        } else {
          wake_.wait(lock, ready);
        }
        last = closing_;
        taken.clear();
        taken.swap(pending_);
        // Before it is written: the limit also holds for what is under way.
        if (!taken.empty()) bytes_ += trace_wire::kFrameHeaderBytes + taken.size();
      }
      if (taken.empty() || error_ != 0) continue;
      const std::string frame = trace_wire::EncodeFrame(taken);
      if (std::fwrite(frame.data(), 1, frame.size(), file_) != frame.size()) Fail();
      if (options_.flush_seconds > 0 && std::fflush(file_) != 0) Fail();
    }
  }
  void Fail() {
    if (error_ == 0) error_ = errno;
  }

  std::filesystem::path path_;
  std::FILE* file_;
  const TraceWriterOptions options_;
  std::atomic<int> error_ = 0;  // errno; nothing is written any more
  Result<void> result_;

  std::mutex mutex_;
  std::condition_variable wake_;
  // GUARDED_BY(mutex_), all of these.
  std::string pending_;  // whole steps
  uint64_t bytes_;       // given to the file
  bool full_ = false;
  bool closing_ = false;

  std::thread thread_;  // last: starts when the rest is there
};

Result<std::unique_ptr<TraceWriter>> TraceWriter::Create(const std::filesystem::path& path,
                                                         const TraceModel& model,
                                                         const TraceWriterOptions& options) {
  const ExpertSpace space = model.space;
  if (space.layers < 1 || space.layers > trace_wire::kMaxLayers || space.experts_per_layer < 1 ||
      space.experts_per_layer > trace_wire::kMaxExpertsPerLayer ||
      int64_t{space.layers} * space.experts_per_layer > trace_wire::kMaxExperts ||
      model.experts_per_token < 1 || model.experts_per_token > space.experts_per_layer ||
      model.name.size() > trace_wire::kMaxNameBytes ||
      (model.expert_bytes.size() != 1 &&
       model.expert_bytes.size() != static_cast<size_t>(space.size()))) {
    return InvalidArgument("a model of this shape has no trace: " + std::to_string(space.layers) +
                           " layers of " + std::to_string(space.experts_per_layer) + " experts, " +
                           std::to_string(model.experts_per_token) + " chosen");
  }
  std::FILE* file = std::fopen(path.c_str(), "wbe");
  const std::string header = trace_wire::EncodeHeader(model);
  // One that others read while it grows is a trace before its first step.
  if (file == nullptr || std::fwrite(header.data(), 1, header.size(), file) != header.size() ||
      (options.flush_seconds > 0 && std::fflush(file) != 0)) {
    const int error = errno;
    if (file != nullptr) std::fclose(file);
    return IoError("cannot write the trace " + path.string() + ": " + std::strerror(error));
  }
  TraceWriterOptions bounded = options;
  bounded.pending_bytes = std::min<size_t>(options.pending_bytes, trace_wire::kMaxFrameBytes);
  return std::unique_ptr<TraceWriter>(
      new TraceWriter(model, std::make_unique<Output>(path, file, header.size(), bounded)));
}

TraceWriter::TraceWriter(TraceModel model, std::unique_ptr<Output> output)
    : model_(std::move(model)), output_(std::move(output)) {}

TraceWriter::~TraceWriter() { (void)Close(); }

void TraceWriter::OnLayer(int layer, const RoutedTokens& routed, const float* weights) {
  SLUICE_CHECK(layer > last_layer_ && layer < model_.space.layers);
  SLUICE_CHECK(routed.tokens >= 1 && routed.experts_per_token == model_.experts_per_token);
  last_layer_ = layer;
  step_.push_back(static_cast<char>(trace_wire::kVisit));
  trace_wire::PutVarint(step_, static_cast<uint64_t>(layer));
  trace_wire::PutVarint(step_, static_cast<uint64_t>(routed.tokens));
  const std::span<const int64_t> streams(routed.streams, static_cast<size_t>(routed.tokens));
  const bool same = std::equal(streams.begin(), streams.end(), streams_.begin(), streams_.end());
  trace_wire::PutVarint(step_, same ? 1 : 0);
  if (!same) {
    uint64_t before = 0;
    for (const int64_t stream : streams) {
      trace_wire::PutSigned(step_, static_cast<int64_t>(static_cast<uint64_t>(stream) - before));
      before = static_cast<uint64_t>(stream);
    }
    streams_.assign(streams.begin(), streams.end());
  }
  const ptrdiff_t choices = static_cast<ptrdiff_t>(routed.tokens) * routed.experts_per_token;
  for (ptrdiff_t i = 0; i < choices; ++i) {
    SLUICE_CHECK(routed.ids[i] >= 0 && routed.ids[i] < model_.space.experts_per_layer);
    trace_wire::PutVarint(step_, static_cast<uint64_t>(routed.ids[i]));
    trace_wire::PutFraction(step_, weights[i]);
  }
}

void TraceWriter::OnPredicted(int layer, std::span<const float> probability) {
  SLUICE_CHECK(layer >= 0 && layer < model_.space.layers);
  SLUICE_CHECK(static_cast<int>(probability.size()) == model_.space.experts_per_layer);
  double rest = 0;
  uint64_t named = 0;
  for (const float p : probability) {
    if (p >= kLeastNamed) {
      ++named;
    } else if (p > 0) {
      rest += static_cast<double>(p);
    }
  }
  const double others = static_cast<double>(probability.size() - named);
  step_.push_back(static_cast<char>(trace_wire::kPrediction));
  trace_wire::PutVarint(step_, static_cast<uint64_t>(layer));
  trace_wire::PutFraction(step_, others == 0 ? 0 : static_cast<float>(rest / others));
  trace_wire::PutVarint(step_, named);
  int64_t before = -1;
  for (size_t e = 0; e < probability.size(); ++e) {
    if (!(probability[e] >= kLeastNamed)) continue;
    trace_wire::PutVarint(step_, static_cast<uint64_t>(static_cast<int64_t>(e) - before));
    trace_wire::PutFraction(step_, probability[e]);
    before = static_cast<int64_t>(e);
  }
}

void TraceWriter::OnStreamEnd(int64_t stream) {
  step_.push_back(static_cast<char>(trace_wire::kStreamEnd));
  trace_wire::PutSigned(step_, stream);
}

void TraceWriter::EndStep() {
  step_.push_back(static_cast<char>(trace_wire::kStepEnd));
  if (unreported_lost_ > 0) {
    std::string lost(1, static_cast<char>(trace_wire::kLost));
    trace_wire::PutVarint(lost, static_cast<uint64_t>(unreported_lost_));
    if (output_->Append(lost)) unreported_lost_ = 0;
  }
  if (output_->Append(step_)) {
    ++recorded_steps_;
  } else {
    ++lost_steps_;
    ++unreported_lost_;
  }
  step_.clear();
  streams_.clear();
  last_layer_ = -1;
}

TraceWriter::Status TraceWriter::status() const {
  Status status;
  status.steps = recorded_steps_.load(std::memory_order_relaxed);
  status.lost_steps = lost_steps();
  output_->AddTo(&status);
  return status;
}

Result<void> TraceWriter::Close() {
  if (!step_.empty()) EndStep();
  return output_->Close();
}

}  // namespace sluice
