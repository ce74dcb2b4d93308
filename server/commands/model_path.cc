#include "server/commands/model_path.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/convert/checkpoint.h"
#include "engine/convert/packer.h"
#include "engine/formats/pack.h"
#include "server/version.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

bool IsGguf(const fs::path& path) { return path.extension() == ".gguf"; }

// FNV-1a: a name for a file, not a defence.
class Fingerprint {
 public:
  void Add(const std::string& text) {
    for (const char c : text) AddByte(static_cast<uint8_t>(c));
    AddByte(0);
  }
  void Add(uint64_t value) {
    for (int i = 0; i < 8; ++i) AddByte(static_cast<uint8_t>(value >> (8 * i)));
  }
  std::string Hex() const {
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash_));
    return text;
  }

 private:
  void AddByte(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3u; }
  uint64_t hash_ = 0xcbf29ce484222325u;
};

// The files that make up a model: those of a directory, or a GGUF file with its split siblings.
std::vector<fs::path> SourceFiles(const fs::path& model) {
  const fs::path directory = IsGguf(model) ? model.parent_path() : model;
  const std::string name = model.filename().string();
  const size_t split = name.find("-00001-of-");
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(directory.empty() ? "." : directory, error), end;
       !error && it != end; it.increment(error)) {
    const std::string other = it->path().filename().string();
    const bool sibling =
        split != std::string::npos && IsGguf(other) && other.compare(0, split, name, 0, split) == 0;
    if (!IsGguf(model) || other == name || sibling) files.push_back(it->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

uint64_t SourceBytes(const fs::path& model) {
  uint64_t bytes = 0;
  for (const fs::path& file : SourceFiles(model)) {
    std::error_code error;
    const uintmax_t size = fs::file_size(file, error);
    if (!error) bytes += size;
  }
  return bytes;
}

fs::path CachedPack(const fs::path& model, const fs::path& cache) {
  std::error_code ignored;
  const fs::path canonical = fs::weakly_canonical(model, ignored);
  Fingerprint print;
  print.Add(uint64_t{kPackVersion});
  print.Add(canonical.string());
  for (const fs::path& file : SourceFiles(canonical)) {
    print.Add(file.filename().string());
    print.Add(static_cast<uint64_t>(fs::file_size(file, ignored)));
    const auto time = fs::last_write_time(file, ignored).time_since_epoch();
    print.Add(static_cast<uint64_t>(time.count()));
  }
  const fs::path name = IsGguf(model) ? canonical.stem() : canonical.filename();
  return cache / (name.string() + "-" + print.Hex() + ".sluice");
}

Result<> Pack(const fs::path& model, const fs::path& pack, const ModelPathOptions& options) {
  const auto source = OpenCheckpoint(model);
  if (!source) return source.error();
  PackOptions pack_options;
  pack_options.threads = options.threads;
  pack_options.tool = std::string("sluice ") + kVersion;
  pack_options.source_name = model.filename().string();
  pack_options.progress = [&](const std::string&, double fraction) {
    if (options.progress) options.progress(fraction);
  };
  const auto report = PackModel(**source, pack, pack_options);
  if (!report) return report.error();
  return {};
}

}  // namespace

Result<ResolvedModel> ResolveModelPath(const fs::path& model, const ModelPathOptions& options) {
  const auto say = [&](const std::string& sentence) {
    if (options.say) options.say(sentence);
  };
  std::error_code error;
  if (!fs::exists(model, error)) return NotFound("there is no model at " + model.string());
  if (PackReader::LooksLikePack(model)) return ResolvedModel{model, {}};
  const bool directory = fs::is_directory(model, error);
  if (!directory && !IsGguf(model)) {
    return Unsupported(model.string() +
                       " is neither a pack, nor a .gguf file, nor a Hugging Face directory");
  }
  if (directory && !options.pack_directories) return ResolvedModel{model, {}};

  const std::string instead =
      "run: sluice pack " + model.string() + " MODEL.sluice, and serve that";
  const auto unusable = [&](const std::string& why) -> Result<ResolvedModel> {
    if (!directory) return IoError(why + "; set model.cache_dir, or " + instead);
    say(why + "; loading " + model.string() + " as it is");
    return ResolvedModel{model, {}};
  };
  if (options.cache_directory.empty()) return unusable("there is no cache directory for packs");
  fs::create_directories(options.cache_directory, error);
  if (error) {
    return unusable("cannot create the cache directory " + options.cache_directory.string() + ": " +
                    error.message());
  }
  const fs::path pack = CachedPack(model, options.cache_directory);
  if (std::optional<PackLease> lease = PackLease::Take(pack)) {
    if (PackReader::Open(pack)) {
      say("using the pack " + pack.string());
      return ResolvedModel{pack, std::move(*lease)};
    }
    say("the pack " + pack.string() + " is damaged; making it again");
  }
  const uint64_t limit = options.cache_limit_bytes > 0
                             ? options.cache_limit_bytes
                             : DefaultPackCacheBytes(options.cache_directory);
  for (const fs::path& old : MakeRoomForPack(options.cache_directory, SourceBytes(model), limit)) {
    say("removed the pack " + old.string() + ", used longest ago, to keep the cache in its limit");
  }
  say("packing " + model.string() + " into " + pack.string() + " (once)");
  if (auto ok = Pack(model, pack, options); !ok) {
    const ErrorCode code = ok.error().code;
    const bool disk = code == ErrorCode::kIo || code == ErrorCode::kResourceExhausted;
    if (disk && directory) return unusable("packing failed: " + ok.error().message);
    return ok.error();
  }
  return ResolvedModel{pack, PackLease::Take(pack).value_or(PackLease())};
}

}  // namespace sluice
