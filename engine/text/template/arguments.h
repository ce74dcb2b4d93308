// Binding of call arguments to the parameters of a builtin, with Python's errors.
#pragma once

#include <initializer_list>
#include <string_view>

#include "engine/text/template/operators.h"
#include "engine/text/template/value.h"

namespace sluice::jinja {

// Builtins: `self` is the subject of a filter, a test or a method, and missing for a function.
using Builtin = Value (*)(Runtime& rt, const Value& self, CallArgs& args);

struct BuiltinEntry {
  std::string_view name;
  Builtin function;
};

class Arguments {
 public:
  // `names` are the parameters in order; a name that starts with a slash is positional only. The
  // first `required` must be given.
  Arguments(std::string_view function, CallArgs& args,
            std::initializer_list<std::string_view> names, size_t required = 0);

  bool Has(size_t i) const { return !values_[i].IsMissing(); }
  bool HasSome(size_t i) const { return Has(i) && !values_[i].IsNone(); }
  const Value& operator[](size_t i) const { return values_[i]; }
  Value Or(size_t i, Value fallback) const { return Has(i) ? values_[i] : std::move(fallback); }
  bool Flag(size_t i, bool fallback) const { return Has(i) ? Truth(values_[i]) : fallback; }
  int64_t Int(size_t i, int64_t fallback) const {
    return Has(i) ? RequireInt(values_[i], function_) : fallback;
  }
  std::string_view String(size_t i) const { return RequireText(values_[i], function_); }

 private:
  std::string_view function_;
  Values values_;
};

// Throws when a builtin that takes nothing was given something.
void NoArguments(std::string_view function, const CallArgs& args);

}  // namespace sluice::jinja
