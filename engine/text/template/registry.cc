#include "engine/text/template/registry.h"

#include <ctime>

#include "engine/text/template/filters.h"
#include "engine/text/template/methods.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {
namespace {

// ---- tests ----

template <class Predicate>
Value Answer(CallArgs& args, const Predicate& predicate) {
  NoArguments("the test", args);
  return Value::Bool(predicate());
}

template <Kind kind>
Value IsKind(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return v.Is(kind); });
}

Value IsDefined(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return !v.IsUndefined(); });
}
Value IsTrue(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return v.Is(Kind::kBool) && v.integer() != 0; });
}
Value IsFalse(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return v.Is(Kind::kBool) && v.integer() == 0; });
}
Value IsNumberTest(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return v.IsNumber(); });
}
Value IsSequenceTest(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return HasLength(v) && !v.Is(Kind::kView); });
}
Value IsIterableTest(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return IsIterable(v); });
}
Value IsCallable(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args,
                [&] { return v.Is(Kind::kCallable) || v.Is(Kind::kLoop) || v.IsUndefined(); });
}
Value IsEscaped(Runtime&, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return v.IsString() && v.As<StringObject>().markup; });
}
Value IsLowerTest(Runtime& rt, const Value& v, CallArgs& args) {
  return FindStringMethod("islower")->function(rt, ToStringValue(rt, v), args);
}
Value IsUpperTest(Runtime& rt, const Value& v, CallArgs& args) {
  return FindStringMethod("isupper")->function(rt, ToStringValue(rt, v), args);
}
Value IsFilter(Runtime& rt, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return FindFilter(Str(rt, v)) != nullptr; });
}
Value IsTest(Runtime& rt, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return FindTest(Str(rt, v)) != nullptr; });
}

bool RemainderIs(Runtime& rt, const Value& v, const Value& divisor, int64_t wanted) {
  return Equal(rt, Binary(rt, BinaryOp::kMod, v, divisor), Value::Int(wanted));
}
Value IsOdd(Runtime& rt, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return RemainderIs(rt, v, Value::Int(2), 1); });
}
Value IsEven(Runtime& rt, const Value& v, CallArgs& args) {
  return Answer(args, [&] { return RemainderIs(rt, v, Value::Int(2), 0); });
}
Value IsDivisibleBy(Runtime& rt, const Value& v, CallArgs& args) {
  const Arguments a("divisibleby", args, {"num"}, 1);
  return Value::Bool(RemainderIs(rt, v, a[0], 0));
}

template <bool (*Relation)(Runtime&, const Value&, const Value&)>
Value Relates(Runtime& rt, const Value& v, CallArgs& args) {
  const Arguments a("the test", args, {"other"}, 1);
  return Value::Bool(Relation(rt, v, a[0]));
}
bool Ne(Runtime& rt, const Value& a, const Value& b) { return !Equal(rt, a, b); }
bool Lt(Runtime& rt, const Value& a, const Value& b) { return Less(rt, a, b); }
bool Le(Runtime& rt, const Value& a, const Value& b) { return LessEqual(rt, a, b); }
bool Gt(Runtime& rt, const Value& a, const Value& b) { return Less(rt, b, a, ">"); }
bool Ge(Runtime& rt, const Value& a, const Value& b) { return LessEqual(rt, b, a, ">="); }
bool In(Runtime& rt, const Value& a, const Value& b) { return Contains(rt, b, a); }
bool SameAs(Runtime&, const Value& a, const Value& b) { return a.Same(b); }

constexpr BuiltinEntry kTests[] = {
    {"!=", Relates<Ne>},
    {"<", Relates<Lt>},
    {"<=", Relates<Le>},
    {"==", Relates<Equal>},
    {">", Relates<Gt>},
    {">=", Relates<Ge>},
    {"boolean", IsKind<Kind::kBool>},
    {"callable", IsCallable},
    {"defined", IsDefined},
    {"divisibleby", IsDivisibleBy},
    {"eq", Relates<Equal>},
    {"equalto", Relates<Equal>},
    {"escaped", IsEscaped},
    {"even", IsEven},
    {"false", IsFalse},
    {"filter", IsFilter},
    {"float", IsKind<Kind::kFloat>},
    {"ge", Relates<Ge>},
    {"greaterthan", Relates<Gt>},
    {"gt", Relates<Gt>},
    {"in", Relates<In>},
    {"integer", IsKind<Kind::kInt>},
    {"iterable", IsIterableTest},
    {"le", Relates<Le>},
    {"lessthan", Relates<Lt>},
    {"lower", IsLowerTest},
    {"lt", Relates<Lt>},
    {"mapping", IsKind<Kind::kDict>},
    {"ne", Relates<Ne>},
    {"none", IsKind<Kind::kNone>},
    {"number", IsNumberTest},
    {"odd", IsOdd},
    {"sameas", Relates<SameAs>},
    {"sequence", IsSequenceTest},
    {"string", IsKind<Kind::kString>},
    {"test", IsTest},
    {"true", IsTrue},
    {"undefined", IsKind<Kind::kUndefined>},
    {"upper", IsUpperTest},
};

// ---- global functions ----

Value RaiseException(Runtime& rt, const Value&, CallArgs& args) {
  const Arguments a("raise_exception", args, {"message"}, 1);
  throw RenderError{ErrorCode::kInvalidArgument, Str(rt, a[0]), 0, true};
}

constexpr int64_t kMaxRange = 100000;          // jinja2.sandbox.MAX_RANGE
constexpr int64_t kMaxRangeValue = 1LL << 53;  // keeps all arithmetic on ranges in 64 bits

Value Range(Runtime& rt, const Value&, CallArgs& args) {
  const Arguments a("range", args, {"/start", "/stop", "/step"}, 1);
  const int64_t start = a.Has(1) ? a.Int(0, 0) : 0;
  const int64_t stop = a.Has(1) ? a.Int(1, 0) : a.Int(0, 0);
  const int64_t step = a.Int(2, 1);
  if (step == 0) Fail("range() step must not be zero");
  for (int64_t value : {start, stop, step}) {
    if (value > kMaxRangeValue || value < -kMaxRangeValue) Fail("a bound of range() is too large");
  }
  int64_t count = 0;
  if (step > 0 && start < stop) count = (stop - start - 1) / step + 1;
  if (step < 0 && start > stop) count = (start - stop - 1) / -step + 1;
  if (count > kMaxRange) {
    Fail("range too big: a template may not make ranges of more than " + std::to_string(kMaxRange) +
         " items");
  }
  return Value::Of(Kind::kRange, new RangeObject(rt, start, stop, step, count));
}

// The entries that dict(*args, **kwargs) and namespace(*args, **kwargs) are made of.
Value DictFunction(Runtime& rt, const Value&, CallArgs& args) {
  if (args.positional.size() > 1) Fail("dict() takes at most 1 positional argument");
  auto* dict = new DictObject(rt);
  Value result = Value::Of(Kind::kDict, dict);
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.IsDict()) {
      for (const auto& [key, value] : source.As<DictObject>().entries()) dict->Put(key, value);
    } else {
      for (const Value& pair : ToValues(rt, source)) {
        const Values parts = ToValues(rt, pair);
        if (parts.size() != 2) Fail("dict() needs pairs");
        dict->Put(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : args.named) dict->Put(name, value);
  return result;
}

Value NamespaceFunction(Runtime& rt, const Value& self, CallArgs& args) {
  const Value attributes = DictFunction(rt, self, args);
  auto* ns = new NamespaceObject(rt);
  Value result = Value::Of(Kind::kNamespace, ns);
  for (const auto& [key, value] : attributes.As<DictObject>().entries()) {
    rt.Step();
    ns->Set(RequireText(key, "the name of a namespace attribute"), value);
  }
  return result;
}

Value CyclerFunction(Runtime& rt, const Value&, CallArgs& args) {
  if (!args.named.empty()) Fail("cycler() takes no keyword arguments");
  if (args.positional.empty()) Fail("at least one item has to be provided");
  return Value::Of(Kind::kCycler, new CyclerObject(rt, std::move(args.positional)));
}

struct JoinerObject : CallableObject {
  JoinerObject(Runtime& runtime, Value s)
      : CallableObject(runtime, sizeof(*this)), separator(std::move(s)) {}
  Value Call(CallArgs& args) override {
    NoArguments("joiner", args);
    if (!used) {
      used = true;
      return rt.String("");
    }
    return separator;
  }
  std::string Repr() const override { return "<jinja2.utils.Joiner object>"; }
  Value separator;
  bool used = false;
};

Value JoinerFunction(Runtime& rt, const Value&, CallArgs& args) {
  const Arguments a("joiner", args, {"sep"});
  return Value::Of(Kind::kCallable, new JoinerObject(rt, a.Or(0, rt.String(", "))));
}

// One directive at a time, so that a width in the format cannot ask for gigabytes.
Value StrftimeNow(Runtime& rt, const Value&, CallArgs& args) {
  const Arguments a("strftime_now", args, {"format"}, 1);
  const std::string_view format = a.String(0);
  std::tm now{};
  if (rt.limits().now) {
    now = *rt.limits().now;
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
  }
  TextBuilder out(rt);
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 >= format.size()) {
      out.Append(1, format[i]);
      continue;
    }
    size_t end = i + 1;
    if (std::string_view("-_0^#").find(format[end]) != std::string_view::npos) ++end;
    const char letter = end < format.size() ? format[end] : '\0';
    if (letter != '%' && !IsAlpha(static_cast<unsigned char>(letter))) {
      Fail("strftime_now does not know the directive " + ReprString(format.substr(i, 2)));
    }
    if (letter == 'f') {
      out.Append("000000");
    } else if (letter != 'z' && letter != 'Z') {  // both empty for a time without a zone
      char buffer[256];
      const std::string directive(format.substr(i, end + 1 - i));
      out.Append(
          std::string_view(buffer, std::strftime(buffer, sizeof(buffer), directive.c_str(), &now)));
    }
    i = end;
  }
  return rt.String(out.Take());
}

constexpr BuiltinEntry kGlobals[] = {
    {"cycler", CyclerFunction},          {"dict", DictFunction},
    {"joiner", JoinerFunction},          {"namespace", NamespaceFunction},
    {"raise_exception", RaiseException}, {"range", Range},
    {"strftime_now", StrftimeNow},
};

struct GlobalFunction : CallableObject {
  GlobalFunction(Runtime& runtime, const BuiltinEntry& e)
      : CallableObject(runtime, sizeof(*this)), entry(e) {}
  Value Call(CallArgs& args) override { return entry.function(rt, Value(), args); }
  std::string Repr() const override { return "<function " + std::string(entry.name) + ">"; }
  const BuiltinEntry& entry;
};

}  // namespace

Builtin FindFilter(std::string_view name) {
  const BuiltinEntry* entry = FindTextFilter(name);
  if (entry == nullptr) entry = FindSequenceFilter(name);
  return entry != nullptr ? entry->function : nullptr;
}

Builtin FindTest(std::string_view name) {
  const BuiltinEntry* entry = FindIn(kTests, name);
  return entry != nullptr ? entry->function : nullptr;
}

Value FindGlobal(Runtime& rt, std::string_view name) {
  if (name == "self" || name == "lipsum") FailUnsupported("the name '" + std::string(name) + "'");
  const BuiltinEntry* entry = FindIn(kGlobals, name);
  if (entry == nullptr) return Value();
  return Value::Of(Kind::kCallable, new GlobalFunction(rt, *entry));
}

}  // namespace sluice::jinja
