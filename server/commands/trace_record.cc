#include "server/commands/trace_record.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>

#include "engine/experts/trace.h"
#include "engine/experts/trace_observer.h"
#include "engine/model/model.h"
#include "engine/text/tokenizer.h"
#include "server/commands/model_path.h"
#include "server/commands/progress.h"
#include "server/commands/trace_model.h"
#include "server/config/cache_dir.h"

namespace sluice {
namespace {

// Every text is cut into documents; a rest shorter than one is left out.
Result<std::vector<std::vector<int32_t>>> ReadDocuments(const TraceRecordOptions& options,
                                                        const Tokenizer& tokenizer) {
  const auto length = static_cast<size_t>(options.prompt_tokens + options.decode_tokens);
  std::vector<std::vector<int32_t>> documents;
  for (const std::string& path : options.texts) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return NotFound("cannot open the text file " + path);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const std::vector<int32_t> tokens = tokenizer.Encode(text);
    size_t count = tokens.size() / length;
    if (options.documents > 0) count = std::min(count, static_cast<size_t>(options.documents));
    for (size_t i = 0; i < count; ++i) {
      const auto first = tokens.begin() + static_cast<ptrdiff_t>(i * length);
      documents.emplace_back(first, first + static_cast<ptrdiff_t>(length));
    }
  }
  if (documents.empty()) {
    return InvalidArgument("the texts hold no document of " + std::to_string(length) + " tokens");
  }
  return documents;
}

class Recorder {
 public:
  Recorder(const TraceRecordOptions& options, Model* model, TraceObserver* observer)
      : options_(options), model_(model), observer_(observer) {}

  // Documents [first, first + streams.size()), prompts one by one, then all together.
  void Run(std::span<const std::vector<int32_t>> documents, int64_t first) {
    const int per_sequence = model_->options().kv_blocks / static_cast<int>(documents.size());
    std::vector<std::vector<int32_t>> blocks(documents.size());
    for (size_t d = 0; d < documents.size(); ++d) {
      blocks[d].resize(static_cast<size_t>(per_sequence));
      std::iota(blocks[d].begin(), blocks[d].end(), static_cast<int32_t>(d) * per_sequence);
      for (int done = 0; done < options_.prompt_tokens;) {
        const int count = std::min(options_.batch_tokens, options_.prompt_tokens - done);
        const bool last = done + count == options_.prompt_tokens;
        const SequenceChunk chunk = {std::span(documents[d]).subspan(done, count), done, blocks[d],
                                     last ? LogitRows::kLast : LogitRows::kNone};
        const int64_t stream = first + static_cast<int64_t>(d);
        Step({&chunk, 1}, std::vector<int64_t>(static_cast<size_t>(count), stream),
             std::vector<int64_t>(last ? 1 : 0, stream));
        done += count;
      }
    }
    std::vector<int64_t> streams(documents.size());
    std::iota(streams.begin(), streams.end(), first);
    for (int t = 0; t < options_.decode_tokens; ++t) {
      std::vector<SequenceChunk> chunks;
      const int position = options_.prompt_tokens + t;
      for (size_t d = 0; d < documents.size(); ++d) {
        chunks.push_back(
            {std::span(documents[d]).subspan(position, 1), position, blocks[d], LogitRows::kLast});
      }
      Step(chunks, streams, streams);
    }
  }

 private:
  void Step(std::span<const SequenceChunk> chunks, std::vector<int64_t> streams,
            std::vector<int64_t> logit_streams) {
    observer_->BeginStep(std::move(streams), std::move(logit_streams));
    model_->Forward(chunks);
    observer_->EndStep();
  }

  const TraceRecordOptions& options_;
  Model* model_;
  TraceObserver* observer_;
};

}  // namespace

Result<TraceRecordReport> RecordTrace(const TraceRecordOptions& options) {
  ModelOptions model_options;
  if (!cpu::ParseIsa(options.isa.c_str(), &model_options.isa)) {
    return InvalidArgument("unknown --cpu-isa " + options.isa);
  }
  if (options.streams < 1 || options.prompt_tokens < 1 || options.decode_tokens < 0 ||
      options.batch_tokens < options.streams) {
    return InvalidArgument(
        "give at least one stream and one prompt token, and no more streams than --batch-tokens");
  }
  ModelPathOptions path_options;
  path_options.cache_directory = CacheDirectory(options.cache_directory);
  path_options.threads = options.threads;
  path_options.progress = ProgressBar("packing");
  const Result<ResolvedModel> resolved = ResolveModelPath(options.model, path_options);
  if (!resolved) return resolved.error();
  const std::filesystem::path& path = resolved->path;
  const Result<ModelFiles> files = ReadModelFiles(path);
  if (!files) return files.error();
  const Result<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(*files);
  if (!tokenizer) return tokenizer.error();
  const auto documents = ReadDocuments(options, **tokenizer);
  if (!documents) return documents.error();

  TraceObserver observer;
  const int length = options.prompt_tokens + options.decode_tokens;
  model_options.threads = options.threads;
  model_options.max_batch_tokens = options.batch_tokens;
  model_options.max_sequences = options.streams;
  model_options.max_context = length;
  model_options.kv_blocks = options.streams * (length / kKvBlockTokens + 2);
  model_options.observer = &observer;
  Result<std::unique_ptr<Model>> model = Model::Load(path, model_options);
  if (!model) return model.error();
  if ((*model)->config().router.num_experts == 0)
    return InvalidArgument("the model has no experts");

  const TraceModel described = DescribeModel(path, **model);
  Result<std::unique_ptr<TraceWriter>> writer = TraceWriter::Create(options.out, described);
  if (!writer) return writer.error();
  observer.SetWriter(writer->get(), described.experts_per_token);

  TraceRecordReport report;
  Recorder recorder(options, model->get(), &observer);
  const auto progress = ProgressBar("recording");
  const auto group = static_cast<size_t>(options.streams);
  const int prompt_steps =
      (options.prompt_tokens + options.batch_tokens - 1) / options.batch_tokens;
  for (size_t first = 0; first < documents->size(); first += group) {
    const size_t count = std::min(group, documents->size() - first);
    recorder.Run(std::span(*documents).subspan(first, count), static_cast<int64_t>(first));
    for (size_t d = 0; d < count; ++d) {
      (*writer)->OnStreamEnd(static_cast<int64_t>(first + d));
    }
    report.steps += static_cast<int64_t>(count) * prompt_steps + options.decode_tokens;
    if (progress) {
      progress(static_cast<double>(first + count) / static_cast<double>(documents->size()));
    }
  }
  if (Result<void> closed = (*writer)->Close(); !closed) return closed.error();
  report.documents = static_cast<int64_t>(documents->size());
  report.tokens = report.documents * length;
  report.lost_steps = (*writer)->lost_steps();
  report.file_bytes = std::filesystem::file_size(options.out);
  return report;
}

}  // namespace sluice
