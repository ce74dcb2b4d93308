#include "engine/text/chat_template.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/text/template/interpreter.h"
#include "engine/text/template/json.h"
#include "engine/text/template/parser.h"
#include "engine/text/template/scope.h"
#include "engine/text/template/unicode.h"
#include "engine/text/template/value.h"

namespace sluice {
namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;
constexpr size_t kMaxConfigBytes = 64 << 20;

Error ToError(jinja::RenderError error) {
  if (!error.raised) {
    const std::string where =
        error.line > 0 ? "chat template, line " + std::to_string(error.line) : "chat template";
    error.message.insert(0, where + ": ");
  }
  return {error.code, std::move(error.message)};
}

// The bytes of a file of at most `limit` bytes; nothing when there is no such file.
Result<std::optional<std::string>> ReadIfPresent(const std::filesystem::path& path, size_t limit) {
  std::error_code failure;
  if (!std::filesystem::exists(path, failure)) return std::optional<std::string>();
  const auto size = std::filesystem::file_size(path, failure);
  if (failure) return IoError("cannot read " + path.string() + ": " + failure.message());
  if (size > limit) {
    return Corrupt(path.string() + " is larger than the " + std::to_string(limit) +
                   " bytes that such a file may have");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file && !file.eof()) return IoError("cannot read " + path.string());
  return std::optional<std::string>(std::move(text));
}

// The template in "chat_template" of a tokenizer_config.json; nothing when there is none.
Result<std::optional<std::string>> FromConfig(const std::string& text, const std::string& path) {
  const auto config = nlohmann::json::parse(text, nullptr, false);
  if (config.is_discarded() || !config.is_object()) {
    return Corrupt(path + " is not a JSON object");
  }
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::optional<std::string>();
  if (found->is_string()) return std::optional<std::string>(found->get<std::string>());
  if (!found->is_array()) {
    return Corrupt(path + ": chat_template is neither a string nor a list of templates");
  }
  for (const auto& entry : *found) {
    if (!entry.is_object() || entry.value("name", nlohmann::json()) != "default") continue;
    const auto source = entry.find("template");
    if (source != entry.end() && source->is_string()) {
      return std::optional<std::string>(source->get<std::string>());
    }
  }
  return Corrupt(path + ": chat_template is a list without a template named \"default\"");
}

}  // namespace

Result<ChatTemplate> ChatTemplate::Parse(std::string source) {
  if (source.size() > kMaxSourceBytes) {
    return InvalidArgument("the chat template is longer than " + std::to_string(kMaxSourceBytes) +
                           " bytes");
  }
  if (!IsValidUtf8(source)) return InvalidArgument("the chat template is not valid UTF-8");
  try {
    auto program = std::make_shared<jinja::Program>(jinja::ParseTemplate(source));
    jinja::ResolveNames(*program);
    return ChatTemplate(std::make_shared<const std::string>(std::move(source)), std::move(program));
  } catch (jinja::RenderError& error) {
    return ToError(std::move(error));
  }
}

Result<std::optional<ChatTemplate>> ChatTemplate::Load(const std::filesystem::path& model_dir) {
  std::string path = (model_dir / "chat_template.jinja").string();
  Result<std::optional<std::string>> source = ReadIfPresent(path, kMaxSourceBytes);
  if (!source) return source.error();
  if (!*source) {
    path = (model_dir / "tokenizer_config.json").string();
    const Result<std::optional<std::string>> config = ReadIfPresent(path, kMaxConfigBytes);
    if (!config) return config.error();
    if (!*config) return std::optional<ChatTemplate>();
    source = FromConfig(**config, path);
    if (!source) return source.error();
    if (!*source) return std::optional<ChatTemplate>();
  }
  Result<ChatTemplate> parsed = Parse(std::move(**source));
  if (!parsed) return WithContext(path, parsed.error());
  return std::optional<ChatTemplate>(std::move(*parsed));
}

Result<std::string> ChatTemplate::Render(const nlohmann::ordered_json& variables,
                                         const RenderLimits& limits) const {
  if (!variables.is_object()) {
    return InvalidArgument("the variables of a chat template must be an object");
  }
  try {
    // The variables are held besides what the template may use.
    jinja::Runtime rt({.max_live_bytes = SIZE_MAX / 2,
                       .max_steps = limits.max_steps,
                       .max_depth = limits.max_depth,
                       .now = limits.now});
    const jinja::Value context = jinja::FromJson(rt, variables);
    rt.SetMemoryLimit(rt.live_bytes() + limits.max_live_bytes);
    return jinja::RunTemplate(*program_, rt, context, limits.max_output_bytes);
  } catch (jinja::RenderError& error) {
    return ToError(std::move(error));
  }
}

}  // namespace sluice
