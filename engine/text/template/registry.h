// Filters, tests and global functions by name.
#pragma once

#include <string_view>

#include "engine/text/template/arguments.h"

namespace sluice::jinja {

// Null when there is none of that name.
Builtin FindFilter(std::string_view name);
Builtin FindTest(std::string_view name);

// range, dict, namespace, cycler, joiner, raise_exception, strftime_now; missing for other names.
// Throws for names that Jinja2 defines and we do not.
Value FindGlobal(Runtime& rt, std::string_view name);

}  // namespace sluice::jinja
