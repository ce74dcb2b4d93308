// Scope analysis: which variable each name means. Follows Jinja2's static rules (its idtracking
// module), not a run-time chain of dictionaries, because templates can tell them apart:
// a name that a scope assigns anywhere is a variable of that scope from its start on.
#pragma once

#include "engine/text/template/ast.h"

namespace sluice::jinja {

// Fills in the references, loads and slots of `program`. Throws RenderError with a line for names
// that cannot be assigned and for unknown filters and tests outside of conditional code.
void ResolveNames(Program& program);

}  // namespace sluice::jinja
