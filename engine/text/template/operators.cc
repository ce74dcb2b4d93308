#include "engine/text/template/operators.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

bool IsContainer(const Value& v) { return v.Is(Kind::kView) || v.Is(Kind::kIterator); }

// -1, 0, 1, or 2 when either is NaN. Exact for an int against a float.
int CompareNumbers(const Value& a, const Value& b) {
  if (a.IsIntegral() && b.IsIntegral()) {
    return a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
  }
  // A long double holds every int64 exactly on all machines we serve (64-bit mantissa or more).
  const auto wide = [](const Value& v) {
    return v.Is(Kind::kFloat) ? static_cast<long double>(v.real())
                              : static_cast<long double>(v.integer());
  };
  const long double x = wide(a);
  const long double y = wide(b);
  if (std::isnan(x) || std::isnan(y)) return 2;
  return x < y ? -1 : x > y ? 1 : 0;
}

bool EqualItems(Runtime& rt, const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].Same(b[i]) && !Equal(rt, a[i], b[i])) return false;
  }
  return true;
}

bool EqualDicts(Runtime& rt, const DictObject& a, const DictObject& b) {
  if (a.entries().size() != b.entries().size()) return false;
  for (const auto& [key, value] : a.entries()) {
    const Value* other = b.Find(key);
    if (other == nullptr || !(value.Same(*other) || Equal(rt, value, *other))) return false;
  }
  return true;
}

bool Ordered(Runtime& rt, const Value& a, const Value& b, bool or_equal, std::string_view symbol) {
  rt.Step();
  const Runtime::Depth depth(rt);
  if (a.IsNumber() && b.IsNumber()) {
    const int order = CompareNumbers(a, b);
    return order == -1 || (or_equal && order == 0);
  }
  if (a.IsString() && b.IsString()) {
    // Byte order of UTF-8 is code point order.
    rt.Work(std::min(Text(a).size(), Text(b).size()));
    const int order = Text(a).compare(Text(b));
    return order < 0 || (or_equal && order == 0);
  }
  if (a.IsSequence() && a.kind() == b.kind()) {
    const Values& x = a.As<ListObject>().items;
    const Values& y = b.As<ListObject>().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (x[i].Same(y[i]) || Equal(rt, x[i], y[i])) continue;
      return Ordered(rt, x[i], y[i], or_equal, symbol);
    }
    return or_equal ? x.size() <= y.size() : x.size() < y.size();
  }
  if (a.IsUndefined()) FailUndefined(a);
  if (b.IsUndefined()) FailUndefined(b);
  Fail("'" + std::string(symbol) + "' is not supported between '" + std::string(TypeName(a)) +
       "' and '" + std::string(TypeName(b)) + "'");
}

uint64_t Mix(uint64_t h) {
  h ^= h >> 33;
  h *= 0xff51afd7ed558ccdULL;
  h ^= h >> 33;
  h *= 0xc4ceb9fe1a85ec53ULL;
  return h ^ h >> 33;
}

void AppendJoinedReprs(const Values& items, TextBuilder* out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out->Append(", ");
    AppendRepr(items[i], out);
  }
}

void AppendDictRepr(const DictObject& dict, TextBuilder* out) {
  out->Append("{");
  bool first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (!first) out->Append(", ");
    first = false;
    AppendRepr(key, out);
    out->Append(": ");
    AppendRepr(value, out);
  }
  out->Append("}");
}

}  // namespace

void FailUndefined(const Value& v) { Fail(v.As<UndefinedObject>().message); }

int64_t RequireInt(const Value& v, std::string_view what) {
  if (v.IsIntegral()) return v.integer();
  if (v.IsUndefined()) FailUndefined(v);
  Fail(std::string(what) + " must be an integer, not '" + std::string(TypeName(v)) + "'");
}

std::string_view RequireText(const Value& v, std::string_view what) {
  if (v.IsString()) return Text(v);
  Fail(std::string(what) + " must be a string, not '" + std::string(TypeName(v)) + "'");
}

std::string_view TypeName(const Value& v) {
  switch (v.kind()) {
    case Kind::kMissing:
      return "missing";
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return v.As<StringObject>().markup ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kRange:
      return "range";
    case Kind::kView: {
      const ViewKind view = v.As<ViewObject>().view;
      return view == ViewKind::kKeys     ? "dict_keys"
             : view == ViewKind::kValues ? "dict_values"
                                         : "dict_items";
    }
    case Kind::kIterator:
      return v.As<IteratorObject>().type_name;
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kCycler:
      return "Cycler";
    case Kind::kCallable:
      return "function";
  }
  return "object";
}

bool Truth(const Value& v) {
  switch (v.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return v.integer() != 0;
    case Kind::kFloat:
      return v.real() != 0.0;
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
    case Kind::kView:
      return Length(v) != 0;
    default:
      return true;
  }
}

std::string FloatRepr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  // Shortest round-trip digits, then Python's choice of notation.
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  std::string digits;
  for (char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  std::string out = text.front() == '-' ? "-" : "";
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out += "." + digits.substr(1);
    const int magnitude = exponent < 0 ? -exponent : exponent;
    out += exponent < 0 ? "e-" : "e+";
    if (magnitude < 10) out += "0";
    return out + std::to_string(magnitude);
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const int whole = exponent + 1;
  if (count <= whole)
    return out + digits + std::string(static_cast<size_t>(whole - count), '0') + ".0";
  return out + digits.substr(0, static_cast<size_t>(whole)) + "." +
         digits.substr(static_cast<size_t>(whole));
}

void AppendStr(const Value& v, TextBuilder* out) {
  if (v.IsString()) {
    out->Append(Text(v));
  } else if (!v.IsUndefined()) {
    AppendRepr(v, out);
  }
}

void AppendRepr(const Value& v, TextBuilder* out) {
  out->runtime().Step();
  const Runtime::Depth depth(out->runtime());
  switch (v.kind()) {
    case Kind::kMissing:
      return out->Append("missing");
    case Kind::kUndefined:
      return out->Append("Undefined");
    case Kind::kNone:
      return out->Append("None");
    case Kind::kBool:
      return out->Append(v.integer() != 0 ? "True" : "False");
    case Kind::kInt:
      return out->Append(std::to_string(v.integer()));
    case Kind::kFloat:
      return out->Append(FloatRepr(v.real()));
    case Kind::kString: {
      const bool markup = v.As<StringObject>().markup;
      out->runtime().Need(Text(v).size() * 4);
      if (markup) out->Append("Markup(");
      out->Append(ReprString(Text(v)));
      if (markup) out->Append(")");
      return;
    }
    case Kind::kList:
      out->Append("[");
      AppendJoinedReprs(v.As<ListObject>().items, out);
      return out->Append("]");
    case Kind::kTuple: {
      const Values& items = v.As<ListObject>().items;
      out->Append("(");
      AppendJoinedReprs(items, out);
      return out->Append(items.size() == 1 ? ",)" : ")");
    }
    case Kind::kDict:
      return AppendDictRepr(v.As<DictObject>(), out);
    case Kind::kRange: {
      const auto& range = v.As<RangeObject>();
      out->Append("range(" + std::to_string(range.start) + ", " + std::to_string(range.stop));
      if (range.step != 1) out->Append(", " + std::to_string(range.step));
      return out->Append(")");
    }
    case Kind::kView:
      out->Append(TypeName(v));
      out->Append("([");
      AppendJoinedReprs(v.As<ViewObject>().items, out);
      return out->Append("])");
    case Kind::kNamespace: {
      out->Append("<Namespace {");
      const auto& attributes = v.As<NamespaceObject>().attributes;
      for (size_t i = 0; i < attributes.size(); ++i) {
        if (i > 0) out->Append(", ");
        out->Append(ReprString(attributes[i].first));
        out->Append(": ");
        AppendRepr(attributes[i].second, out);
      }
      return out->Append("}>");
    }
    case Kind::kLoop: {
      auto& loop = v.As<LoopObject>();
      out->Append("<LoopContext " + std::to_string(loop.Attribute("index").integer()) + "/");
      return out->Append(std::to_string(loop.Attribute("length").integer()) + ">");
    }
    case Kind::kCallable:
      return out->Append(v.As<CallableObject>().Repr());
    default:
      out->Append("<");
      out->Append(TypeName(v));
      return out->Append(" object>");
  }
}

std::string Str(Runtime& rt, const Value& v) {
  TextBuilder out(rt);
  AppendStr(v, &out);
  return out.Take();
}

Value ToStringValue(Runtime& rt, const Value& v) {
  return v.IsString() ? v : rt.String(Str(rt, v));
}

Value Escape(Runtime& rt, const Value& v) {
  if (v.IsString() && v.As<StringObject>().markup) return v;
  TextBuilder out(rt);
  for (char c : Str(rt, v)) {
    switch (c) {
      case '&':
        out.Append("&amp;");
        break;
      case '<':
        out.Append("&lt;");
        break;
      case '>':
        out.Append("&gt;");
        break;
      case '\'':
        out.Append("&#39;");
        break;
      case '"':
        out.Append("&#34;");
        break;
      default:
        out.Append(1, c);
    }
  }
  return rt.String(out.Take(), true);
}

bool Equal(Runtime& rt, const Value& a, const Value& b) {
  rt.Step();
  if (a.IsNumber() && b.IsNumber()) return CompareNumbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  const Runtime::Depth depth(rt);
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      if (Text(a).size() != Text(b).size()) return false;
      rt.Work(Text(a).size());
      return Text(a) == Text(b);
    case Kind::kList:
    case Kind::kTuple:
      return EqualItems(rt, a.As<ListObject>().items, b.As<ListObject>().items);
    case Kind::kDict:
      return EqualDicts(rt, a.As<DictObject>(), b.As<DictObject>());
    case Kind::kRange: {
      const auto& x = a.As<RangeObject>();
      const auto& y = b.As<RangeObject>();
      if (x.count != y.count) return false;
      return x.count == 0 || (x.start == y.start && (x.count == 1 || x.step == y.step));
    }
    case Kind::kView: {
      const auto& x = a.As<ViewObject>();
      const auto& y = b.As<ViewObject>();
      if (x.view == ViewKind::kValues || x.view != y.view) return a.Same(b);
      if (x.items.size() != y.items.size()) return false;
      for (const Value& item : x.items) {
        if (!Contains(rt, b, item)) return false;
      }
      return true;
    }
    default:
      return a.Same(b);
  }
}

bool Less(Runtime& rt, const Value& a, const Value& b, std::string_view symbol) {
  return Ordered(rt, a, b, false, symbol);
}

bool LessEqual(Runtime& rt, const Value& a, const Value& b, std::string_view symbol) {
  return Ordered(rt, a, b, true, symbol);
}

bool Contains(Runtime& rt, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString: {
      if (item.IsUndefined() || !item.IsString()) {
        Fail("'in <string>' needs a string on its left, not '" + std::string(TypeName(item)) + "'");
      }
      const std::string_view haystack = Text(container);
      rt.Work(haystack.size());
      if (Text(item).size() > 1) rt.Work(haystack.size() * 4);
      return haystack.find(Text(item)) != std::string_view::npos;
    }
    case Kind::kDict:
      return container.As<DictObject>().Find(item) != nullptr;
    case Kind::kRange: {
      if (!item.IsNumber()) return false;
      const auto& range = container.As<RangeObject>();
      for (int64_t i = 0; i < range.count; ++i) {
        rt.Step();
        if (Equal(rt, Value::Int(range.start + i * range.step), item)) return true;
      }
      return false;
    }
    case Kind::kUndefined:
      return false;
    case Kind::kIterator: {
      auto& iterator = container.As<IteratorObject>();
      while (iterator.next < iterator.items.size()) {
        const Value& other = iterator.items[iterator.next++];
        if (other.Same(item) || Equal(rt, other, item)) return true;
      }
      return false;
    }
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView:
      if (container.Is(Kind::kView) && container.As<ViewObject>().view == ViewKind::kKeys) {
        Hash(rt, item);  // throws for what cannot be a key
      }
      for (const Value& other : container.As<ListObject>().items) {
        if (other.Same(item) || Equal(rt, other, item)) return true;
      }
      return false;
    default:
      Fail("argument of type '" + std::string(TypeName(container)) + "' is not iterable");
  }
}

uint64_t HashText(std::string_view text) { return std::hash<std::string_view>()(text); }

uint64_t Hash(Runtime& rt, const Value& v) {
  switch (v.kind()) {
    case Kind::kBool:
    case Kind::kInt:
      return Mix(static_cast<uint64_t>(v.integer()));
    case Kind::kFloat: {
      const double d = v.real();
      if (d == std::floor(d) && d >= -9.2e18 && d <= 9.2e18) {
        return Mix(static_cast<uint64_t>(static_cast<int64_t>(d)));
      }
      uint64_t bits;
      std::memcpy(&bits, &d, sizeof(bits));
      return Mix(bits + 1);
    }
    case Kind::kString:
      rt.Work(Text(v).size());
      return HashText(Text(v));
    case Kind::kTuple: {
      const Runtime::Depth depth(rt);
      uint64_t hash = 0x9e3779b97f4a7c15ULL;
      for (const Value& item : v.As<ListObject>().items) {
        rt.Step();
        hash = Mix(hash ^ Hash(rt, item));
      }
      return hash;
    }
    case Kind::kView:
      if (v.As<ViewObject>().view == ViewKind::kValues) {
        return Mix(reinterpret_cast<uintptr_t>(v.object()));
      }
      [[fallthrough]];
    case Kind::kList:
    case Kind::kDict:
      Fail("unhashable type: '" + std::string(TypeName(v)) + "'");
    case Kind::kMissing:
    case Kind::kNone:
    case Kind::kUndefined:
      return static_cast<uint64_t>(v.kind()) + 0x5bd1e995;
    default:
      return Mix(reinterpret_cast<uintptr_t>(v.object()));
  }
}

bool HasLength(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
    case Kind::kView:
      return true;
    default:
      return false;
  }
}

size_t Length(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return v.As<StringObject>().length;
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView:
      return v.As<ListObject>().items.size();
    case Kind::kDict:
      return v.As<DictObject>().entries().size();
    case Kind::kRange:
      return static_cast<size_t>(v.As<RangeObject>().count);
    default:
      Fail("object of type '" + std::string(TypeName(v)) + "' has no length");
  }
}

bool IsIterable(const Value& v) { return HasLength(v) || IsContainer(v) || v.Is(Kind::kLoop); }

Values ToValues(Runtime& rt, const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
      return {};
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView: {
      const Values& items = v.As<ListObject>().items;
      rt.Step(items.size() / 8);
      rt.Need(items.size() * sizeof(Value));
      return items;
    }
    case Kind::kIterator: {
      auto& iterator = v.As<IteratorObject>();
      Values rest(iterator.items.begin() + static_cast<std::ptrdiff_t>(iterator.next),
                  iterator.items.end());
      iterator.next = iterator.items.size();
      return rest;
    }
    case Kind::kDict: {
      Values keys;
      const auto& entries = v.As<DictObject>().entries();
      rt.Step(entries.size() / 8);
      keys.reserve(entries.size());
      for (const auto& entry : entries) keys.push_back(entry.first);
      return keys;
    }
    case Kind::kRange: {
      const auto& range = v.As<RangeObject>();
      const auto count = static_cast<size_t>(range.count);
      rt.Step(count);
      rt.Need(count * sizeof(Value));
      Values items;
      items.reserve(count);
      for (size_t i = 0; i < count; ++i) {
        items.push_back(Value::Int(range.start + static_cast<int64_t>(i) * range.step));
      }
      return items;
    }
    case Kind::kString: {
      const auto& string = v.As<StringObject>();
      rt.Step(string.length);
      rt.Need(string.length * (sizeof(Value) + sizeof(StringObject)));
      Values items;
      items.reserve(string.length);
      for (size_t pos = 0; pos < string.text.size();) {
        const size_t begin = pos;
        DecodeNext(string.text, &pos);
        items.push_back(rt.String(string.text.substr(begin, pos - begin)));
      }
      return items;
    }
    default:
      Fail("'" + std::string(TypeName(v)) + "' object is not iterable");
  }
}

}  // namespace sluice::jinja
