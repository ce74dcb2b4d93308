// How many files and sockets this process may have open.
#pragma once

namespace sluice {

// Raises the soft limit (RLIMIT_NOFILE) to `wanted` as far as the hard limit allows; never lowers
// it. Returns what holds now.
int AllowOpenFiles(int wanted);

}  // namespace sluice
