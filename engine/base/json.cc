#include "engine/base/json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace sluice {
namespace {

// Builds the document from parser events, so that a limit stops the parse where it is crossed:
// memory never exceeds what the limits allow, whatever the text claims.
class BoundedBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit BoundedBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }
  bool start_object(size_t) override { return Enter(nlohmann::json::object()); }
  bool start_array(size_t) override { return Enter(nlohmann::json::array()); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool key(string_t& value) override {
    if (!Count()) return false;
    auto [slot, inserted] = open_.back()->emplace(value, nullptr);
    if (!inserted) return Fail("the key \"" + Shorten(value) + "\" appears twice in one object");
    member_ = &*slot;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // The library's text after its "[json.exception...] parse error ... : " prefix says what it
    // expected; the byte position is given on its own.
    std::string_view text = error.what();
    if (const size_t colon = text.find(": "); colon != text.npos) text.remove_prefix(colon + 2);
    error_ = "not valid JSON at byte " + std::to_string(position) + ": " + Printable(text);
    return false;
  }

  nlohmann::json root_;
  std::string error_;

 private:
  bool Fail(std::string message) {
    error_ = std::move(message);
    return false;
  }

  bool Count() {
    if (++values_ <= limits_.max_values) return true;
    return Fail("more than " + std::to_string(limits_.max_values) + " JSON values");
  }

  template <class T>
  nlohmann::json* Add(T&& value) {
    if (!Count()) return nullptr;
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::forward<T>(value));
      return &open_.back()->back();
    }
    *member_ = std::forward<T>(value);
    return member_;
  }

  bool Enter(nlohmann::json container) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      return Fail("JSON nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    }
    nlohmann::json* added = Add(std::move(container));
    if (added == nullptr) return false;
    open_.push_back(added);
    return true;
  }

  bool Leave() {
    open_.pop_back();
    return true;
  }

  // Errors travel to logs and terminals: ASCII only, whatever the file holds.
  static std::string Printable(std::string_view text) {
    std::string result;
    for (const char c : text.substr(0, 200)) result += c >= 0x20 && c < 0x7f ? c : '?';
    return result;
  }

  static std::string Shorten(std::string_view text) { return Printable(text.substr(0, 80)); }

  const JsonLimits& limits_;
  size_t values_ = 0;
  // Open containers, outermost first. A container's address is stable while it is open: its parent
  // gains no element before it is closed.
  std::vector<nlohmann::json*> open_;
  nlohmann::json* member_ = nullptr;  // value slot of the last key
};

}  // namespace

Result<nlohmann::json> ParseJson(std::string_view text, std::string_view what,
                                 const JsonLimits& limits) {
  const std::string name(what);
  if (text.size() > limits.max_bytes) {
    return Corrupt(name + ": " + std::to_string(text.size()) + " bytes of JSON; at most " +
                   std::to_string(limits.max_bytes) + " are accepted");
  }
  BoundedBuilder builder(limits);
  if (!nlohmann::json::sax_parse(text, &builder)) return Corrupt(name + ": " + builder.error_);
  return Result<nlohmann::json>(boost::system::in_place_value, std::move(builder.root_));
}

}  // namespace sluice
