#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "server/config/api_keys.h"
#include "server/config/load.h"
#include "server/config/memory.h"
#include "tests/support/catch.h"

using namespace sluice;

namespace {

std::string ErrorOf(std::string_view toml) {
  const auto config = LoadConfigText(toml, "t.toml", {});
  return config ? "" : config.error().message;
}

bool Contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("Every setting has one name, one flag and one default", "[config]") {
  Config config;
  std::vector<std::string> names, flags;
  for (const Setting& setting : Settings()) {
    CAPTURE(setting.name());
    CHECK(FindSetting(setting.name()) == &setting);
    CHECK(std::count(names.begin(), names.end(), setting.name()) == 0);
    CHECK(std::count(flags.begin(), flags.end(), setting.flag) == 0);
    CHECK(setting.flag.starts_with("--"));
    CHECK(!setting.help.empty());
    CHECK(!Expected(setting).empty());
    names.push_back(setting.name());
    flags.emplace_back(setting.flag);
  }
}

TEST_CASE("The command line goes before the file, the file before the defaults", "[config]") {
  const std::vector<CommandLineValue> flags = {{FindSetting("server.port"), "9000"},
                                               {FindSetting("metrics.compat"), "vllm,llamacpp"}};
  const auto config = LoadConfigText(
      "[server]\nport = 8000\nhost = \"0.0.0.0\"\nread_timeout = 1.5\n[model]\nkv_memory = "
      "\"1.5GiB\"\n",
      "t.toml", flags);
  REQUIRE(config.has_value());
  CHECK(config->values.server.port == 9000);
  CHECK(config->values.server.host == "0.0.0.0");
  CHECK(config->values.server.read_timeout.count == 1.5);
  CHECK(config->values.model.kv_memory.count == int64_t{3} << 29);
  CHECK(config->values.engine.max_queue == 256);
  CHECK(config->values.metrics.compat == std::vector<std::string>{"vllm", "llamacpp"});
  CHECK(config->sources.at("server.port") == "command line");
  CHECK(config->sources.at("server.host") == "t.toml:3");
  CHECK(config->sources.at("model.kv_memory") == "t.toml:6");
  CHECK(config->sources.at("engine.max_queue") == "default");
}

TEST_CASE("An unknown key is refused with its line and the nearest one", "[config]") {
  CHECK(ErrorOf("[server]\nhsot = \"x\"\n") ==
        "t.toml:2: unknown key \"server.hsot\"; did you mean \"server.host\"?");
}

TEST_CASE("Unknown sections and misplaced keys are refused with a suggestion", "[config]") {
  CHECK(Contains(ErrorOf("[sever]\nport = 1\n"), "did you mean \"server\"?"));
  CHECK(Contains(ErrorOf("port = 1\n"), "did you mean \"server.port\"?"));
  CHECK(Contains(ErrorOf("server = 1\n"), "t.toml:1"));
  const std::string far = ErrorOf("[server]\ncompletely_else = 1\n");
  CHECK(Contains(far, "unknown key"));
  CHECK(!Contains(far, "did you mean"));
}

TEST_CASE("A wrong type or range names the key, the file and the line", "[config]") {
  for (const char* line :
       {"port = \"80\"", "port = 70000", "port = -1", "port = 1.5", "port = true", "port = [1]",
        "host = 5", "read_timeout = \"soon\"", "read_timeout = -1", "body_limit = \"1 parsec\"",
        "body_limit = 1", "cors_origins = \"*\"", "cors_origins = [1]", "port = 1979-05-27"}) {
    CAPTURE(line);
    const std::string error = ErrorOf("[server]\n\n" + std::string(line) + "\n");
    CHECK(error.starts_with("t.toml:3: server."));
  }
  CHECK(Contains(ErrorOf("[log]\nlevel = \"loud\"\n"), "one of debug, info"));
  CHECK(Contains(ErrorOf("[model]\nkv_dtype = \"q4\"\n"), "one of auto, f32, f16, bf16, q8"));
  CHECK(Contains(ErrorOf("[experts]\nquality = \"best\"\n"), "one of exact, balanced, fast"));
  CHECK(Contains(ErrorOf("[experts]\nexpert_mass = 1.01\n"), "a number from 0 to 1"));
  CHECK(Contains(ErrorOf("[experts]\nexpert_mass = \"1\"\n"), "a number from 0 to 1"));
  CHECK(ErrorOf("[experts]\nexpert_mass = 1\nexpert_prune = 0.25\n").empty());
  CHECK(Contains(ErrorOf("[metrics]\ncompat = [\"statsd\"]\n"), "vllm, llamacpp"));
  CHECK(ErrorOf("[server\n").starts_with("t.toml:1"));
  CHECK(ErrorOf("[server]\nport = 1\nport = 2\n").starts_with("t.toml:3"));
}

TEST_CASE("A wrong flag value names the flag", "[config]") {
  const std::vector<CommandLineValue> flags = {{FindSetting("server.port"), "http"}};
  const auto config = LoadConfigText("", "", flags);
  REQUIRE(!config.has_value());
  CHECK(config.error().message.starts_with("--port: expected an integer from 0 to 65535"));
}

TEST_CASE("Numbers with a fraction come from flags, and go back as they came", "[config]") {
  const Setting* const mass = FindSetting("experts.expert_mass");
  const auto config = LoadConfigText("", "", std::vector<CommandLineValue>{{mass, "0.375"}});
  REQUIRE(config.has_value());
  CHECK(config->values.experts.expert_mass == 0.375);
  CHECK(ValueText(*mass, config->values) == "0.375");
  CHECK(ValueText(*mass, Config{}) == "1");
  for (const char* text : {"", "x", "0.5x", "nan", "-1", "2"}) {
    CAPTURE(text);
    const auto wrong = LoadConfigText("", "", std::vector<CommandLineValue>{{mass, text}});
    REQUIRE(!wrong.has_value());
    CHECK(wrong.error().message.starts_with("--expert-mass: expected a number from 0 to 1"));
  }
}

TEST_CASE("A configuration file that is not there is refused with its name", "[config]") {
  const auto config = LoadConfig("/nowhere/sluice.toml", {});
  REQUIRE(!config.has_value());
  CHECK(Contains(config.error().message, "/nowhere/sluice.toml"));
}

TEST_CASE("Sizes and times take units", "[config]") {
  CHECK(ParseBytes("512MiB")->count == 512 << 20);
  CHECK(ParseBytes("4 kB")->count == 4000);
  CHECK(ParseBytes("1g")->count == 1 << 30);
  CHECK(ParseBytes("77")->count == 77);
  CHECK(!ParseBytes("-1"));
  CHECK(!ParseBytes("MiB"));
  CHECK(!ParseBytes("1e400"));
  CHECK(!ParseBytes("nan"));
  CHECK(ParseSeconds("250ms")->count == 0.25);
  CHECK(ParseSeconds("2m")->count == 120);
  CHECK(ParseSeconds("1.5")->count == 1.5);
  CHECK(!ParseSeconds("1 fortnight"));
}

TEST_CASE("The printed configuration says where values came from and reads back the same",
          "[config]") {
  const std::vector<CommandLineValue> flags = {{FindSetting("server.port"), "9000"}};
  const auto config = LoadConfigText(
      "[server]\ncors_origins = [\"https://a.example\"]\nbody_limit = 2000\n", "t.toml", flags);
  REQUIRE(config.has_value());
  const std::string text = PrintConfig(*config);
  CHECK(Contains(text, "[server]\n"));
  CHECK(Contains(text, "# command line"));
  CHECK(Contains(text, "# t.toml:2"));
  CHECK(Contains(text, "# default"));
  const auto again = LoadConfigText(text, "again.toml", {});
  REQUIRE(again.has_value());
  for (const Setting& setting : Settings()) {
    CAPTURE(setting.name());
    CHECK(ValueText(setting, again->values) == ValueText(setting, config->values));
  }
  const auto json = nlohmann::json::parse(PrintConfigJson(*config));
  CHECK(json["server.port"]["value"] == 9000);
  CHECK(json["server.port"]["source"] == "command line");
  CHECK(json["server.cors_origins"]["value"][0] == "https://a.example");
}

TEST_CASE("Values with odd characters are printed as TOML and JSON can spell them", "[config]") {
  const auto printed = [](const std::string& value) {
    const std::vector<CommandLineValue> flags = {{FindSetting("model.path"), value}};
    const auto config = LoadConfigText("", "", flags);
    REQUIRE(config.has_value());
    const auto again = LoadConfigText(PrintConfig(*config), "again.toml", {});
    REQUIRE(again.has_value());
    const auto json = nlohmann::json::parse(PrintConfigJson(*config));
    CHECK(json["model.path"]["value"] == again->values.model.path);
    return again->values.model.path;
  };
  for (const char* value : {"a \"b\" \\ c", "tab\tline\nend\x7f\x01", "\xC3\xA9"}) {
    CHECK(printed(value) == value);
  }
  CHECK(printed("not \xFF utf") == "not \xEF\xBF\xBD utf");
}

TEST_CASE("The example configuration is valid and shows the defaults", "[config]") {
  const auto config = LoadConfig(SLUICE_SOURCE_DIR "/config/sluice.toml", {});
  REQUIRE(config.has_value());
  std::ifstream page(SLUICE_SOURCE_DIR "/config/README.md");
  const std::string reference((std::istreambuf_iterator<char>(page)), {});
  const Config defaults;
  for (const Setting& setting : Settings()) {
    CAPTURE(setting.name());
    if (setting.name() != "model.path") {
      CHECK(ValueText(setting, config->values) == ValueText(setting, defaults));
    }
    CHECK(config->sources.at(setting.name()) != "default");
    CHECK(Contains(reference, "`" + std::string(setting.key) + "`"));
    CHECK(Contains(reference, "`" + std::string(setting.flag) + "`"));
  }
}

TEST_CASE("API keys are read from lines and compared whole", "[config][keys]") {
  const auto keys = ApiKeys::Parse("# keys\n\n  sk-first-key \r\nsk-second-key", "keys");
  REQUIRE(keys.has_value());
  CHECK(keys->size() == 2);
  CHECK(keys->required());
  CHECK(keys->Accepts("Bearer sk-first-key"));
  CHECK(keys->Accepts("bearer sk-second-key"));
  for (const char* bad : {"", "Bearer", "Bearer ", "Bearer sk-first-ke", "Bearer sk-first-key2",
                          "Basic sk-first-key", "sk-first-key", "Bearer # keys"}) {
    CAPTURE(bad);
    CHECK(!keys->Accepts(bad));
  }
  CHECK(ApiKeys().Accepts(""));
  CHECK(ConstantTimeEquals("abc", "abc"));
  CHECK(!ConstantTimeEquals("abc", "abd"));
  CHECK(!ConstantTimeEquals("abc", "abcd"));
}

TEST_CASE("A key's line may say what it may do", "[config][keys]") {
  const auto keys = ApiKeys::Parse(
      "sk-first-key name=alice weight=2.5 max_concurrent=4\t requests_per_minute=60\n"
      "sk-second-key tokens_per_minute=20000 \r\nsk-third-key",
      "keys");
  REQUIRE(keys.has_value());
  REQUIRE(keys->limits().size() == 3);
  CHECK(keys->Find("Bearer sk-second-key") == 1u);
  CHECK_FALSE(keys->Find("Bearer sk-second-key tokens_per_minute=20000").has_value());
  const KeyLimits& first = keys->limits()[0];
  CHECK(first.name == "alice");
  CHECK(first.weight == 2.5);
  CHECK(first.max_concurrent == 4);
  CHECK(first.requests_per_minute == 60);
  CHECK(first.tokens_per_minute == 0);
  CHECK(keys->limits()[1].tokens_per_minute == 20000);
  CHECK(keys->limits()[1].name == "key 2");
  CHECK(keys->limits()[2].weight == 1);
  for (const char* limit : {"weight=0", "weight=-1", "weight=x", "weight=2000", "max_concurrent=0",
                            "requests_per_minute=1.5", "speed=3", "name=", "weight"}) {
    CAPTURE(limit);
    const auto bad = ApiKeys::Parse("good-key-1\nsecret-key-2 " + std::string(limit), "k.txt");
    REQUIRE(!bad.has_value());
    CHECK(Contains(bad.error().message, "k.txt:2"));
    CHECK(!Contains(bad.error().message, "secret"));
  }
}

TEST_CASE("A bad key file is refused without showing the key", "[config][keys]") {
  for (const char* text : {"", "# only a comment\n", "short\n", "has a space inside\n"}) {
    CAPTURE(text);
    const auto keys = ApiKeys::Parse(text, "k.txt");
    REQUIRE(!keys.has_value());
    CHECK(Contains(keys.error().message, "k.txt"));
    CHECK(!Contains(keys.error().message, "short"));
    CHECK(!Contains(keys.error().message, "has a space"));
  }
}

TEST_CASE("KV memory by default is eight contexts, within a quarter of what is free",
          "[config][memory]") {
  constexpr size_t kBlockBytes = 1 << 20;
  // Plenty of memory: 8 contexts of 64 blocks.
  KvPlan plan = PlanKv(0, uint64_t{64} << 30, 0, kBlockBytes, 16, 1024);
  CHECK(plan.blocks == 512);
  CHECK(plan.context == 1024);
  // 1 GiB free after the weights: a quarter is 256 blocks.
  plan = PlanKv(0, uint64_t{3} << 30, uint64_t{2} << 30, kBlockBytes, 16, 1024);
  CHECK(plan.blocks == 256);
  CHECK(plan.context == 1024);
  // Less than one context: the context shrinks.
  plan = PlanKv(0, 64 << 20, 0, kBlockBytes, 16, 1024);
  CHECK(plan.blocks == 16);
  CHECK(plan.context == 256);
  // Asked for: taken as it is.
  plan = PlanKv(3 << 20, 0, 0, kBlockBytes, 16, 1024);
  CHECK(plan.blocks == 3);
  CHECK(plan.context == 48);
  CHECK(PlanKv(0, 100, 200, kBlockBytes, 16, 1024).blocks == 0);
}

TEST_CASE("Memory signals come from the group's own pressure and the machine's",
          "[config][memory]") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("sluice-signals-" + std::to_string(getpid()));
  fs::remove_all(root);
  const auto write = [&](const char* path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("proc/meminfo", "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable:  4000 kB\n");
  write("proc/self/cgroup", "4:memory:/elsewhere\n0::/a/b\n");
  write("proc/pressure/memory",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n");
  MemorySignals signals = ReadMemorySignals(root);
  CHECK(signals.machine_bytes == 8000 * 1024);
  CHECK(signals.machine_available_bytes == 4000 * 1024);
  CHECK(signals.available_bytes == 4000 * 1024);
  CHECK(signals.limit_bytes == std::numeric_limits<uint64_t>::max());
  CHECK(signals.machine_stall_seconds == 2.5);
  CHECK(signals.group_stall_seconds == 0);
  write("sys/fs/cgroup/a/b/memory.pressure",
        "some avg10=1.00 avg60=0.00 avg300=0.00 total=1500000\n");
  write("sys/fs/cgroup/a/b/memory.high", "3000000\n");
  write("sys/fs/cgroup/a/b/memory.current", "1000000\n");
  write("sys/fs/cgroup/a/memory.max", "2000000\n");
  write("sys/fs/cgroup/a/memory.current", "1900000\n");
  signals = ReadMemorySignals(root);
  CHECK(signals.limit_bytes == 2000000);
  CHECK(signals.available_bytes == 100000);
  CHECK(signals.group_stall_seconds == 1.5);
  fs::remove_all(root);
}

TEST_CASE("Available memory heeds the limits of the cgroup and its ancestors", "[config][memory]") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("sluice-memory-" + std::to_string(getpid()));
  fs::remove_all(root);
  const auto write = [&](const char* path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("proc/meminfo", "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable:  4000 kB\n");
  CHECK(AvailableMemoryBytes(root) == 4000 * 1024);
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  CHECK(AvailableMemoryBytes(root) == 4000 * 1024);
  write("sys/fs/cgroup/a/memory.max", "1000000\n");
  write("sys/fs/cgroup/a/memory.current", "300000\n");
  CHECK(AvailableMemoryBytes(root) == 700000);
  // What the kernel slows the group down at counts as its limit, cold page cache as free.
  write("sys/fs/cgroup/a/memory.high", "900000\n");
  write("sys/fs/cgroup/a/memory.stat", "anon 200000\ninactive_file 50000\n");
  CHECK(AvailableMemoryBytes(root) == 650000);
  write("proc/self/cgroup", "5:cpu,memory:/c\n");
  write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "50000\n");
  write("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "60000\n");
  CHECK(AvailableMemoryBytes(root) == 0);
  write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK(AvailableMemoryBytes(root) == 4000 * 1024);
  fs::remove_all(root);
}
