// DirectReader through threads that call preadv: as many as the depth.
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "engine/base/check.h"
#include "engine/base/direct_file.h"

namespace sluice {
namespace {

class ThreadReader final : public DirectReader {
 public:
  ThreadReader(const File& file, const DirectReaderOptions& options)
      : file_(file, options.direct), depth_(options.depth) {}

  ~ThreadReader() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    asked_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  bool Init() {
    try {
      for (int i = 0; i < depth_; ++i) threads_.emplace_back([this] { Work(); });
    } catch (const std::system_error&) {
      return false;  // the destructor ends those that were started
    }
    return true;
  }

  void Submit(const PieceRead& piece) override {
    SLUICE_CHECK(in_flight_ < depth_, "more pieces than the reader's depth");
    ++in_flight_;
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(piece);
    }
    asked_.notify_one();
  }

  void Collect(bool wait, std::vector<LandedPiece>* landed) override {
    std::unique_lock lock(mutex_);
    if (wait) {
      answered_.wait(lock, [this] { return woken_ || !landed_.empty(); });
      woken_ = false;
    }
    landed->insert(landed->end(), landed_.begin(), landed_.end());
    in_flight_ -= static_cast<int>(landed_.size());
    landed_.clear();
  }

  void Wake() override {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
    }
    answered_.notify_one();
  }

  int in_flight() const override { return in_flight_; }
  std::string_view method() const override { return "threads"; }
  size_t direct_align() const override { return file_.align(); }

 private:
  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      asked_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const PieceRead piece = queue_.front();
      queue_.pop_front();
      lock.unlock();
      const LandedPiece landed = {piece.token, Read(piece)};
      lock.lock();
      landed_.push_back(landed);
      answered_.notify_one();
    }
  }

  int64_t Read(const PieceRead& piece) const {
    const bool direct = file_.ReadsDirectly(piece);
    const int descriptor = direct ? file_.direct_descriptor() : file_.buffered_descriptor();
    ssize_t got;
    do {
      got = ::preadv(descriptor, piece.parts.data(), piece.part_count,
                     static_cast<off_t>(piece.offset_bytes));
    } while (got < 0 && errno == EINTR);
    const int64_t result = got < 0 ? -errno : got;
    if (!direct) file_.Forget(piece);
    return result;
  }

  const DirectFile file_;
  const int depth_;
  int in_flight_ = 0;  // of the thread that submits
  std::mutex mutex_;
  std::condition_variable asked_;
  std::condition_variable answered_;
  std::deque<PieceRead> queue_;      // GUARDED_BY(mutex_)
  std::vector<LandedPiece> landed_;  // GUARDED_BY(mutex_)
  bool woken_ = false;               // GUARDED_BY(mutex_)
  bool stopping_ = false;            // GUARDED_BY(mutex_)
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<DirectReader> MakeThreadReader(const File& file,
                                               const DirectReaderOptions& options) {
  auto reader = std::make_unique<ThreadReader>(file, options);
  if (!reader->Init()) return nullptr;
  return reader;
}

}  // namespace sluice
