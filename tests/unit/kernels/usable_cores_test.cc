#include "kernels/cpu/usable_cores.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/support/catch.h"

namespace sluice::cpu {
namespace {

class FakeMount {
 public:
  FakeMount() {
    std::string name = (std::filesystem::temp_directory_path() / "sluice-cgroup-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    root_ = name;
  }
  ~FakeMount() { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string path() const { return root_.string(); }

 private:
  std::filesystem::path root_;
};

TEST_CASE("A quota keeps its whole cores busy and never less than one", "[kernels][threads]") {
  CHECK(CoresFromQuota(200000, 100000) == 2);
  CHECK(CoresFromQuota(250000, 100000) == 2);
  CHECK(CoresFromQuota(50000, 100000) == 1);
  CHECK(CoresFromQuota(-1, 100000) == 0);
  CHECK(CoresFromQuota(100000, 0) == 0);
}

TEST_CASE("The tightest cgroup version 2 limit on the way up binds", "[kernels][threads]") {
  FakeMount mount;
  const std::string self = "0::/system.slice/sluice.service\n";
  CHECK(CoresFromCgroup(self, mount.path()) == 0);
  mount.Write("cpu.max", "800000 100000\n");
  CHECK(CoresFromCgroup(self, mount.path()) == 8);
  mount.Write("system.slice/cpu.max", "300000 100000\n");
  mount.Write("system.slice/sluice.service/cpu.max", "max 100000\n");
  CHECK(CoresFromCgroup(self, mount.path()) == 3);
  mount.Write("system.slice/sluice.service/cpu.max", "150000 100000\n");
  CHECK(CoresFromCgroup(self, mount.path()) == 1);
  CHECK(CoresFromCgroup("0::/\n", mount.path()) == 8);
}

TEST_CASE("Cgroup version 1 limits are found under the cpu controller", "[kernels][threads]") {
  FakeMount mount;
  const std::string self = "5:memory:/app\n4:cpu,cpuacct:/app\n1:name=systemd:/app\n0::/app\n";
  mount.Write("cpu,cpuacct/app/cpu.cfs_quota_us", "400000\n");
  mount.Write("cpu,cpuacct/app/cpu.cfs_period_us", "100000\n");
  mount.Write("memory/app/cpu.cfs_quota_us", "100000\n");
  mount.Write("memory/app/cpu.cfs_period_us", "100000\n");
  CHECK(CoresFromCgroup(self, mount.path()) == 4);
  mount.Write("cpu,cpuacct/app/cpu.cfs_quota_us", "-1\n");
  CHECK(CoresFromCgroup(self, mount.path()) == 0);
}

TEST_CASE("Nonsense in cgroup files sets no limit", "[kernels][threads]") {
  FakeMount mount;
  mount.Write("cpu.max", "garbage");
  CHECK(CoresFromCgroup("0::/a/b\n", mount.path()) == 0);
  CHECK(CoresFromCgroup("", mount.path()) == 0);
  CHECK(CoresFromCgroup("no colons\n:\n::\n0::no-slash", mount.path()) == 0);
}

}  // namespace
}  // namespace sluice::cpu
