// The documents of a model ("config.json", "tokenizer.json", ...) as texts by file name, wherever
// they come from: a Hugging Face directory, a pack's metadata, a GGUF file's.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace sluice {

// Immutable after construction; a value.
class ModelFiles {
 public:
  static constexpr std::string_view kConfig = "config.json";
  static constexpr std::string_view kGenerationConfig = "generation_config.json";
  static constexpr std::string_view kTokenizer = "tokenizer.json";
  static constexpr std::string_view kTokenizerConfig = "tokenizer_config.json";
  static constexpr std::string_view kChatTemplate = "chat_template.jinja";

  ModelFiles() = default;
  // `source` names, in errors, the file that the texts come from.
  ModelFiles(std::filesystem::path source, std::map<std::string, std::string> texts);

  // The five documents above, those that the directory has. Errors: kCorrupt for one that is larger
  // than such a document can be, kIo; both name the file. A directory that does not exist has none.
  static Result<ModelFiles> Read(const std::filesystem::path& directory);
  // Only these.
  static Result<ModelFiles> Read(const std::filesystem::path& directory,
                                 std::span<const std::string_view> names);

  // Null when absent. The pointer lives as long as this object.
  const std::string* Find(std::string_view name) const;
  // kNotFound, naming the file, when absent.
  Result<const std::string*> Require(std::string_view name) const;
  // For errors: "/models/olmoe/config.json".
  std::string PathOf(std::string_view name) const { return (source_ / name).string(); }

  const std::filesystem::path& source() const { return source_; }
  const std::map<std::string, std::string>& texts() const { return texts_; }

 private:
  std::filesystem::path source_;
  std::map<std::string, std::string> texts_;
};

}  // namespace sluice
