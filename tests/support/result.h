// Lets Catch2 print a Result in REQUIRE(result): the error's message when it has one. Include it
// before the first assertion on a Result.
#pragma once

#include <string>

#include "engine/base/result.h"
#include "tests/support/catch.h"

namespace Catch {

template <class T>
struct StringMaker<boost::system::result<T, sluice::Error>> {
  static std::string convert(const boost::system::result<T, sluice::Error>& result) {
    return result ? "a value" : "the error \"" + result.error().message + "\"";
  }
};

}  // namespace Catch
