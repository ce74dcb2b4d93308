#include "engine/base/model_files.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/result.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

class Directory {
 public:
  Directory() {
    std::string pattern = (fs::temp_directory_path() / "sluice_files_XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Directory() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }
  void Write(const char* name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }

 private:
  fs::path path_;
};

}  // namespace

TEST_CASE("A directory gives the documents that it has and no other file", "[base]") {
  const Directory directory;
  directory.Write("config.json", "{}");
  directory.Write("chat_template.jinja", "{{ 1 }}\n");
  directory.Write("README.md", "text");
  const Result<ModelFiles> files = ModelFiles::Read(directory.path());
  REQUIRE(files);
  CHECK(files->texts().size() == 2);
  REQUIRE(files->Find("chat_template.jinja") != nullptr);
  CHECK(*files->Find("chat_template.jinja") == "{{ 1 }}\n");
  CHECK(files->Find("tokenizer.json") == nullptr);

  constexpr std::array names = {ModelFiles::kConfig, ModelFiles::kTokenizer};
  const Result<ModelFiles> some = ModelFiles::Read(directory.path(), names);
  REQUIRE(some);
  CHECK(some->texts().size() == 1);
  CHECK(**some->Require("config.json") == "{}");
}

TEST_CASE("A missing document is named with the model it is missing from", "[base]") {
  const ModelFiles files("/models/small.gguf", {{"config.json", "{}"}});
  const auto missing = files.Require("tokenizer.json");
  REQUIRE(!missing);
  CHECK(missing.error().code == ErrorCode::kNotFound);
  CHECK(missing.error().message == "/models/small.gguf/tokenizer.json does not exist");
  CHECK(ModelFiles::Read("/nonexistent/model")->texts().empty());
}

TEST_CASE("A document larger than such a document can be is refused unread", "[base]") {
  const Directory directory;
  directory.Write("config.json", "{}");
  fs::resize_file(directory.path() / "config.json", (4 << 20) + 1);
  const auto read = ModelFiles::Read(directory.path());
  REQUIRE(!read);
  CHECK(read.error().message.find("config.json") != std::string::npos);
}

}  // namespace sluice
