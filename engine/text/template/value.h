// The values that a chat template computes with: Python's None, bool, int, float, str, list,
// tuple and dict as ImmutableSandboxedEnvironment shows them, and Jinja's own objects.
//
// Lists, tuples, dicts and strings never change after they are built (the sandbox forbids their
// mutating methods), so values share them freely. Namespaces, loops, cyclers and joiners do
// change. Everything is counted by the Runtime of one rendering: its bytes while it lives, and the
// steps that make and walk it. Reference counts are not atomic: a Runtime belongs to one thread.
//
// Errors inside the interpreter are thrown as RenderError, which never leaves this directory's
// callers: ChatTemplate::Parse and Render turn it into a Result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/result.h"

namespace sluice::jinja {

// Thrown by the lexer, the parser and everything that runs; `line` is 0 where unknown.
struct RenderError {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;
  int line = 0;
  bool raised = false;  // by raise_exception: the message is the template's own
};

[[noreturn]] void Fail(std::string message);             // the template or its input is wrong
[[noreturn]] void FailUnsupported(std::string message);  // legal Python that we do not implement

class Runtime;
class Value;
using Values = std::vector<Value>;

enum class Kind : uint8_t {
  kMissing,  // no value at all: an unset variable or argument; never visible to a template
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kView,      // dict.keys(), .values(), .items()
  kIterator,  // a one-shot iterator, such as select() gives
  kNamespace,
  kLoop,
  kCycler,
  kCallable,  // macros, methods, global functions, joiners
};

// The base of everything that lives on the heap of a rendering.
struct Object {
  Object(Runtime& rt, size_t bytes);
  virtual ~Object();
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  // Drops every Value it holds; the Runtime calls it at the end on objects that form cycles.
  virtual void Clear() {}
  void Grow(size_t bytes);  // charges more bytes to this object

  Runtime& rt;
  size_t bytes;
  uint32_t refs = 0;
};

class Value {
 public:
  Value() = default;
  Value(const Value& other) : kind_(other.kind_), data_(other.data_) { Acquire(); }
  Value(Value&& other) noexcept : kind_(other.kind_), data_(other.data_) {
    other.kind_ = Kind::kMissing;
  }
  Value& operator=(Value other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Value() { Drop(); }

  static Value None() { return Value(Kind::kNone, Data{.integer = 0}); }
  static Value Bool(bool b) { return Value(Kind::kBool, Data{.integer = b ? 1 : 0}); }
  static Value Int(int64_t i) { return Value(Kind::kInt, Data{.integer = i}); }
  static Value Float(double d) { return Value(Kind::kFloat, Data{.real = d}); }
  // Takes a reference to `object`, which must be of the class that `kind` stands for.
  static Value Of(Kind kind, Object* object) {
    ++object->refs;
    return Value(kind, Data{.object = object});
  }

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsMissing() const { return kind_ == Kind::kMissing; }
  bool IsUndefined() const { return kind_ == Kind::kUndefined; }
  bool IsNone() const { return kind_ == Kind::kNone; }
  bool IsString() const { return kind_ == Kind::kString; }
  bool IsDict() const { return kind_ == Kind::kDict; }
  bool IsSequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }
  bool IsIntegral() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool IsNumber() const { return IsIntegral() || kind_ == Kind::kFloat; }
  bool IsObject() const { return kind_ == Kind::kUndefined || kind_ >= Kind::kString; }

  int64_t integer() const { return data_.integer; }  // of a bool too: 0 or 1
  double real() const { return data_.real; }
  double AsDouble() const {
    return kind_ == Kind::kFloat ? data_.real : static_cast<double>(data_.integer);
  }
  Object* object() const { return data_.object; }
  template <class T>
  T& As() const {
    return *static_cast<T*>(data_.object);
  }

  // The same object, or the same None, bool or number: Python's `is`.
  bool Same(const Value& other) const {
    if (kind_ != other.kind_) return false;
    if (kind_ == Kind::kNone || kind_ == Kind::kMissing) return true;
    if (kind_ == Kind::kFloat) return data_.real == other.data_.real;
    return data_.integer == other.data_.integer;
  }

 private:
  union Data {
    int64_t integer;
    double real;
    Object* object;
  };
  Value(Kind kind, Data data) : kind_(kind), data_(data) {}
  void Acquire() {
    if (IsObject()) ++data_.object->refs;
  }
// GCC 12 takes a null object for an array of none where it cannot follow kind_.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Warray-bounds"
#endif
  void Drop() {
    if (IsObject() && --data_.object->refs == 0) delete data_.object;
  }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

  Kind kind_ = Kind::kMissing;
  Data data_{.integer = 0};
};

// What one rendering may use and what it has used: live bytes, steps, recursion depth; and the
// time that strftime_now tells. Must outlive every Value made with it.
class Runtime {
 public:
  struct Limits {
    size_t max_live_bytes = 0;
    size_t max_steps = 0;
    int max_depth = 0;
    std::optional<std::tm> now;  // none: the clock, in the local zone
  };
  explicit Runtime(Limits limits) : limits_(limits) {}
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Counts `n` steps; throws when the budget is gone.
  void Step(size_t n = 1) {
    steps_ += n;
    if (steps_ > limits_.max_steps) OutOfSteps();
  }
  // Counts the steps of touching `bytes` bytes of text.
  void Work(size_t bytes) { Step(bytes / 64); }
  // Throws unless `bytes` more may live. Called before anything of that size is built.
  void Need(size_t bytes) const {
    if (bytes > limits_.max_live_bytes || live_bytes_ > limits_.max_live_bytes - bytes) {
      OutOfMemory();
    }
  }
  size_t RoomBytes() const {
    return live_bytes_ < limits_.max_live_bytes ? limits_.max_live_bytes - live_bytes_ : 0;
  }
  void Add(size_t bytes) {
    Need(bytes);
    live_bytes_ += bytes;
  }
  void Release(size_t bytes) { live_bytes_ -= bytes; }
  void SetMemoryLimit(size_t bytes) { limits_.max_live_bytes = bytes; }
  size_t live_bytes() const { return live_bytes_; }
  const Limits& limits() const { return limits_; }

  // Destroys `values` without recursing: a chain of a million containers is taken apart in a loop.
  void Bury(Values values) noexcept;

  // Objects that can be part of a cycle register here, so that the end of the rendering frees them.
  void Register(Object* object) { cyclic_.emplace(object, 0); }
  void Unregister(Object* object) { cyclic_.erase(object); }

  Value String(std::string text, bool markup = false);
  Value List(Values items);
  Value Tuple(Values items);
  Value Undefined(std::string message);

  // One level of recursion, for as long as it lives.
  class Depth {
   public:
    explicit Depth(Runtime& rt) : rt_(rt) {
      if (++rt_.depth_ > rt_.limits_.max_depth) {
        --rt_.depth_;
        TooDeep();
      }
    }
    ~Depth() { --rt_.depth_; }
    Depth(const Depth&) = delete;

   private:
    Runtime& rt_;
  };

 private:
  [[noreturn]] void OutOfSteps() const;
  [[noreturn]] void OutOfMemory() const;
  [[noreturn]] static void TooDeep();

  Limits limits_;
  size_t live_bytes_ = 0;
  size_t steps_ = 0;
  int depth_ = 0;
  Values graveyard_;
  bool burying_ = false;
  std::unordered_map<Object*, char> cyclic_;
};

// Text under construction, never longer than what the Runtime can still hold.
class TextBuilder {
 public:
  explicit TextBuilder(Runtime& rt) : rt_(rt), limit_(rt.RoomBytes()) {}
  void Append(std::string_view text) {
    Reserve(text.size());
    text_.append(text);
  }
  void Append(size_t count, char c) {
    Reserve(count);
    text_.append(count, c);
  }
  Runtime& runtime() { return rt_; }
  size_t size() const { return text_.size(); }
  std::string Take() { return std::move(text_); }

 private:
  void Reserve(size_t more) {
    if (more > limit_ - text_.size()) {
      rt_.Need(text_.size() > SIZE_MAX - more ? SIZE_MAX : text_.size() + more);
      limit_ = rt_.RoomBytes();
    }
    rt_.Work(more);
  }

  Runtime& rt_;
  size_t limit_;
  std::string text_;
};

struct UndefinedObject : Object {
  UndefinedObject(Runtime& rt, std::string m)
      : Object(rt, sizeof(*this) + m.capacity()), message(std::move(m)) {}
  std::string message;  // what using it says
};

struct StringObject : Object {
  StringObject(Runtime& rt, std::string t, bool m);
  bool ascii() const { return length == text.size(); }
  std::string text;  // valid UTF-8
  size_t length;     // code points
  bool markup;       // a markupsafe.Markup
};

struct ListObject : Object {
  ListObject(Runtime& rt, Values v);
  ~ListObject() override;
  Values items;
  bool is_group = false;  // a pair of groupby, with .grouper and .list
};

// A mapping in insertion order. Keys are hashable values; 1, 1.0 and True are one key.
class DictObject : public Object {
 public:
  explicit DictObject(Runtime& rt) : Object(rt, sizeof(*this)) {}
  ~DictObject() override;
  using Entry = std::pair<Value, Value>;
  const std::vector<Entry>& entries() const { return entries_; }
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  void Put(Value key, Value value);  // only while it is being built
  void Put(std::string_view key, Value value);

 private:
  friend struct NamespaceObject;
  size_t Slot(const Value& key, uint64_t hash) const;
  static constexpr size_t kNone = static_cast<size_t>(-1);
  std::vector<Entry> entries_;
  std::vector<uint64_t> hashes_;
  std::unordered_multimap<uint64_t, size_t> index_;  // used from kIndexFrom entries on
};

struct RangeObject : Object {
  RangeObject(Runtime& rt, int64_t b, int64_t e, int64_t s, int64_t n)
      : Object(rt, sizeof(*this)), start(b), stop(e), step(s), count(n) {}
  int64_t start, stop, step, count;
};

enum class ViewKind : uint8_t { kKeys, kValues, kItems };
struct ViewObject : ListObject {
  ViewObject(Runtime& rt, Values v, ViewKind k) : ListObject(rt, std::move(v)), view(k) {}
  ViewKind view;
};

struct IteratorObject : ListObject {
  IteratorObject(Runtime& rt, Values v, std::string_view t)
      : ListObject(rt, std::move(v)), type_name(t) {}
  size_t next = 0;
  std::string_view type_name;  // a literal
};

struct NamespaceObject : Object {
  explicit NamespaceObject(Runtime& rt);
  ~NamespaceObject() override;
  void Clear() override;
  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
  std::vector<std::pair<std::string, Value>> attributes;
};

struct CyclerObject : ListObject {
  using ListObject::ListObject;
  size_t position = 0;
};

// Arguments of a call.
struct CallArgs {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct CallableObject : Object {
  using Object::Object;
  virtual Value Call(CallArgs& args) = 0;
  virtual std::string Repr() const = 0;
};

// The `loop` variable of a for statement.
struct LoopObject : Object {
  using Object::Object;
  // loop.<name>; missing where there is no such attribute.
  virtual Value Attribute(std::string_view name) = 0;
  virtual Value Call(CallArgs& args) = 0;  // loop(items), in a recursive loop
};

inline std::string_view Text(const Value& v) { return v.As<StringObject>().text; }

}  // namespace sluice::jinja
