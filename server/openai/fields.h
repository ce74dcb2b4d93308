// Typed access to the fields of a request object. The first fault is kept and names its field;
// after it every read returns its fallback, so a parser reads straight through and asks once.
// Absent fields and JSON null mean the fallback. Types are strict: "5" is not a number, 5.0 is not
// an integer, 1 is not a boolean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/error.h"
#include "server/openai/json.h"

namespace sluice::openai {

class Fields {
 public:
  // `object` must be a JSON object and outlive this; `prefix` ("sluice.") is put before names in
  // errors.
  explicit Fields(const Json& object, std::string prefix = {});

  // Null when absent or JSON null.
  const Json* Find(std::string_view name) const;
  bool Has(std::string_view name) const { return Find(name) != nullptr; }

  double Number(std::string_view name, double fallback, double min, double max);
  int64_t Integer(std::string_view name, int64_t fallback, int64_t min, int64_t max);
  std::optional<int64_t> OptionalInteger(std::string_view name, int64_t min, int64_t max);
  bool Boolean(std::string_view name, bool fallback);
  std::string String(std::string_view name, std::string fallback = {});
  // An array of integers in [0, INT32_MAX], at most `max_count`.
  std::vector<int32_t> TokenIds(std::string_view name, size_t max_count);

  void Fail(std::string_view name, std::string message);
  void Fail(ApiError error);
  bool failed() const { return error_.has_value(); }
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const Json& object_;
  std::string prefix_;
  std::optional<ApiError> error_;
};

// Reads one array of token ids; false when an entry is no integer in [0, INT32_MAX].
bool ReadTokenIds(const Json& array, std::vector<int32_t>* ids);

// "0", "1.5", "-2": as a person writes it.
std::string PlainNumber(double value);

}  // namespace sluice::openai
