// The effective configuration: built-in defaults < TOML file < command line, and where each value
// came from. Every error is one sentence that names the key and the file and line, or the flag.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "server/config/config.h"
#include "server/config/schema.h"

namespace sluice {

struct LoadedConfig {
  Config values;
  // By full setting name: "default", "FILE:LINE" or "command line".
  std::map<std::string, std::string> sources;
};

struct CommandLineValue {
  const Setting* setting;
  std::string text;
};

// `file` empty: no file. Errors: kNotFound or kIo for the file itself, kInvalidArgument otherwise.
Result<LoadedConfig> LoadConfig(const std::string& file, std::span<const CommandLineValue> flags);

// The same with the file's text given; `file` names it in messages.
Result<LoadedConfig> LoadConfigText(std::string_view toml, const std::string& file,
                                    std::span<const CommandLineValue> flags);

// The effective configuration as a TOML file whose comments say where each value came from, or as
// JSON {"server.port": {"value": 8080, "source": "default"}, ...}. API keys are not part of it.
std::string PrintConfig(const LoadedConfig& config);
std::string PrintConfigJson(const LoadedConfig& config);

}  // namespace sluice
