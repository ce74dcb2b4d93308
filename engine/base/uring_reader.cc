// DirectReader through io_uring: one ring, used by one thread; a read of an eventfd stays in it so
// that Wake reaches a thread that sleeps in the kernel.
#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "engine/base/check.h"
#include "engine/base/direct_file.h"

namespace sluice {
namespace {

constexpr uint64_t kWakeUp = ~uint64_t{0};

// Places in the ring's table of registered files.
enum RegisteredFile { kBufferedFile = 0, kDirectFile = 1 };

class UringReader final : public DirectReader {
 public:
  UringReader(const File& file, const DirectReaderOptions& options)
      : file_(file, options.direct), slots_(static_cast<size_t>(options.depth)) {
    for (size_t i = slots_.size(); i-- > 0;) free_.push_back(i);
  }

  ~UringReader() override {
    std::vector<LandedPiece> landed;
    while (in_flight_ > 0) Collect(true, &landed);
    if (ring_made_) io_uring_queue_exit(&ring_);
    if (event_ >= 0) ::close(event_);
  }

  bool Init() {
    event_ = ::eventfd(0, EFD_CLOEXEC);
    if (event_ < 0) return false;
    // Completions are taken in by the thread that waits for them, not by interrupting it; older
    // kernels know fewer of these flags. The thread that first submits becomes the ring's.
    constexpr unsigned kFlags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED, IORING_SETUP_R_DISABLED};
    const auto entries = static_cast<unsigned>(slots_.size()) + 1;
    for (const unsigned flags : kFlags) {
      io_uring_params params = {};
      params.flags = flags;
      const int made = io_uring_queue_init_params(entries, &ring_, &params);
      if (made == -EINVAL) continue;
      if (made < 0) return false;
      ring_made_ = true;
      deferred_ = (flags & IORING_SETUP_DEFER_TASKRUN) != 0;
      break;
    }
    if (!ring_made_) return false;
    const int descriptors[] = {file_.buffered_descriptor(), file_.direct_descriptor()};
    const unsigned count = file_.direct_descriptor() >= 0 ? 2 : 1;
    return io_uring_register_files(&ring_, descriptors, count) == 0;
  }

  void Submit(const PieceRead& piece) override {
    SLUICE_CHECK(!free_.empty(), "more pieces than the reader's depth");
    Enable();
    const size_t number = free_.back();
    free_.pop_back();
    Slot& slot = slots_[number];
    slot.piece = piece;  // the kernel reads the list of parts when the piece is sent
    slot.direct = file_.ReadsDirectly(piece);
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    SLUICE_CHECK(entry != nullptr);
    io_uring_prep_readv(entry, slot.direct ? kDirectFile : kBufferedFile, slot.piece.parts.data(),
                        static_cast<unsigned>(piece.part_count), piece.offset_bytes);
    entry->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(entry, number);
    ++in_flight_;
  }

  void Collect(bool wait, std::vector<LandedPiece>* landed) override {
    Enable();
    const size_t before = landed->size();
    bool woken = TakeLanded(landed);
    while (true) {
      const bool sleep = wait && !woken && landed->size() == before;
      int sent = 0;
      if (sleep) {
        sent = io_uring_submit_and_wait(&ring_, 1);
      } else if (io_uring_sq_ready(&ring_) > 0) {
        sent = io_uring_submit(&ring_);
      }
      // Without memory for a request (or with no room for its completion) the kernel wants us to
      // try again.
      if (sent < 0 && sent != -EINTR) {
        SLUICE_CHECK(sent == -EAGAIN || sent == -EBUSY || sent == -ENOMEM,
                     "the kernel refuses an io_uring that it gave us");
        const timespec pause = {0, 1000000};
        ::nanosleep(&pause, nullptr);
      }
      if (deferred_ && !sleep) io_uring_get_events(&ring_);
      woken |= TakeLanded(landed);
      if (io_uring_sq_ready(&ring_) == 0 && (!wait || woken || landed->size() > before)) return;
    }
  }

  void Wake() override {
    const uint64_t one = 1;
    static_cast<void>(!::write(event_, &one, sizeof one));  // fails only at 2^64 - 1 wake-ups
  }

  int in_flight() const override { return in_flight_; }
  std::string_view method() const override { return "io_uring"; }
  size_t direct_align() const override { return file_.align(); }

 private:
  struct Slot {
    PieceRead piece;
    bool direct = false;
  };

  void Enable() {
    if (enabled_) return;
    // io_uring_enable_rings is declared by liburing 2.3 and missing from its library.
    SLUICE_CHECK(::syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                           nullptr, 0) == 0);
    enabled_ = true;
    ArmWake();
  }

  void ArmWake() {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    SLUICE_CHECK(entry != nullptr);
    io_uring_prep_read(entry, event_, &wakes_, sizeof wakes_, 0);
    io_uring_sqe_set_data64(entry, kWakeUp);
  }

  // Whether Wake was among it.
  bool TakeLanded(std::vector<LandedPiece>* landed) {
    bool woken = false;
    io_uring_cqe* entry = nullptr;
    while (io_uring_peek_cqe(&ring_, &entry) == 0) {
      const uint64_t number = io_uring_cqe_get_data64(entry);
      const int result = entry->res;
      io_uring_cqe_seen(&ring_, entry);
      if (number == kWakeUp) {
        woken = true;
        ArmWake();
        continue;
      }
      const Slot& slot = slots_[number];
      if (!slot.direct) file_.Forget(slot.piece);
      landed->push_back({slot.piece.token, result});
      free_.push_back(number);
      --in_flight_;
    }
    return woken;
  }

  DirectFile file_;
  io_uring ring_ = {};
  bool ring_made_ = false;
  bool enabled_ = false;
  bool deferred_ = false;
  int event_ = -1;
  uint64_t wakes_ = 0;  // written by the kernel
  std::vector<Slot> slots_;
  std::vector<size_t> free_;  // numbers of slots
  int in_flight_ = 0;
};

}  // namespace

std::unique_ptr<DirectReader> MakeUringReader(const File& file,
                                              const DirectReaderOptions& options) {
  auto reader = std::make_unique<UringReader>(file, options);
  if (!reader->Init()) return nullptr;
  return reader;
}

}  // namespace sluice
