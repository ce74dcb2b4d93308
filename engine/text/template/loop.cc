// The `loop` variable: Jinja's LoopContext.

#include "engine/text/template/arguments.h"
#include "engine/text/template/interpreter_impl.h"
#include "engine/text/template/operators.h"

namespace sluice::jinja {
namespace {

// loop.cycle and loop.changed.
struct LoopMethod : CallableObject {
  LoopMethod(LoopContext& l, Value (LoopContext::*m)(CallArgs&))
      : CallableObject(l.rt, sizeof(*this)), loop(Hold(&l)), method(m) {}
  Value Call(CallArgs& args) override {
    return (static_cast<LoopContext*>(loop.object())->*method)(args);
  }
  std::string Repr() const override { return "<bound method of LoopContext>"; }
  Value loop;
  Value (LoopContext::*method)(CallArgs&);
};

}  // namespace

LoopContext::LoopContext(Interpreter& in, const Statement& s, Value iterable, Frame& frame,
                         int depth0)
    : LoopObject(in.rt(), sizeof(*this)),
      in_(in),
      statement_(s),
      iterable_(std::move(iterable)),
      frame_(Hold(&frame)),
      depth0_(depth0) {
  switch (iterable_.kind()) {
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kView:
    case Kind::kIterator:
      break;  // walked in place
    default:
      items_ = ToValues(rt, iterable_);
      Grow(items_.capacity() * sizeof(Value));
  }
  rt.Register(this);
}

LoopContext::~LoopContext() {
  Clear();
  rt.Unregister(this);
}

void LoopContext::Clear() {
  Values held = std::move(items_);
  items_.clear();
  for (Value* v :
       {&iterable_, &frame_, &test_frame_, &after_, &current_, &before_, &last_changed_}) {
    held.push_back(std::move(*v));
    *v = Value();
  }
  for (Value& v : drained_) held.push_back(std::move(v));
  drained_.clear();
  rt.Bury(std::move(held));
}

bool LoopContext::PullRaw(Value* item) {
  const Values* items = &items_;
  size_t* position = &position_;
  if (iterable_.Is(Kind::kIterator)) {
    items = &iterable_.As<IteratorObject>().items;
    position = &iterable_.As<IteratorObject>().next;
  } else if (iterable_.IsSequence() || iterable_.Is(Kind::kView)) {
    items = &iterable_.As<ListObject>().items;
  }
  if (*position >= items->size()) return false;
  *item = (*items)[(*position)++];
  return true;
}

bool LoopContext::Pull(Value* item) {
  if (!drained_.empty()) {
    *item = std::move(drained_.front());
    drained_.pop_front();
    return true;
  }
  if (drained_all_) return false;
  if (statement_.test == nullptr) return PullRaw(item);
  if (test_frame_.IsMissing()) {
    auto* frame =
        new Frame(rt, statement_.test_function->slot_count, static_cast<Frame*>(frame_.object()));
    test_frame_ = Hold(frame);
    in_.Enter(statement_.test_function->loads, *frame);
  }
  while (PullRaw(item)) {
    rt.Step();
    if (in_.PassesTest(statement_, *item, *static_cast<Frame*>(test_frame_.object()))) return true;
  }
  return false;
}

const Value& LoopContext::Peek() {
  if (after_.IsMissing()) {
    Value next;
    if (Pull(&next)) after_ = std::move(next);
  }
  return after_;
}

bool LoopContext::Advance(Value* item) {
  Value next;
  if (!after_.IsMissing()) {
    next = std::exchange(after_, Value());
  } else if (!Pull(&next)) {
    return false;
  }
  ++index0_;
  before_ = std::exchange(current_, next);
  *item = std::move(next);
  return true;
}

int64_t LoopContext::Count() {
  if (length_ >= 0) return length_;
  if (statement_.test == nullptr && HasLength(iterable_)) {
    length_ = static_cast<int64_t>(Length(iterable_));
    return length_;
  }
  std::deque<Value> rest;
  Value item;
  while (Pull(&item)) {
    Grow(sizeof(Value));
    rest.push_back(std::move(item));
  }
  drained_ = std::move(rest);
  drained_all_ = true;
  length_ = static_cast<int64_t>(drained_.size()) + index0_ + 1 + (after_.IsMissing() ? 0 : 1);
  return length_;
}

Value LoopContext::Attribute(std::string_view name) {
  if (name == "index") return Value::Int(index0_ + 1);
  if (name == "index0") return Value::Int(index0_);
  if (name == "first") return Value::Bool(index0_ == 0);
  if (name == "last") return Value::Bool(Peek().IsMissing());
  if (name == "length") return Value::Int(Count());
  if (name == "revindex") return Value::Int(Count() - index0_);
  if (name == "revindex0") return Value::Int(Count() - index0_ - 1);
  if (name == "depth") return Value::Int(depth0_ + 1);
  if (name == "depth0") return Value::Int(depth0_);
  if (name == "previtem") return index0_ == 0 ? rt.Undefined("there is no previous item") : before_;
  if (name == "nextitem") {
    return Peek().IsMissing() ? rt.Undefined("there is no next item") : after_;
  }
  if (name == "cycle") {
    return Value::Of(Kind::kCallable, new LoopMethod(*this, &LoopContext::Cycle));
  }
  if (name == "changed") {
    return Value::Of(Kind::kCallable, new LoopMethod(*this, &LoopContext::Changed));
  }
  return Value();
}

Value LoopContext::Call(CallArgs& args) {
  const Arguments a("loop", args, {"iterable"}, 1);
  if (!statement_.recursive) {
    Fail("the loop must have the 'recursive' marker to be called recursively");
  }
  Frame& own = *static_cast<Frame*>(frame_.object());
  return in_.RunRecursiveLoop(statement_, a[0], *own.outer(), depth0_ + 1);
}

Value LoopContext::Cycle(CallArgs& args) {
  if (args.positional.empty()) Fail("no items for cycling given");
  const auto count = static_cast<int64_t>(args.positional.size());
  return args.positional[static_cast<size_t>(index0_ % count)];
}

Value LoopContext::Changed(CallArgs& args) {
  Value now = rt.Tuple(std::move(args.positional));
  if (!last_changed_.IsMissing() && Equal(rt, last_changed_, now)) return Value::Bool(false);
  last_changed_ = std::move(now);
  return Value::Bool(true);
}

}  // namespace sluice::jinja
