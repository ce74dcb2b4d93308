#include "server/system/notify.h"

#include <systemd/sd-daemon.h>

namespace sluice {

void NotifyReady(const std::string& status) { sd_notify(0, ("READY=1\nSTATUS=" + status).c_str()); }
void NotifyStopping() { sd_notify(0, "STOPPING=1\nSTATUS=draining"); }
void NotifyStatus(const std::string& status) { sd_notify(0, ("STATUS=" + status).c_str()); }
void NotifyStarting(const std::string& status) {
  sd_notify(0, ("EXTEND_TIMEOUT_USEC=600000000\nSTATUS=" + status).c_str());
}
void NotifyWatchdog() { sd_notify(0, "WATCHDOG=1"); }

std::chrono::microseconds WatchdogPeriod() {
  uint64_t period_us = 0;
  return std::chrono::microseconds(sd_watchdog_enabled(0, &period_us) > 0 ? period_us : 0);
}

}  // namespace sluice
