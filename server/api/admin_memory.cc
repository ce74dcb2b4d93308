#include "server/api/admin_memory.h"

#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/base/process_memory.h"
#include "server/api/generation.h"
#include "server/config/schema.h"
#include "server/openai/fields.h"

namespace sluice {
namespace {

using openai::ApiError;
using openai::Json;

constexpr const char* kField = "memory_budget";

openai::Parsed<uint64_t> ParseBudget(std::string_view body) {
  const openai::Parsed<Json> json = openai::ParseBody(body);
  if (!json) return json.error();
  const Json* value = openai::Fields(*json).Find(kField);
  if (value != nullptr && value->is_number_unsigned() && value->get<uint64_t>() > 0) {
    return value->get<uint64_t>();
  }
  if (value != nullptr && value->is_string()) {
    const Result<Bytes> bytes = ParseBytes(value->get<std::string>());
    if (bytes && bytes->count > 0) return static_cast<uint64_t>(bytes->count);
  }
  return openai::BadRequest(
      kField,
      "`memory_budget` is required: bytes as a positive integer, or a size such as \"2GiB\".");
}

HttpResponse MemoryResponse(const ServedModel& model) {
  HttpResponse response;
  response.body = openai::Dump(MemoryJson(model.engine->Stats()));
  return response;
}

// What the engine thread leaves for the reply; it may outlive the reply.
struct Outcome {
  std::mutex mutex;
  std::optional<Result<>> set;  // guarded by mutex
};

class MemoryReply final : public PendingReply {
 public:
  MemoryReply(std::shared_ptr<ServedModel> model, Logger& log, std::string request_id,
              uint64_t bytes, Waker waker)
      : model_(std::move(model)),
        log_(log),
        request_id_(std::move(request_id)),
        bytes_(bytes),
        outcome_(std::make_shared<Outcome>()) {
    model_->engine->SetMemoryBudget(bytes,
                                    [outcome = outcome_, wake = std::move(waker)](Result<> set) {
                                      {
                                        std::lock_guard lock(outcome->mutex);
                                        outcome->set = std::move(set);
                                      }
                                      wake();
                                    });
  }

  bool streamed() const override { return false; }

  bool Poll(HttpResponse& response) override {
    std::optional<Result<>> set;
    {
      std::lock_guard lock(outcome_->mutex);
      set = outcome_->set;
    }
    if (!set) return false;
    if (!*set) {
      ApiError error = openai::FromEngineError(set->error());
      error.param = kField;
      response = ErrorResponse(error);
      return true;
    }
    log_.Info("the memory budget was changed",
              {{"request_id", request_id_}, {"memory_budget_bytes", bytes_}});
    response = MemoryResponse(*model_);
    return true;
  }

  void Abort(HttpResponse& response) override {
    response = ErrorResponse(openai::UnavailableError("The server is shutting down."));
  }

 private:
  const std::shared_ptr<ServedModel> model_;
  Logger& log_;
  const std::string request_id_;
  const uint64_t bytes_;
  const std::shared_ptr<Outcome> outcome_;
};

}  // namespace

Json MemoryJson(const EngineStats& stats) {
  Json json = {{"memory_budget", nullptr},
               {"least_memory_budget", nullptr},
               {"full_memory_budget", nullptr},
               {"resident_bytes", ResidentBytes()},
               {"tiers", Json::array()}};
  if (stats.expert_tiers == nullptr) return json;
  const ExpertTierStats& tiers = *stats.expert_tiers;
  json["memory_budget"] = tiers.budget_bytes;
  json["least_memory_budget"] = tiers.least_budget_bytes;
  json["full_memory_budget"] = tiers.full_budget_bytes;
  for (const ExpertTierStats::Tier& tier : tiers.tiers) {
    json["tiers"].push_back(Json{{"name", tier.name},
                                 {"capacity_bytes", tier.capacity_bytes},
                                 {"used_bytes", tier.used_bytes}});
  }
  return json;
}

HttpReply ShowMemory(const ServedModel& model) { return MemoryResponse(model); }

HttpReply ChangeMemory(const HttpRequest& request, std::shared_ptr<ServedModel> model, Logger& log,
                       Waker waker) {
  const openai::Parsed<uint64_t> bytes = ParseBudget(request.body);
  if (!bytes) return ErrorResponse(bytes.error());
  return {HttpResponse{}, std::make_unique<MemoryReply>(std::move(model), log, request.id, *bytes,
                                                        std::move(waker))};
}

}  // namespace sluice
