#include "server/openai/error.h"

#include <nlohmann/json.hpp>

#include "server/openai/json.h"

namespace sluice::openai {

std::string ApiError::ToJson() const {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  const Json body = {
      {"error",
       {{"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
  return Dump(body);
}

ApiError BadRequest(std::string param, std::string message) {
  return {.status = 400, .message = std::move(message), .param = std::move(param), .code = {}};
}

ApiError NotFoundError(std::string message, std::string code) {
  return {.status = 404, .message = std::move(message), .param = {}, .code = std::move(code)};
}

ApiError NotOffered(std::string param, std::string message) {
  return {.status = 501,
          .message = std::move(message),
          .param = std::move(param),
          .code = "not_offered"};
}

ApiError AuthenticationError() {
  return {.status = 401,
          .type = "authentication_error",
          .message = "A valid API key is needed: send it as Authorization: Bearer KEY.",
          .param = {},
          .code = "invalid_api_key"};
}

ApiError UnavailableError(std::string message, int retry_after_seconds) {
  return {.status = 503,
          .type = "unavailable_error",
          .message = std::move(message),
          .param = {},
          .code = {},
          .retry_after_seconds = retry_after_seconds};
}

ApiError ServerError(std::string message) {
  return {.status = 500,
          .type = "server_error",
          .message = std::move(message),
          .param = {},
          .code = {}};
}

ApiError ModelNotFound(const std::string& model) {
  ApiError error = NotFoundError(
      "The model `" + model.substr(0, 200) + "` does not exist; GET /v1/models lists what does.",
      "model_not_found");
  error.param = "model";
  return error;
}

ApiError FromEngineError(const Error& error) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
      return BadRequest({}, error.message);
    case ErrorCode::kUnsupported:
      return NotOffered({}, error.message);
    case ErrorCode::kResourceExhausted:
      return {.status = 429,
              .type = "rate_limit_error",
              .message = error.message,
              .param = {},
              .code = "queue_full",
              .retry_after_seconds = 1};
    case ErrorCode::kUnavailable:
    case ErrorCode::kCancelled:
      return UnavailableError(error.message);
    default:
      return ServerError(error.message);
  }
}

}  // namespace sluice::openai
