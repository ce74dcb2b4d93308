// Any bytes as the TOML configuration, as values on the command line and as a file of API keys:
// each is refused with a sentence or taken, and what is taken can be printed, as TOML that says the
// same and as valid JSON. The input is the TOML, and behind a NUL lines "section.key=value" of the
// command line; the whole input is the file of keys, too.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "server/config/api_keys.h"
#include "server/config/load.h"

namespace {

void CheckKeys(std::string_view text) {
  const auto keys = sluice::ApiKeys::Parse(text, "keys");
  if (!keys) {
    SLUICE_CHECK(!keys.error().message.empty());
    return;
  }
  SLUICE_CHECK(keys->required() && !keys->limits().empty());
  for (const sluice::KeyLimits& limits : keys->limits()) {
    SLUICE_CHECK(!limits.name.empty() && limits.weight >= 0.001 && limits.weight <= 1000);
    SLUICE_CHECK(limits.max_concurrent >= 0 && limits.requests_per_minute >= 0 &&
                 limits.tokens_per_minute >= 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  CheckKeys(text);
  const size_t split = std::min(text.find('\0'), size);
  std::vector<sluice::CommandLineValue> flags;
  for (std::string_view rest = text.substr(std::min(split + 1, size)); !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    const size_t equals = std::min(line.find('='), line.size());
    const sluice::Setting* setting = sluice::FindSetting(line.substr(0, equals));
    if (setting == nullptr) continue;
    flags.push_back({setting, std::string(line.substr(std::min(equals + 1, line.size())))});
  }
  const auto loaded = sluice::LoadConfigText(text.substr(0, split), "fuzz.toml", flags);
  if (!loaded) {
    SLUICE_CHECK(!loaded.error().message.empty());
    return 0;
  }
  SLUICE_CHECK(nlohmann::json::accept(sluice::PrintConfigJson(*loaded)));
  const std::string printed = sluice::PrintConfig(*loaded);
  const auto again = sluice::LoadConfigText(printed, "printed.toml", {});
  SLUICE_CHECK(again.has_value(), again ? "" : again.error().message);
  for (const sluice::Setting& setting : sluice::Settings()) {
    SLUICE_CHECK(
        sluice::ValueText(setting, again->values) == sluice::ValueText(setting, loaded->values),
        setting.name());
  }
  return 0;
}
