// The subcommands of `sluice`. Each Add function registers one on `app`; its callback stores the
// process's exit code in `exit_code`: 0 done, 1 it failed while running, 2 usage or configuration.
#pragma once

namespace CLI {
class App;
}

namespace sluice {

void AddServe(CLI::App& app, int* exit_code);
void AddBench(CLI::App& app, int* exit_code);
void AddEval(CLI::App& app, int* exit_code);
void AddPack(CLI::App& app, int* exit_code);
void AddInspect(CLI::App& app, int* exit_code);
void AddPlan(CLI::App& app, int* exit_code);
void AddTop(CLI::App& app, int* exit_code);
void AddTrace(CLI::App& app, int* exit_code);

inline constexpr int kExitRuntime = 1;
inline constexpr int kExitUsage = 2;

}  // namespace sluice
