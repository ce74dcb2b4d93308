// The one Catch2 include of all tests: Debian 12 ships version 2, newer systems version 3.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;  // NOLINT: tests only
#else
#include <catch2/catch.hpp>
#endif
