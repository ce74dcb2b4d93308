// The syntax tree of a template. Built by the parser, annotated by the scope analysis (scope.h),
// then only read: any number of renderings walk it at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/template/arguments.h"
#include "engine/text/template/operators.h"

namespace sluice::jinja {

// A variable: `slot` of the function frame `hops` functions outwards.
struct VariableRef {
  int hops = 0;
  int slot = -1;
};

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind : uint8_t {
  kNone,
  kBool,          // integer
  kInt,           // integer
  kFloat,         // real
  kString,        // text, constant
  kName,          // text, ref
  kNamespaceRef,  // text.attribute as an assignment target: ref, attribute
  kTuple,
  kList,
  kDict,       // items: key, value, key, value ...
  kAttribute,  // items[0].text
  kItem,       // items[0][items[1]]
  kSlice,      // items[0][items[1]:items[2]:items[3]], the last three may be null
  kCall,       // items[0](call)
  kFilter,     // items[0] | text(call); items[0] is null in filter blocks
  kTest,       // items[0] is text(call)
  kNot,
  kNegate,
  kPositive,
  kAnd,
  kOr,
  kBinary,       // items[0] op items[1]
  kConcat,       // items joined as strings
  kCompare,      // items[0] comparisons[0] items[1] comparisons[1] items[2] ...
  kConditional,  // items[1] if items[0] else items[2], which may be null
};

enum class Comparison : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

struct CallSyntax {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star;         // *args
  ExpressionPtr double_star;  // **kwargs
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kNone;
  BinaryOp op = BinaryOp::kAdd;
  int line = 0;
  int depth = 1;  // of this subtree
  std::string text;
  std::string attribute;
  int64_t integer = 0;
  double real = 0;
  int constant = -1;  // kString: its number, for the rendering's cache of string values
  VariableRef ref;
  std::vector<ExpressionPtr> items;
  std::vector<Comparison> comparisons;
  std::unique_ptr<CallSyntax> call;
  Builtin builtin = nullptr;  // of kFilter and kTest; null when there is none of that name
};

// What entering a scope does to a variable of it: a parameter is set by whoever enters, the others
// become unset, the variable of that name in the context, or the value of a variable further out.
// Leaving the scope unsets them all.
struct Load {
  enum class From : uint8_t { kParameter, kUnset, kContext, kOuter } from = From::kUnset;
  int slot = 0;       // in the frame of the scope's function
  std::string name;   // kContext: the variable to look up
  VariableRef outer;  // kOuter
};
using Loads = std::vector<Load>;

struct Statement;
using StatementPtr = std::unique_ptr<Statement>;
using Body = std::vector<StatementPtr>;

// A macro, the body of a call block, the body of a recursive loop, or a loop's filter: code with a
// frame of its own.
struct Function {
  int slot_count = 0;
  std::string name;
  std::vector<std::string> parameters;
  std::vector<int> parameter_slots;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  Loads loads;
  Body body;
  int caller_slot = -1;  // the implicit parameters that the body uses
  int kwargs_slot = -1;
  int varargs_slot = -1;
};

enum class StatementKind : uint8_t {
  kText,        // text
  kPrint,       // expressions
  kIf,          // expressions[i] guards bodies[i]; one body more is the else
  kFor,         // target, iterable = expressions[0], bodies[0], bodies[1] is the else
  kSet,         // target, expressions[0]
  kSetBlock,    // target, bodies[0], expressions[0] is the filter or null
  kWith,        // targets, expressions, bodies[0]
  kMacro,       // function; target
  kCallBlock,   // function, expressions[0] is the call
  kFilter,      // expressions[0], bodies[0]
  kGeneration,  // function
  kBreak,
  kContinue,
};

struct Statement {
  StatementKind kind = StatementKind::kText;
  int line = 0;
  std::string text;
  std::vector<ExpressionPtr> expressions;
  ExpressionPtr target;
  std::vector<ExpressionPtr> targets;
  std::vector<Body> bodies;
  Loads loads;  // of the scope that the body opens
  std::unique_ptr<Function> function;

  // kFor only.
  bool recursive = false;
  int loop_slot = -1;  // of `loop`, when the body uses it
  Loads else_loads;
  ExpressionPtr test;  // runs in test_function's frame, after test_target is assigned there
  ExpressionPtr test_target;
  std::unique_ptr<Function> test_function;
};

// A whole template.
struct Program {
  Body body;
  Loads loads;
  int slot_count = 0;
  int constant_count = 0;
};

}  // namespace sluice::jinja
