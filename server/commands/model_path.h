// From what a person names as a model to what the engine loads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "engine/base/result.h"
#include "server/config/pack_cache.h"

namespace sluice {

struct ModelPathOptions {
  // Where packs are kept (cache_dir.h). Empty: there is no such place.
  std::filesystem::path cache_directory;
  // What they may take together (pack_cache.h). 0: half of the file system.
  uint64_t cache_limit_bytes = 0;
  // Whether a Hugging Face directory is packed too, so that the next start is quick. Otherwise it
  // is loaded as it is. A GGUF file is always packed: nothing else can be served from it.
  bool pack_directories = false;
  int threads = 0;
  // Told when packing begins and when a cached pack is used; may be empty.
  std::function<void(const std::string& sentence)> say;
  std::function<void(double fraction)> progress;
};

struct ResolvedModel {
  std::filesystem::path path;
  PackLease lease;  // of a pack in the cache: it is not removed while this lives
};

// A pack or a Hugging Face directory: `model` itself, or its pack in the cache, made now if it is
// not there yet; packs used longest ago make room for it, reckoned as large as its source. A pack
// belongs to one version of its source: path, sizes and modification times. Without a usable cache
// a directory is loaded as it is (and `say` says so), and a GGUF file is an error that names the
// command to run.
Result<ResolvedModel> ResolveModelPath(const std::filesystem::path& model,
                                       const ModelPathOptions& options);

}  // namespace sluice
