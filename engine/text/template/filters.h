// The two tables of filters, by what they work on.
#pragma once

#include <string_view>

#include "engine/text/template/arguments.h"

namespace sluice::jinja {

const BuiltinEntry* FindTextFilter(std::string_view name);      // text_filters.cc
const BuiltinEntry* FindSequenceFilter(std::string_view name);  // sequence_filters.cc

// The entry of that name in an array of them, or null.
template <size_t n>
const BuiltinEntry* FindIn(const BuiltinEntry (&table)[n], std::string_view name) {
  for (const BuiltinEntry& entry : table) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

}  // namespace sluice::jinja
