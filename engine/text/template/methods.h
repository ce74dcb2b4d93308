// Methods of str, list, tuple, dict and Jinja's cycler, as the sandbox shows them.
#pragma once

#include <string_view>

#include "engine/text/template/arguments.h"

namespace sluice::jinja {

// The bound method `name` of `object`; an Undefined that says why where the sandbox forbids it;
// missing where there is none.
Value FindMethod(Runtime& rt, const Value& object, std::string_view name);

// The table of string methods (string_methods.cc), sorted by name.
const BuiltinEntry* FindStringMethod(std::string_view name);

}  // namespace sluice::jinja
