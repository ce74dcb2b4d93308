#include "server/config/cache_dir.h"

#include <cstdlib>

namespace sluice {
namespace {

namespace fs = std::filesystem;

// An absolute path in a variable of the environment, or an empty one.
fs::path PathFrom(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr || value[0] != '/') return {};
  const std::string text = value;
  // The service manager separates several directories by colons; the first is the main one.
  return text.substr(0, text.find(':'));
}

}  // namespace

fs::path CacheDirectory(const std::string& setting) {
  if (!setting.empty()) return setting;
  if (const fs::path path = PathFrom("CACHE_DIRECTORY"); !path.empty()) return path;
  if (const fs::path path = PathFrom("XDG_CACHE_HOME"); !path.empty()) return path / "sluice";
  if (const fs::path path = PathFrom("HOME"); !path.empty()) return path / ".cache" / "sluice";
  return {};
}

}  // namespace sluice
