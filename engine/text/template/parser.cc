#include "engine/text/template/parser.h"

#include "engine/text/template/parser_impl.h"

namespace sluice::jinja {

Body Parser::ParseBody(Names ends) {
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

std::string Parser::TagList(Names names) {
  std::string out;
  for (std::string_view name : names) {
    if (!out.empty()) out += " or ";
    out += "'{% " + std::string(name) + " %}'";
  }
  return out;
}

Body Parser::ParseBlock(Names ends, std::string* end) {
  SkipOperator(":");
  ExpectKind(TokenKind::kBlockEnd, "'%}'");
  Body body = ParseBody(ends);
  std::string name = ExpectAnyName();
  if (end != nullptr) *end = std::move(name);
  return body;
}

StatementPtr Parser::ParseStatement(Names ends) {
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
    return MakeStatement(name == "break" ? StatementKind::kBreak : StatementKind::kContinue, line);
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

template <class Parse>
Body Parser::InFunction(const Parse& parse) {
  const int outer = std::exchange(loop_depth_, 0);
  Body body = parse();
  loop_depth_ = outer;
  return body;
}

StatementPtr Parser::ParseSet(int line) {
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

StatementPtr Parser::ParseIf(int line) {
  StatementPtr node = MakeStatement(StatementKind::kIf, line);
  std::string end = "elif";
  while (end == "elif") {
    node->expressions.push_back(ParseTuple(false, {}, false));
    node->bodies.push_back(ParseBlock({"elif", "else", "endif"}, &end));
  }
  if (end == "else") node->bodies.push_back(ParseBlock({"endif"}));
  return node;
}

StatementPtr Parser::ParseFor(int line) {
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

void Parser::ParseSignature(Function& function) {
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

StatementPtr Parser::ParseMacro(int line) {
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

StatementPtr Parser::ParseCallBlock(int line) {
  StatementPtr node = MakeStatement(StatementKind::kCallBlock, line);
  node->function = std::make_unique<Function>();
  node->function->name = "caller";
  if (IsOperator("(")) ParseSignature(*node->function);
  node->expressions.push_back(ParseExpression());
  if (node->expressions[0]->kind != ExpressionKind::kCall) FailAt(line, "expected a call");
  node->function->body = InFunction([&] { return ParseBlock({"endcall"}); });
  return node;
}

StatementPtr Parser::ParseFilterBlock(int line) {
  StatementPtr node = MakeStatement(StatementKind::kFilter, line);
  node->expressions.push_back(ParseFilter(nullptr, true));
  node->bodies.push_back(ParseBlock({"endfilter"}));
  return node;
}

StatementPtr Parser::ParseWith(int line) {
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

StatementPtr Parser::ParsePrint(int line) {
  StatementPtr node = MakeStatement(StatementKind::kPrint, line);
  while (!Is(TokenKind::kBlockEnd)) {
    if (!node->expressions.empty()) ExpectOperator(",");
    node->expressions.push_back(ParseExpression());
  }
  return node;
}

void Parser::CheckAssignable(std::string_view name, int line) {
  for (std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
    if (name == constant) FailAt(line, "cannot assign to '" + std::string(name) + "'");
  }
}

ExpressionPtr Parser::ParseTarget(Names ends, bool with_namespace) {
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

ExpressionPtr Parser::ParseTargetPart(bool with_namespace) {
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

Program ParseTemplate(std::string_view source) { return Parser(Tokenize(source)).Run(); }

}  // namespace sluice::jinja
