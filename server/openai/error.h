// Errors as OpenAI clients read them: an HTTP status and {"error": {message, type, param, code}}.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "engine/base/result.h"

namespace sluice::openai {

struct ApiError {
  int status = 400;
  std::string type = "invalid_request_error";
  std::string message;
  std::string param;            // empty: null
  std::string code;             // empty: null
  int retry_after_seconds = 0;  // > 0: a Retry-After header

  // The response body. Invalid UTF-8 in the message is replaced.
  std::string ToJson() const;
};

ApiError BadRequest(std::string param, std::string message);
ApiError NotFoundError(std::string message, std::string code = {});
ApiError NotOffered(std::string param, std::string message);  // 501
ApiError AuthenticationError();
ApiError UnavailableError(std::string message, int retry_after_seconds = 0);
ApiError ServerError(std::string message);
ApiError ModelNotFound(const std::string& model);

// What the engine's refusal means to a client.
ApiError FromEngineError(const Error& error);

// A parsed request, or why it was refused.
template <class T>
class Parsed {
 public:
  Parsed(T value) : value_(std::move(value)) {}         // NOLINT: implicit, as Result is
  Parsed(ApiError error) : value_(std::move(error)) {}  // NOLINT

  explicit operator bool() const { return value_.index() == 0; }
  T& operator*() { return std::get<0>(value_); }
  const T& operator*() const { return std::get<0>(value_); }
  T* operator->() { return &std::get<0>(value_); }
  const T* operator->() const { return &std::get<0>(value_); }
  ApiError& error() { return std::get<1>(value_); }
  const ApiError& error() const { return std::get<1>(value_); }

 private:
  std::variant<T, ApiError> value_;
};

}  // namespace sluice::openai
