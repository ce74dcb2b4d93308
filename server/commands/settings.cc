#include "server/commands/settings.h"

#include <CLI/CLI.hpp>
#include <cmath>

namespace sluice {
namespace {

std::string GroupName(std::string_view section) {
  return "[" + std::string(section) + "] settings";
}

// "an integer from 0 to 65535. Default: 8080".
std::string HelpText(const Setting& setting) {
  const Config defaults;
  const std::string expected = Expected(setting);
  const std::string takes =
      expected == "a string" ? " Default " : " Takes " + expected + "; default ";
  return std::string(setting.help) + takes + ValueText(setting, defaults) + ".";
}

const char* ValueName(const Setting& setting) {
  Config config;
  const SettingField field = setting.field(config);
  if (std::holds_alternative<int*>(field)) return "N";
  if (std::holds_alternative<double*>(field)) return "X";
  if (std::holds_alternative<Bytes*>(field)) return "SIZE";
  if (std::holds_alternative<Seconds*>(field)) return "TIME";
  if (std::holds_alternative<bool*>(field)) return "true|false";
  if (std::holds_alternative<std::vector<std::string>*>(field)) return "A,B,...";
  return setting.key == "path" || setting.key == "api_keys_file" ? "PATH" : "TEXT";
}

void AddSetting(const Setting& setting, CLI::App& command, CommandLine& line) {
  auto given = std::make_unique<CommandLine::Given>(CommandLine::Given{&setting, {}});
  command.add_option(std::string(setting.flag), given->text, HelpText(setting))
      ->option_text(ValueName(setting))
      ->group(GroupName(setting.section));
  line.options.push_back(std::move(given));
}

// Of sections that other commands share.
bool ForServerOnly(const std::string& name) {
  return name == "experts.pressure" || name == "experts.trace" || name == "experts.trace_limit";
}

}  // namespace

TierOptions MakeTierOptions(const ExpertSettings& settings) {
  TierOptions options;
  options.memory_budget = static_cast<uint64_t>(settings.memory_budget.count);
  options.policy = settings.policy;
  options.cache = settings.cache == "on";
  options.guard_prefetch = settings.prefetch == "auto";
  options.predictor = options.guard_prefetch ? "cross-layer" : settings.prefetch;
  if (options.predictor == "off") options.predictor.clear();
  options.quality = MakeQualitySettings(settings).quality;
  return options;
}

QualitySettings MakeQualitySettings(const ExpertSettings& settings) {
  QualitySettings quality;
  quality.quality = ParseQuality(settings.quality).value_or(Quality::kExact);
  quality.expert_mass = static_cast<float>(settings.expert_mass);
  quality.prune_ratio = static_cast<float>(settings.expert_prune);
  return quality;
}

void AddSectionSettings(CLI::App& command, const std::string& section, CommandLine& line) {
  line.command = &command;
  for (const Setting& setting : Settings()) {
    if (setting.section != section || ForServerOnly(setting.name())) continue;
    AddSetting(setting, command, line);
  }
}

void AddSettings(CLI::App& command, CommandLine& line) {
  line.command = &command;
  command.add_option("--config", line.config_file, "TOML file of settings (config/sluice.toml).")
      ->option_text("FILE");
  for (const Setting& setting : Settings()) AddSetting(setting, command, line);
}

std::vector<CommandLineValue> CommandLine::Values() const {
  std::vector<CommandLineValue> values;
  for (const auto& given : options) {
    if (command->count(std::string(given->setting->flag)) > 0) {
      values.push_back({given->setting, given->text});
    }
  }
  return values;
}

LogLevel ParseLogLevel(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  return name == "off" ? LogLevel::kOff : LogLevel::kInfo;
}

LogFormat ParseLogFormat(const std::string& name) {
  return name == "json" ? LogFormat::kJson : LogFormat::kText;
}

HttpServerOptions ServerOptions(const ServerSettings& settings) {
  const auto milliseconds = [](Seconds s) {
    return std::chrono::milliseconds(static_cast<int64_t>(std::ceil(s.count * 1000)));
  };
  HttpServerOptions options;
  options.host = settings.host;
  options.port = settings.port;
  options.threads = settings.threads;
  options.worker_threads = settings.worker_threads;
  options.max_connections = settings.max_connections;
  options.body_limit_bytes = static_cast<size_t>(settings.body_limit.count);
  options.header_limit_bytes = static_cast<size_t>(settings.header_limit.count);
  options.read_timeout = milliseconds(settings.read_timeout);
  options.write_timeout = milliseconds(settings.write_timeout);
  options.idle_timeout = milliseconds(settings.idle_timeout);
  options.ping_interval = milliseconds(settings.ping_interval);
  return options;
}

}  // namespace sluice
