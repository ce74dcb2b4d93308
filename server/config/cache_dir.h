// Where packs made on first use are kept.
#pragma once

#include <filesystem>
#include <string>

namespace sluice {

// `setting` when it is not empty; else the service manager's $CACHE_DIRECTORY,
// $XDG_CACHE_HOME/sluice or $HOME/.cache/sluice, the first that is set. Empty when none is.
std::filesystem::path CacheDirectory(const std::string& setting);

}  // namespace sluice
