// The parts under the tokenizer that have rules of their own: patterns, the byte alphabet,
// normal forms, the word cache.
#include <string>
#include <vector>

#include "engine/base/utf8.h"
#include "engine/text/byte_level.h"
#include "engine/text/regex.h"
#include "engine/text/regex_syntax.h"
#include "engine/text/unicode.h"
#include "engine/text/word_cache.h"
#include "tests/support/catch.h"

namespace sluice::text {
namespace {

// The matches of `pattern` in `text`, as strings.
std::vector<std::string> Matches(const std::string& pattern, const std::string& text) {
  const Result<Regex> regex = Regex::Compile(pattern);
  if (!regex) FAIL(pattern << ": " << regex.error().message);
  RegexScratch scratch;
  std::vector<TextSpan> spans;
  CHECK(regex->FindAll(text, &scratch, &spans) == text.size());
  std::vector<std::string> found;
  for (const TextSpan& span : spans)
    found.push_back(text.substr(span.begin, span.end - span.begin));
  return found;
}

using Found = std::vector<std::string>;

}  // namespace

TEST_CASE("Patterns are read as Oniguruma reads Ruby's", "[text]") {
  CHECK(Matches("a$", "a\na") == Found{"a", "a"});
  CHECK(Matches("^b", "b\nbb") == Found{"b", "b"});
  CHECK(Matches("a.b", "a\nb") == Found{});
  CHECK(Matches("(?m:a.b)", "a\nb") == Found{"a\nb"});
  CHECK(Matches("\\h+", "xyz1fG") == Found{"1f"});
  CHECK(Matches("\\d{1,3}+", "1234567") == Found{"1234567"});
  CHECK(Matches("x{2}?", "xxx") == Found{"xx", ""});
  CHECK(Matches("x{,2}", "xxx") == Found{"xx", "x"});
  CHECK(Matches("[a[bc]]+", "abcd") == Found{"abc"});
  CHECK(Matches("[]a]+", "a]b") == Found{"a]"});
  CHECK(Matches("[^(\\s|[.,])]+", "ab. c(d") == Found{"ab", "c", "d"});
  CHECK(Matches("[\\w-]+", "a-b c") == Found{"a-b", "c"});
  CHECK(Matches("[^\\S\\n]+", "a \n\tb") == Found{" ", "\t"});
  CHECK(Matches("(?i:'S|'ll)", "'s 'LL 'l") == Found{"'s", "'LL"});
  CHECK(Matches("\\u0041\\x42\\x{1F600}", "AB\xF0\x9F\x98\x80") == Found{"AB\xF0\x9F\x98\x80"});
  CHECK(Matches("a{b", "a{b") == Found{"a{b"});
  CHECK(Matches("", "ab") == Found{"", "", ""});
  CHECK(Matches("\\s+(?!\\S)|\\s+", "a   b ") == Found{"  ", " ", " "});
  CHECK(Matches("\\p{Letter}+|\\P{^N}", "ab1") == Found{"ab", "1"});
}

TEST_CASE("Classes hold what Oniguruma's hold", "[text]") {
  // U+180E is no space; U+0085 and U+3000 are. Superscript two is a word character, a joiner not.
  CHECK(Matches("\\s", "\xE1\xA0\x8E\xC2\x85\xE3\x80\x80") == Found{"\xC2\x85", "\xE3\x80\x80"});
  CHECK(Matches("[\\S]", "\xE1\xA0\x8E ") == Found{"\xE1\xA0\x8E"});
  CHECK(Matches("\\w+", "a\xC2\xB2_\xCC\x81\xE2\x80\x8D") == Found{"a\xC2\xB2_\xCC\x81"});
  // Unicode 15.1: a letter also where the library below is older.
  CHECK(Matches("\\p{L}", "\xF0\xAE\xAF\xB0") == Found{"\xF0\xAE\xAF\xB0"});
  CHECK(Matches("[^\\p{L}]", "\xF0\xAE\xAF\xB0") == Found{});
  CHECK(Matches("\\p{Han}", "\xE4\xB8\xAD\xE3\x80\x82") == Found{"\xE4\xB8\xAD"});
}

TEST_CASE("Patterns without a counterpart are refused", "[text]") {
  for (const char* pattern :
       {"[a-z&&[^b]]", "(?~a)", "(*LIMIT_MATCH=1)a", "a\\Kb", "(?x) a", "\\p{Alpha}", "[^a[^b]]",
        "[\\W]", "\\xFF", "\\g<1>", "(?<n>a", "[a", "a\\", "\\p{L", "("}) {
    INFO(pattern);
    CHECK(!Regex::Compile(pattern));
  }
  CHECK(!Regex::Compile(std::string(100'000, 'a')));
}

TEST_CASE("A literal matches just itself", "[text]") {
  const std::string literal = "a.(b)[c]\\{2}^$ #\n\xE2\x96\x81";
  const Result<Regex> regex = Regex::CompileLiteral(literal);
  REQUIRE(regex.has_value());
  RegexScratch scratch;
  std::vector<TextSpan> spans;
  regex->FindAll("x" + literal + literal, &scratch, &spans);
  CHECK(spans.size() == 2);
}

TEST_CASE("The byte alphabet goes there and back", "[text]") {
  std::string all, mapped, back;
  for (int b = 0; b < 256; ++b) all.push_back(static_cast<char>(b));
  AppendByteLevel(all, &mapped);
  CHECK(IsValidUtf8(mapped));
  CHECK(CountCharacters(mapped) == 256);
  AppendByteLevelDecoded(mapped, &back);
  CHECK(back == all);
  CHECK(ByteLevelCharacter(' ') == U'Ġ');
  CHECK(ByteLevelCharacter('\n') == U'Ċ');
  std::string foreign;
  AppendByteLevelDecoded("Ġa 中", &foreign);
  CHECK(foreign == "Ġa 中");
}

TEST_CASE("Normal forms are those of the standard", "[text]") {
  CHECK(Normalize("e\xCC\x81", NormalForm::kNfc) == "\xC3\xA9");
  CHECK(Normalize("\xC3\xA9", NormalForm::kNfd) == "e\xCC\x81");
  CHECK(Normalize("\xEF\xAC\x81", NormalForm::kNfkc) == "fi");
  CHECK(Normalize("a\xCC\x88\xCC\xA3", NormalForm::kNfd) == "a\xCC\xA3\xCC\x88");
  CHECK(Normalize("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", NormalForm::kNfc) == "\xED\x95\x9C");
  CHECK(Lowercase("\xC4\xB0\xCE\xA3") == "i\xCC\x87\xCF\x83");
}

TEST_CASE("A long run of unordered marks is sorted", "[text]") {
  std::string marks = "a", sorted = "a";
  for (int i = 0; i < 50'000; ++i) marks += "\xCC\x81\xCC\xA3";
  for (int i = 0; i < 50'000; ++i) sorted += "\xCC\xA3";
  for (int i = 0; i < 50'000; ++i) sorted += "\xCC\x81";
  CHECK(Normalize(marks, NormalForm::kNfd) == sorted);
}

TEST_CASE("The word cache returns what was put, and nothing else", "[text]") {
  const WordCache cache;
  std::vector<int32_t> ids;
  CHECK(!cache.Find("word", &ids));
  cache.Put("word", std::vector<int32_t>{3, 4});
  cache.Put("empty", {});
  cache.Put(std::string(WordCache::kMaxWordBytes + 1, 'x'), std::vector<int32_t>{1});
  cache.Put("many", std::vector<int32_t>(WordCache::kMaxIds + 1, 1));
  CHECK(cache.Find("word", &ids));
  CHECK(ids == std::vector<int32_t>{3, 4});
  CHECK(cache.Find("empty", &ids));
  CHECK(ids.size() == 2);
  CHECK(!cache.Find("wor", &ids));
  CHECK(!cache.Find("many", &ids));
  CHECK(!cache.Find(std::string(WordCache::kMaxWordBytes + 1, 'x'), &ids));
  // However many words come, what is found is right.
  for (int i = 0; i < 40'000; ++i) cache.Put(std::to_string(i), std::vector<int32_t>{i});
  int found = 0;
  for (int i = 0; i < 40'000; ++i) {
    ids.clear();
    if (!cache.Find(std::to_string(i), &ids)) continue;
    ++found;
    if (ids != std::vector<int32_t>{i}) FAIL("wrong ids for " << i);
  }
  CHECK(found > 1000);
}

}  // namespace sluice::text
