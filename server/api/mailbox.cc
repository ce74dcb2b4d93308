#include "server/api/mailbox.h"

#include "server/metrics/metrics.h"

namespace sluice {

Mailbox::Mailbox(size_t limit_bytes, std::function<void()> wake)
    : limit_bytes_(limit_bytes), wake_(std::move(wake)) {}

bool Mailbox::Post(Mail mail) {
  bool wake = false, kept = true;
  {
    std::lock_guard lock(mutex_);
    wake = mail_.empty();
    if (const auto* token = std::get_if<TokenOutput>(&mail.content)) {
      if (!overflowed_) bytes_ += sizeof(Mail) + token->top.size() * sizeof(TokenLogprob);
      overflowed_ = overflowed_ || bytes_ > limit_bytes_;
      kept = !overflowed_;
    }
    if (kept) mail_.push_back(std::move(mail));
    wake = wake && !mail_.empty();
  }
  if (wake) wake_();
  return kept;
}

bool Mailbox::Drain(std::vector<Mail>& out) {
  std::lock_guard lock(mutex_);
  out = std::move(mail_);
  mail_.clear();
  bytes_ = 0;
  return overflowed_;
}

MailboxSink::MailboxSink(std::shared_ptr<Mailbox> mailbox, int choice, Engine* engine,
                         std::shared_ptr<Metrics> metrics)
    : mailbox_(std::move(mailbox)),
      choice_(choice),
      engine_(engine),
      metrics_(std::move(metrics)) {}

void MailboxSink::OnPrompt(std::vector<TokenOutput> prompt) {
  mailbox_->Post({choice_, std::chrono::steady_clock::now(), std::move(prompt)});
}

void MailboxSink::OnToken(TokenOutput token) {
  if (mailbox_->Post({choice_, std::chrono::steady_clock::now(), std::move(token)})) return;
  const RequestId id = id_.load();
  if (id != kNoId) engine_->Cancel(id);
}

void MailboxSink::OnFinish(Finish finish) {
  if (metrics_) metrics_->ObserveEngineFinish(finish);
  mailbox_->Post({choice_, std::chrono::steady_clock::now(), std::move(finish)});
}

}  // namespace sluice
