#include "server/config/load.h"

#include <toml++/toml.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "engine/base/file.h"

namespace sluice {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

std::string Place(const std::string& file, const toml::node& node) {
  return file + ":" + std::to_string(node.source().begin.line);
}

// `suggestion` may be empty.
Error Unknown(const std::string& place, const std::string& what, const std::string& name,
              const std::string& suggestion) {
  std::string message = place + ": unknown " + what + " \"" + name + "\"";
  if (!suggestion.empty()) message += "; did you mean \"" + suggestion + "\"?";
  return InvalidArgument(std::move(message));
}

std::vector<std::string> SectionNames() {
  std::vector<std::string> names;
  for (const Setting& setting : Settings()) {
    if (names.empty() || names.back() != setting.section) names.emplace_back(setting.section);
  }
  return names;
}

std::vector<std::string> KeysOf(std::string_view section) {
  std::vector<std::string> keys;
  for (const Setting& setting : Settings()) {
    if (setting.section == section) keys.emplace_back(setting.key);
  }
  return keys;
}

Result<void> SetFromToml(const Setting& setting, const toml::node& node, Config& config) {
  if (const auto* integer = node.as_integer()) return SetInteger(setting, **integer, config);
  if (const auto* number = node.as_floating_point()) return SetDouble(setting, **number, config);
  if (const auto* flag = node.as_boolean()) return SetBool(setting, **flag, config);
  if (const auto* text = node.as_string()) return SetString(setting, **text, config);
  if (const auto* array = node.as_array()) {
    std::vector<std::string> items;
    for (const toml::node& item : *array) {
      const auto* text = item.as_string();
      if (!text) return InvalidArgument("expected " + Expected(setting));
      items.push_back(**text);
    }
    return SetList(setting, std::move(items), config);
  }
  return InvalidArgument("expected " + Expected(setting));
}

Result<void> ApplySection(std::string_view section, const toml::table& table,
                          const std::string& file, LoadedConfig& config) {
  for (const auto& [key, node] : table) {
    const std::string name = std::string(section) + "." + std::string(key.str());
    const Setting* setting = FindSetting(name);
    if (!setting) {
      const std::vector<std::string> keys = KeysOf(section);
      const std::string_view nearest = Nearest(key.str(), keys);
      return Unknown(Place(file, node), "key", name,
                     nearest.empty() ? "" : std::string(section) + "." + std::string(nearest));
    }
    const Result<void> set = SetFromToml(*setting, node, config.values);
    if (!set) return WithContext(Place(file, node) + ": " + name, set.error());
    config.sources[name] = Place(file, node);
  }
  return {};
}

Result<void> ApplyFile(std::string_view text, const std::string& file, LoadedConfig& config) {
  toml::table root;
  try {
    root = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    return InvalidArgument(file + ":" + std::to_string(error.source().begin.line) + ": " +
                           std::string(error.description()));
  }
  for (const auto& [key, node] : root) {
    const std::string section(key.str());
    const std::vector<std::string> keys = KeysOf(section);
    const auto* table = node.as_table();
    if (keys.empty() && !table) {
      // A key outside any section: suggest the first setting of that name, or of one like it.
      std::vector<std::string> names;
      for (const Setting& setting : Settings()) names.emplace_back(setting.key);
      const auto nearest = std::find(names.begin(), names.end(), Nearest(section, names));
      return Unknown(Place(file, node), "key", section,
                     nearest == names.end()
                         ? ""
                         : Settings()[static_cast<size_t>(nearest - names.begin())].name());
    }
    if (keys.empty()) {
      return Unknown(Place(file, node), "section", section,
                     std::string(Nearest(section, SectionNames())));
    }
    if (!table) {
      return InvalidArgument(Place(file, node) + ": \"" + section + "\" is a section; write [" +
                             section + "]");
    }
    const Result<void> applied = ApplySection(section, *table, file, config);
    if (!applied) return applied.error();
  }
  return {};
}

Result<void> Apply(std::span<const CommandLineValue> flags, LoadedConfig& config) {
  for (const CommandLineValue& flag : flags) {
    const Result<void> set = SetFromText(*flag.setting, flag.text, config.values);
    if (!set) return WithContext(flag.setting->flag, set.error());
    config.sources[flag.setting->name()] = "command line";
  }
  return {};
}

LoadedConfig Defaults() {
  LoadedConfig config;
  for (const Setting& setting : Settings()) config.sources[setting.name()] = "default";
  return config;
}

}  // namespace

Result<LoadedConfig> LoadConfigText(std::string_view toml, const std::string& file,
                                    std::span<const CommandLineValue> flags) {
  LoadedConfig config = Defaults();
  if (const Result<void> applied = ApplyFile(toml, file, config); !applied) return applied.error();
  if (const Result<void> applied = Apply(flags, config); !applied) return applied.error();
  return config;
}

Result<LoadedConfig> LoadConfig(const std::string& file, std::span<const CommandLineValue> flags) {
  if (file.empty()) return LoadConfigText("", "", flags);
  const Result<std::string> text = ReadTextFile(file, kMaxFileBytes);
  if (!text) return WithContext("--config", text.error());
  return LoadConfigText(*text, file, flags);
}

std::string PrintConfig(const LoadedConfig& config) {
  std::ostringstream out;
  std::string_view section;
  for (const Setting& setting : Settings()) {
    if (setting.section != section) {
      out << (section.empty() ? "" : "\n") << "[" << setting.section << "]\n";
      section = setting.section;
    }
    std::string line = std::string(setting.key) + " = " + ValueText(setting, config.values);
    if (line.size() < 40) line.resize(40, ' ');
    out << line << "  # " << config.sources.at(setting.name()) << "\n";
  }
  return out.str();
}

std::string PrintConfigJson(const LoadedConfig& config) {
  nlohmann::ordered_json out;
  for (const Setting& setting : Settings()) {
    // Every value's TOML text is JSON as well: numbers, strings, booleans, lists of strings.
    out[setting.name()] = {
        {"value", nlohmann::ordered_json::parse(ValueText(setting, config.values))},
        {"source", config.sources.at(setting.name())}};
  }
  return out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace sluice
