// Python's two ways to fill a string: `'%s' % args` and `'{}'.format(args)`.
#pragma once

#include "engine/text/template/value.h"

namespace sluice::jinja {

// text % argument, where `argument` is a tuple, a mapping or a single value.
Value FormatPercent(Runtime& rt, const Value& text, const Value& argument);

// text.format(*args, **kwargs)
Value FormatBraces(Runtime& rt, const Value& text, const CallArgs& args);

}  // namespace sluice::jinja
