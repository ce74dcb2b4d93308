#include "server/system/open_files.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>

namespace sluice {

int AllowOpenFiles(int wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const auto wish = static_cast<rlim_t>(wanted);
  if (limit.rlim_cur < wish) {
    rlimit raised = limit;
    raised.rlim_cur = std::min(wish, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return static_cast<int>(
      std::min<rlim_t>(limit.rlim_cur, static_cast<rlim_t>(std::numeric_limits<int>::max())));
}

}  // namespace sluice
