// Attributes, items, slices and the methods of containers: what environment.getattr and getitem of
// Jinja's ImmutableSandboxedEnvironment give.

#include <algorithm>
#include <iterator>

#include "engine/text/template/methods.h"
#include "engine/text/template/operators.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

struct MethodObject : CallableObject {
  MethodObject(Runtime& runtime, Value s, const BuiltinEntry* e)
      : CallableObject(runtime, sizeof(*this)), self(std::move(s)), entry(e) {}
  Value Call(CallArgs& args) override { return entry->function(rt, self, args); }
  std::string Repr() const override {
    return "<built-in method " + std::string(entry->name) + " of " + std::string(TypeName(self)) +
           " object>";
  }
  Value self;
  const BuiltinEntry* entry;
};

template <size_t n>
const BuiltinEntry* FindEntry(const BuiltinEntry (&table)[n], std::string_view name) {
  const auto* const it = std::find_if(std::begin(table), std::end(table),
                                      [name](const BuiltinEntry& e) { return e.name == name; });
  return it == std::end(table) ? nullptr : it;
}

// ---- list and tuple ----

Value ListCount(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("count", args, {"/value"}, 1);
  int64_t count = 0;
  for (const Value& item : self.As<ListObject>().items) {
    if (item.Same(a[0]) || Equal(rt, item, a[0])) ++count;
  }
  return Value::Int(count);
}

Value ListIndex(Runtime& rt, const Value& self, CallArgs& args) {
  const Arguments a("index", args, {"/value", "/start", "/stop"}, 1);
  const Values& items = self.As<ListObject>().items;
  const auto length = static_cast<int64_t>(items.size());
  const auto clamp = [length](int64_t i) {
    return i < 0 ? std::max<int64_t>(0, i < -length ? 0 : i + length) : std::min(i, length);
  };
  for (int64_t i = clamp(a.Int(1, 0)); i < clamp(a.Int(2, length)); ++i) {
    const Value& item = items[static_cast<size_t>(i)];
    if (item.Same(a[0]) || Equal(rt, item, a[0])) return Value::Int(i);
  }
  Fail("the value is not in the list");
}

Value ListCopy(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("copy", args);
  return rt.List(ToValues(rt, self));
}

constexpr BuiltinEntry kListMethods[] = {
    {"copy", ListCopy}, {"count", ListCount}, {"index", ListIndex}};
constexpr BuiltinEntry kTupleMethods[] = {{"count", ListCount}, {"index", ListIndex}};
constexpr std::string_view kListMutators[] = {"append", "clear", "pop",    "reverse",
                                              "insert", "sort",  "extend", "remove"};

// ---- dict ----

Value MakeView(Runtime& rt, const Value& self, ViewKind kind) {
  const auto& entries = self.As<DictObject>().entries();
  rt.Step(entries.size());
  Values items;
  items.reserve(entries.size());
  for (const auto& [key, value] : entries) {
    items.push_back(kind == ViewKind::kKeys     ? key
                    : kind == ViewKind::kValues ? value
                                                : rt.Tuple({key, value}));
  }
  return Value::Of(Kind::kView, new ViewObject(rt, std::move(items), kind));
}

Value DictKeys(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("keys", args);
  return MakeView(rt, self, ViewKind::kKeys);
}
Value DictValues(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("values", args);
  return MakeView(rt, self, ViewKind::kValues);
}
Value DictItems(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("items", args);
  return MakeView(rt, self, ViewKind::kItems);
}

Value DictGet(Runtime&, const Value& self, CallArgs& args) {
  const Arguments a("get", args, {"/key", "/default"}, 1);
  const Value* found = self.As<DictObject>().Find(a[0]);
  return found != nullptr ? *found : a.Or(1, Value::None());
}

Value DictCopy(Runtime& rt, const Value& self, CallArgs& args) {
  NoArguments("copy", args);
  auto* copy = new DictObject(rt);
  Value result = Value::Of(Kind::kDict, copy);
  for (const auto& [key, value] : self.As<DictObject>().entries()) {
    rt.Step();
    copy->Put(key, value);
  }
  return result;
}

constexpr BuiltinEntry kDictMethods[] = {{"copy", DictCopy},
                                         {"get", DictGet},
                                         {"items", DictItems},
                                         {"keys", DictKeys},
                                         {"values", DictValues}};
constexpr std::string_view kDictMutators[] = {"clear", "pop", "popitem", "setdefault", "update"};

// ---- Jinja's cycler ----

Value CyclerNext(Runtime&, const Value& self, CallArgs& args) {
  NoArguments("next", args);
  auto& cycler = self.As<CyclerObject>();
  const Value current = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return current;
}

Value CyclerReset(Runtime&, const Value& self, CallArgs& args) {
  NoArguments("reset", args);
  self.As<CyclerObject>().position = 0;
  return Value::None();
}

constexpr BuiltinEntry kCyclerMethods[] = {{"next", CyclerNext}, {"reset", CyclerReset}};

// Attributes that Python's objects have and ours do not. Naming one is an error, so that a template
// never renders as if it were missing.
constexpr std::string_view kStringOnly[] = {"casefold", "encode", "maketrans", "translate"};
constexpr std::string_view kMarkupOnly[] = {"escape", "striptags", "unescape"};
constexpr std::string_view kNumberOnly[] = {
    "as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator",
    "from_bytes",       "fromhex",   "hex",        "imag",      "is_integer",
    "numerator",        "real",      "to_bytes"};
constexpr std::string_view kViewOnly[] = {"isdisjoint", "mapping"};
constexpr std::string_view kIteratorOnly[] = {"close", "gi_running", "gi_yieldfrom", "send",
                                              "throw"};
constexpr std::string_view kCallableOnly[] = {
    "arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller",
    "fromkeys",  "name",   "sep",          "used"};

bool IsUnsupported(const Value& object, std::string_view name) {
  const auto in = [name](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  switch (object.kind()) {
    case Kind::kString:
      return in(kStringOnly) || (object.As<StringObject>().markup && in(kMarkupOnly));
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
      return in(kNumberOnly);
    case Kind::kDict:
      return name == "fromkeys";
    case Kind::kView:
      return in(kViewOnly);
    case Kind::kIterator:
      return in(kIteratorOnly);
    case Kind::kRange:
      return name == "count" || name == "index";
    case Kind::kCycler:
      return name == "items";
    case Kind::kCallable:
      return in(kCallableOnly);
    default:
      return false;
  }
}

// How Jinja names an object in its messages about missing attributes.
std::string Describe(const Value& object) {
  if (object.IsNone()) return "None";
  return std::string(TypeName(object)) + " object";
}

Value UnsafeAttribute(Runtime& rt, const Value& object, std::string_view name) {
  return rt.Undefined("access to attribute " + ReprString(name) + " of '" +
                      std::string(TypeName(object)) + "' object is unsafe.");
}

Value MissingAttribute(Runtime& rt, const Value& object, std::string_view name) {
  rt.Need(name.size() * 4);
  return rt.Undefined("'" + Describe(object) + "' has no attribute " + ReprString(name));
}

// What Python's getattr finds: a method, a namespace attribute, a field of loop. Missing if none.
Value FindAttribute(Runtime& rt, const Value& object, std::string_view name) {
  switch (object.kind()) {
    case Kind::kUndefined:
      FailUndefined(object);
    case Kind::kNamespace: {
      const Value* found = object.As<NamespaceObject>().Find(name);
      return found != nullptr ? *found : Value();
    }
    case Kind::kLoop:
      return object.As<LoopObject>().Attribute(name);
    case Kind::kRange: {
      const auto& range = object.As<RangeObject>();
      if (name == "start") return Value::Int(range.start);
      if (name == "stop") return Value::Int(range.stop);
      if (name == "step") return Value::Int(range.step);
      return FindMethod(rt, object, name);
    }
    case Kind::kCycler: {
      const auto& cycler = object.As<CyclerObject>();
      if (name == "current") return cycler.items[cycler.position];
      if (name == "pos") return Value::Int(static_cast<int64_t>(cycler.position));
      return FindMethod(rt, object, name);
    }
    default:
      return FindMethod(rt, object, name);
  }
}

// obj[key] where Python would give a value; missing where it raises TypeError or LookupError.
Value FindItem(Runtime& rt, const Value& object, const Value& key) {
  switch (object.kind()) {
    case Kind::kUndefined:
      FailUndefined(object);
    case Kind::kDict: {
      if (key.Is(Kind::kList) || key.IsDict()) return Value();
      const Value* found = object.As<DictObject>().Find(key);
      return found != nullptr ? *found : Value();
    }
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange: {
      if (!key.IsIntegral()) return Value();
      const auto length = static_cast<int64_t>(Length(object));
      const int64_t index = key.integer() < 0 ? key.integer() + length : key.integer();
      if (index < 0 || index >= length) return Value();
      if (object.Is(Kind::kRange)) {
        const auto& range = object.As<RangeObject>();
        return Value::Int(range.start + index * range.step);
      }
      if (!object.IsString()) return object.As<ListObject>().items[static_cast<size_t>(index)];
      const auto& string = object.As<StringObject>();
      const auto wanted = static_cast<size_t>(index);
      if (string.ascii()) return rt.String(string.text.substr(wanted, 1), string.markup);
      rt.Work(string.text.size() * 2);
      const size_t begin = OffsetOf(string.text, wanted);
      size_t end = begin;
      DecodeNext(string.text, &end);
      return rt.String(string.text.substr(begin, end - begin), string.markup);
    }
    default:
      return Value();
  }
}

// Python's slice.indices: the indices of a sequence of `length` items that a slice selects.
struct SliceIndices {
  int64_t start, step, count;
};

SliceIndices ResolveSlice(int64_t length, const Value& start, const Value& stop,
                          const Value& step) {
  const auto given = [](const Value& v) { return !v.IsMissing() && !v.IsNone(); };
  SliceIndices out{0, given(step) ? RequireInt(step, "a slice index") : 1, 0};
  if (out.step == 0) Fail("slice step cannot be zero");
  const int64_t lowest = out.step < 0 ? -1 : 0;
  const int64_t highest = out.step < 0 ? length - 1 : length;
  const auto resolve = [&](const Value& v, int64_t fallback) {
    if (!given(v)) return fallback;
    const int64_t i = RequireInt(v, "a slice index");
    if (i < 0) return std::max(i < -length ? lowest : i + length, lowest);
    return std::min(i, highest);
  };
  out.start = resolve(start, out.step < 0 ? highest : lowest);
  const int64_t end = resolve(stop, out.step < 0 ? lowest : highest);
  if (out.step > 0 && out.start < end) out.count = (end - out.start - 1) / out.step + 1;
  if (out.step < 0 && out.start > end) {
    // Unsigned, because -step of the least integer has no signed value.
    out.count = static_cast<int64_t>(static_cast<uint64_t>(out.start - end - 1) /
                                     (0 - static_cast<uint64_t>(out.step))) +
                1;
  }
  return out;
}

std::string SliceText(Runtime& rt, const StringObject& string, const SliceIndices& slice) {
  const auto count = static_cast<size_t>(slice.count);
  if (string.ascii()) {
    rt.Work(count);
    if (slice.step == 1) return string.text.substr(static_cast<size_t>(slice.start), count);
    std::string out;
    out.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      out += string.text[static_cast<size_t>(slice.start + static_cast<int64_t>(i) * slice.step)];
    }
    return out;
  }
  rt.Work(string.text.size() * 4);
  if (slice.step == 1) {
    const size_t begin = OffsetOf(string.text, static_cast<size_t>(slice.start));
    const std::string_view rest = std::string_view(string.text).substr(begin);
    return std::string(rest.substr(0, OffsetOf(rest, count)));
  }
  rt.Need(string.length * sizeof(size_t));
  std::vector<size_t> offsets;
  offsets.reserve(string.length + 1);
  for (size_t pos = 0; pos < string.text.size(); DecodeNext(string.text, &pos)) {
    offsets.push_back(pos);
  }
  offsets.push_back(string.text.size());
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(slice.start + static_cast<int64_t>(i) * slice.step);
    out.append(string.text, offsets[at], offsets[at + 1] - offsets[at]);
  }
  return out;
}

}  // namespace

Value FindMethod(Runtime& rt, const Value& object, std::string_view name) {
  const BuiltinEntry* entry = nullptr;
  const auto forbidden = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  switch (object.kind()) {
    case Kind::kString:
      entry = FindStringMethod(name);
      break;
    case Kind::kList:
      if (forbidden(kListMutators)) return UnsafeAttribute(rt, object, name);
      entry = FindEntry(kListMethods, name);
      break;
    case Kind::kTuple:
      if (object.As<ListObject>().is_group && (name == "grouper" || name == "list")) {
        return object.As<ListObject>().items[name == "grouper" ? 0 : 1];
      }
      entry = FindEntry(kTupleMethods, name);
      break;
    case Kind::kDict:
      if (forbidden(kDictMutators)) return UnsafeAttribute(rt, object, name);
      entry = FindEntry(kDictMethods, name);
      break;
    case Kind::kCycler:
      entry = FindEntry(kCyclerMethods, name);
      break;
    default:
      break;
  }
  if (entry != nullptr) return Value::Of(Kind::kCallable, new MethodObject(rt, object, entry));
  if (IsUnsupported(object, name)) {
    FailUnsupported("the attribute '" + std::string(name) + "' of a " +
                    std::string(TypeName(object)));
  }
  if (name.size() > 4 && name.starts_with("__") && name.ends_with("__")) {
    return UnsafeAttribute(rt, object, name);
  }
  return Value();
}

Value GetAttribute(Runtime& rt, const Value& object, std::string_view name) {
  Value found = FindAttribute(rt, object, name);
  if (!found.IsMissing()) return found;
  if (object.IsDict()) {
    if (const Value* item = object.As<DictObject>().Find(name)) return *item;
  }
  return MissingAttribute(rt, object, name);
}

Value GetItem(Runtime& rt, const Value& object, const Value& key) {
  Value found = FindItem(rt, object, key);
  if (!found.IsMissing()) return found;
  if (key.IsString()) {
    found = FindAttribute(rt, object, Text(key));
    return found.IsMissing() ? MissingAttribute(rt, object, Text(key)) : found;
  }
  TextBuilder repr(rt);
  AppendRepr(key, &repr);
  return rt.Undefined(Describe(object) + " has no element " + repr.Take());
}

Value GetSlice(Runtime& rt, const Value& object, const Value& start, const Value& stop,
               const Value& step) {
  switch (object.kind()) {
    case Kind::kUndefined:
      FailUndefined(object);
    case Kind::kString: {
      const auto& string = object.As<StringObject>();
      const SliceIndices slice =
          ResolveSlice(static_cast<int64_t>(string.length), start, stop, step);
      return rt.String(SliceText(rt, string, slice), string.markup);
    }
    case Kind::kList:
    case Kind::kTuple: {
      const Values& items = object.As<ListObject>().items;
      const SliceIndices slice =
          ResolveSlice(static_cast<int64_t>(items.size()), start, stop, step);
      const auto count = static_cast<size_t>(slice.count);
      rt.Step(count / 8);
      rt.Need(count * sizeof(Value));
      Values out;
      out.reserve(count);
      for (size_t i = 0; i < count; ++i) {
        out.push_back(
            items[static_cast<size_t>(slice.start + static_cast<int64_t>(i) * slice.step)]);
      }
      return object.Is(Kind::kTuple) ? rt.Tuple(std::move(out)) : rt.List(std::move(out));
    }
    case Kind::kRange: {
      const auto& range = object.As<RangeObject>();
      const SliceIndices slice = ResolveSlice(range.count, start, stop, step);
      if (slice.count > 1 && (slice.step > range.count || slice.step < -range.count)) {
        Fail("a slice step is too large");
      }
      const int64_t first = range.start + slice.start * range.step;
      const int64_t by = range.count == 0  ? range.step
                         : slice.count > 1 ? range.step * slice.step
                                           : range.step;
      return Value::Of(Kind::kRange,
                       new RangeObject(rt, first, first + by * slice.count, by, slice.count));
    }
    default:
      Fail("'" + std::string(TypeName(object)) + "' object cannot be sliced");
  }
}

}  // namespace sluice::jinja
