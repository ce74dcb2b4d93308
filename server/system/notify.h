// The service manager's protocol (sd_notify): does nothing when the process was not started by one.
#pragma once

#include <chrono>
#include <string>

namespace sluice {

void NotifyReady(const std::string& status);
void NotifyStopping();
void NotifyStatus(const std::string& status);
// The same, and asks for ten more minutes before the start counts as failed.
void NotifyStarting(const std::string& status);
void NotifyWatchdog();

// How often the manager wants a pulse at the latest; zero when it does not watch.
std::chrono::microseconds WatchdogPeriod();

}  // namespace sluice
