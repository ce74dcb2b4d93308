// The sluice binary: one subcommand per job.
#include <CLI/CLI.hpp>
#include <string>

#include "server/commands/commands.h"
#include "server/version.h"

namespace {

constexpr const char* kFooter =
    "Examples:\n"
#if defined(SLUICE_WITH_SERVER)
    R"(  sluice serve --model deploy/demo-model            serve on http://127.0.0.1:8080
  sluice plan --model MODEL.sluice --users 4        foretell memory and speed here
  sluice top http://127.0.0.1:8080                  watch a running server
)"
#endif
    R"(  sluice bench --model deploy/demo-model --json     measure this machine
  sluice eval --model deploy/demo-model --text FILE measure the model
  sluice pack MODEL.gguf MODEL.sluice               make a pack: one file, ready to compute
  sluice inspect MODEL.sluice --verify              show what a pack holds; check it
  sluice trace replay FILE.trace --policy lru,auto  compare cache policies on recorded routing

`sluice COMMAND --help` is the manual of a command.)";

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("sluice: an inference server for sparse Mixture-of-Experts language models",
               "sluice");
  app.set_version_flag("--version", std::string("sluice ") + sluice::kVersion);
  app.require_subcommand(1);
  app.footer(kFooter);
  app.get_formatter()->column_width(36);
  int exit_code = 0;
#if defined(SLUICE_WITH_SERVER)
  sluice::AddServe(app, &exit_code);
#endif
  sluice::AddBench(app, &exit_code);
  sluice::AddEval(app, &exit_code);
  sluice::AddPack(app, &exit_code);
  sluice::AddInspect(app, &exit_code);
  sluice::AddTrace(app, &exit_code);
#if defined(SLUICE_WITH_SERVER)
  sluice::AddPlan(app, &exit_code);
  sluice::AddTop(app, &exit_code);
#endif
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : sluice::kExitUsage;
  }
  return exit_code;
}
