// Evaluation of expressions.

#include "engine/text/template/interpreter_impl.h"
#include "engine/text/template/operators.h"

namespace sluice::jinja {

Value Interpreter::Evaluate(const Expression& e, Frame& frame) {
  const Runtime::Depth depth(rt_);
  rt_.Step();
  line_ = e.line;
  const auto item = [&](size_t i) { return Evaluate(*e.items[i], frame); };
  switch (e.kind) {
    case ExpressionKind::kNone:
      return Value::None();
    case ExpressionKind::kBool:
      return Value::Bool(e.integer != 0);
    case ExpressionKind::kInt:
      return Value::Int(e.integer);
    case ExpressionKind::kFloat:
      return Value::Float(e.real);
    case ExpressionKind::kString:
      return EvaluateString(e);
    case ExpressionKind::kName:
      return EvaluateName(e, frame);
    case ExpressionKind::kNamespaceRef:
      break;  // only ever a target
    case ExpressionKind::kTuple:
      return rt_.Tuple(EvaluateItems(e, frame));
    case ExpressionKind::kList:
      return rt_.List(EvaluateItems(e, frame));
    case ExpressionKind::kDict:
      return EvaluateDict(e, frame);
    case ExpressionKind::kAttribute:
      return GetAttribute(rt_, item(0), e.text);
    case ExpressionKind::kItem: {
      const Value object = item(0);
      return GetItem(rt_, object, item(1));
    }
    case ExpressionKind::kSlice:
      return EvaluateSlice(e, frame);
    case ExpressionKind::kCall:
      return EvaluateCall(e, frame);
    case ExpressionKind::kFilter:
      return EvaluateFilter(e, frame, nullptr);
    case ExpressionKind::kTest:
      return EvaluateTest(e, frame);
    case ExpressionKind::kNot:
      return Value::Bool(!Truth(item(0)));
    case ExpressionKind::kNegate:
      return Negate(item(0));
    case ExpressionKind::kPositive:
      return Positive(item(0));
    case ExpressionKind::kAnd: {
      Value left = item(0);
      return Truth(left) ? item(1) : left;
    }
    case ExpressionKind::kOr: {
      Value left = item(0);
      return Truth(left) ? left : item(1);
    }
    case ExpressionKind::kBinary: {
      const Value left = item(0);
      return Binary(rt_, e.op, left, item(1));
    }
    case ExpressionKind::kConcat:
      return EvaluateConcat(e, frame);
    case ExpressionKind::kCompare:
      return EvaluateCompare(e, frame);
    case ExpressionKind::kConditional:
      return EvaluateConditional(e, frame);
  }
  Fail("an assignment target was read");
}

Value Interpreter::EvaluateName(const Expression& e, Frame& frame) {
  const Value& value = Slot(e.ref, frame);
  return value.IsMissing() ? rt_.Undefined("'" + e.text + "' is undefined") : value;
}

Value Interpreter::EvaluateString(const Expression& e) {
  Value& cached = constants_[static_cast<size_t>(e.constant)];
  if (cached.IsMissing()) cached = rt_.String(e.text);
  return cached;
}

Values Interpreter::EvaluateItems(const Expression& e, Frame& frame) {
  Values items;
  items.reserve(e.items.size());
  for (const ExpressionPtr& item : e.items) items.push_back(Evaluate(*item, frame));
  return items;
}

Value Interpreter::EvaluateDict(const Expression& e, Frame& frame) {
  auto* dict = new DictObject(rt_);
  Value result = Value::Of(Kind::kDict, dict);
  for (size_t i = 0; i < e.items.size(); i += 2) {
    Value key = Evaluate(*e.items[i], frame);
    dict->Put(std::move(key), Evaluate(*e.items[i + 1], frame));
  }
  return result;
}

Value Interpreter::EvaluateSlice(const Expression& e, Frame& frame) {
  const Value object = Evaluate(*e.items[0], frame);
  Value parts[3];
  for (size_t i = 0; i < 3; ++i) {
    if (e.items[i + 1] != nullptr) parts[i] = Evaluate(*e.items[i + 1], frame);
  }
  return GetSlice(rt_, object, parts[0], parts[1], parts[2]);
}

CallArgs Interpreter::EvaluateArguments(const CallSyntax& call, Frame& frame) {
  CallArgs args;
  args.positional.reserve(call.positional.size());
  for (const ExpressionPtr& e : call.positional) args.positional.push_back(Evaluate(*e, frame));
  for (const auto& [name, e] : call.named) args.named.emplace_back(name, Evaluate(*e, frame));
  if (call.star != nullptr) {
    for (Value& v : ToValues(rt_, Evaluate(*call.star, frame))) {
      args.positional.push_back(std::move(v));
    }
  }
  if (call.double_star != nullptr) {
    const Value mapping = Evaluate(*call.double_star, frame);
    if (!mapping.IsDict()) Fail("the argument after ** must be a mapping");
    const auto& entries = mapping.As<DictObject>().entries();
    rt_.Step(entries.size() * (1 + call.named.size()));
    for (const auto& [key, value] : entries) {
      const std::string name(RequireText(key, "a keyword"));
      for (size_t i = 0; i < call.named.size(); ++i) {
        if (args.named[i].first == name) Fail("got multiple values for argument '" + name + "'");
      }
      args.named.emplace_back(name, value);
    }
  }
  return args;
}

Value Interpreter::CallValue(const Value& callee, CallArgs& args) {
  switch (callee.kind()) {
    case Kind::kCallable:
      return callee.As<CallableObject>().Call(args);
    case Kind::kLoop:
      return callee.As<LoopObject>().Call(args);
    case Kind::kUndefined:
      FailUndefined(callee);
    default:
      Fail("'" + std::string(TypeName(callee)) + "' object is not callable");
  }
}

Value Interpreter::EvaluateCall(const Expression& e, Frame& frame) {
  const Value callee = Evaluate(*e.items[0], frame);
  CallArgs args = EvaluateArguments(*e.call, frame);
  line_ = e.line;
  return CallValue(callee, args);
}

Value Interpreter::EvaluateFilter(const Expression& e, Frame& frame, const Value* block_text) {
  Value subject;
  if (e.items[0] == nullptr) {
    subject = *block_text;
  } else if (block_text != nullptr && e.items[0]->kind == ExpressionKind::kFilter) {
    subject = EvaluateFilter(*e.items[0], frame, block_text);
  } else {
    subject = Evaluate(*e.items[0], frame);
  }
  CallArgs args = EvaluateArguments(*e.call, frame);
  line_ = e.line;
  if (e.builtin == nullptr) Fail("no filter is named '" + e.text + "'");
  return e.builtin(rt_, subject, args);
}

Value Interpreter::EvaluateTest(const Expression& e, Frame& frame) {
  const Value subject = Evaluate(*e.items[0], frame);
  CallArgs args = EvaluateArguments(*e.call, frame);
  line_ = e.line;
  if (e.builtin == nullptr) Fail("no test is named '" + e.text + "'");
  return e.builtin(rt_, subject, args);
}

Value Interpreter::EvaluateCompare(const Expression& e, Frame& frame) {
  Value left = Evaluate(*e.items[0], frame);
  for (size_t i = 0; i < e.comparisons.size(); ++i) {
    Value right = Evaluate(*e.items[i + 1], frame);
    bool holds = false;
    switch (e.comparisons[i]) {
      case Comparison::kEq:
        holds = Equal(rt_, left, right);
        break;
      case Comparison::kNe:
        holds = !Equal(rt_, left, right);
        break;
      case Comparison::kLt:
        holds = Less(rt_, left, right);
        break;
      case Comparison::kLe:
        holds = LessEqual(rt_, left, right);
        break;
      case Comparison::kGt:
        holds = Less(rt_, right, left, ">");
        break;
      case Comparison::kGe:
        holds = LessEqual(rt_, right, left, ">=");
        break;
      case Comparison::kIn:
        holds = Contains(rt_, right, left);
        break;
      case Comparison::kNotIn:
        holds = !Contains(rt_, right, left);
        break;
    }
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

Value Interpreter::EvaluateConditional(const Expression& e, Frame& frame) {
  if (Truth(Evaluate(*e.items[0], frame))) return Evaluate(*e.items[1], frame);
  if (e.items[2] != nullptr) return Evaluate(*e.items[2], frame);
  return rt_.Undefined("the inline if-expression on line " + std::to_string(e.line) +
                       " evaluated to false and no else section was defined.");
}

Value Interpreter::EvaluateConcat(const Expression& e, Frame& frame) {
  const Values parts = EvaluateItems(e, frame);
  TextBuilder out(rt_);
  for (const Value& part : parts) AppendStr(part, &out);
  return rt_.String(out.Take());
}

}  // namespace sluice::jinja
