#include "engine/text/template/value.h"

#include <algorithm>

#include "engine/text/template/operators.h"
#include "engine/text/template/unicode.h"

namespace sluice::jinja {

void Fail(std::string message) {
  throw RenderError{ErrorCode::kInvalidArgument, std::move(message), 0};
}

void FailUnsupported(std::string message) {
  throw RenderError{ErrorCode::kUnsupported, std::move(message), 0};
}

Object::Object(Runtime& runtime, size_t size) : rt(runtime), bytes(0) { Grow(size); }

Object::~Object() { rt.Release(bytes); }

void Object::Grow(size_t more) {
  rt.Add(more);
  bytes += more;
}

Runtime::~Runtime() {
  // Cycles run only through registered objects: hold them all, empty them, let go.
  Values held;
  held.reserve(cyclic_.size());
  for (const auto& [object, unused] : cyclic_) held.push_back(Value::Of(Kind::kCallable, object));
  for (const Value& value : held) value.object()->Clear();
  Bury(std::move(held));
}

void Runtime::Bury(Values values) noexcept {
  graveyard_.insert(graveyard_.end(), std::make_move_iterator(values.begin()),
                    std::make_move_iterator(values.end()));
  values.clear();
  if (burying_) return;
  burying_ = true;
  while (!graveyard_.empty()) {
    const Value last = std::move(graveyard_.back());
    graveyard_.pop_back();
  }
  burying_ = false;
}

void Runtime::OutOfSteps() const {
  throw RenderError{
      ErrorCode::kResourceExhausted,
      "the chat template ran for more than " + std::to_string(limits_.max_steps) + " steps", 0};
}

void Runtime::OutOfMemory() const {
  throw RenderError{ErrorCode::kResourceExhausted,
                    "the chat template needs more memory than a rendering may use (" +
                        std::to_string(limits_.max_live_bytes) + " bytes)",
                    0};
}

void Runtime::TooDeep() {
  throw RenderError{ErrorCode::kResourceExhausted,
                    "the chat template recurses too deeply, or its values are nested too deeply",
                    0};
}

Value Runtime::String(std::string text, bool markup) {
  return Value::Of(Kind::kString, new StringObject(*this, std::move(text), markup));
}

Value Runtime::List(Values items) {
  return Value::Of(Kind::kList, new ListObject(*this, std::move(items)));
}

Value Runtime::Tuple(Values items) {
  return Value::Of(Kind::kTuple, new ListObject(*this, std::move(items)));
}

Value Runtime::Undefined(std::string message) {
  return Value::Of(Kind::kUndefined, new UndefinedObject(*this, std::move(message)));
}

StringObject::StringObject(Runtime& runtime, std::string t, bool m)
    : Object(runtime, sizeof(*this) + t.capacity()),
      text(std::move(t)),
      length(CountCharacters(text)),
      markup(m) {
  runtime.Work(text.size());
}

ListObject::ListObject(Runtime& runtime, Values v)
    : Object(runtime, sizeof(*this) + v.capacity() * sizeof(Value)), items(std::move(v)) {}

ListObject::~ListObject() { rt.Bury(std::move(items)); }

namespace {
constexpr size_t kIndexFrom = 12;
constexpr size_t kEntryBytes = 2 * sizeof(Value) + sizeof(uint64_t) + 48;
}  // namespace

DictObject::~DictObject() {
  Values held;
  held.reserve(entries_.size() * 2);
  for (Entry& entry : entries_) {
    held.push_back(std::move(entry.first));
    held.push_back(std::move(entry.second));
  }
  rt.Bury(std::move(held));
}

size_t DictObject::Slot(const Value& key, uint64_t hash) const {
  if (entries_.size() < kIndexFrom) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (hashes_[i] == hash && Equal(rt, entries_[i].first, key)) return i;
    }
    return kNone;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    rt.Step();
    if (Equal(rt, entries_[it->second].first, key)) return it->second;
  }
  return kNone;
}

const Value* DictObject::Find(const Value& key) const {
  const size_t slot = Slot(key, Hash(rt, key));
  return slot == kNone ? nullptr : &entries_[slot].second;
}

const Value* DictObject::Find(std::string_view key) const {
  const uint64_t hash = HashText(key);
  const auto matches = [&](size_t i) {
    return hashes_[i] == hash && entries_[i].first.IsString() && Text(entries_[i].first) == key;
  };
  if (entries_.size() < kIndexFrom) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (matches(i)) return &entries_[i].second;
    }
    return nullptr;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    rt.Step();
    if (matches(it->second)) return &entries_[it->second].second;
  }
  return nullptr;
}

void DictObject::Put(Value key, Value value) {
  const uint64_t hash = Hash(rt, key);
  const size_t slot = Slot(key, hash);
  if (slot != kNone) {
    entries_[slot].second = std::move(value);
    return;
  }
  Grow(kEntryBytes);
  entries_.emplace_back(std::move(key), std::move(value));
  hashes_.push_back(hash);
  if (entries_.size() == kIndexFrom) {
    for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(hashes_[i], i);
  } else if (entries_.size() > kIndexFrom) {
    index_.emplace(hash, entries_.size() - 1);
  }
}

void DictObject::Put(std::string_view key, Value value) {
  Put(rt.String(std::string(key)), std::move(value));
}

NamespaceObject::NamespaceObject(Runtime& runtime) : Object(runtime, sizeof(*this)) {
  rt.Register(this);
}

NamespaceObject::~NamespaceObject() {
  Clear();
  rt.Unregister(this);
}

void NamespaceObject::Clear() {
  Values held;
  held.reserve(attributes.size());
  for (auto& [name, value] : attributes) held.push_back(std::move(value));
  attributes.clear();
  rt.Bury(std::move(held));
}

const Value* NamespaceObject::Find(std::string_view name) const {
  rt.Step(attributes.size() / 8);
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

void NamespaceObject::Set(std::string_view name, Value value) {
  if (!name.empty() && name.front() == '_') {
    Fail("a namespace attribute cannot start with an underscore, but got " + ReprString(name));
  }
  rt.Step(attributes.size() / 8);
  for (auto& [key, held] : attributes) {
    if (key == name) {
      held = std::move(value);
      return;
    }
  }
  Grow(sizeof(attributes[0]) + name.size());
  attributes.emplace_back(std::string(name), std::move(value));
}

}  // namespace sluice::jinja
