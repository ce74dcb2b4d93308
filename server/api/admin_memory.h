// GET and POST /admin/memory: the memory budget, seen and changed while requests run.
#pragma once

#include <memory>

#include "engine/base/log.h"
#include "engine/runtime/engine.h"
#include "server/api/served_model.h"
#include "server/http/message.h"
#include "server/openai/json.h"

namespace sluice {

// {"memory_budget", "least_memory_budget", "full_memory_budget", "resident_bytes", "tiers":
// [{"name", "capacity_bytes", "used_bytes"}]}: bytes; the budgets are null and `tiers` is empty for
// a model whose experts are all resident for good. With `full_memory_budget` all experts are.
openai::Json MemoryJson(const EngineStats& stats);

HttpReply ShowMemory(const ServedModel& model);

// {"memory_budget": 2147483648} or "2GiB". Answers, when the engine has made the change, what
// ShowMemory does. 400 with the least that works, 501 where there are no tiers. `log` outlives the
// reply.
HttpReply ChangeMemory(const HttpRequest& request, std::shared_ptr<ServedModel> model, Logger& log,
                       Waker waker);

}  // namespace sluice
