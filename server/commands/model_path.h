// From what a person names as a model to what the engine loads.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "engine/base/result.h"

namespace sluice {

struct ModelPathOptions {
  // Where packs are kept (cache_dir.h). Empty: there is no such place.
  std::filesystem::path cache_directory;
  // Whether a Hugging Face directory is packed too, so that the next start is quick. Otherwise it
  // is loaded as it is. A GGUF file is always packed: nothing else can be served from it.
  bool pack_directories = false;
  int threads = 0;
  // Told when packing begins and when a cached pack is used; may be empty.
  std::function<void(const std::string& sentence)> say;
  std::function<void(double fraction)> progress;
};

// A pack or a Hugging Face directory: `model` itself, or its pack in the cache, made now if it is
// not there yet. A pack belongs to one version of its source: path, sizes and modification times.
// Without a usable cache a directory is loaded as it is (and `say` says so), and a GGUF file is an
// error that names the command to run.
Result<std::filesystem::path> ResolveModelPath(const std::filesystem::path& model,
                                               const ModelPathOptions& options);

}  // namespace sluice
