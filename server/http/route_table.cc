#include "server/http/route_table.h"

#include <charconv>

namespace sluice {
namespace {

// Whether `pattern` matches, and what its "*" stands for.
bool Matches(std::string_view pattern, std::string_view path, std::string_view* rest) {
  *rest = {};
  if (!pattern.ends_with("/*")) return pattern == path;
  pattern.remove_suffix(1);
  if (path.size() <= pattern.size() || !path.starts_with(pattern)) return false;
  *rest = path.substr(pattern.size());
  return true;
}

}  // namespace

void RouteTable::Add(std::string method, std::string pattern, Handler handler) {
  routes_.push_back({std::move(method), std::move(pattern), std::move(handler)});
}

RouteTable::Match RouteTable::Find(std::string_view method, std::string_view path) const {
  Match match;
  bool exact = false;
  for (const Route& route : routes_) {
    std::string_view rest;
    if (!Matches(route.pattern, path, &rest)) continue;
    if (route.pattern == path && !exact) {
      match = {};
      exact = true;
    } else if (exact && route.pattern != path) {
      continue;
    }
    match.pattern = route.pattern;
    match.rest = rest;
    match.allow += (match.allow.empty() ? "" : ", ") + route.method;
    const bool head = route.method == "GET" && method == "HEAD";
    if (route.method == "GET") match.allow += ", HEAD";
    if (route.method == method || head) match.handler = &route.handler;
  }
  if (!match.allow.empty()) match.allow += ", OPTIONS";
  return match;
}

bool PercentDecode(std::string_view text, std::string* out) {
  out->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return false;
      unsigned value = 0;
      const auto [end, status] = std::from_chars(&text[i + 1], &text[i + 1] + 2, value, 16);
      if (status != std::errc() || end != &text[i + 1] + 2) return false;
      c = static_cast<char>(value);
      i += 2;
    }
    if (c == '\0') return false;
    *out += c;
  }
  return true;
}

}  // namespace sluice
