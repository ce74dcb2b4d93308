// Settings in the words of the engine, and the command line in the words of the settings table.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/log.h"
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

LogLevel ParseLogLevel(const std::string& name);  // REQUIRES: a choice of log.level
LogFormat ParseLogFormat(const std::string& name);
HttpServerOptions ServerOptions(const ServerSettings& settings);

}  // namespace sluice
