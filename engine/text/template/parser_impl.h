// The parser's class, shared by its two source files (parser.cc: statements; parse_expressions.cc).
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/template/ast.h"
#include "engine/text/template/lexer.h"
#include "engine/text/template/value.h"

namespace sluice::jinja {

// Nesting of statements, of expressions, and depth of an expression's tree ("a + b + c" is 3).
inline constexpr int kMaxStatementDepth = 60;
inline constexpr int kMaxExpressionNesting = 100;
inline constexpr int kMaxExpressionDepth = 250;

[[noreturn]] inline void FailAt(int line, std::string message) {
  throw RenderError{ErrorCode::kInvalidArgument, std::move(message), line};
}

// Recursive descent over a template's tokens. Errors are thrown as RenderError, with their line.
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

  // ---- statements (parser.cc) ----

  // Statements up to one of `ends` (whose name is the current token then), or to the end of the
  // template when there are no `ends`.
  Body ParseBody(Names ends);
  static std::string TagList(Names names);
  // The rest of an opening tag, its body, and the name of the end tag, which is skipped.
  Body ParseBlock(Names ends, std::string* end = nullptr);
  StatementPtr ParseStatement(Names ends);
  // Runs `parse` as the body of a function, which break and continue cannot leave.
  template <class Parse>
  Body InFunction(const Parse& parse);
  StatementPtr ParseSet(int line);
  StatementPtr ParseIf(int line);
  StatementPtr ParseFor(int line);
  void ParseSignature(Function& function);
  StatementPtr ParseMacro(int line);
  StatementPtr ParseCallBlock(int line);
  StatementPtr ParseFilterBlock(int line);
  StatementPtr ParseWith(int line);
  StatementPtr ParsePrint(int line);
  static void CheckAssignable(std::string_view name, int line);
  // An assignment target: names, tuples of them, and (where allowed) attributes of namespaces.
  ExpressionPtr ParseTarget(Names ends, bool with_namespace);
  ExpressionPtr ParseTargetPart(bool with_namespace);

  // ---- expressions (parse_expressions.cc) ----

  bool IsTupleEnd(Names ends) const;
  // One expression, or several with commas between them as a tuple.
  ExpressionPtr ParseTuple(bool conditional, Names ends, bool parenthesized);
  ExpressionPtr ParseExpression();
  ExpressionPtr ParseOr();
  ExpressionPtr ParseAnd();
  ExpressionPtr ParseNot();
  bool ReadComparison(Comparison* out);
  ExpressionPtr ParseComparison();
  ExpressionPtr MakeBinary(BinaryOp op, int line, ExpressionPtr left, ExpressionPtr right);
  ExpressionPtr ParseSum();
  ExpressionPtr ParseConcat();
  ExpressionPtr ParseProduct();
  ExpressionPtr ParsePower();
  ExpressionPtr ParseUnary(bool with_filter);
  ExpressionPtr ParsePrimary();
  ExpressionPtr ParsePostfix(ExpressionPtr node);
  ExpressionPtr ParseFiltersAndTests(ExpressionPtr node);
  ExpressionPtr ParseSubscript(ExpressionPtr object);
  ExpressionPtr ParseSlice(int line, ExpressionPtr object, ExpressionPtr start);
  void ParseArguments(Expression& node);
  ExpressionPtr ParseCall(ExpressionPtr callee);
  std::string ParseDottedName();
  // One or more filters; `inline_start` when the '|' of the first was left out (filter blocks).
  ExpressionPtr ParseFilter(ExpressionPtr node, bool inline_start = false);
  ExpressionPtr ParseTest(ExpressionPtr subject);

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int statement_depth_ = 0;
  int expression_nesting_ = 0;
  int loop_depth_ = 0;
  int constant_count_ = 0;
};

}  // namespace sluice::jinja
