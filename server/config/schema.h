// The table of settings: one row per key gives its place in Config, its range and its help. The
// TOML reader, the command line, --print-config and the unknown-key suggestions all walk it.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/result.h"
#include "server/config/config.h"

namespace sluice {

using SettingField =
    std::variant<int*, double*, Bytes*, Seconds*, bool*, std::string*, std::vector<std::string>*>;

struct Setting {
  std::string_view section;  // "server"
  std::string_view key;      // "port"
  std::string_view flag;     // "--port"
  SettingField (*field)(Config&);
  double min = 0;  // numbers: inclusive range, in the field's unit
  double max = 0;
  std::vector<std::string_view> choices;  // strings and lists: the allowed values; empty: any
  std::string_view help;

  std::string name() const { return std::string(section) + "." + std::string(key); }
};

// In the order of the reference page.
std::span<const Setting> Settings();

// By full name ("server.port"), or nullptr.
const Setting* FindSetting(std::string_view name);

// "512MiB", "1.5GB", "4096" (bytes). Units: B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB,
// TiB, also K, M, G (powers of 1024); case does not matter.
Result<Bytes> ParseBytes(std::string_view text);
// "30", "30s", "500ms", "2m", "1h".
Result<Seconds> ParseSeconds(std::string_view text);

// Stores a value given as text (the command line). Lists are comma-separated. Errors name neither
// file nor flag: the caller puts the place in front.
Result<void> SetFromText(const Setting& setting, std::string_view text, Config& config);
// The typed setters of the TOML reader; a wrong type or range is an error.
Result<void> SetInteger(const Setting& setting, int64_t value, Config& config);
Result<void> SetDouble(const Setting& setting, double value, Config& config);
Result<void> SetBool(const Setting& setting, bool value, Config& config);
Result<void> SetString(const Setting& setting, std::string_view value, Config& config);
Result<void> SetList(const Setting& setting, std::vector<std::string> value, Config& config);

// The value as it would be written in TOML ("\"512MiB\"", "8080", "[\"vllm\"]").
std::string ValueText(const Setting& setting, const Config& config);
// "an integer from 0 to 65535", for help and errors.
std::string Expected(const Setting& setting);

// The candidate with the least edit distance to `word`, when it is near enough to be a slip;
// otherwise empty.
std::string_view Nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace sluice
