// Filters over lists, mappings and iterators.

#include <algorithm>

#include "engine/text/template/filters.h"
#include "engine/text/template/registry.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

Value MakeIterator(Runtime& rt, Values items, std::string_view type = "generator") {
  return Value::Of(Kind::kIterator, new IteratorObject(rt, std::move(items), type));
}

// Jinja's attribute getter: "a.b.0" looks up a, then b, then item 0; none gives the item itself.
class Getter {
 public:
  Getter(Runtime& rt, const Value& attribute, bool ignore_case, Value fallback = {})
      : rt_(rt), ignore_case_(ignore_case), fallback_(std::move(fallback)) {
    if (attribute.IsMissing() || attribute.IsNone()) return;
    if (attribute.IsString()) {
      AddPath(Text(attribute));
    } else {
      parts_.push_back(attribute);
    }
  }

  Value operator()(const Value& item) const {
    rt_.Step();
    Value value = item;
    for (const Value& part : parts_) {
      value = GetItem(rt_, value, part);
      if (!fallback_.IsMissing() && !fallback_.IsNone() && value.IsUndefined()) value = fallback_;
    }
    if (ignore_case_ && value.IsString()) {
      rt_.Work(Text(value).size() * 8);
      return rt_.String(ToLower(Text(value)));
    }
    return value;
  }

 private:
  void AddPath(std::string_view path) {
    for (size_t start = 0; start <= path.size();) {
      const size_t dot = std::min(path.find('.', start), path.size());
      const std::string_view part = path.substr(start, dot - start);
      const bool number = !part.empty() && part.size() < 18 &&
                          part.find_first_not_of("0123456789") == std::string_view::npos;
      parts_.push_back(number ? Value::Int(std::stoll(std::string(part)))
                              : rt_.String(std::string(part)));
      start = dot + 1;
    }
  }

  Runtime& rt_;
  Values parts_;
  bool ignore_case_;
  Value fallback_;
};

// The key that sort compares: a list with one value per comma-separated attribute.
class SortKey {
 public:
  SortKey(Runtime& rt, const Value& attribute, bool ignore_case) : rt_(rt) {
    if (!attribute.IsString()) {
      getters_.emplace_back(rt, attribute, ignore_case);
      return;
    }
    const std::string_view text = Text(attribute);
    for (size_t start = 0; start <= text.size();) {
      const size_t comma = std::min(text.find(',', start), text.size());
      getters_.emplace_back(rt, rt.String(std::string(text.substr(start, comma - start))),
                            ignore_case);
      start = comma + 1;
    }
  }
  Value operator()(const Value& item) const {
    Values key;
    key.reserve(getters_.size());
    for (const Getter& getter : getters_) key.push_back(getter(item));
    return rt_.List(std::move(key));
  }

 private:
  Runtime& rt_;
  std::vector<Getter> getters_;
};

template <class Key>
Values Sorted(Runtime& rt, Values items, const Key& key, bool reverse) {
  std::vector<std::pair<Value, Value>> keyed;
  keyed.reserve(items.size());
  for (Value& item : items) {
    Value k = key(item);
    keyed.emplace_back(std::move(k), std::move(item));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? Less(rt, b.first, a.first) : Less(rt, a.first, b.first);
  });
  for (size_t i = 0; i < items.size(); ++i) items[i] = std::move(keyed[i].second);
  return items;
}

Value LengthFilter(Runtime&, const Value& self, CallArgs& args) {
  NoArguments("length", args);
  return Value::Int(static_cast<int64_t>(Length(self)));
}

Value Join(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("join", args, {"d", "attribute"});
  const std::string separator = a.Has(0) ? Str(rt, a[0]) : "";
  const Getter get(rt, a[1], false);
  TextBuilder out(rt);
  bool first = true;
  for (const Value& item : ToValues(rt, self)) {
    rt.Step();
    if (!first) out.Append(separator);
    first = false;
    AppendStr(get(item), &out);
  }
  return rt.String(out.Take());
}

Value First(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("first", args);
  if (self.Is(Kind::kIterator)) {
    auto& iterator = self.As<IteratorObject>();
    if (iterator.next < iterator.items.size()) return iterator.items[iterator.next++];
  } else if (self.IsSequence() || self.IsString() || self.Is(Kind::kRange)) {
    if (Length(self) > 0) return GetItem(rt, self, Value::Int(0));
  } else {
    const Values items = ToValues(rt, self);
    if (!items.empty()) return items.front();
  }
  return rt.Undefined("No first item, sequence was empty.");
}

Value Last(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("last", args);
  if (!HasLength(self)) Fail("'" + std::string(TypeName(self)) + "' object is not reversible");
  if (Length(self) == 0) return rt.Undefined("No last item, sequence was empty.");
  if (self.IsSequence() || self.IsString() || self.Is(Kind::kRange)) {
    return GetItem(rt, self, Value::Int(-1));
  }
  return ToValues(rt, self).back();
}

Value ListFilter(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("list", args);
  return rt.List(ToValues(rt, self));
}

Value ItemsFilter(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("items", args);
  if (self.IsUndefined()) return MakeIterator(rt, {});
  if (!self.IsDict()) Fail("can only get item pairs from a mapping");
  Values items;
  for (const auto& [key, value] : self.As<DictObject>().entries()) {
    items.push_back(rt.Tuple({key, value}));
  }
  return MakeIterator(rt, std::move(items));
}

Value Reverse(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("reverse", args);
  if (self.IsString()) {
    return GetSlice(rt, self, Value(), Value(), Value::Int(-1));
  }
  Values items = ToValues(rt, self);
  std::reverse(items.begin(), items.end());
  // A one-shot iterator cannot be reversed in place: Jinja makes a list of it.
  return self.Is(Kind::kIterator) ? rt.List(std::move(items))
                                  : MakeIterator(rt, std::move(items), "list_reverseiterator");
}

Value Sort(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("sort", args, {"reverse", "case_sensitive", "attribute"});
  const SortKey key(rt, a[2], !a.Flag(1, false));
  return rt.List(Sorted(rt, ToValues(rt, self), key, a.Flag(0, false)));
}

Value DictSort(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("dictsort", args, {"case_sensitive", "by", "reverse"});
  const std::string_view by = a.Has(1) ? a.String(1) : "key";
  if (by != "key" && by != "value") Fail("you can only sort by either \"key\" or \"value\"");
  if (self.IsUndefined()) FailUndefined(self);
  if (!self.IsDict()) Fail("dictsort needs a mapping, not " + std::string(TypeName(self)));
  Values pairs;
  for (const auto& [key, value] : self.As<DictObject>().entries()) {
    pairs.push_back(rt.Tuple({key, value}));
  }
  const Getter get(rt, Value::Int(by == "key" ? 0 : 1), !a.Flag(0, false));
  return rt.List(Sorted(rt, std::move(pairs), get, a.Flag(2, false)));
}

Value Unique(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("unique", args, {"case_sensitive", "attribute"});
  const Getter get(rt, a[1], !a.Flag(0, false));
  auto* seen = new DictObject(rt);
  const Value held = Value::Of(Kind::kDict, seen);
  Values out;
  for (const Value& item : ToValues(rt, self)) {
    const Value key = get(item);
    if (seen->Find(key) != nullptr) continue;
    seen->Put(key, Value::None());
    out.push_back(item);
  }
  return MakeIterator(rt, std::move(out));
}

Value Extreme(Runtime& rt, const Value& self, CallArgs& args, bool largest) {
  const Arguments a(largest ? "max" : "min", args, {"case_sensitive", "attribute"});
  const Getter get(rt, a[1], !a.Flag(0, false));
  Value best;
  Value best_key;
  for (const Value& item : ToValues(rt, self)) {
    Value key = get(item);
    if (best.IsMissing() || (largest ? Less(rt, best_key, key, ">") : Less(rt, key, best_key))) {
      best = item;
      best_key = std::move(key);
    }
  }
  return best.IsMissing() ? rt.Undefined("No aggregated item, sequence was empty.") : best;
}

Value Min(Runtime& rt, const Value& self, CallArgs& args) { return Extreme(rt, self, args, false); }
Value Max(Runtime& rt, const Value& self, CallArgs& args) { return Extreme(rt, self, args, true); }

Value Sum(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("sum", args, {"attribute", "start"});
  Value total = a.Or(1, Value::Int(0));
  if (total.IsString()) Fail("sum() can't sum strings");
  const Getter get(rt, a[0], false);
  for (const Value& item : ToValues(rt, self)) {
    total = Binary(rt, BinaryOp::kAdd, total, get(item));
  }
  return total;
}

Value Batch(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("batch", args, {"linecount", "fill_with"}, 1);
  const int64_t size = RequireInt(a[0], "the size of a batch");
  Values batches;
  Values batch;
  for (const Value& item : ToValues(rt, self)) {
    if (static_cast<int64_t>(batch.size()) == size) {
      batches.push_back(rt.List(std::exchange(batch, {})));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    if (a.HasSome(1) && size > static_cast<int64_t>(batch.size())) {
      if (static_cast<size_t>(size) > rt.RoomBytes() / sizeof(Value)) rt.Need(rt.RoomBytes() + 1);
      rt.Step(static_cast<size_t>(size));
      batch.resize(static_cast<size_t>(size), a[1]);
    }
    batches.push_back(rt.List(std::move(batch)));
  }
  return MakeIterator(rt, std::move(batches));
}

Value SliceFilter(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("slice", args, {"slices", "fill_with"}, 1);
  const int64_t slices = RequireInt(a[0], "the number of slices");
  if (slices == 0) Fail("integer division or modulo by zero");
  const Values items = ToValues(rt, self);
  if (slices < 0) return MakeIterator(rt, {});
  const auto length = static_cast<int64_t>(items.size());
  const int64_t per_slice = length / slices;
  const int64_t extra = length % slices;
  Values out;
  auto begin = items.begin();
  for (int64_t i = 0; i < slices; ++i) {
    rt.Step();
    rt.Need(out.size() * sizeof(Value) * 2);
    const auto end = begin + per_slice + (i < extra ? 1 : 0);
    Values slice(begin, end);
    begin = end;
    if (a.HasSome(1) && i >= extra) slice.push_back(a[1]);
    out.push_back(rt.List(std::move(slice)));
  }
  return MakeIterator(rt, std::move(out));
}

Value GroupBy(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("groupby", args, {"attribute", "default", "case_sensitive"}, 1);
  const bool ignore_case = !a.Flag(2, false);
  const Getter get(rt, a[0], ignore_case, a[1]);
  const Getter shown(rt, a[0], false, a[1]);
  Values groups;
  Values group;
  Value key;
  const auto finish = [&] {
    if (group.empty()) return;
    Value name = shown(group.front());
    Value members = rt.List(std::exchange(group, {}));
    groups.push_back(rt.Tuple({std::move(name), std::move(members)}));
    groups.back().As<ListObject>().is_group = true;
  };
  for (const Value& item : Sorted(rt, ToValues(rt, self), get, false)) {
    Value k = get(item);
    if (!group.empty() && !Equal(rt, key, k)) finish();
    key = std::move(k);
    group.push_back(item);
  }
  finish();
  return rt.List(std::move(groups));
}

Value Map(Runtime& rt, const Value& self, CallArgs& args) {
  if (!Truth(self)) return MakeIterator(rt, {});
  const Values items = ToValues(rt, self);
  Values out;
  rt.Need(items.size() * sizeof(Value));
  out.reserve(items.size());
  if (args.positional.empty() && !args.named.empty()) {
    const Arguments a("map", args, {"attribute", "default"}, 1);
    const Getter get(rt, a[0], false, a[1]);
    for (const Value& item : items) out.push_back(get(item));
    return MakeIterator(rt, std::move(out));
  }
  if (items.empty()) return MakeIterator(rt, {});
  if (args.positional.empty()) Fail("map requires a filter argument");
  const std::string_view name = RequireText(args.positional[0], "the filter of map");
  const Builtin filter = FindFilter(name);
  if (filter == nullptr) Fail("no filter is named '" + std::string(name) + "'");
  const Runtime::Depth depth(rt);  // map('map', 'map', ...)
  const Values rest(args.positional.begin() + 1, args.positional.end());
  for (const Value& item : items) {
    rt.Step();
    CallArgs call{rest, args.named};
    out.push_back(filter(rt, item, call));
  }
  return MakeIterator(rt, std::move(out));
}

// select, reject and their attribute forms.
Value Choose(Runtime& rt, const Value& self, CallArgs& args, bool by_attribute, bool keep) {
  if (!Truth(self)) return MakeIterator(rt, {});
  const Values items = ToValues(rt, self);
  if (items.empty()) return MakeIterator(rt, {});
  size_t used = 0;
  if (by_attribute && args.positional.empty()) Fail("missing parameter for attribute name");
  const Getter get(rt, by_attribute ? args.positional[used++] : Value(), false);
  Builtin test = nullptr;
  if (used < args.positional.size()) {
    const std::string_view name = RequireText(args.positional[used++], "the name of a test");
    test = FindTest(name);
    if (test == nullptr) Fail("no test is named '" + std::string(name) + "'");
  }
  const Values rest(args.positional.begin() + static_cast<std::ptrdiff_t>(used),
                    args.positional.end());
  Values out;
  for (const Value& item : items) {
    const Value subject = get(item);
    CallArgs call{rest, args.named};
    if (Truth(test == nullptr ? subject : test(rt, subject, call)) == keep) out.push_back(item);
  }
  return MakeIterator(rt, std::move(out));
}

Value Select(Runtime& rt, const Value& self, CallArgs& args) {
  return Choose(rt, self, args, false, true);
}
Value Reject(Runtime& rt, const Value& self, CallArgs& args) {
  return Choose(rt, self, args, false, false);
}
Value SelectAttr(Runtime& rt, const Value& self, CallArgs& args) {
  return Choose(rt, self, args, true, true);
}
Value RejectAttr(Runtime& rt, const Value& self, CallArgs& args) {
  return Choose(rt, self, args, true, false);
}

constexpr BuiltinEntry kFilters[] = {
    {"batch", Batch},
    {"count", LengthFilter},
    {"dictsort", DictSort},
    {"first", First},
    {"groupby", GroupBy},
    {"items", ItemsFilter},
    {"join", Join},
    {"last", Last},
    {"length", LengthFilter},
    {"list", ListFilter},
    {"map", Map},
    {"max", Max},
    {"min", Min},
    {"reject", Reject},
    {"rejectattr", RejectAttr},
    {"reverse", Reverse},
    {"select", Select},
    {"selectattr", SelectAttr},
    {"slice", SliceFilter},
    {"sort", Sort},
    {"sum", Sum},
    {"unique", Unique},
};

}  // namespace

const BuiltinEntry* FindSequenceFilter(std::string_view name) { return FindIn(kFilters, name); }

}  // namespace sluice::jinja
