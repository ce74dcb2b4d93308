// Typed, ranged access to GGUF metadata. The first fault is kept, names the key, and later reads
// give their fallback, so a writer of documents reads straight through and asks once at the end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "engine/formats/gguf.h"

namespace sluice {

class GgufFields {
 public:
  explicit GgufFields(const GgufReader& reader) : reader_(reader) {}

  const GgufReader& reader() const { return reader_; }
  bool Has(std::string_view key) const { return reader_.FindMetadata(key) != nullptr; }

  // A whole number in [low, high]; a list counts as its one value when all its values are equal
  // (per-layer counts). Without a fallback the key must be there.
  int64_t Int(std::string_view key, std::optional<int64_t> fallback, int64_t low, int64_t high);
  // A finite number, widened; one that the file holds as float32 becomes the double whose shortest
  // decimal form is the float's ("1e-05", as the configuration that it was made from had it).
  double Number(std::string_view key, std::optional<double> fallback);
  bool Bool(std::string_view key, bool fallback);
  // Valid UTF-8; empty when absent.
  std::string Text(std::string_view key);
  // A token id below `tokens`; nothing when absent, or -1 in 32 bits as some writers put for none.
  std::optional<int64_t> TokenId(std::string_view key, int64_t tokens);

  // `what` starts with the key or the tensor.
  void Refuse(std::string what);
  void Fail(Error error);
  const std::optional<Error>& error() const { return error_; }

 private:
  const GgufReader& reader_;
  std::optional<Error> error_;
};

}  // namespace sluice
