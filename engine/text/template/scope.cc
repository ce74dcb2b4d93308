#include "engine/text/template/scope.h"

#include <map>
#include <set>
#include <utility>

#include "engine/text/template/value.h"

namespace sluice::jinja {
namespace {

[[noreturn]] void FailAt(int line, std::string message) {
  throw RenderError{ErrorCode::kInvalidArgument, std::move(message), line};
}

// A function under analysis: it owns slots by nesting level and name, so that scopes beside each
// other share them.
struct FunctionState {
  int depth = 0;
  std::map<std::pair<int, std::string>, int> slots;

  int Slot(int level, const std::string& name) {
    return slots.emplace(std::pair(level, name), static_cast<int>(slots.size())).first->second;
  }
};

struct Identifier {
  FunctionState* function = nullptr;
  int slot = -1;
  auto operator<=>(const Identifier&) const = default;
};

struct LoadRule {
  Load::From from = Load::From::kUnset;
  std::string name;
  Identifier outer;
};

// The names of one scope. Copies are the branches of an if.
class Symbols {
 public:
  Symbols(Symbols* parent, FunctionState* function)
      : parent_(parent), function_(function), level_(parent == nullptr ? 0 : parent->level_ + 1) {}

  FunctionState* function() const { return function_; }

  const Identifier* Find(const std::string& name) const {
    for (const Symbols* s = this; s != nullptr; s = s->parent_) {
      const auto it = s->refs_.find(name);
      if (it != s->refs_.end()) return &it->second;
    }
    return nullptr;
  }

  void Store(const std::string& name) {
    stores_.insert(name);
    if (refs_.contains(name)) return;
    const Identifier* outer = parent_ == nullptr ? nullptr : parent_->Find(name);
    if (outer != nullptr) {
      Define(name, {Load::From::kOuter, "", *outer});
    } else {
      Define(name, {});
    }
  }

  int DeclareParameter(const std::string& name) {
    stores_.insert(name);
    return Define(name, {Load::From::kParameter, "", {}}).slot;
  }

  void LoadName(const std::string& name) {
    if (Find(name) == nullptr) Define(name, {Load::From::kContext, name, {}});
  }

  void Merge(const std::vector<Symbols>& branches) {
    std::set<std::string> stored;
    for (const Symbols& branch : branches) {
      for (const std::string& name : branch.stores_) {
        if (!stores_.contains(name)) stored.insert(name);
      }
    }
    for (const Symbols& branch : branches) {
      for (const auto& [name, id] : branch.refs_) refs_[name] = id;
      for (const auto& [id, rule] : branch.loads_) loads_[id] = rule;
      stores_.insert(branch.stores_.begin(), branch.stores_.end());
    }
    for (const std::string& name : stored) {
      const Identifier* outer = parent_ == nullptr ? nullptr : parent_->Find(name);
      loads_[refs_.at(name)] = outer != nullptr ? LoadRule{Load::From::kOuter, "", *outer}
                                                : LoadRule{Load::From::kContext, name, {}};
    }
  }

  VariableRef RefOf(const Identifier& id) const {
    return {function_->depth - id.function->depth, id.slot};
  }

  VariableRef Ref(const std::string& name, int line) const {
    const Identifier* id = Find(name);
    if (id == nullptr) FailAt(line, "the name '" + name + "' cannot be resolved here");
    return RefOf(*id);
  }

  Loads TakeLoads() const {
    Loads loads;
    for (const auto& [id, rule] : loads_) {
      Load load;
      load.from = rule.from;
      load.slot = id.slot;
      load.name = rule.name;
      if (rule.from == Load::From::kOuter) load.outer = RefOf(rule.outer);
      loads.push_back(std::move(load));
    }
    return loads;
  }

 private:
  Identifier Define(const std::string& name, LoadRule rule) {
    const Identifier id{function_, function_->Slot(level_, name)};
    refs_[name] = id;
    loads_[id] = std::move(rule);
    return id;
  }

  Symbols* parent_;
  FunctionState* function_;
  int level_;
  std::map<std::string, Identifier> refs_;
  std::map<Identifier, LoadRule> loads_;
  std::set<std::string> stores_;
};

// ---- does a body read a name? ----

bool Reads(const Expression* e, std::string_view name);
bool Reads(const Body& body, std::string_view name);

template <class Container>
bool AnyReads(const Container& expressions, std::string_view name) {
  for (const auto& e : expressions) {
    if (Reads(e.get(), name)) return true;
  }
  return false;
}

bool Reads(const Expression* e, std::string_view name) {
  if (e == nullptr) return false;
  if (e->kind == ExpressionKind::kName && e->text == name) return true;
  if (AnyReads(e->items, name)) return true;
  if (e->call == nullptr) return false;
  if (AnyReads(e->call->positional, name)) return true;
  for (const auto& [key, value] : e->call->named) {
    if (Reads(value.get(), name)) return true;
  }
  return Reads(e->call->star.get(), name) || Reads(e->call->double_star.get(), name);
}

bool Reads(const Body& body, std::string_view name) {
  for (const StatementPtr& s : body) {
    if (AnyReads(s->expressions, name) || Reads(s->test.get(), name)) return true;
    for (const Body& inner : s->bodies) {
      if (Reads(inner, name)) return true;
    }
    if (s->function != nullptr &&
        (AnyReads(s->function->defaults, name) || Reads(s->function->body, name))) {
      return true;
    }
  }
  return false;
}

// ---- the analysis ----

class Resolver {
 public:
  void Run(Program& program) {
    FunctionState root;
    Symbols symbols(nullptr, &root);
    CollectBody(symbols, program.body);
    ResolveBody(symbols, program.body, false);
    program.loads = symbols.TakeLoads();
    program.slot_count = static_cast<int>(root.slots.size());
  }

 private:
  // First pass over a scope: which names it reads and assigns. Does not enter inner scopes.

  void Collect(Symbols& symbols, const Expression* e) {
    if (e == nullptr) return;
    if (e->kind == ExpressionKind::kName) symbols.LoadName(e->text);
    for (const ExpressionPtr& item : e->items) Collect(symbols, item.get());
    if (e->call == nullptr) return;
    for (const ExpressionPtr& item : e->call->positional) Collect(symbols, item.get());
    for (const auto& [key, value] : e->call->named) Collect(symbols, value.get());
    Collect(symbols, e->call->star.get());
    Collect(symbols, e->call->double_star.get());
  }

  void CollectTarget(Symbols& symbols, const Expression& target, bool parameter) {
    switch (target.kind) {
      case ExpressionKind::kName:
        if (parameter) {
          symbols.DeclareParameter(target.text);
        } else {
          symbols.Store(target.text);
        }
        break;
      case ExpressionKind::kNamespaceRef:
        symbols.LoadName(target.text);
        break;
      default:
        for (const ExpressionPtr& item : target.items) CollectTarget(symbols, *item, parameter);
    }
  }

  void CollectBody(Symbols& symbols, const Body& body) {
    for (const StatementPtr& s : body) CollectStatement(symbols, *s);
  }

  // The bodies of an if from number `first` on, as a chain of elifs.
  void CollectIf(Symbols& symbols, const Statement& s) {
    Collect(symbols, s.expressions[0].get());
    std::vector<Symbols> branches(3, symbols);
    CollectBody(branches[0], s.bodies[0]);
    for (size_t i = 1; i < s.expressions.size(); ++i) {
      Symbols& chain = branches[1];
      Collect(chain, s.expressions[i].get());
      std::vector<Symbols> inner(1, chain);
      CollectBody(inner[0], s.bodies[i]);
      chain.Merge(inner);
    }
    if (s.bodies.size() > s.expressions.size()) CollectBody(branches[2], s.bodies.back());
    symbols.Merge(branches);
  }

  void CollectStatement(Symbols& symbols, const Statement& s) {
    switch (s.kind) {
      case StatementKind::kPrint:
      case StatementKind::kWith:
      case StatementKind::kCallBlock:
      case StatementKind::kFilter:
        for (const ExpressionPtr& e : s.expressions) Collect(symbols, e.get());
        break;
      case StatementKind::kIf:
        CollectIf(symbols, s);
        break;
      case StatementKind::kFor:
        Collect(symbols, s.expressions[0].get());
        break;
      case StatementKind::kSet:
        Collect(symbols, s.expressions[0].get());
        CollectTarget(symbols, *s.target, false);
        break;
      case StatementKind::kSetBlock:
      case StatementKind::kMacro:
        CollectTarget(symbols, *s.target, false);
        break;
      case StatementKind::kText:
      case StatementKind::kGeneration:
      case StatementKind::kBreak:
      case StatementKind::kContinue:
        break;
    }
  }

  // Second pass: point names at slots and do the inner scopes. `soft` code may name filters and
  // tests that do not exist, as long as it does not run.

  void Resolve(const Symbols& symbols, Expression* e, bool soft) {
    if (e == nullptr) return;
    if (e->kind == ExpressionKind::kName) e->ref = symbols.Ref(e->text, e->line);
    if (e->builtin == nullptr && !soft) {
      if (e->kind == ExpressionKind::kFilter)
        FailAt(e->line, "no filter is named '" + e->text + "'");
      if (e->kind == ExpressionKind::kTest) FailAt(e->line, "no test is named '" + e->text + "'");
    }
    const bool inner = soft || e->kind == ExpressionKind::kConditional;
    for (const ExpressionPtr& item : e->items) Resolve(symbols, item.get(), inner);
    if (e->call == nullptr) return;
    for (const ExpressionPtr& item : e->call->positional) Resolve(symbols, item.get(), inner);
    for (const auto& [key, value] : e->call->named) Resolve(symbols, value.get(), inner);
    Resolve(symbols, e->call->star.get(), inner);
    Resolve(symbols, e->call->double_star.get(), inner);
  }

  void ResolveTarget(const Symbols& symbols, Expression& target) {
    switch (target.kind) {
      case ExpressionKind::kName:
        if (target.text == "loop" && for_depth_ > 0) {
          FailAt(target.line, "cannot assign to the special variable 'loop' inside a for loop");
        }
        target.ref = symbols.Ref(target.text, target.line);
        break;
      case ExpressionKind::kNamespaceRef:
        target.ref = symbols.Ref(target.text, target.line);
        break;
      default:
        for (const ExpressionPtr& item : target.items) ResolveTarget(symbols, *item);
    }
  }

  void ResolveBody(Symbols& symbols, const Body& body, bool soft) {
    for (const StatementPtr& s : body) ResolveStatement(symbols, *s, soft);
  }

  void ResolveStatement(Symbols& symbols, Statement& s, bool soft) {
    switch (s.kind) {
      case StatementKind::kPrint:
        for (const ExpressionPtr& e : s.expressions) Resolve(symbols, e.get(), soft);
        break;
      case StatementKind::kIf:
        for (const ExpressionPtr& e : s.expressions) Resolve(symbols, e.get(), true);
        for (const Body& body : s.bodies) ResolveBody(symbols, body, true);
        break;
      case StatementKind::kFor:
        ResolveFor(symbols, s, soft);
        break;
      case StatementKind::kSet:
        Resolve(symbols, s.expressions[0].get(), soft);
        ResolveTarget(symbols, *s.target);
        break;
      case StatementKind::kSetBlock:
      case StatementKind::kFilter: {
        Symbols inner(&symbols, symbols.function());
        CollectBody(inner, s.bodies[0]);
        Collect(inner, s.expressions[0].get());
        ResolveBody(inner, s.bodies[0], false);
        Resolve(inner, s.expressions[0].get(), false);
        if (s.target != nullptr) ResolveTarget(symbols, *s.target);
        s.loads = inner.TakeLoads();
        break;
      }
      case StatementKind::kWith: {
        for (const ExpressionPtr& e : s.expressions) Resolve(symbols, e.get(), soft);
        Symbols inner(&symbols, symbols.function());
        for (const ExpressionPtr& target : s.targets) CollectTarget(inner, *target, true);
        CollectBody(inner, s.bodies[0]);
        const int outer = std::exchange(for_depth_, 0);
        for (const ExpressionPtr& target : s.targets) ResolveTarget(inner, *target);
        for_depth_ = outer;
        ResolveBody(inner, s.bodies[0], false);
        s.loads = inner.TakeLoads();
        break;
      }
      case StatementKind::kMacro:
        ResolveFunction(symbols, *s.function);
        s.target->ref = symbols.Ref(s.target->text, s.line);
        break;
      case StatementKind::kCallBlock:
        Resolve(symbols, s.expressions[0].get(), soft);
        ResolveFunction(symbols, *s.function);
        break;
      case StatementKind::kGeneration:
        ResolveFunction(symbols, *s.function);
        break;
      case StatementKind::kText:
      case StatementKind::kBreak:
      case StatementKind::kContinue:
        break;
    }
  }

  void ResolveFor(Symbols& symbols, Statement& s, bool soft) {
    Resolve(symbols, s.expressions[0].get(), soft);
    ++for_depth_;
    FunctionState own;
    own.depth = symbols.function()->depth + 1;
    FunctionState* const function = s.recursive ? &own : symbols.function();

    Symbols loop(&symbols, function);
    if (s.recursive || Reads(s.bodies[0], "loop")) s.loop_slot = loop.DeclareParameter("loop");
    CollectTarget(loop, *s.target, true);
    CollectBody(loop, s.bodies[0]);
    ResolveTarget(loop, *s.target);
    ResolveBody(loop, s.bodies[0], false);
    s.loads = loop.TakeLoads();

    if (s.bodies.size() > 1) {
      Symbols otherwise(&symbols, function);
      CollectBody(otherwise, s.bodies[1]);
      ResolveBody(otherwise, s.bodies[1], false);
      s.else_loads = otherwise.TakeLoads();
    }
    if (s.recursive) s.function->slot_count = static_cast<int>(own.slots.size());
    if (s.test != nullptr) {
      FunctionState state;
      state.depth = function->depth + 1;
      Symbols test(&symbols, &state);
      CollectTarget(test, *s.test_target, true);
      Collect(test, s.test.get());
      ResolveTarget(test, *s.test_target);
      Resolve(test, s.test.get(), false);
      s.test_function->loads = test.TakeLoads();
      s.test_function->slot_count = static_cast<int>(state.slots.size());
    }
    --for_depth_;
  }

  void ResolveFunction(Symbols& symbols, Function& function) {
    FunctionState state;
    state.depth = symbols.function()->depth + 1;
    Symbols inner(&symbols, &state);
    for (const std::string& name : function.parameters) {
      function.parameter_slots.push_back(inner.DeclareParameter(name));
    }
    for (const ExpressionPtr& e : function.defaults) Collect(inner, e.get());
    CollectBody(inner, function.body);
    const auto implicit = [&](const char* name) {
      for (const std::string& parameter : function.parameters) {
        if (parameter == name) return -1;
      }
      return Reads(function.body, name) ? inner.DeclareParameter(name) : -1;
    };
    function.caller_slot = implicit("caller");
    function.kwargs_slot = implicit("kwargs");
    function.varargs_slot = implicit("varargs");
    for (const ExpressionPtr& e : function.defaults) Resolve(inner, e.get(), false);
    ResolveBody(inner, function.body, false);
    function.loads = inner.TakeLoads();
    function.slot_count = static_cast<int>(state.slots.size());
  }

  int for_depth_ = 0;
};

}  // namespace

void ResolveNames(Program& program) { Resolver().Run(program); }

}  // namespace sluice::jinja
