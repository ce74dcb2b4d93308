#include "engine/text/template/arguments.h"

#include <algorithm>

namespace sluice::jinja {

Arguments::Arguments(std::string_view function, CallArgs& args,
                     std::initializer_list<std::string_view> names, size_t required)
    : function_(function), values_(names.size()) {
  if (args.positional.size() > names.size()) {
    Fail(std::string(function) + "() takes at most " + std::to_string(names.size()) +
         " arguments (" + std::to_string(args.positional.size()) + " given)");
  }
  std::copy(args.positional.begin(), args.positional.end(), values_.begin());
  for (const auto& [key, value] : args.named) {
    const auto* const found = std::find(names.begin(), names.end(), std::string_view(key));
    if (found == names.end()) {
      Fail(std::string(function) + "() got an unexpected keyword argument '" + key + "'");
    }
    Value& slot = values_[static_cast<size_t>(found - names.begin())];
    if (!slot.IsMissing()) {
      Fail(std::string(function) + "() got multiple values for argument '" + key + "'");
    }
    slot = value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (values_[i].IsMissing()) {
      Fail(std::string(function) + "() missing required argument " + std::to_string(i + 1));
    }
  }
}

void NoArguments(std::string_view function, const CallArgs& args) {
  if (!args.positional.empty() || !args.named.empty()) {
    Fail(std::string(function) + "() takes no arguments");
  }
}

}  // namespace sluice::jinja
