// Expressions, by falling precedence, and what follows them: subscripts, calls, filters and tests.
#include "engine/text/template/parser_impl.h"
#include "engine/text/template/registry.h"

namespace sluice::jinja {

bool Parser::IsTupleEnd(Names ends) const {
  return Is(TokenKind::kVariableEnd) || Is(TokenKind::kBlockEnd) || IsOperator(")") ||
         IsAnyName(ends);
}

ExpressionPtr Parser::ParseTuple(bool conditional, Names ends, bool parenthesized) {
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

ExpressionPtr Parser::ParseExpression() {
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

ExpressionPtr Parser::ParseOr() {
  const int line = Current().line;
  ExpressionPtr left = ParseAnd();
  while (SkipName("or")) {
    left = MakeWith(ExpressionKind::kOr, line, std::move(left), ParseAnd());
  }
  return left;
}

ExpressionPtr Parser::ParseAnd() {
  const int line = Current().line;
  ExpressionPtr left = ParseNot();
  while (SkipName("and")) {
    left = MakeWith(ExpressionKind::kAnd, line, std::move(left), ParseNot());
  }
  return left;
}

ExpressionPtr Parser::ParseNot() {
  const Nesting nesting(&expression_nesting_, kMaxExpressionNesting, Current().line);
  const int line = Current().line;
  if (SkipName("not")) return MakeWith(ExpressionKind::kNot, line, ParseNot());
  return ParseComparison();
}

bool Parser::ReadComparison(Comparison* out) {
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

ExpressionPtr Parser::ParseComparison() {
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

ExpressionPtr Parser::MakeBinary(BinaryOp op, int line, ExpressionPtr left, ExpressionPtr right) {
  ExpressionPtr node = MakeWith(ExpressionKind::kBinary, line, std::move(left), std::move(right));
  node->op = op;
  return node;
}

ExpressionPtr Parser::ParseSum() {
  const int line = Current().line;
  ExpressionPtr left = ParseConcat();
  while (IsOperator("+") || IsOperator("-")) {
    const BinaryOp op = Next().text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
    left = MakeBinary(op, line, std::move(left), ParseConcat());
  }
  return left;
}

ExpressionPtr Parser::ParseConcat() {
  const int line = Current().line;
  ExpressionPtr first = ParseProduct();
  if (!IsOperator("~")) return first;
  ExpressionPtr node = MakeWith(ExpressionKind::kConcat, line, std::move(first));
  while (SkipOperator("~")) AddItem(*node, ParseProduct());
  return node;
}

ExpressionPtr Parser::ParseProduct() {
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

ExpressionPtr Parser::ParsePower() {
  const int line = Current().line;
  ExpressionPtr left = ParseUnary(true);
  while (SkipOperator("**")) {
    left = MakeBinary(BinaryOp::kPow, line, std::move(left), ParseUnary(true));
  }
  return left;
}

ExpressionPtr Parser::ParseUnary(bool with_filter) {
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

ExpressionPtr Parser::ParsePrimary() {
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

ExpressionPtr Parser::ParsePostfix(ExpressionPtr node) {
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

ExpressionPtr Parser::ParseFiltersAndTests(ExpressionPtr node) {
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

ExpressionPtr Parser::ParseSubscript(ExpressionPtr object) {
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

ExpressionPtr Parser::ParseSlice(int line, ExpressionPtr object, ExpressionPtr start) {
  ExpectOperator(":");
  ExpressionPtr stop;
  ExpressionPtr step;
  if (!IsOperator(":") && !IsOperator("]")) stop = ParseExpression();
  if (SkipOperator(":") && !IsOperator("]")) step = ParseExpression();
  return MakeWith(ExpressionKind::kSlice, line, std::move(object), std::move(start),
                  std::move(stop), std::move(step));
}

void Parser::ParseArguments(Expression& node) {
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

ExpressionPtr Parser::ParseCall(ExpressionPtr callee) {
  ExpressionPtr node = MakeWith(ExpressionKind::kCall, Current().line, std::move(callee));
  ParseArguments(*node);
  return node;
}

std::string Parser::ParseDottedName() {
  std::string name = ExpectAnyName();
  while (SkipOperator(".")) name += "." + ExpectAnyName();
  return name;
}

ExpressionPtr Parser::ParseFilter(ExpressionPtr node, bool inline_start) {
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

ExpressionPtr Parser::ParseTest(ExpressionPtr subject) {
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

}  // namespace sluice::jinja
