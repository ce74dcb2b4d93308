// Invariants. A failed check is a bug of ours: it prints where and what, and aborts.
// Never used on input from files, configuration or clients (those are Result<T>, result.h).
#pragma once

#include <string_view>

namespace sluice {

[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              std::string_view message = {});

}  // namespace sluice

// SLUICE_CHECK(condition) or SLUICE_CHECK(condition, "what it means").
#define SLUICE_CHECK(condition, ...)                                                    \
  do {                                                                                  \
    if (!(condition)) [[unlikely]]                                                      \
      ::sluice::CheckFailed(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
