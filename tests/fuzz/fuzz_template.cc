// ChatTemplate::Parse and Render on arbitrary text: whatever the template says, it ends with a
// result or an error, inside its limits.
//
// The input is a template, optionally followed by a zero byte and JSON for its variables.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t split = input.find('\0');
  static const nlohmann::ordered_json kDefault = nlohmann::ordered_json::parse(R"({
      "messages": [{"role": "system", "content": "S\u00e9"}, {"role": "user", "content": "a b"},
                   {"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]}],
      "tools": [{"function": {"name": "f", "parameters": {"a": [1, 2.5, true]}}}],
      "s": "text", "n": 7, "f": 2.5, "l": [3, 1, 2], "d": {"b": 2, "a": 1},
      "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>"})");
  nlohmann::ordered_json variables = kDefault;
  if (split != std::string::npos) {
    variables = nlohmann::ordered_json::parse(input.substr(split + 1), nullptr, false);
    if (variables.is_discarded()) variables = kDefault;
  }
  const auto chat = sluice::ChatTemplate::Parse(input.substr(0, split));
  if (!chat) return 0;
  sluice::RenderLimits limits;
  limits.max_output_bytes = 1 << 16;
  limits.max_steps = 20000;
  limits.max_live_bytes = 4 << 20;
  limits.now.emplace();
  const auto text = chat->Render(variables, limits);
  if (text && text->size() > limits.max_output_bytes) __builtin_trap();
  return 0;
}
