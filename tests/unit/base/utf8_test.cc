#include "engine/base/utf8.h"

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/catch.h"

namespace sluice {
namespace {

const std::string kR(kReplacementUtf8);

}  // namespace

TEST_CASE("UTF-8 is valid without overlong forms, surrogates and what lies past U+10FFFF",
          "[base]") {
  for (const char* good :
       {"", "abc", "\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF0\x90\x80\x80",
        "\xF4\x8F\xBF\xBF", "a longer ASCII text, then \xC3\xA9"}) {
    CHECK(IsValidUtf8(good));
    CHECK(ReplaceInvalidUtf8(good) == good);
  }
  CHECK(IsValidUtf8(std::string_view("\0a", 2)));
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xC2", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "12345678\xE2\x82"}) {
    CHECK(!IsValidUtf8(bad));
    CHECK(IsValidUtf8(ReplaceInvalidUtf8(bad)));
  }
}

TEST_CASE("Each maximal piece of an ill-formed sequence becomes one replacement character",
          "[base]") {
  // Table 3-8 and its neighbours in the Unicode standard, section 3.9.
  CHECK(ReplaceInvalidUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41") ==
        kR + kR + kR + kR + kR + kR + kR + kR + "A");
  CHECK(ReplaceInvalidUtf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41") ==
        kR + kR + kR + kR + kR + kR + kR + kR + "A");
  CHECK(ReplaceInvalidUtf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42") ==
        kR + kR + kR + kR + kR + "A" + kR + kR + "B");
  CHECK(ReplaceInvalidUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == kR + kR + kR + kR + "A");
  CHECK(ReplaceInvalidUtf8("a\xE4\xBD") == "a" + kR);
}

TEST_CASE("Repair in pieces gives what repair of the whole gives", "[base]") {
  const std::string bytes =
      "h\xC3\xA9\xE4\xBD\xA0\xFF\xF0\x9F\x98\x80\xF0\x9F\xED\xA0\x80z\xE2\x82";
  for (size_t piece = 1; piece <= 5; ++piece) {
    std::string out, held;
    for (size_t at = 0; at < bytes.size(); at += piece) {
      held += bytes.substr(at, piece);
      held.erase(0, AppendRepairedUtf8(held, &out));
      CHECK(held.size() <= 3);
      CHECK(held.size() == IncompleteUtf8Suffix(held));
      CHECK(IsValidUtf8(out));
    }
    if (!held.empty()) out += kR;
    CHECK(out == ReplaceInvalidUtf8(bytes));
  }
}

TEST_CASE("The unfinished character at the end is measured", "[base]") {
  CHECK(IncompleteUtf8Suffix("") == 0);
  CHECK(IncompleteUtf8Suffix("abc") == 0);
  CHECK(IncompleteUtf8Suffix("a\xC3") == 1);
  CHECK(IncompleteUtf8Suffix("a\xC3\xA9") == 0);
  CHECK(IncompleteUtf8Suffix("\xF0\x9F\x98") == 3);
  CHECK(IncompleteUtf8Suffix("\xF0\x9F\x98\x80") == 0);
  CHECK(IncompleteUtf8Suffix("\x80\x80\x80\x80") == 0);
  CHECK(IncompleteUtf8Suffix("\xED\xA0") == 0);
  CHECK(IncompleteUtf8Suffix("a\xFF") == 0);
}

TEST_CASE("Characters are walked, counted and written", "[base]") {
  const std::string text = "a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80";
  std::vector<char32_t> points;
  for (size_t i = 0; i < text.size();) points.push_back(NextCodePoint(text, &i));
  CHECK(points == std::vector<char32_t>{U'a', U'é', U'你', U'😀'});
  CHECK(CountCharacters(text) == 4);
  CHECK(PreviousCharacter(text, text.size()) == 6);
  CHECK(PreviousCharacter(text, 1) == 0);
  std::string written;
  for (const char32_t c : points) AppendUtf8(c, &written);
  CHECK(written == text);
}

}  // namespace sluice
