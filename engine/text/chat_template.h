// Chat templates: the Jinja2 text that turns a list of messages into a prompt.
//
// Renders byte for byte what Hugging Face transformers renders with the same template and
// variables (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, break and continue,
// generation blocks; tojson, raise_exception and strftime_now as transformers defines them).
// Where a template uses Python or Jinja2 that is not implemented (template inheritance and import,
// integers past 64 bits, a few rare filters and string methods), parsing or rendering is refused
// with an error; it never renders something else. (Filters such as select run at once, not when
// their result is used: an error in one that is never used is an error here.)
//
//   Result<ChatTemplate> chat = ChatTemplate::Parse(source);
//   if (!chat) return chat.error();
//   Result<std::string> prompt = chat->Render({{"messages", messages},
//                                              {"add_generation_prompt", true}});
//
// Immutable and thread-safe: any number of threads may render with one ChatTemplate. Copies share
// the parsed template.
//
// The template and its variables are untrusted: output, steps, memory and recursion are bounded.
#pragma once

#include <cstddef>
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/base/model_files.h"
#include "engine/base/result.h"

namespace sluice {

namespace jinja {
struct Program;
}  // namespace jinja

struct RenderLimits {
  size_t max_output_bytes = 8 << 20;
  // Statements, expressions, loop iterations, and work on text in units of 64 bytes.
  size_t max_steps = 5'000'000;
  // What the template may hold at once on top of its variables.
  size_t max_live_bytes = 64 << 20;
  // Nested statements, expressions, macro calls and values together.
  int max_depth = 500;
  // What strftime_now tells. None: the clock, in the local zone.
  std::optional<std::tm> now;
};

class ChatTemplate {
 public:
  // Errors: kInvalidArgument with the line and what was expected; kUnsupported for tags that chat
  // templates here cannot use.
  static Result<ChatTemplate> Parse(std::string source);

  // The template of a model: the file chat_template.jinja, else "chat_template" of
  // tokenizer_config.json (a string, or a list of {name, template}, of which "default" is taken).
  // Nothing when the model has none. Errors name the file.
  static Result<std::optional<ChatTemplate>> Load(const ModelFiles& files);
  static Result<std::optional<ChatTemplate>> Load(const std::filesystem::path& model_dir);

  // `variables` is an object: messages, tools, add_generation_prompt, bos_token, eos_token and
  // whatever else the template reads. The order of keys is kept.
  // Errors: kInvalidArgument with exactly the message of raise_exception; kInvalidArgument with a
  // line for anything that Python would raise; kResourceExhausted past a limit; kUnsupported.
  Result<std::string> Render(const nlohmann::ordered_json& variables,
                             const RenderLimits& limits = {}) const;

  const std::string& source() const { return *source_; }

 private:
  ChatTemplate(std::shared_ptr<const std::string> source,
               std::shared_ptr<const jinja::Program> program)
      : source_(std::move(source)), program_(std::move(program)) {}

  std::shared_ptr<const std::string> source_;
  std::shared_ptr<const jinja::Program> program_;
};

}  // namespace sluice
