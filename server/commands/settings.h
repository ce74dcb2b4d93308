// Settings in the words of the engine, and the command line in the words of the settings table.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/log.h"
#include "engine/model/model.h"
#include "server/config/load.h"
#include "server/http/server.h"

namespace CLI {
class App;
}

namespace sluice {

// What one subcommand's command line holds after parsing.
struct CommandLine {
  std::string config_file;
  struct Given {
    const Setting* setting;
    std::string text;
  };
  std::vector<std::unique_ptr<Given>> options;  // one per setting; addresses stay put
  CLI::App* command = nullptr;

  // The settings that were given, in the table's order.
  std::vector<CommandLineValue> Values() const;
};

// Adds --config and one option per setting to `command`. `line` outlives it.
void AddSettings(CLI::App& command, CommandLine& line);
// The same for one section and without --config: for commands that share a part of the settings.
void AddSectionSettings(CLI::App& command, const std::string& section, CommandLine& line);

// What the settings of routed experts mean to the engine. memory_budget 0 stays 0.
TierOptions MakeTierOptions(const ExpertSettings& settings);
// Of requests that do not say.
QualitySettings MakeQualitySettings(const ExpertSettings& settings);

LogLevel ParseLogLevel(const std::string& name);  // REQUIRES: a choice of log.level
LogFormat ParseLogFormat(const std::string& name);
HttpServerOptions ServerOptions(const ServerSettings& settings);

}  // namespace sluice
