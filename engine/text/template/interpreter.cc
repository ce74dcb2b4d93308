#include "engine/text/template/interpreter.h"

#include "engine/text/template/interpreter_impl.h"
#include "engine/text/template/operators.h"
#include "engine/text/template/registry.h"

namespace sluice::jinja {
namespace {

struct MacroObject : CallableObject {
  MacroObject(Interpreter& i, const Function& f, Frame* c)
      : CallableObject(i.rt(), sizeof(*this)), in(i), function(f), closure(Hold(c)) {
    rt.Register(this);
  }
  ~MacroObject() override {
    Clear();
    rt.Unregister(this);
  }
  void Clear() override {
    Values held;
    held.push_back(std::move(closure));
    rt.Bury(std::move(held));
  }
  Value Call(CallArgs& args) override {
    return in.CallMacro(function, *static_cast<Frame*>(closure.object()), args);
  }
  std::string Repr() const override { return "<Macro '" + function.name + "'>"; }

  Interpreter& in;
  const Function& function;
  Value closure;
};

Value MakeMacro(Interpreter& in, const Function& function, Frame& frame) {
  return Value::Of(Kind::kCallable, new MacroObject(in, function, &frame));
}

// Takes the named argument out of `args`; missing when it was not given.
Value TakeNamed(CallArgs& args, std::string_view name) {
  for (auto it = args.named.begin(); it != args.named.end(); ++it) {
    if (it->first == name) {
      Value value = std::move(it->second);
      args.named.erase(it);
      return value;
    }
  }
  return Value();
}

}  // namespace

Frame::Frame(Runtime& runtime, int slot_count, Frame* outer_frame)
    : Object(runtime, sizeof(*this) + static_cast<size_t>(slot_count) * sizeof(Value)),
      slots(static_cast<size_t>(slot_count)) {
  if (outer_frame != nullptr) parent = Hold(outer_frame);
  rt.Register(this);
}

Frame::~Frame() {
  Clear();
  rt.Unregister(this);
}

void Frame::Clear() {
  slots.push_back(std::move(parent));
  rt.Bury(std::move(slots));
  slots.clear();
}

void Output::Append(std::string_view text) {
  if (text.size() > limit_ - text_.size()) {
    throw RenderError{ErrorCode::kResourceExhausted,
                      "the chat template wrote more than " + std::to_string(limit_) + " bytes", 0};
  }
  rt_.Work(text.size());
  if (counted_) rt_.Add(text.size());
  text_.append(text);
}

std::string Output::Take() {
  if (counted_) rt_.Release(text_.size());
  std::string out = std::move(text_);
  text_.clear();
  return out;
}

void Interpreter::Run() {
  auto* frame = new Frame(rt_, program_.slot_count, nullptr);
  const Value held = Hold(frame);
  Enter(program_.loads, *frame);
  Execute(program_.body, *frame);
}

Value& Interpreter::Slot(const VariableRef& ref, Frame& frame) {
  Frame* at = &frame;
  for (int i = 0; i < ref.hops; ++i) at = at->outer();
  return at->slots[static_cast<size_t>(ref.slot)];
}

void Interpreter::Enter(const Loads& loads, Frame& frame) {
  for (const Load& load : loads) {
    Value value;
    switch (load.from) {
      case Load::From::kParameter:
        continue;
      case Load::From::kUnset:
        break;
      case Load::From::kContext: {
        const Value* found = variables_.As<DictObject>().Find(load.name);
        value = found != nullptr ? *found : FindGlobal(rt_, load.name);
        break;
      }
      case Load::From::kOuter:
        value = Slot(load.outer, frame);
        break;
    }
    frame.slots[static_cast<size_t>(load.slot)] = std::move(value);
  }
}

void Interpreter::Leave(const Loads& loads, Frame& frame) {
  for (const Load& load : loads) frame.slots[static_cast<size_t>(load.slot)] = Value();
}

Flow Interpreter::Execute(const Body& body, Frame& frame) {
  const Runtime::Depth depth(rt_);
  for (const StatementPtr& s : body) {
    rt_.Step();
    line_ = s->line;
    const Flow flow = ExecuteStatement(*s, frame);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Flow Interpreter::ExecuteStatement(const Statement& s, Frame& frame) {
  switch (s.kind) {
    case StatementKind::kText:
      out_->Append(s.text);
      return Flow::kNormal;
    case StatementKind::kPrint:
      for (const ExpressionPtr& e : s.expressions) {
        const Value value = Evaluate(*e, frame);
        if (value.IsString()) {
          out_->Append(Text(value));
        } else {
          out_->Append(Str(rt_, value));
        }
      }
      return Flow::kNormal;
    case StatementKind::kIf:
      return RunIf(s, frame);
    case StatementKind::kFor:
      return RunFor(s, frame);
    case StatementKind::kSet:
      Assign(*s.target, Evaluate(*s.expressions[0], frame), frame);
      return Flow::kNormal;
    case StatementKind::kSetBlock:
      return RunSetBlock(s, frame);
    case StatementKind::kWith:
      return RunWith(s, frame);
    case StatementKind::kMacro:
      Slot(s.target->ref, frame) = MakeMacro(*this, *s.function, frame);
      return Flow::kNormal;
    case StatementKind::kCallBlock:
      RunCallBlock(s, frame);
      return Flow::kNormal;
    case StatementKind::kFilter:
      return RunFilterBlock(s, frame);
    case StatementKind::kGeneration: {
      CallArgs none;
      out_->Append(Text(CallMacro(*s.function, frame, none)));
      return Flow::kNormal;
    }
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Flow Interpreter::RunIf(const Statement& s, Frame& frame) {
  for (size_t i = 0; i < s.expressions.size(); ++i) {
    if (Truth(Evaluate(*s.expressions[i], frame))) return Execute(s.bodies[i], frame);
  }
  if (s.bodies.size() > s.expressions.size()) return Execute(s.bodies.back(), frame);
  return Flow::kNormal;
}

Flow Interpreter::RunFor(const Statement& s, Frame& frame) {
  const Value iterable = Evaluate(*s.expressions[0], frame);
  if (!s.recursive) return RunLoop(s, iterable, frame, 0);
  out_->Append(Text(RunRecursiveLoop(s, iterable, frame, 0)));
  return Flow::kNormal;
}

Value Interpreter::RunRecursiveLoop(const Statement& s, const Value& iterable, Frame& closure,
                                    int depth0) {
  const Runtime::Depth depth(rt_);
  auto* frame = new Frame(rt_, s.function->slot_count, &closure);
  const Value held = Hold(frame);
  Output buffer(rt_, rt_.RoomBytes(), true);
  Output* const outer = std::exchange(out_, &buffer);
  RunLoop(s, iterable, *frame, depth0);
  out_ = outer;
  return rt_.String(buffer.Take());
}

Flow Interpreter::RunLoop(const Statement& s, const Value& iterable, Frame& frame, int depth0) {
  auto* loop = new LoopContext(*this, s, iterable, frame, depth0);
  const Value held = Value::Of(Kind::kLoop, loop);
  bool completed = false;  // some iteration reached the end of the body
  Value item;
  while (loop->Advance(&item)) {
    rt_.Step();
    Assign(*s.target, item, frame);
    if (s.loop_slot >= 0) frame.slots[static_cast<size_t>(s.loop_slot)] = held;
    Enter(s.loads, frame);
    const Flow flow = Execute(s.bodies[0], frame);
    if (flow == Flow::kBreak) break;
    completed = completed || flow == Flow::kNormal;
  }
  Leave(s.loads, frame);
  // Jinja runs the else branch also when every iteration was cut short by continue or break.
  if (completed || s.bodies.size() < 2) return Flow::kNormal;
  Enter(s.else_loads, frame);
  const Flow flow = Execute(s.bodies[1], frame);
  Leave(s.else_loads, frame);
  return flow;
}

bool Interpreter::PassesTest(const Statement& s, const Value& value, Frame& test_frame) {
  Assign(*s.test_target, value, test_frame);
  return Truth(Evaluate(*s.test, test_frame));
}

Flow Interpreter::Capture(const Body& body, Frame& frame, std::string* text) {
  Output buffer(rt_, rt_.RoomBytes(), true);
  Output* const outer = std::exchange(out_, &buffer);
  const Flow flow = Execute(body, frame);
  out_ = outer;
  *text = buffer.Take();
  return flow;
}

Flow Interpreter::RunSetBlock(const Statement& s, Frame& frame) {
  Enter(s.loads, frame);
  std::string text;
  const Flow flow = Capture(s.bodies[0], frame, &text);
  if (flow != Flow::kNormal) return flow;
  Value value = rt_.String(std::move(text));
  if (s.expressions[0] != nullptr) value = EvaluateFilter(*s.expressions[0], frame, &value);
  Assign(*s.target, value, frame);
  Leave(s.loads, frame);
  return Flow::kNormal;
}

Flow Interpreter::RunFilterBlock(const Statement& s, Frame& frame) {
  Enter(s.loads, frame);
  std::string text;
  const Flow flow = Capture(s.bodies[0], frame, &text);
  if (flow != Flow::kNormal) return flow;
  const Value block = rt_.String(std::move(text));
  out_->Append(Str(rt_, EvaluateFilter(*s.expressions[0], frame, &block)));
  Leave(s.loads, frame);
  return Flow::kNormal;
}

Flow Interpreter::RunWith(const Statement& s, Frame& frame) {
  Enter(s.loads, frame);
  for (size_t i = 0; i < s.targets.size(); ++i) {
    Assign(*s.targets[i], Evaluate(*s.expressions[i], frame), frame);
  }
  const Flow flow = Execute(s.bodies[0], frame);
  Leave(s.loads, frame);
  return flow;
}

void Interpreter::RunCallBlock(const Statement& s, Frame& frame) {
  const Value caller = MakeMacro(*this, *s.function, frame);
  const Expression& call = *s.expressions[0];
  const Value callee = Evaluate(*call.items[0], frame);
  CallArgs args = EvaluateArguments(*call.call, frame);
  for (const auto& [name, value] : args.named) {
    if (name == "caller") Fail("a call block gives 'caller' twice");
  }
  args.named.emplace_back("caller", caller);
  out_->Append(Str(rt_, CallValue(callee, args)));
}

void Interpreter::Assign(const Expression& target, const Value& value, Frame& frame) {
  switch (target.kind) {
    case ExpressionKind::kName:
      Slot(target.ref, frame) = value;
      return;
    case ExpressionKind::kNamespaceRef: {
      const Value& object = Slot(target.ref, frame);
      if (!object.Is(Kind::kNamespace)) {
        Fail("cannot assign the attribute '" + target.attribute + "' of '" + target.text +
             "', which is not a namespace");
      }
      object.As<NamespaceObject>().Set(target.attribute, value);
      return;
    }
    default: {
      const Values parts = ToValues(rt_, value);
      if (parts.size() != target.items.size()) {
        Fail("expected " + std::to_string(target.items.size()) + " values to unpack, got " +
             std::to_string(parts.size()));
      }
      for (size_t i = 0; i < parts.size(); ++i) Assign(*target.items[i], parts[i], frame);
    }
  }
}

Value Interpreter::CallMacro(const Function& function, Frame& closure, CallArgs& args) {
  const Runtime::Depth depth(rt_);
  auto* frame = new Frame(rt_, function.slot_count, &closure);
  const Value held = Hold(frame);
  const auto set = [&](int slot, Value value) {
    frame->slots[static_cast<size_t>(slot)] = std::move(value);
  };
  const size_t count = function.parameters.size();
  const size_t given = std::min(args.positional.size(), count);
  for (size_t i = 0; i < given; ++i) set(function.parameter_slots[i], args.positional[i]);
  for (size_t i = given; i < count; ++i) {
    set(function.parameter_slots[i], TakeNamed(args, function.parameters[i]));
  }
  if (function.caller_slot >= 0) {
    Value caller = TakeNamed(args, "caller");
    if (caller.IsMissing() || caller.IsNone()) caller = rt_.Undefined("No caller defined");
    set(function.caller_slot, std::move(caller));
  }
  if (function.kwargs_slot >= 0) {
    auto* kwargs = new DictObject(rt_);
    Value value = Value::Of(Kind::kDict, kwargs);
    for (const auto& [name, argument] : args.named) kwargs->Put(name, argument);
    set(function.kwargs_slot, std::move(value));
  } else if (!args.named.empty()) {
    Fail("macro '" + function.name + "' takes no keyword argument '" + args.named[0].first + "'");
  }
  if (function.varargs_slot >= 0) {
    set(function.varargs_slot,
        rt_.Tuple(Values(args.positional.begin() + static_cast<std::ptrdiff_t>(given),
                         args.positional.end())));
  } else if (args.positional.size() > count) {
    Fail("macro '" + function.name + "' takes not more than " + std::to_string(count) +
         " argument(s)");
  }
  Enter(function.loads, *frame);
  const size_t first_default = count - function.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    const int slot = function.parameter_slots[i];
    if (!frame->slots[static_cast<size_t>(slot)].IsMissing()) continue;
    set(slot, i >= first_default
                  ? Evaluate(*function.defaults[i - first_default], *frame)
                  : rt_.Undefined("parameter '" + function.parameters[i] + "' was not provided"));
  }
  std::string text;
  Capture(function.body, *frame, &text);
  return rt_.String(std::move(text));
}

std::string RunTemplate(const Program& program, Runtime& rt, const Value& variables,
                        size_t max_output_bytes) {
  Output out(rt, max_output_bytes, false);
  Interpreter interpreter(program, rt, variables, &out);
  try {
    interpreter.Run();
  } catch (RenderError& error) {
    if (error.line == 0) error.line = interpreter.line();
    throw;
  }
  return out.Take();
}

}  // namespace sluice::jinja
