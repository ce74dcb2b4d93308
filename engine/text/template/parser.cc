#include "engine/text/template/parser.h"

#include <algorithm>
#include <initializer_list>

#include "engine/text/template/lexer.h"
#include "engine/text/template/registry.h"
#include "engine/text/template/unicode.h"
#include "engine/text/template/value.h"

namespace sluice::jinja {
namespace {

// Nesting of statements, of expressions, and depth of an expression's tree ("a + b + c" is 3).
constexpr int kMaxStatementDepth = 60;
constexpr int kMaxExpressionNesting = 100;
constexpr int kMaxExpressionDepth = 250;

[[noreturn]] void FailAt(int line, std::string message) {
  throw RenderError{ErrorCode::kInvalidArgument, std::move(message), line};
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Program Run() {
    Program program;
    program.body = ParseBody({});
    program.constant_count = constant_count_;
    return program;
  }

 private:
  using Names = std::initializer_list<std::string_view>;

  class Nesting {
   public:
    Nesting(int* level, int limit, int line) : level_(level) {
      if (++*level_ > limit) {
        --*level_;
        FailAt(line, "the template is nested too deeply here");
      }
    }
    ~Nesting() { --*level_; }
    Nesting(const Nesting&) = delete;

   private:
    int* level_;
  };

  // ---- tokens ----

  const Token& Current() const { return tokens_[pos_]; }
  const Token& Ahead() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  Token Next() {
    Token token = tokens_[pos_];
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return token;
  }
  bool Is(TokenKind kind) const { return Current().kind == kind; }
  bool IsOperator(std::string_view text) const {
    return Is(TokenKind::kOperator) && Current().text == text;
  }
  bool IsName(std::string_view text) const {
    return Is(TokenKind::kName) && Current().text == text;
  }
  bool IsAnyName(Names names) const {
    return Is(TokenKind::kName) &&
           std::find(names.begin(), names.end(), std::string_view(Current().text)) != names.end();
  }
  bool SkipOperator(std::string_view text) {
    if (!IsOperator(text)) return false;
    Next();
    return true;
  }
  bool SkipName(std::string_view text) {
    if (!IsName(text)) return false;
    Next();
    return true;
  }
  [[noreturn]] void Expected(const std::string& what) const {
    FailAt(Current().line, "expected " + what + ", got " + DescribeToken(Current()));
  }
  void ExpectOperator(std::string_view text) {
    if (!SkipOperator(text)) Expected("'" + std::string(text) + "'");
  }
  void ExpectName(std::string_view text) {
    if (!SkipName(text)) Expected("'" + std::string(text) + "'");
  }
  std::string ExpectAnyName() {
    if (!Is(TokenKind::kName)) Expected("a name");
    return Next().text;
  }
  void ExpectKind(TokenKind kind, const char* what) {
    if (!Is(kind)) Expected(what);
    Next();
  }

  // ---- nodes ----

  ExpressionPtr Make(ExpressionKind kind, int line) {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = line;
    return node;
  }

  void Adopt(Expression& node, const Expression* child) {
    if (child == nullptr) return;
    node.depth = std::max(node.depth, child->depth + 1);
    if (node.depth > kMaxExpressionDepth) FailAt(node.line, "the expression is too long here");
  }

  void AddItem(Expression& node, ExpressionPtr child) {
    Adopt(node, child.get());
    node.items.push_back(std::move(child));
  }

  template <class... Items>
  ExpressionPtr MakeWith(ExpressionKind kind, int line, Items... items) {
    ExpressionPtr node = Make(kind, line);
    (AddItem(*node, std::move(items)), ...);
    return node;
  }

  ExpressionPtr MakeString(std::string text, int line) {
    ExpressionPtr node = Make(ExpressionKind::kString, line);
    node->text = std::move(text);
    node->constant = constant_count_++;
    return node;
  }

  static StatementPtr MakeStatement(StatementKind kind, int line) {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = line;
    return node;
  }

  // ---- statements ----

  // Statements up to one of `ends` (whose name is the current token then), or to the end of the
  // template when there are no `ends`.
  Body ParseBody(Names ends) {
    const Nesting nesting(&statement_depth_, kMaxStatementDepth, Current().line);
    Body body;
    while (!Is(TokenKind::kEnd)) {
      const int line = Current().line;
      if (Is(TokenKind::kData)) {
        StatementPtr node = MakeStatement(StatementKind::kText, line);
        node->text = Next().text;
        body.push_back(std::move(node));
      } else if (Is(TokenKind::kVariableBegin)) {
        Next();
        StatementPtr node = MakeStatement(StatementKind::kPrint, line);
        node->expressions.push_back(ParseTuple(true, {}, false));
        ExpectKind(TokenKind::kVariableEnd, "'}}'");
        body.push_back(std::move(node));
      } else {
        Next();  // the lexer makes no other kind here than a block's beginning
        if (IsAnyName(ends)) return body;
        body.push_back(ParseStatement(ends));
        ExpectKind(TokenKind::kBlockEnd, "'%}'");
      }
    }
    if (ends.size() > 0) Expected(TagList(ends));
    return body;
  }

  static std::string TagList(Names names) {
    std::string out;
    for (std::string_view name : names) {
      if (!out.empty()) out += " or ";
      out += "'{% " + std::string(name) + " %}'";
    }
    return out;
  }

  // The rest of an opening tag, its body, and the name of the end tag, which is skipped.
  Body ParseBlock(Names ends, std::string* end = nullptr) {
    SkipOperator(":");
    ExpectKind(TokenKind::kBlockEnd, "'%}'");
    Body body = ParseBody(ends);
    std::string name = ExpectAnyName();
    if (end != nullptr) *end = std::move(name);
    return body;
  }

  StatementPtr ParseStatement(Names ends) {
    const int line = Current().line;
    if (!Is(TokenKind::kName)) Expected("the name of a tag");
    const std::string name = Next().text;
    if (name == "set") return ParseSet(line);
    if (name == "if") return ParseIf(line);
    if (name == "for") return ParseFor(line);
    if (name == "macro") return ParseMacro(line);
    if (name == "call") return ParseCallBlock(line);
    if (name == "filter") return ParseFilterBlock(line);
    if (name == "with") return ParseWith(line);
    if (name == "print") return ParsePrint(line);
    if (name == "generation") {
      StatementPtr node = MakeStatement(StatementKind::kGeneration, line);
      node->function = std::make_unique<Function>();
      node->function->body = InFunction([&] { return ParseBlock({"endgeneration"}); });
      return node;
    }
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) FailAt(line, "'" + name + "' is outside of a loop");
      return MakeStatement(name == "break" ? StatementKind::kBreak : StatementKind::kContinue,
                           line);
    }
    for (std::string_view tag : {"block", "extends", "include", "import", "from", "autoescape"}) {
      if (name == tag) {
        throw RenderError{ErrorCode::kUnsupported,
                          "the tag '" + name + "' is not supported in chat templates", line};
      }
    }
    FailAt(line, "unknown tag '" + name + "'" +
                     (ends.size() > 0 ? ", expected " + TagList(ends) : std::string()));
  }

  // Runs `parse` as the body of a function, which break and continue cannot leave.
  template <class Parse>
  Body InFunction(const Parse& parse) {
    const int outer = std::exchange(loop_depth_, 0);
    Body body = parse();
    loop_depth_ = outer;
    return body;
  }

  StatementPtr ParseSet(int line) {
    ExpressionPtr target = ParseTarget({}, true);
    if (SkipOperator("=")) {
      StatementPtr node = MakeStatement(StatementKind::kSet, line);
      node->target = std::move(target);
      node->expressions.push_back(ParseTuple(true, {}, false));
      return node;
    }
    StatementPtr node = MakeStatement(StatementKind::kSetBlock, line);
    node->target = std::move(target);
    node->expressions.push_back(IsOperator("|") ? ParseFilter(nullptr) : nullptr);
    node->bodies.push_back(ParseBlock({"endset"}));
    return node;
  }

  StatementPtr ParseIf(int line) {
    StatementPtr node = MakeStatement(StatementKind::kIf, line);
    std::string end = "elif";
    while (end == "elif") {
      node->expressions.push_back(ParseTuple(false, {}, false));
      node->bodies.push_back(ParseBlock({"elif", "else", "endif"}, &end));
    }
    if (end == "else") node->bodies.push_back(ParseBlock({"endif"}));
    return node;
  }

  StatementPtr ParseFor(int line) {
    StatementPtr node = MakeStatement(StatementKind::kFor, line);
    const size_t target_start = pos_;
    node->target = ParseTarget({"in"}, false);
    ExpectName("in");
    node->expressions.push_back(ParseTuple(false, {"recursive"}, false));
    if (SkipName("if")) {
      node->test = ParseExpression();
      // The filter of a loop has a frame of its own, and so a target of its own.
      const size_t after = std::exchange(pos_, target_start);
      node->test_target = ParseTarget({"in"}, false);
      pos_ = after;
      node->test_function = std::make_unique<Function>();
    }
    node->recursive = SkipName("recursive");
    if (node->recursive) node->function = std::make_unique<Function>();
    std::string end;
    const int outer = node->recursive ? std::exchange(loop_depth_, 0) : loop_depth_;
    ++loop_depth_;
    node->bodies.push_back(ParseBlock({"endfor", "else"}, &end));
    --loop_depth_;
    if (end == "else") node->bodies.push_back(ParseBlock({"endfor"}));
    loop_depth_ = outer;
    return node;
  }

  void ParseSignature(Function& function) {
    ExpectOperator("(");
    while (!IsOperator(")")) {
      if (!function.parameters.empty()) ExpectOperator(",");
      const int line = Current().line;
      std::string name = ExpectAnyName();
      CheckAssignable(name, line);
      if (std::find(function.parameters.begin(), function.parameters.end(), name) !=
          function.parameters.end()) {
        FailAt(line, "the parameter '" + name + "' is declared twice");
      }
      if (SkipOperator("=")) {
        function.defaults.push_back(ParseExpression());
      } else if (!function.defaults.empty()) {
        FailAt(line, "a parameter without a default follows one that has a default");
      }
      function.parameters.push_back(std::move(name));
    }
    ExpectOperator(")");
  }

  StatementPtr ParseMacro(int line) {
    StatementPtr node = MakeStatement(StatementKind::kMacro, line);
    node->function = std::make_unique<Function>();
    node->target = Make(ExpressionKind::kName, line);
    node->target->text = ExpectAnyName();
    CheckAssignable(node->target->text, line);
    node->function->name = node->target->text;
    ParseSignature(*node->function);
    node->function->body = InFunction([&] { return ParseBlock({"endmacro"}); });
    return node;
  }

  StatementPtr ParseCallBlock(int line) {
    StatementPtr node = MakeStatement(StatementKind::kCallBlock, line);
    node->function = std::make_unique<Function>();
    node->function->name = "caller";
    if (IsOperator("(")) ParseSignature(*node->function);
    node->expressions.push_back(ParseExpression());
    if (node->expressions[0]->kind != ExpressionKind::kCall) FailAt(line, "expected a call");
    node->function->body = InFunction([&] { return ParseBlock({"endcall"}); });
    return node;
  }

  StatementPtr ParseFilterBlock(int line) {
    StatementPtr node = MakeStatement(StatementKind::kFilter, line);
    node->expressions.push_back(ParseFilter(nullptr, true));
    node->bodies.push_back(ParseBlock({"endfilter"}));
    return node;
  }

  StatementPtr ParseWith(int line) {
    StatementPtr node = MakeStatement(StatementKind::kWith, line);
    while (!Is(TokenKind::kBlockEnd)) {
      if (!node->targets.empty()) ExpectOperator(",");
      node->targets.push_back(ParseTarget({}, false));
      ExpectOperator("=");
      node->expressions.push_back(ParseExpression());
    }
    node->bodies.push_back(ParseBlock({"endwith"}));
    return node;
  }

  StatementPtr ParsePrint(int line) {
    StatementPtr node = MakeStatement(StatementKind::kPrint, line);
    while (!Is(TokenKind::kBlockEnd)) {
      if (!node->expressions.empty()) ExpectOperator(",");
      node->expressions.push_back(ParseExpression());
    }
    return node;
  }

  static void CheckAssignable(std::string_view name, int line) {
    for (std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) FailAt(line, "cannot assign to '" + std::string(name) + "'");
    }
  }

  // An assignment target: names, tuples of them, and (where allowed) attributes of namespaces.
  ExpressionPtr ParseTarget(Names ends, bool with_namespace) {
    const int line = Current().line;
    std::vector<ExpressionPtr> parts;
    bool is_tuple = false;
    while (true) {
      if (!parts.empty()) ExpectOperator(",");
      if (IsTupleEnd(ends)) break;
      parts.push_back(ParseTargetPart(with_namespace));
      if (!IsOperator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && parts.size() == 1) return std::move(parts[0]);
    if (parts.empty()) Expected("the name of a variable");
    ExpressionPtr tuple = Make(ExpressionKind::kTuple, line);
    for (ExpressionPtr& part : parts) AddItem(*tuple, std::move(part));
    return tuple;
  }

  ExpressionPtr ParseTargetPart(bool with_namespace) {
    const Nesting nesting(&expression_nesting_, kMaxExpressionNesting, Current().line);
    const int line = Current().line;
    if (SkipOperator("(")) {
      ExpressionPtr inner = ParseTarget({}, with_namespace);
      ExpectOperator(")");
      return inner;
    }
    if (!Is(TokenKind::kName)) Expected("the name of a variable");
    const std::string name = Next().text;
    if (with_namespace && SkipOperator(".")) {
      ExpressionPtr node = Make(ExpressionKind::kNamespaceRef, line);
      node->text = name;
      node->attribute = ExpectAnyName();
      return node;
    }
    CheckAssignable(name, line);
    ExpressionPtr node = Make(ExpressionKind::kName, line);
    node->text = name;
    return node;
  }

  // ---- expressions ----

  bool IsTupleEnd(Names ends) const {
    return Is(TokenKind::kVariableEnd) || Is(TokenKind::kBlockEnd) || IsOperator(")") ||
           IsAnyName(ends);
  }

  // One expression, or several with commas between them as a tuple.
  ExpressionPtr ParseTuple(bool conditional, Names ends, bool parenthesized) {
    const int line = Current().line;
    std::vector<ExpressionPtr> parts;
    bool is_tuple = false;
    while (true) {
      if (!parts.empty()) ExpectOperator(",");
      if (IsTupleEnd(ends)) break;
      parts.push_back(conditional ? ParseExpression() : ParseOr());
      if (!IsOperator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !parts.empty()) return std::move(parts[0]);
    if (!is_tuple && !parenthesized) Expected("an expression");
    ExpressionPtr tuple = Make(ExpressionKind::kTuple, line);
    for (ExpressionPtr& part : parts) AddItem(*tuple, std::move(part));
    return tuple;
  }

  ExpressionPtr ParseExpression() {
    const Nesting nesting(&expression_nesting_, kMaxExpressionNesting, Current().line);
    const int line = Current().line;
    ExpressionPtr value = ParseOr();
    while (SkipName("if")) {
      ExpressionPtr test = ParseOr();
      ExpressionPtr otherwise = SkipName("else") ? ParseExpression() : nullptr;
      value = MakeWith(ExpressionKind::kConditional, line, std::move(test), std::move(value),
                       std::move(otherwise));
    }
    return value;
  }

  ExpressionPtr ParseOr() {
    const int line = Current().line;
    ExpressionPtr left = ParseAnd();
    while (SkipName("or")) {
      left = MakeWith(ExpressionKind::kOr, line, std::move(left), ParseAnd());
    }
    return left;
  }

  ExpressionPtr ParseAnd() {
    const int line = Current().line;
    ExpressionPtr left = ParseNot();
    while (SkipName("and")) {
      left = MakeWith(ExpressionKind::kAnd, line, std::move(left), ParseNot());
    }
    return left;
  }

  ExpressionPtr ParseNot() {
    const Nesting nesting(&expression_nesting_, kMaxExpressionNesting, Current().line);
    const int line = Current().line;
    if (SkipName("not")) return MakeWith(ExpressionKind::kNot, line, ParseNot());
    return ParseComparison();
  }

  bool ReadComparison(Comparison* out) {
    struct Symbol {
      std::string_view text;
      Comparison comparison;
    };
    constexpr Symbol kSymbols[] = {{"==", Comparison::kEq}, {"!=", Comparison::kNe},
                                   {"<", Comparison::kLt},  {"<=", Comparison::kLe},
                                   {">", Comparison::kGt},  {">=", Comparison::kGe}};
    for (const Symbol& symbol : kSymbols) {
      if (SkipOperator(symbol.text)) {
        *out = symbol.comparison;
        return true;
      }
    }
    if (SkipName("in")) {
      *out = Comparison::kIn;
      return true;
    }
    if (IsName("not") && Ahead().kind == TokenKind::kName && Ahead().text == "in") {
      Next();
      Next();
      *out = Comparison::kNotIn;
      return true;
    }
    return false;
  }

  ExpressionPtr ParseComparison() {
    const int line = Current().line;
    ExpressionPtr left = ParseSum();
    Comparison comparison{};
    if (!ReadComparison(&comparison)) return left;
    ExpressionPtr node = MakeWith(ExpressionKind::kCompare, line, std::move(left));
    do {
      node->comparisons.push_back(comparison);
      AddItem(*node, ParseSum());
    } while (ReadComparison(&comparison));
    return node;
  }

  ExpressionPtr MakeBinary(BinaryOp op, int line, ExpressionPtr left, ExpressionPtr right) {
    ExpressionPtr node = MakeWith(ExpressionKind::kBinary, line, std::move(left), std::move(right));
    node->op = op;
    return node;
  }

  ExpressionPtr ParseSum() {
    const int line = Current().line;
    ExpressionPtr left = ParseConcat();
    while (IsOperator("+") || IsOperator("-")) {
      const BinaryOp op = Next().text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
      left = MakeBinary(op, line, std::move(left), ParseConcat());
    }
    return left;
  }

  ExpressionPtr ParseConcat() {
    const int line = Current().line;
    ExpressionPtr first = ParseProduct();
    if (!IsOperator("~")) return first;
    ExpressionPtr node = MakeWith(ExpressionKind::kConcat, line, std::move(first));
    while (SkipOperator("~")) AddItem(*node, ParseProduct());
    return node;
  }

  ExpressionPtr ParseProduct() {
    const int line = Current().line;
    ExpressionPtr left = ParsePower();
    while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
      const std::string symbol = Next().text;
      const BinaryOp op = symbol == "*"   ? BinaryOp::kMul
                          : symbol == "/" ? BinaryOp::kDiv
                          : symbol == "%" ? BinaryOp::kMod
                                          : BinaryOp::kFloorDiv;
      left = MakeBinary(op, line, std::move(left), ParsePower());
    }
    return left;
  }

  ExpressionPtr ParsePower() {
    const int line = Current().line;
    ExpressionPtr left = ParseUnary(true);
    while (SkipOperator("**")) {
      left = MakeBinary(BinaryOp::kPow, line, std::move(left), ParseUnary(true));
    }
    return left;
  }

  ExpressionPtr ParseUnary(bool with_filter) {
    const Nesting nesting(&expression_nesting_, kMaxExpressionNesting, Current().line);
    const int line = Current().line;
    ExpressionPtr node;
    if (SkipOperator("-")) {
      node = MakeWith(ExpressionKind::kNegate, line, ParseUnary(false));
    } else if (SkipOperator("+")) {
      node = MakeWith(ExpressionKind::kPositive, line, ParseUnary(false));
    } else {
      node = ParsePrimary();
    }
    node = ParsePostfix(std::move(node));
    return with_filter ? ParseFiltersAndTests(std::move(node)) : std::move(node);
  }

  ExpressionPtr ParsePrimary() {
    const Token token = Current();
    switch (token.kind) {
      case TokenKind::kName: {
        Next();
        const std::string& name = token.text;
        if (name == "true" || name == "True" || name == "false" || name == "False") {
          ExpressionPtr node = Make(ExpressionKind::kBool, token.line);
          node->integer = name == "true" || name == "True" ? 1 : 0;
          return node;
        }
        if (name == "none" || name == "None") return Make(ExpressionKind::kNone, token.line);
        ExpressionPtr node = Make(ExpressionKind::kName, token.line);
        node->text = name;
        return node;
      }
      case TokenKind::kString: {
        std::string text;
        while (Is(TokenKind::kString)) text += Next().text;
        return MakeString(std::move(text), token.line);
      }
      case TokenKind::kInteger: {
        Next();
        ExpressionPtr node = Make(ExpressionKind::kInt, token.line);
        node->integer = token.integer;
        return node;
      }
      case TokenKind::kFloat: {
        Next();
        ExpressionPtr node = Make(ExpressionKind::kFloat, token.line);
        node->real = token.real;
        return node;
      }
      default:
        break;
    }
    if (SkipOperator("(")) {
      ExpressionPtr node = ParseTuple(true, {}, true);
      ExpectOperator(")");
      return node;
    }
    if (SkipOperator("[")) {
      ExpressionPtr node = Make(ExpressionKind::kList, token.line);
      while (!IsOperator("]")) {
        if (!node->items.empty()) ExpectOperator(",");
        if (IsOperator("]")) break;
        AddItem(*node, ParseExpression());
      }
      ExpectOperator("]");
      return node;
    }
    if (SkipOperator("{")) {
      ExpressionPtr node = Make(ExpressionKind::kDict, token.line);
      while (!IsOperator("}")) {
        if (!node->items.empty()) ExpectOperator(",");
        if (IsOperator("}")) break;
        AddItem(*node, ParseExpression());
        ExpectOperator(":");
        AddItem(*node, ParseExpression());
      }
      ExpectOperator("}");
      return node;
    }
    Expected("an expression");
  }

  ExpressionPtr ParsePostfix(ExpressionPtr node) {
    while (true) {
      if (IsOperator(".") || IsOperator("[")) {
        node = ParseSubscript(std::move(node));
      } else if (IsOperator("(")) {
        node = ParseCall(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExpressionPtr ParseFiltersAndTests(ExpressionPtr node) {
    while (true) {
      if (IsOperator("|")) {
        node = ParseFilter(std::move(node));
      } else if (IsName("is")) {
        node = ParseTest(std::move(node));
      } else if (IsOperator("(")) {
        node = ParseCall(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExpressionPtr ParseSubscript(ExpressionPtr object) {
    const Token token = Next();
    if (token.text == ".") {
      const Token name = Next();
      if (name.kind == TokenKind::kName) {
        ExpressionPtr node = MakeWith(ExpressionKind::kAttribute, token.line, std::move(object));
        node->text = name.text;
        return node;
      }
      if (name.kind != TokenKind::kInteger) {
        FailAt(name.line, "expected a name or a number after '.', got " + DescribeToken(name));
      }
      ExpressionPtr index = Make(ExpressionKind::kInt, name.line);
      index->integer = name.integer;
      return MakeWith(ExpressionKind::kItem, token.line, std::move(object), std::move(index));
    }
    ExpressionPtr node;
    if (IsOperator("]")) Expected("an index");
    ExpressionPtr first = IsOperator(":") ? nullptr : ParseExpression();
    if (IsOperator(":")) {
      node = ParseSlice(token.line, std::move(object), std::move(first));
    } else if (IsOperator(",")) {
      ExpressionPtr tuple = MakeWith(ExpressionKind::kTuple, token.line, std::move(first));
      while (SkipOperator(",")) AddItem(*tuple, ParseExpression());
      node = MakeWith(ExpressionKind::kItem, token.line, std::move(object), std::move(tuple));
    } else {
      node = MakeWith(ExpressionKind::kItem, token.line, std::move(object), std::move(first));
    }
    ExpectOperator("]");
    return node;
  }

  ExpressionPtr ParseSlice(int line, ExpressionPtr object, ExpressionPtr start) {
    ExpectOperator(":");
    ExpressionPtr stop;
    ExpressionPtr step;
    if (!IsOperator(":") && !IsOperator("]")) stop = ParseExpression();
    if (SkipOperator(":") && !IsOperator("]")) step = ParseExpression();
    return MakeWith(ExpressionKind::kSlice, line, std::move(object), std::move(start),
                    std::move(stop), std::move(step));
  }

  void ParseArguments(Expression& node) {
    node.call = std::make_unique<CallSyntax>();
    CallSyntax& call = *node.call;
    const int line = Current().line;
    ExpectOperator("(");
    const auto ensure = [line](bool valid) {
      if (!valid) FailAt(line, "the arguments of a call are in an order that is not allowed");
    };
    bool first = true;
    while (!IsOperator(")")) {
      if (!first) {
        ExpectOperator(",");
        if (IsOperator(")")) break;
      }
      first = false;
      if (SkipOperator("*")) {
        ensure(call.star == nullptr && call.double_star == nullptr);
        call.star = ParseExpression();
        Adopt(node, call.star.get());
      } else if (SkipOperator("**")) {
        ensure(call.double_star == nullptr);
        call.double_star = ParseExpression();
        Adopt(node, call.double_star.get());
      } else if (Is(TokenKind::kName) && Ahead().kind == TokenKind::kOperator &&
                 Ahead().text == "=") {
        ensure(call.double_star == nullptr);
        std::string name = Next().text;
        Next();
        for (const auto& [other, unused] : call.named) {
          if (other == name) FailAt(line, "the keyword argument '" + name + "' is repeated");
        }
        call.named.emplace_back(std::move(name), ParseExpression());
        Adopt(node, call.named.back().second.get());
      } else {
        ensure(call.star == nullptr && call.double_star == nullptr && call.named.empty());
        call.positional.push_back(ParseExpression());
        Adopt(node, call.positional.back().get());
      }
    }
    ExpectOperator(")");
  }

  ExpressionPtr ParseCall(ExpressionPtr callee) {
    ExpressionPtr node = MakeWith(ExpressionKind::kCall, Current().line, std::move(callee));
    ParseArguments(*node);
    return node;
  }

  std::string ParseDottedName() {
    std::string name = ExpectAnyName();
    while (SkipOperator(".")) name += "." + ExpectAnyName();
    return name;
  }

  // One or more filters; `inline_start` when the '|' of the first was left out (filter blocks).
  ExpressionPtr ParseFilter(ExpressionPtr node, bool inline_start = false) {
    while (inline_start || IsOperator("|")) {
      if (!inline_start) Next();
      inline_start = false;
      ExpressionPtr filter = MakeWith(ExpressionKind::kFilter, Current().line, std::move(node));
      filter->text = ParseDottedName();
      filter->builtin = FindFilter(filter->text);
      if (IsOperator("(")) {
        ParseArguments(*filter);
      } else {
        filter->call = std::make_unique<CallSyntax>();
      }
      node = std::move(filter);
    }
    return node;
  }

  ExpressionPtr ParseTest(ExpressionPtr subject) {
    const int line = Next().line;
    const bool negated = SkipName("not");
    ExpressionPtr node = MakeWith(ExpressionKind::kTest, line, std::move(subject));
    node->text = ParseDottedName();
    node->builtin = FindTest(node->text);
    const bool argument_follows = Is(TokenKind::kName) || Is(TokenKind::kString) ||
                                  Is(TokenKind::kInteger) || Is(TokenKind::kFloat) ||
                                  IsOperator("[") || IsOperator("{");
    if (IsOperator("(")) {
      ParseArguments(*node);
    } else {
      node->call = std::make_unique<CallSyntax>();
      if (argument_follows && !IsAnyName({"else", "or", "and"})) {
        if (IsName("is")) FailAt(Current().line, "tests cannot be chained with 'is'");
        node->call->positional.push_back(ParsePostfix(ParsePrimary()));
        Adopt(*node, node->call->positional.back().get());
      }
    }
    return negated ? MakeWith(ExpressionKind::kNot, line, std::move(node)) : std::move(node);
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int statement_depth_ = 0;
  int expression_nesting_ = 0;
  int loop_depth_ = 0;
  int constant_count_ = 0;
};

}  // namespace

Program ParseTemplate(std::string_view source) { return Parser(Tokenize(source)).Run(); }

}  // namespace sluice::jinja
