// The interpreter's class, shared by its two source files (statements; expressions).
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/template/ast.h"
#include "engine/text/template/value.h"

namespace sluice::jinja {

// A strong reference to any heap object, as a Value that no template sees.
inline Value Hold(Object* object) { return Value::Of(Kind::kCallable, object); }

// The variables of one activation of a function. Macros keep the frame they were defined in.
struct Frame : Object {
  Frame(Runtime& rt, int slot_count, Frame* outer);
  ~Frame() override;
  void Clear() override;
  Values slots;
  Value parent;  // Hold()s a Frame, or missing at the root
  Frame* outer() const { return static_cast<Frame*>(parent.object()); }
};

// Where text goes: the rendering's result, or the buffer of a block whose text is a value.
class Output {
 public:
  Output(Runtime& rt, size_t limit, bool counted) : rt_(rt), limit_(limit), counted_(counted) {}
  ~Output() {
    if (counted_) rt_.Release(text_.size());
  }
  Output(const Output&) = delete;
  void Append(std::string_view text);
  std::string Take();

 private:
  Runtime& rt_;
  size_t limit_;
  bool counted_;  // its bytes count as memory of the rendering
  std::string text_;
};

enum class Flow : uint8_t { kNormal, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(const Program& program, Runtime& rt, const Value& variables, Output* out)
      : program_(program), rt_(rt), variables_(variables), out_(out) {
    constants_.resize(static_cast<size_t>(program.constant_count));
  }
  ~Interpreter() = default;
  Interpreter(const Interpreter&) = delete;

  void Run();
  int line() const { return line_; }
  Runtime& rt() { return rt_; }

  // Calls a macro with its arguments bound as Jinja's Macro does.
  Value CallMacro(const Function& function, Frame& closure, CallArgs& args);
  // The text of one level of a recursive loop.
  Value RunRecursiveLoop(const Statement& s, const Value& iterable, Frame& closure, int depth0);
  // Assigns `value` to the loop's test target and runs the test.
  bool PassesTest(const Statement& s, const Value& value, Frame& test_frame);
  void Enter(const Loads& loads, Frame& frame);

  Value Evaluate(const Expression& e, Frame& frame);

 private:
  friend class LoopContext;

  // statements (interpreter.cc)
  Flow Execute(const Body& body, Frame& frame);
  Flow ExecuteStatement(const Statement& s, Frame& frame);
  Flow RunIf(const Statement& s, Frame& frame);
  Flow RunFor(const Statement& s, Frame& frame);
  Flow RunLoop(const Statement& s, const Value& iterable, Frame& frame, int depth0);
  Flow RunSetBlock(const Statement& s, Frame& frame);
  Flow RunFilterBlock(const Statement& s, Frame& frame);
  Flow RunWith(const Statement& s, Frame& frame);
  void RunCallBlock(const Statement& s, Frame& frame);
  void Leave(const Loads& loads, Frame& frame);
  void Assign(const Expression& target, const Value& value, Frame& frame);
  Value& Slot(const VariableRef& ref, Frame& frame);
  // Runs `body` into a buffer; the text only when the flow is normal.
  Flow Capture(const Body& body, Frame& frame, std::string* text);

  // expressions (evaluate.cc)
  Value EvaluateName(const Expression& e, Frame& frame);
  Value EvaluateString(const Expression& e);
  Value EvaluateDict(const Expression& e, Frame& frame);
  Values EvaluateItems(const Expression& e, Frame& frame);
  Value EvaluateSlice(const Expression& e, Frame& frame);
  Value EvaluateCall(const Expression& e, Frame& frame);
  Value EvaluateCompare(const Expression& e, Frame& frame);
  Value EvaluateConditional(const Expression& e, Frame& frame);
  Value EvaluateConcat(const Expression& e, Frame& frame);
  Value EvaluateFilter(const Expression& e, Frame& frame, const Value* block_text);
  Value EvaluateTest(const Expression& e, Frame& frame);
  CallArgs EvaluateArguments(const CallSyntax& call, Frame& frame);
  Value CallValue(const Value& callee, CallArgs& args);

  const Program& program_;
  Runtime& rt_;
  const Value& variables_;
  Output* out_;
  Values constants_;  // string literals, made when first used
  int line_ = 0;
};

// The `loop` of a running for statement, and the source of its items.
class LoopContext : public LoopObject {
 public:
  LoopContext(Interpreter& in, const Statement& s, Value iterable, Frame& frame, int depth0);
  ~LoopContext() override;
  void Clear() override;

  bool Advance(Value* item);  // moves to the next item
  Value Attribute(std::string_view name) override;
  Value Call(CallArgs& args) override;
  Value Cycle(CallArgs& args);
  Value Changed(CallArgs& args);

 private:
  bool PullRaw(Value* item);
  bool Pull(Value* item);
  const Value& Peek();  // the next item, or missing
  int64_t Count();

  Interpreter& in_;
  const Statement& statement_;
  Value iterable_;
  Value frame_;       // Hold()s the frame that the loop runs in
  Value test_frame_;  // Hold()s the frame of the loop's filter, once it runs
  Values items_;      // of iterables that are walked as a list
  size_t position_ = 0;
  std::deque<Value> drained_;  // items read early for loop.length
  bool drained_all_ = false;
  int64_t index0_ = -1;
  int64_t length_ = -1;
  int depth0_;
  Value after_, current_, before_, last_changed_;
};

}  // namespace sluice::jinja
