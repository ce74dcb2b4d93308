#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "server/openai/fields.h"
#include "server/openai/generation_fields.h"
#include "server/openai/requests.h"

namespace sluice::openai {
namespace {

constexpr std::array<std::string_view, 6> kRoles = {"system",    "developer", "user",
                                                    "assistant", "tool",      "function"};

std::string MessageName(size_t index, std::string_view member) {
  return "messages[" + std::to_string(index) + "]." + std::string(member);
}

// A string stays; text parts are joined by newlines, as peers do for templates that take strings.
void ReadContent(Fields& fields, size_t index, Json& message) {
  const std::string name = MessageName(index, "content");
  const auto it = message.find("content");
  if (it == message.end() || it->is_null()) {
    if (message.contains("tool_calls") || message["role"] == "assistant") {
      message["content"] = "";
      return;
    }
    fields.Fail(name, "`" + name + "` is required.");
    return;
  }
  if (it->is_string()) return;
  if (!it->is_array()) {
    fields.Fail(name, "`" + name + "` must be a string or an array of text parts.");
    return;
  }
  std::string joined;
  for (size_t part = 0; part < it->size(); ++part) {
    const Json& item = (*it)[part];
    const std::string part_name = name + "[" + std::to_string(part) + "]";
    const bool typed = item.is_object() && item.contains("type") && item["type"].is_string();
    if (!typed || item["type"] != "text") {
      fields.Fail(part_name, "`" + part_name +
                                 "` must be a text part {\"type\": \"text\", \"text\": ...}: this "
                                 "server reads text only.");
      return;
    }
    if (!item.contains("text") || !item["text"].is_string()) {
      fields.Fail(part_name, "`" + part_name + ".text` must be a string.");
      return;
    }
    if (part > 0) joined += '\n';
    joined += item["text"].get_ref<const std::string&>();
  }
  *it = std::move(joined);
}

void ReadMessages(Fields& fields, Json& messages) {
  const Json* value = fields.Find("messages");
  if (!value || !value->is_array() || value->empty()) {
    fields.Fail("messages", "`messages` must be a non-empty array.");
    return;
  }
  messages = *value;
  for (size_t i = 0; i < messages.size() && !fields.failed(); ++i) {
    Json& message = messages[i];
    const std::string name = "messages[" + std::to_string(i) + "]";
    if (!message.is_object()) {
      fields.Fail(name, "`" + name + "` must be an object.");
      return;
    }
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string() ||
        std::find(kRoles.begin(), kRoles.end(), role->get_ref<const std::string&>()) ==
            kRoles.end()) {
      fields.Fail(MessageName(i, "role"),
                  "`" + MessageName(i, "role") +
                      "` must be one of system, developer, user, assistant, tool, function.");
      return;
    }
    // Published templates know the older name only.
    if (*role == "developer") *role = "system";
    ReadContent(fields, i, message);
  }
}

void ReadTools(Fields& fields) {
  const Json* tools = fields.Find("tools");
  if (tools && !tools->is_array()) {
    fields.Fail("tools", "`tools` must be an array.");
    return;
  }
  const Json* choice = fields.Find("tool_choice");
  if (choice && !choice->is_string() && !choice->is_object()) {
    fields.Fail("tool_choice", "`tool_choice` must be a string or an object.");
    return;
  }
  fields.Boolean("parallel_tool_calls", true);
  const bool none = choice && *choice == "none";
  if (tools && !tools->empty() && !none) {
    fields.Fail(NotOffered("tools", "tools are not offered yet"));
  }
  if (choice && !none && *choice != "auto") {
    if (choice->is_string() && *choice != "required") {
      fields.Fail("tool_choice",
                  "`tool_choice` must be \"none\", \"auto\", \"required\" or an "
                  "object that names a function.");
    }
    fields.Fail(NotOffered("tool_choice", "tools are not offered yet"));
  }
}

void ReadResponseFormat(Fields& fields) {
  const Json* format = fields.Find("response_format");
  if (!format) return;
  if (!format->is_object() || !format->contains("type") || !(*format)["type"].is_string()) {
    fields.Fail("response_format",
                "`response_format` must be an object with a string member `type`.");
    return;
  }
  const std::string type = (*format)["type"].get<std::string>();
  if (type == "text") return;
  if (type == "json_object" || type == "json_schema") {
    fields.Fail(NotOffered("response_format", "response_format " + type + " is not offered yet"));
  }
  fields.Fail("response_format.type",
              "`response_format.type` must be \"text\", \"json_object\" or \"json_schema\".");
}

void ReadTemplateInputs(Fields& fields, ChatRequest& out) {
  ReadMessages(fields, *out.messages());
  if (const Json* arguments = fields.Find("chat_template_kwargs")) {
    if (arguments->is_object()) {
      *out.template_arguments() = *arguments;
    } else {
      fields.Fail("chat_template_kwargs", "`chat_template_kwargs` must be an object.");
    }
  }
  out.add_generation_prompt = fields.Boolean("add_generation_prompt", true);
}

}  // namespace

ChatRequest::ChatRequest()
    : messages_(std::make_unique<Json>(Json::array())),
      template_arguments_(std::make_unique<Json>(Json::object())) {}
ChatRequest::ChatRequest(ChatRequest&&) noexcept = default;
ChatRequest& ChatRequest::operator=(ChatRequest&&) noexcept = default;
ChatRequest::~ChatRequest() = default;

Parsed<ChatRequest> ParseChat(std::string_view body) {
  Parsed<Json> json = ParseBody(body);
  if (!json) return json.error();
  Fields fields(*json);
  ChatRequest out;
  out.generation = ReadGenerationFields(fields);
  ReadTemplateInputs(fields, out);
  // The newer name wins when both are given.
  constexpr int64_t kIntMax = std::numeric_limits<int32_t>::max();
  std::optional<int64_t> tokens = fields.OptionalInteger("max_tokens", 1, kIntMax);
  if (fields.Has("max_completion_tokens")) {
    tokens = fields.OptionalInteger("max_completion_tokens", 1, kIntMax);
  }
  if (tokens) {
    out.generation.max_tokens = static_cast<int>(*tokens);
    if (*tokens < out.generation.min_tokens) {
      fields.Fail("min_tokens", "`min_tokens` must not be greater than `max_tokens`.");
    }
  }
  const bool logprobs = fields.Boolean("logprobs", false);
  const auto top = fields.OptionalInteger("top_logprobs", 0, kMaxLogprobs);
  if (top && !logprobs) {
    fields.Fail("top_logprobs", "`top_logprobs` is only allowed when `logprobs` is true.");
  }
  if (logprobs) out.top_logprobs = static_cast<int>(top.value_or(0));
  ReadTools(fields);
  ReadResponseFormat(fields);
  if (fields.failed()) return *fields.error();
  return out;
}

Parsed<ChatRequest> ParseApplyTemplate(std::string_view body) {
  Parsed<Json> json = ParseBody(body);
  if (!json) return json.error();
  Fields fields(*json);
  ChatRequest out;
  out.generation.model = fields.String("model");
  ReadTemplateInputs(fields, out);
  if (fields.failed()) return *fields.error();
  return out;
}

}  // namespace sluice::openai
