// Python's operators and protocols over Values: truth, str and repr, equality and order, hashing,
// arithmetic, iteration, and Jinja's attribute and item access. All throw RenderError where Python
// would raise.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/template/value.h"

namespace sluice::jinja {

// Python's name of the type: 'str', 'list', 'NoneType'.
std::string_view TypeName(const Value& v);

// bool(v)
bool Truth(const Value& v);

// str(v) and repr(v), appended to `out`.
void AppendStr(const Value& v, TextBuilder* out);
void AppendRepr(const Value& v, TextBuilder* out);
std::string Str(Runtime& rt, const Value& v);
std::string FloatRepr(double d);

// `v` as a string Value: itself when it is one (Markup stays Markup), else its str().
Value ToStringValue(Runtime& rt, const Value& v);

// markupsafe.escape
Value Escape(Runtime& rt, const Value& v);

bool Equal(Runtime& rt, const Value& a, const Value& b);
// a < b; throws where Python has no order. `symbol` is for the message.
bool Less(Runtime& rt, const Value& a, const Value& b, std::string_view symbol = "<");
bool LessEqual(Runtime& rt, const Value& a, const Value& b, std::string_view symbol = "<=");
// item in container
bool Contains(Runtime& rt, const Value& container, const Value& item);

uint64_t Hash(Runtime& rt, const Value& v);
uint64_t HashText(std::string_view text);

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
Value Binary(Runtime& rt, BinaryOp op, const Value& a, const Value& b);
Value Negate(const Value& v);
Value Positive(const Value& v);

// len(v)
size_t Length(const Value& v);
bool HasLength(const Value& v);

// True when Python could iterate over it; Undefined is empty.
bool IsIterable(const Value& v);
// list(v): uses up a one-shot iterator.
Values ToValues(Runtime& rt, const Value& v);

// obj.name, then obj['name']; Undefined when there is neither (Environment.getattr).
Value GetAttribute(Runtime& rt, const Value& object, std::string_view name);
// obj[key], then obj.key; Undefined when there is neither (Environment.getitem).
Value GetItem(Runtime& rt, const Value& object, const Value& key);
// obj[start:stop:step]; a missing or None part is left out.
Value GetSlice(Runtime& rt, const Value& object, const Value& start, const Value& stop,
               const Value& step);

// Throws what using an Undefined says.
[[noreturn]] void FailUndefined(const Value& v);
// The integer of an int or bool; throws for anything else, naming `what`.
int64_t RequireInt(const Value& v, std::string_view what);
// The text of a string; throws for anything else, naming `what`.
std::string_view RequireText(const Value& v, std::string_view what);

}  // namespace sluice::jinja
