#include "engine/base/model_files.h"

#include <array>
#include <cstdint>
#include <utility>

#include "engine/base/file.h"

namespace sluice {
namespace {

constexpr std::array kAll = {ModelFiles::kConfig, ModelFiles::kGenerationConfig,
                             ModelFiles::kTokenizer, ModelFiles::kTokenizerConfig,
                             ModelFiles::kChatTemplate};

// Tokenizers of 256 thousand words take some 30 MB.
uint64_t MaxBytes(std::string_view name) {
  if (name == ModelFiles::kTokenizer || name == ModelFiles::kTokenizerConfig)
    return uint64_t{256} << 20;
  return uint64_t{4} << 20;
}

}  // namespace

ModelFiles::ModelFiles(std::filesystem::path source, std::map<std::string, std::string> texts)
    : source_(std::move(source)), texts_(std::move(texts)) {}

Result<ModelFiles> ModelFiles::Read(const std::filesystem::path& directory) {
  return Read(directory, kAll);
}

Result<ModelFiles> ModelFiles::Read(const std::filesystem::path& directory,
                                    std::span<const std::string_view> names) {
  ModelFiles files(directory, {});
  for (const std::string_view name : names) {
    Result<std::string> text = ReadTextFile(directory / name, MaxBytes(name));
    if (text) {
      files.texts_.emplace(name, std::move(*text));
    } else if (text.error().code != ErrorCode::kNotFound) {
      return text.error();
    }
  }
  return files;
}

const std::string* ModelFiles::Find(std::string_view name) const {
  const auto it = texts_.find(std::string(name));
  return it == texts_.end() ? nullptr : &it->second;
}

Result<const std::string*> ModelFiles::Require(std::string_view name) const {
  const std::string* text = Find(name);
  if (text == nullptr) return NotFound(PathOf(name) + " does not exist");
  return text;
}

}  // namespace sluice
