// Which handler serves a method and path. (A router is the MoE gate; this is not one.)
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/message.h"

namespace sluice {

class RouteTable {
 public:
  // `rest`: what the pattern's trailing "*" matched, or empty.
  using Handler =
      std::function<HttpReply(const HttpRequest& request, std::string_view rest, Waker waker)>;

  // `pattern` is a path, or a prefix ending in "/*" that matches any non-empty rest. Exact patterns
  // win over prefixes. GET serves HEAD too.
  void Add(std::string method, std::string pattern, Handler handler);

  struct Match {
    const Handler* handler = nullptr;  // null: see `allow`
    std::string_view pattern;          // of the table, for metrics; empty: no such path
    std::string_view rest;             // points into the path that was matched
    std::string allow;                 // methods of the path, for Allow; empty: no such path (404)
  };
  Match Find(std::string_view method, std::string_view path) const;

 private:
  struct Route {
    std::string method;
    std::string pattern;
    Handler handler;
  };
  std::vector<Route> routes_;
};

// Decodes %XX. False on a malformed escape or a NUL.
bool PercentDecode(std::string_view text, std::string* out);

}  // namespace sluice
