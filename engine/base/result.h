// Result<T>: how bad input travels. A function that can fail on files, configuration or requests
// returns Result<T>; a caller's bug aborts through SLUICE_CHECK (check.h) instead.
//
//   Result<Config> config = ParseConfig(path);
//   if (!config) return config.error();
//   Use(*config);
//
// The message of an Error is one sentence for a person: what is wrong, where (file, field, tensor),
// and what to do about it where that is known. It never holds secrets.
#pragma once

#include <boost/system/result.hpp>
#include <string>
#include <string_view>
#include <utility>

namespace sluice {

enum class ErrorCode {
  kInvalidArgument,    // a request or a setting is wrong
  kNotFound,           // a file, tensor, model or route does not exist
  kUnsupported,        // well formed, but not something we serve
  kCorrupt,            // a file contradicts itself: truncated, out of range, malformed
  kIo,                 // the operating system refused
  kResourceExhausted,  // a queue, a budget or a limit is full; may succeed later
  kUnavailable,        // loading or draining
  kCancelled,          // the client or an operator withdrew it
  kInternal,           // our fault
};

// A short lower-case name ("invalid_argument"), for logs.
std::string_view ErrorCodeName(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

// The same error with `context` and ": " put in front of its message.
Error WithContext(std::string_view context, Error error);

template <class T = void>
using Result = boost::system::result<T, Error>;

inline Error InvalidArgument(std::string m) { return {ErrorCode::kInvalidArgument, std::move(m)}; }
inline Error NotFound(std::string m) { return {ErrorCode::kNotFound, std::move(m)}; }
inline Error Unsupported(std::string m) { return {ErrorCode::kUnsupported, std::move(m)}; }
inline Error Corrupt(std::string m) { return {ErrorCode::kCorrupt, std::move(m)}; }
inline Error IoError(std::string m) { return {ErrorCode::kIo, std::move(m)}; }
inline Error ResourceExhausted(std::string m) {
  return {ErrorCode::kResourceExhausted, std::move(m)};
}
inline Error Unavailable(std::string m) { return {ErrorCode::kUnavailable, std::move(m)}; }
inline Error Cancelled(std::string m) { return {ErrorCode::kCancelled, std::move(m)}; }
inline Error Internal(std::string m) { return {ErrorCode::kInternal, std::move(m)}; }

// Called by Result<T>::value() on an error; declared here because Boost finds it by argument
// lookup. Our code tests before it takes a value, so reaching it is a bug: it aborts with the
// message.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& loc);

}  // namespace sluice
