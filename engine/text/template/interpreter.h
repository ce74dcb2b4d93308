// Runs a resolved template (scope.h) against its variables.
#pragma once

#include <string>

#include "engine/text/template/ast.h"
#include "engine/text/template/value.h"

namespace sluice::jinja {

// The text that `program` renders to, at most `max_output_bytes` of it. `variables` is a dict with
// string keys. Throws RenderError, with a line where one is known.
std::string RunTemplate(const Program& program, Runtime& rt, const Value& variables,
                        size_t max_output_bytes);

}  // namespace sluice::jinja
