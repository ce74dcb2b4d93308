#include "engine/text/chat_template.h"

#include <array>
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

Error ToError(jinja::RenderError error) {
  if (!error.raised) {
    const std::string where =
        error.line > 0 ? "chat template, line " + std::to_string(error.line) : "chat template";
    error.message.insert(0, where + ": ");
  }
  return {error.code, std::move(error.message)};
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

Result<std::optional<ChatTemplate>> ChatTemplate::Load(const ModelFiles& files) {
  std::string path = files.PathOf(ModelFiles::kChatTemplate);
  std::optional<std::string> source;
  if (const std::string* text = files.Find(ModelFiles::kChatTemplate)) {
    source = *text;
  } else if (const std::string* config = files.Find(ModelFiles::kTokenizerConfig)) {
    path = files.PathOf(ModelFiles::kTokenizerConfig);
    Result<std::optional<std::string>> found = FromConfig(*config, path);
    if (!found) return found.error();
    source = std::move(*found);
  }
  if (!source) return std::optional<ChatTemplate>();
  Result<ChatTemplate> parsed = Parse(std::move(*source));
  if (!parsed) return WithContext(path, parsed.error());
  return std::optional<ChatTemplate>(std::move(*parsed));
}

Result<std::optional<ChatTemplate>> ChatTemplate::Load(const std::filesystem::path& model_dir) {
  constexpr std::array kNames = {ModelFiles::kChatTemplate, ModelFiles::kTokenizerConfig};
  const Result<ModelFiles> files = ModelFiles::Read(model_dir, kNames);
  if (!files) return files.error();
  return Load(*files);
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
