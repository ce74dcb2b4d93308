// Python's binary and unary operators.

#include <cmath>
#include <limits>

#include "engine/text/template/format.h"
#include "engine/text/template/operators.h"

namespace sluice::jinja {
namespace {

constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void FailOverflow() {
  Fail("an integer grew past 64 bits, which chat templates here do not support");
}

double FloorDivFloat(double a, double b) {
  // As CPython: the quotient is derived from the remainder, so that a == (a // b) * b + a % b.
  double mod = std::fmod(a, b);
  double div = (a - mod) / b;
  if (mod != 0.0 && (b < 0) != (mod < 0)) div -= 1.0;
  if (div == 0.0) return std::copysign(0.0, a / b);
  double floored = std::floor(div);
  if (div - floored > 0.5) floored += 1.0;
  return floored;
}

double ModFloat(double a, double b) {
  double mod = std::fmod(a, b);
  if (mod == 0.0) return std::copysign(0.0, b);
  if ((b < 0) != (mod < 0)) mod += b;
  return mod;
}

Value PowInt(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) Fail("0 cannot be raised to a negative power");
    return Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  int64_t square = base;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, square, &result)) FailOverflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(square, square, &square)) FailOverflow();
  }
  return Value::Int(result);
}

Value IntOp(BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case BinaryOp::kAdd:
      if (__builtin_add_overflow(a, b, &result)) FailOverflow();
      return Value::Int(result);
    case BinaryOp::kSub:
      if (__builtin_sub_overflow(a, b, &result)) FailOverflow();
      return Value::Int(result);
    case BinaryOp::kMul:
      if (__builtin_mul_overflow(a, b, &result)) FailOverflow();
      return Value::Int(result);
    case BinaryOp::kDiv:
      if (b == 0) Fail("division by zero");
      return Value::Float(static_cast<double>(static_cast<long double>(a) / b));
    case BinaryOp::kFloorDiv:
    case BinaryOp::kMod: {
      if (b == 0) Fail("integer division or modulo by zero");
      if (b == -1) return op == BinaryOp::kMod ? Value::Int(0) : IntOp(BinaryOp::kSub, 0, a);
      int64_t quotient = a / b;
      int64_t remainder = a % b;
      if (remainder != 0 && (remainder < 0) != (b < 0)) {
        --quotient;
        remainder += b;
      }
      return Value::Int(op == BinaryOp::kMod ? remainder : quotient);
    }
    case BinaryOp::kPow:
      return PowInt(a, b);
  }
  return Value::None();
}

Value FloatOp(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::Float(a + b);
    case BinaryOp::kSub:
      return Value::Float(a - b);
    case BinaryOp::kMul:
      return Value::Float(a * b);
    case BinaryOp::kDiv:
      if (b == 0) Fail("float division by zero");
      return Value::Float(a / b);
    case BinaryOp::kFloorDiv:
      if (b == 0) Fail("float floor division by zero");
      return Value::Float(FloorDivFloat(a, b));
    case BinaryOp::kMod:
      if (b == 0) Fail("float modulo by zero");
      return Value::Float(ModFloat(a, b));
    case BinaryOp::kPow: {
      if (a == 0 && b < 0) Fail("0.0 cannot be raised to a negative power");
      const double result = std::pow(a, b);
      if (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) {
        FailUnsupported("a power with a complex result");
      }
      if (std::isinf(result) && !std::isinf(a) && !std::isinf(b)) Fail("the power is too large");
      return Value::Float(result);
    }
  }
  return Value::None();
}

Value Repeat(Runtime& rt, const Value& sequence, int64_t times) {
  const size_t count = times > 0 ? static_cast<size_t>(times) : 0;
  if (sequence.IsString()) {
    const std::string_view text = Text(sequence);
    if (!text.empty() && count > rt.RoomBytes() / text.size()) rt.Need(rt.RoomBytes() + 1);
    rt.Work(text.size() * count);
    std::string out;
    if (!text.empty()) {
      out.reserve(text.size() * count);
      for (size_t i = 0; i < count; ++i) out += text;
    }
    return rt.String(std::move(out), sequence.As<StringObject>().markup);
  }
  const Values& items = sequence.As<ListObject>().items;
  Values out;
  if (!items.empty()) {
    if (count > rt.RoomBytes() / (items.size() * sizeof(Value))) rt.Need(rt.RoomBytes() + 1);
    rt.Step(items.size() * count);
    out.reserve(items.size() * count);
    for (size_t i = 0; i < count; ++i) out.insert(out.end(), items.begin(), items.end());
  }
  return sequence.Is(Kind::kTuple) ? rt.Tuple(std::move(out)) : rt.List(std::move(out));
}

Value AddStrings(Runtime& rt, const Value& a, const Value& b) {
  const bool markup = a.As<StringObject>().markup || b.As<StringObject>().markup;
  const Value left = markup ? Escape(rt, a) : a;
  const Value right = markup ? Escape(rt, b) : b;
  TextBuilder out(rt);
  out.Append(Text(left));
  out.Append(Text(right));
  return rt.String(out.Take(), markup);
}

Value AddLists(Runtime& rt, const Value& a, const Value& b) {
  const Values& x = a.As<ListObject>().items;
  const Values& y = b.As<ListObject>().items;
  rt.Need((x.size() + y.size()) * sizeof(Value));
  rt.Step((x.size() + y.size()) / 8);
  Values out;
  out.reserve(x.size() + y.size());
  out.insert(out.end(), x.begin(), x.end());
  out.insert(out.end(), y.begin(), y.end());
  return a.Is(Kind::kTuple) ? rt.Tuple(std::move(out)) : rt.List(std::move(out));
}

}  // namespace

Value Binary(Runtime& rt, BinaryOp op, const Value& a, const Value& b) {
  if (a.IsIntegral() && b.IsIntegral()) return IntOp(op, a.integer(), b.integer());
  if (a.IsNumber() && b.IsNumber()) return FloatOp(op, a.AsDouble(), b.AsDouble());
  if (a.IsUndefined()) FailUndefined(a);
  if (op == BinaryOp::kMod && a.IsString()) {
    // An Undefined on the right is formatted as any other argument.
    return FormatPercent(rt, a, b);
  }
  if (b.IsUndefined()) FailUndefined(b);
  if (op == BinaryOp::kAdd) {
    if (a.IsString() && b.IsString()) return AddStrings(rt, a, b);
    if (a.IsSequence() && a.kind() == b.kind()) return AddLists(rt, a, b);
  }
  if (op == BinaryOp::kMul) {
    if ((a.IsString() || a.IsSequence()) && b.IsIntegral()) return Repeat(rt, a, b.integer());
    if ((b.IsString() || b.IsSequence()) && a.IsIntegral()) return Repeat(rt, b, a.integer());
  }
  Fail("unsupported operand types for " + std::string(kSymbols[static_cast<int>(op)]) + ": '" +
       std::string(TypeName(a)) + "' and '" + std::string(TypeName(b)) + "'");
}

Value Negate(const Value& v) {
  if (v.IsIntegral()) return IntOp(BinaryOp::kSub, 0, v.integer());
  if (v.Is(Kind::kFloat)) return Value::Float(-v.real());
  if (v.IsUndefined()) FailUndefined(v);
  Fail("bad operand type for unary -: '" + std::string(TypeName(v)) + "'");
}

Value Positive(const Value& v) {
  if (v.IsIntegral()) return Value::Int(v.integer());
  if (v.Is(Kind::kFloat)) return v;
  if (v.IsUndefined()) FailUndefined(v);
  Fail("bad operand type for unary +: '" + std::string(TypeName(v)) + "'");
}

}  // namespace sluice::jinja
