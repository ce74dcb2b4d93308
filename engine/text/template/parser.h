// Template source to a syntax tree: Jinja2's grammar with the loopcontrols extension and
// transformers' generation blocks. Template inheritance, import, include and autoescape are
// refused: a chat template is one file.
#pragma once

#include <string_view>

#include "engine/text/template/ast.h"

namespace sluice::jinja {

// Throws RenderError with a line and what was expected. Names are not resolved yet (scope.h).
// REQUIRES: valid UTF-8.
Program ParseTemplate(std::string_view source);

}  // namespace sluice::jinja
