#include <algorithm>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/experts/trace_wire.h"
#include "engine/formats/pack_wire.h"

namespace sluice {
namespace {

using trace_wire::Cursor;

Error CorruptAt(uint64_t offset, const std::string& what) {
  return Corrupt("trace: " + what + " at byte " + std::to_string(offset));
}

Result<TraceModel> ReadHeader(std::span<const std::byte> file, size_t* bytes) {
  Cursor cursor(file);
  const std::span<const std::byte> magic = cursor.GetBytes(trace_wire::kMagic.size());
  if (!cursor.ok() || std::string_view(reinterpret_cast<const char*>(magic.data()), magic.size()) !=
                          trace_wire::kMagic) {
    return Corrupt("this is no trace: it does not begin with " + std::string(trace_wire::kMagic));
  }
  const uint32_t header_bytes = cursor.GetU32();
  if (!cursor.ok() || header_bytes < cursor.at() + 8 ||
      header_bytes > trace_wire::kMaxHeaderBytes || header_bytes > file.size()) {
    return CorruptAt(trace_wire::kMagic.size(), "the header's length is impossible");
  }
  const size_t summed = header_bytes - sizeof(uint64_t);
  Cursor sum(file.subspan(summed));
  if (sum.GetU64() != pack_wire::Checksum(file.first(summed))) {
    return CorruptAt(summed, "the header does not have its checksum");
  }
  cursor = Cursor(file.first(summed));
  cursor.GetBytes(trace_wire::kMagic.size() + 4);
  const uint32_t version = cursor.GetU32();
  if (version != trace_wire::kVersion) {
    return Unsupported("the trace has version " + std::to_string(version) + "; we read version " +
                       std::to_string(trace_wire::kVersion));
  }
  const uint32_t layers = cursor.GetU32(), experts = cursor.GetU32(), chosen = cursor.GetU32();
  const uint32_t name_bytes = cursor.GetU32();
  if (!cursor.ok() || layers < 1 || layers > trace_wire::kMaxLayers || experts < 1 ||
      experts > trace_wire::kMaxExpertsPerLayer || chosen < 1 || chosen > experts ||
      uint64_t{layers} * experts > uint64_t{trace_wire::kMaxExperts} ||
      name_bytes > trace_wire::kMaxNameBytes) {
    return CorruptAt(cursor.at(), "the model's shape is impossible");
  }
  TraceModel model;
  model.space = {static_cast<int>(layers), static_cast<int>(experts)};
  model.experts_per_token = static_cast<int>(chosen);
  const std::span<const std::byte> name = cursor.GetBytes(name_bytes);
  model.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
  const uint32_t sizes = cursor.GetU32();
  if (!cursor.ok() || (sizes != 1 && sizes != uint64_t{layers} * experts) ||
      cursor.left() != uint64_t{sizes} * 8) {
    return CorruptAt(cursor.at(), "the experts' sizes are not as many as experts");
  }
  for (uint32_t i = 0; i < sizes; ++i) {
    const uint64_t size = cursor.GetU64();
    if (size > (uint64_t{1} << 40)) return CorruptAt(cursor.at(), "an expert's size is impossible");
    model.expert_bytes.push_back(size);
  }
  if (std::all_of(model.expert_bytes.begin(), model.expert_bytes.end(),
                  [](uint64_t size) { return size == 0; })) {
    return CorruptAt(cursor.at(), "no expert has any bytes");
  }
  *bytes = header_bytes;
  return model;
}

// Which experts a token chose, one token after the other.
class Choices {
 public:
  explicit Choices(int experts) : chosen_by_(static_cast<size_t>(experts), 0) {}
  void NextToken() { ++token_; }
  // False: the token chose it before.
  bool Add(uint64_t expert) { return std::exchange(chosen_by_[expert], token_) != token_; }

 private:
  std::vector<uint64_t> chosen_by_;  // the last token that did
  uint64_t token_ = 0;
};

// One frame's records, appended to the trace.
class FrameReader {
 public:
  FrameReader(std::span<const std::byte> payload, uint64_t offset, Choices* choices, Trace* trace)
      : cursor_(payload), offset_(offset), choices_(choices), trace_(trace) {}

  Result<void> Read() {
    bool step_open = false;
    while (cursor_.left() > 0) {
      const uint8_t kind = cursor_.GetU8();
      const char* fault = nullptr;
      switch (kind) {
        case trace_wire::kVisit:
          fault = ReadVisit();
          break;
        case trace_wire::kPrediction:
          fault = ReadPrediction();
          break;
        case trace_wire::kStepEnd:
          trace_->events.push_back({Trace::Kind::kStepEnd, 0});
          ++trace_->steps;
          last_ = {};
          break;
        case trace_wire::kStreamEnd:
          trace_->events.push_back({Trace::Kind::kStreamEnd, cursor_.GetSigned()});
          break;
        case trace_wire::kLost: {
          const uint64_t steps = cursor_.GetVarint();
          if (steps > (uint64_t{1} << 40)) return Fault("too many lost steps");
          trace_->lost_steps += static_cast<int64_t>(steps);
          break;
        }
        default:
          return Fault("a record of an unknown kind");
      }
      step_open = kind != trace_wire::kStepEnd && (step_open || kind != trace_wire::kLost);
      if (fault != nullptr) return Fault(fault);
      if (!cursor_.ok()) return Fault("a record that its frame cuts short");
    }
    if (step_open) return Fault("a step without an end");
    return {};
  }

 private:
  Error Fault(const char* what) const { return CorruptAt(offset_ + cursor_.at(), what); }

  const char* ReadVisit() {
    const TraceModel& model = trace_->model;
    const uint64_t layer = cursor_.GetVarint(), tokens = cursor_.GetVarint();
    const uint64_t same = cursor_.GetVarint();
    if (!cursor_.ok()) return nullptr;
    if (layer >= static_cast<uint64_t>(model.space.layers)) return "a layer that does not exist";
    if (static_cast<int64_t>(layer) <= last_layer()) return "a layer out of order";
    const uint64_t k = static_cast<uint64_t>(model.experts_per_token);
    // At least three bytes for each choice.
    if (tokens < 1 || tokens > cursor_.left() / (3 * k)) return "a visit of impossible tokens";
    if (same > 1) return "a visit with an unknown flag";
    Trace::Visit visit = {static_cast<int>(layer), static_cast<int>(tokens),
                          trace_->streams.size()};
    if (same == 1) {
      if (last_.tokens != visit.tokens) return "a visit with other tokens than the one before";
      for (uint64_t t = 0; t < tokens; ++t) {
        trace_->streams.push_back(trace_->streams[last_.first_token + t]);
      }
    } else {
      uint64_t stream = 0;
      for (uint64_t t = 0; t < tokens; ++t) {
        stream += static_cast<uint64_t>(cursor_.GetSigned());
        trace_->streams.push_back(static_cast<int64_t>(stream));
      }
    }
    for (uint64_t i = 0; i < tokens * k && cursor_.ok(); ++i) {
      const uint64_t expert = cursor_.GetVarint();
      if (expert >= static_cast<uint64_t>(model.space.experts_per_layer)) {
        return "an expert that does not exist";
      }
      if (i % k == 0) choices_->NextToken();
      if (!choices_->Add(expert)) return "an expert that a token chose twice";
      trace_->ids.push_back(static_cast<int32_t>(expert));
      trace_->weights.push_back(cursor_.GetFraction());
    }
    last_ = visit;
    trace_->events.push_back({Trace::Kind::kVisit, static_cast<int64_t>(trace_->visits.size())});
    trace_->visits.push_back(visit);
    return nullptr;
  }

  const char* ReadPrediction() {
    const ExpertSpace space = trace_->model.space;
    const uint64_t layer = cursor_.GetVarint();
    Trace::Prediction prediction;
    prediction.rest = cursor_.GetFraction();
    const uint64_t count = cursor_.GetVarint();
    if (!cursor_.ok()) return nullptr;
    if (layer >= static_cast<uint64_t>(space.layers)) return "a layer that does not exist";
    if (count > static_cast<uint64_t>(space.experts_per_layer)) return "too many predictions";
    prediction.layer = static_cast<int>(layer);
    prediction.first = trace_->predicted.size();
    prediction.count = static_cast<int>(count);
    int64_t expert = -1;
    for (uint64_t i = 0; i < count && cursor_.ok(); ++i) {
      const uint64_t distance = cursor_.GetVarint();
      if (distance < 1 || distance > static_cast<uint64_t>(space.experts_per_layer - 1 - expert)) {
        return "an expert that does not exist";
      }
      expert += static_cast<int64_t>(distance);
      trace_->predicted_ids.push_back(static_cast<int32_t>(expert));
      trace_->predicted.push_back(cursor_.GetFraction());
    }
    trace_->events.push_back(
        {Trace::Kind::kPrediction, static_cast<int64_t>(trace_->predictions.size())});
    trace_->predictions.push_back(prediction);
    return nullptr;
  }

  int64_t last_layer() const { return last_.tokens == 0 ? -1 : last_.layer; }

  Cursor cursor_;
  uint64_t offset_;  // of the payload, for errors
  Choices* choices_;
  Trace* trace_;
  Trace::Visit last_;  // of the open step; no tokens: none
};

// The bytes of a trace, from memory or from a file, of which only a frame is in memory at a time.
class TraceBytes {
 public:
  explicit TraceBytes(std::span<const std::byte> whole) : whole_(whole), size_(whole.size()) {}
  explicit TraceBytes(const File& file) : file_(&file), size_(file.size_bytes()) {}

  uint64_t size() const { return size_; }
  // Those from `at` on, at most `most`, fewer at the end. Valid until the next call.
  Result<std::span<const std::byte>> Get(uint64_t at, size_t most) {
    const auto count = static_cast<size_t>(std::min<uint64_t>(most, size_ - at));
    if (file_ == nullptr) return whole_.subspan(static_cast<size_t>(at), count);
    read_.resize(count);
    if (Result<void> read = file_->ReadAt(at, read_); !read) return read.error();
    return std::span<const std::byte>(read_);
  }

 private:
  std::span<const std::byte> whole_;
  const File* file_ = nullptr;
  uint64_t size_ = 0;
  std::vector<std::byte> read_;
};

Result<Trace> Parse(TraceBytes& file) {
  const auto head = file.Get(0, trace_wire::kMaxHeaderBytes);
  if (!head) return head.error();
  size_t header_bytes = 0;
  Result<TraceModel> model = ReadHeader(*head, &header_bytes);
  if (!model) return model.error();
  Trace trace;
  trace.model = std::move(*model);
  Choices choices(trace.model.space.experts_per_layer);
  uint64_t at = header_bytes;
  while (at < file.size()) {
    const auto frame = file.Get(at, trace_wire::kFrameHeaderBytes);
    if (!frame) return frame.error();
    Cursor cursor(*frame);
    const uint32_t bytes = cursor.GetU32();
    const uint32_t zero = cursor.GetU32();
    const uint64_t checksum = cursor.GetU64();
    if (cursor.ok() && (bytes > trace_wire::kMaxFrameBytes || zero != 0)) {
      return CorruptAt(at, "a frame's header is impossible");
    }
    if (!cursor.ok() || bytes > file.size() - at - trace_wire::kFrameHeaderBytes) {
      trace.truncated = true;
      break;
    }
    const auto payload = file.Get(at + trace_wire::kFrameHeaderBytes, bytes);
    if (!payload) return payload.error();
    if (pack_wire::Checksum(*payload) != checksum) {
      return CorruptAt(at, "a frame does not have its checksum");
    }
    at += trace_wire::kFrameHeaderBytes;
    if (Result<void> read = FrameReader(*payload, at, &choices, &trace).Read(); !read) {
      return read.error();
    }
    at += bytes;
  }
  return trace;
}

}  // namespace

Result<Trace> ParseTrace(std::span<const std::byte> file) {
  TraceBytes bytes(file);
  return Parse(bytes);
}

Result<Trace> ReadTrace(const std::filesystem::path& path) {
  const Result<File> file = File::Open(path);
  if (!file) return file.error();
  if (file->size_bytes() > kMaxTraceBytes) {
    return ResourceExhausted(path.string() + " has " + std::to_string(file->size_bytes()) +
                             " bytes; traces of at most " + std::to_string(kMaxTraceBytes) +
                             " are read: record a shorter one (experts.trace_limit)");
  }
  TraceBytes bytes(*file);
  Result<Trace> trace = Parse(bytes);
  if (!trace) return WithContext(path.string(), trace.error());
  return trace;
}

}  // namespace sluice
